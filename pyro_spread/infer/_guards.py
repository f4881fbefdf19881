# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the losses check, and how they undo what a failed step changed."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro import poutine
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_spread import _parents
from pyro_spread._recording import to_be_finite, values_known
from pyro_spread._snapshot import StepSnapshot
from pyro_spread._transaction import arm, is_running, transaction
from spread_core.arguments import positional_names
from spread_core.messages import guard as guard_messages
from spread_core.noise.learned import is_noise
from spread_core.nonfinite import (
    NonFiniteError,
    find_nonfinite,
    is_about_numbers,
    root_cause,
)
from spread_core.typing import Guide, Model

#: Params that some loss has put into the store, other than by loading it from a file: those of
#: critics and of learned noise, with the name of the whole.
critic_params = WeakTensorKeyDictionary()
#: Names of discriminators that no site of the guide asks for, by their loss: they have no params.
idle_critics: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
# What the distributions of torch say of a value or param outside its constraint.
_VALUE = "Expected value argument"
_VALIDATION = (_VALUE, "Expected parameter")
_SHOWN = "found invalid values:"


@contextmanager
def as_before_on_error(
    loss: Any,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    is_step: bool = True,
) -> Iterator[StepSnapshot]:
    """
    Run a method of a loss; after any exception everything except the random state is as before.

    Params that were added are removed, the buffers of all nets (the running averages of batch
    normalisation) and the loss's own counters are restored, and gradients are zero if it was a
    step. If NaN or inf is the reason, the error is a :class:`NonFiniteError` that says where they
    came from.

    :param loss: whose counters are kept.
    :param model: whose argument names appear in the message.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param is_step: whether the gradients of a step are made.
    """
    capture = poutine.trace(param_only=True)
    reason: NonFiniteError | None = None
    try:
        with transaction(loss) as step:
            try:
                with capture:
                    yield step
            except BaseException as error:
                params = captured(capture)
                if is_step:
                    step.clear_grads(params)
                if isinstance(error, Exception):
                    # While params have names.
                    reason = _explain(error, params, model, args, kwargs)
                raise
    except Exception as error:
        if reason is None or reason is error:
            raise
        raise reason from error


def as_one(method: Callable[..., Any]) -> Callable[..., Any]:
    """
    A method ``(self, model, guide, *args, **kwargs)`` of a loss, with :func:`as_before_on_error`.

    After a method that computes gradients, the SVI's optimiser finishes the step, and undoes it if
    it fails.
    """
    is_step = method.__name__ == "loss_and_grads"
    makes_steps = is_step or method.__name__ == "differentiable_loss"

    @functools.wraps(method)
    def wrapped(self: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> Any:
        with as_before_on_error(self, model, args, kwargs, is_step) as step:
            value = method(self, model, guide, *args, **kwargs)
        if makes_steps and torch.is_grad_enabled() and not is_running():
            arm(step)
        return value

    return wrapped


def captured(capture: Any) -> list[torch.Tensor]:
    """The unconstrained params in a trace of params."""
    sites = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
    params = [site["value"].unconstrained() for site in sites if site["value"] is not None]
    return [param for param in params if param is not None]


def is_finite(x: torch.Tensor) -> bool:
    """Whether ``x`` holds neither NaN nor inf; True where it is not known yet."""
    if not x.dtype.is_floating_point:
        return True
    if not values_known():
        to_be_finite(x)
        return True
    # One reduction finds NaN and inf; only a sum that overflowed has to be looked at again.
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def what_is_wrong(x: torch.Tensor) -> str:
    """NaN or inf, whichever is in ``x``."""
    return "NaN" if bool(torch.isnan(x).any()) else "inf"


def player(param: torch.Tensor) -> str:
    """The player that a param belongs to."""
    name = critic_params.get(param)
    if name is None:
        return "generator"
    return "noise" if is_noise(name) else "discriminator"


def check_params(params: Iterable[torch.Tensor]) -> None:
    """
    Refuse to go on from params that are not finite.

    :raises NonFiniteError: naming param and player.
    """
    for param in params:
        if not is_finite(param.detach()):
            name, what = param_name(param), what_is_wrong(param.detach())
            raise NonFiniteError(guard_messages.nonfinite_param(what, name, player(param)))


def param_name(param: torch.Tensor) -> str:
    """Name of an unconstrained param in the store."""
    return _parents.name_of_param(param) or "(of the failing step)"


def check_logits(
    discriminator: nn.Module, logits: torch.Tensor, values: Mapping[str, torch.Tensor]
) -> None:
    """
    Refuse logits that are not finite, and say whose fault it is.

    :raises NonFiniteError: naming the site or param, and the player.
    """
    if is_finite(logits.detach()):
        return
    for site, value in values.items():
        if not is_finite(value.detach()):
            what = what_is_wrong(value.detach())
            raise NonFiniteError(guard_messages.nonfinite_seen(what, site, "generator"))
    for name, param in discriminator.named_parameters():
        if not is_finite(param.detach()):
            what = what_is_wrong(param.detach())
            raise NonFiniteError(guard_messages.nonfinite_param(what, name, "discriminator"))
    what = what_is_wrong(logits.detach())
    raise NonFiniteError(guard_messages.nonfinite_logits(what, f"its values of {sorted(values)}"))


def as_nonfinite(error: Exception) -> NonFiniteError | None:
    """
    The error of a step as one about NaN and inf, if it is about numbers; None if it is not.

    Data outside a distribution's support are a mistake of the program unless they are NaN or inf;
    latents there are rounded.
    """
    found = find_nonfinite(error)
    if found is not None:
        return found
    root = root_cause(error)
    numeric = is_about_numbers(root)
    if str(root).startswith(_VALUE):
        frames = [frame.f_locals for frame, _ in traceback.walk_tb(root.__traceback__)]
        values = [names["value"] for names in frames if "value" in names]
        numeric = any(isinstance(x, torch.Tensor) and not is_finite(x) for x in values[-1:])
        sites = [names["site"] for names in frames if isinstance(names.get("site"), dict)]
        numeric = numeric or any(site.get("is_observed") is False for site in sites)
    return NonFiniteError(guard_messages.numeric_error(root)) if numeric else None


def _explain(
    error: Exception,
    params: Iterable[torch.Tensor],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> NonFiniteError | None:
    """How NaN or inf caused an error; None if they did not."""
    found, text = find_nonfinite(error), str(error)
    if found is None and not any(part in text for part in _VALIDATION):
        return None
    # Of large tensors torch shows the corners only.
    shown = text.partition(_SHOWN)[2].partition("Trace Shapes")[0]
    if found is None and "nan" not in shown and "..." not in shown:
        return None
    try:
        check_params(params)
    except NonFiniteError as reason:
        return reason
    named = dict(zip(positional_names(model), args, strict=False)) | dict(kwargs)
    bad = {n: a for n, a in named.items() if isinstance(a, torch.Tensor) and not is_finite(a)}
    if bad and not text.startswith("site"):  # that one is named already
        what = what_is_wrong(next(iter(bad.values())))
        return NonFiniteError(guard_messages.nonfinite_argument(what, sorted(bad), found or error))
    if found is None and "nan" in shown:
        return NonFiniteError(guard_messages.nonfinite_inside("model or guide", error))
    return found
