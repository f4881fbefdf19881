# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the losses check, and how they leave nothing behind when a step fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro import poutine
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from spread_analysis import _messages
from spread_analysis._arguments import positional_names
from spread_analysis._nonfinite import NonFiniteError, find_nonfinite
from spread_analysis._stateful import Stateful

#: Params that some loss has put into the store, other than by loading it from a file.
critic_params = WeakTensorKeyDictionary()
#: Names of discriminators that no site of the guide asks for, by their loss: they have no params.
idle_critics: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
# What the distributions of torch say of a value or param outside of its constraint.
_VALIDATION = ("Expected value argument", "Expected parameter")
_SHOWN = "found invalid values:"


@contextmanager
def no_new_params_on_error() -> Iterator[None]:
    """Forget the params that a failing call has put into the store."""
    before = set(pyro.get_param_store().keys())
    try:
        yield
    except Exception:
        _forget_all_but(before)
        raise


class Before:
    """What a step changes beside gradients and the optimiser: which params there are, and more."""

    def __init__(self, loss: Any) -> None:
        self._loss = loss if isinstance(loss, Stateful) else None
        self._counters = None if self._loss is None else self._loss.get_state()
        self._names = set(pyro.get_param_store().keys())
        self.buffers = Buffers()

    def restore(self) -> None:
        """Put back counters of the loss and buffers of nets, and forget new params."""
        if self._loss is not None and self._counters is not None:
            self._loss.set_state(self._counters)
        self.buffers.restore()
        _forget_all_but(self._names)


def _forget_all_but(names: set[str]) -> None:
    store = pyro.get_param_store()
    for name in set(store.keys()) - names:
        del store[name]


@contextmanager
def as_before_on_error(
    loss: Any, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[Before]:
    """
    Around a training step: if it fails, all but the random state is as it was before.

    That is: params are none the more, gradients zero, the buffers of all nets (the running averages
    of batch normalisation) and the loss's own counters as they were. If NaN or inf is the reason,
    the error is a :class:`NonFiniteError` that says where they came from.

    :param loss: whose counters are kept.
    :param model: whose argument names are told.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    """
    capture, before = poutine.trace(param_only=True), Before(loss)
    try:
        with capture, before.buffers:
            yield before
    except Exception as error:
        params = captured(capture)
        for param in params:
            if param.grad is not None:
                param.grad = torch.zeros_like(param.grad)
        reason = _explain(error, params, model, args, kwargs)  # while params have names
        before.restore()
        if reason is None or reason is error:
            raise
        raise reason from error


def left_as_before(
    loss: Any,
    method: str,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> AbstractContextManager[Any]:
    """
    Around a method of a stock ELBO that a loss runs: what an error may leave behind.

    :param loss: the loss.
    :param method: name of the method; one that adds gradients makes a step.
    :param model: the model.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    """
    if method == "loss_and_grads":
        return as_before_on_error(loss, model, args, kwargs)
    return no_new_params_on_error()


def captured(capture: Any) -> list[torch.Tensor]:
    """The unconstrained params in a trace of params."""
    sites = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
    params = [site["value"].unconstrained() for site in sites if site["value"] is not None]
    return [param for param in params if param is not None]


class Buffers:
    """
    Buffers of the modules that this thread calls inside the context, as they were before.

    Models are functions, so that one does not know beforehand which modules they will call.
    """

    def __init__(self) -> None:
        self._saved: list[tuple[nn.Module, str, torch.Tensor | None, torch.Tensor | None]] = []
        self._seen: set[nn.Module] = set()
        self._thread = threading.get_ident()

    def __enter__(self) -> Buffers:
        if not torch._C._get_tracing_state():
            self._handle = register_module_forward_pre_hook(self._look)
        return self

    def __exit__(self, *_: Any) -> None:
        if hasattr(self, "_handle"):
            self._handle.remove()

    def _look(self, module: nn.Module, _: Any) -> None:
        # The hook is the process's, and other threads train nets of their own.
        if threading.get_ident() == self._thread:
            self.keep(module)

    def keep(self, module: nn.Module) -> None:
        """Remember what this module holds now, unless it has been looked at before."""
        if not module._buffers or module in self._seen:
            return
        self._seen.add(module)
        for name, buffer in module._buffers.items():
            if buffer is None or not nn.parameter.is_lazy(buffer):
                value = None if buffer is None else buffer.detach().clone()
                self._saved.append((module, name, buffer, value))

    def restore(self) -> None:
        """Put the values back, into the tensors that held them."""
        with torch.no_grad():
            for module, name, buffer, value in self._saved:
                module._buffers[name] = buffer
                if buffer is not None and value is not None:
                    buffer.copy_(value)


@contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Keep the running averages of batch normalisation out of an evaluation."""
    saved = Buffers()
    for part in module.modules():
        saved.keep(part)
    try:
        yield
    finally:
        saved.restore()


def is_finite(x: torch.Tensor) -> bool:
    """Whether ``x`` holds neither NaN nor inf; True where it is not known yet."""
    if not x.dtype.is_floating_point or torch._C._get_tracing_state():
        return True
    # One reduction finds NaN and inf; only a sum that overflowed has to be looked at again.
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def what_is_wrong(x: torch.Tensor) -> str:
    """NaN or inf, whichever is in ``x``."""
    return "NaN" if bool(torch.isnan(x).any()) else "inf"


def player(param: torch.Tensor) -> str:
    """Whose a param is."""
    return "discriminator" if param in critic_params else "generator"


def check_params(params: Iterable[torch.Tensor]) -> None:
    """
    Refuse to go on from params that are not finite.

    :raises NonFiniteError: naming param and player.
    """
    for param in params:
        if not is_finite(param.detach()):
            name, what = param_name(param), what_is_wrong(param.detach())
            raise NonFiniteError(_messages.nonfinite_param(what, name, player(param)))


def param_name(param: torch.Tensor) -> str:
    """Name of an unconstrained param in the store."""
    return str(pyro.get_param_store()._param_to_name.get(param, "(of the failing step)"))


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
            raise NonFiniteError(_messages.nonfinite_seen(what, site, "generator"))
    for name, param in discriminator.named_parameters():
        if not is_finite(param.detach()):
            what = what_is_wrong(param.detach())
            raise NonFiniteError(_messages.nonfinite_param(what, name, "discriminator"))
    what = what_is_wrong(logits.detach())
    raise NonFiniteError(_messages.nonfinite_logits(what, f"its values of {sorted(values)}"))


def _explain(
    error: Exception,
    params: Iterable[torch.Tensor],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> NonFiniteError | None:
    """What NaN or inf has to do with an error; None if nothing."""
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
        return NonFiniteError(_messages.nonfinite_argument(what, sorted(bad), found or error))
    if found is None and "nan" in shown:
        return NonFiniteError(_messages.nonfinite_inside("model or guide", error))
    return found
