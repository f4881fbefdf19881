# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A guard for an SVI: it takes no step that would end in NaN or inf."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import PyroOptim

from pyro_spread._snapshot import StepSnapshot
from pyro_spread._together import move
from pyro_spread._transaction import optimiser_step
from pyro_spread.infer._guards import (
    as_before_on_error,
    as_nonfinite,
    captured,
    check_params,
    is_finite,
    param_name,
    player,
    what_is_wrong,
)
from pyro_spread.optim import Composite
from spread_core.messages import guard as guard_messages
from spread_core.nonfinite import (
    GuardStatus,
    NonFiniteError,
    check_guard,
    is_worth_saying,
)
from spread_core.typing import Guide, Model

_STATUS = "finite_guard"


class FiniteGuard(Composite):
    """An optimiser, and the loss of the SVI that it serves, under guard: :func:`finite_guard`."""

    def __init__(
        self,
        guarded: PyroOptim,
        loss_and_grads: Callable[..., Any],
        on_nonfinite: str,
        factor: float,
        recover_after: int,
    ) -> None:
        check_guard(on_nonfinite, factor, recover_after)
        #: The optimiser that makes the steps.
        self.guarded = guarded
        self.on_nonfinite = on_nonfinite
        self.factor = factor
        self.recover_after = int(recover_after)
        self.status = GuardStatus(0, 0, 1.0, "")
        self._good = 0
        self._loss_and_grads = loss_and_grads
        self._steps: tuple[StepSnapshot, ...] = ()
        self._skipping = False
        # The SVI finds params by weak references, also those of a step that was not taken.
        self._kept: list[torch.Tensor] = []

    def loss_and_grads(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> Any:
        """
        Loss and gradients as those of the loss under guard; NaN for a step that is to be skipped.

        :raises NonFiniteError: if something is NaN or inf, and ``on_nonfinite`` is ``"raise"``.
        """
        self._skipping, capture = False, poutine.trace(param_only=True)
        loss_object = getattr(self._loss_and_grads, "__self__", self._loss_and_grads)
        try:
            with as_before_on_error(loss_object, model, args, kwargs) as step, capture:
                loss = self._loss_and_grads(model, guide, *args, **kwargs)
                self._check(loss, captured(capture))
        except Exception as error:
            self._skip(error)
            self._kept = captured(capture)
            self._skipping = True
            return math.nan
        self._steps = (step,)
        return loss

    def __call__(self, params: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        """
        The optimiser's step, unless this one is skipped or would end in NaN or inf.

        :param params: unconstrained params.
        :raises NonFiniteError: if it would, and ``on_nonfinite`` is ``"raise"``.
        """
        params = list(params)
        if self._skipping:
            self._skipping, self._kept = False, []
            return
        steps, self._steps = self._steps, ()
        scale = self.status.step_scale
        try:
            with optimiser_step(self, params, *steps) as before:
                move(self.guarded, params, *args, **kwargs)
                for param in params:
                    if not is_finite(param.detach()):
                        what, name = what_is_wrong(param.detach()), param_name(param)
                        message = guard_messages.nonfinite_update(what, name, player(param))
                        raise NonFiniteError(message)
                if scale < 1 and before is not None:
                    before.shorten(scale)
        except Exception as error:
            self._skip(error)
            return
        self._good += 1
        if self._good % self.recover_after == 0:
            scale = min(1.0, scale / self.factor)
        self.status = self.status._replace(in_a_row=0, step_scale=scale)

    def _check(self, loss: Any, params: list[torch.Tensor]) -> None:
        values = loss if isinstance(loss, tuple) else (loss,)
        for value in values:
            value = float(value)
            if not math.isfinite(value):
                check_params(params)
                message = guard_messages.nonfinite_loss("NaN" if math.isnan(value) else str(value))
                raise NonFiniteError(message)
        grads = [(param, param.grad) for param in params if param.grad is not None]
        if not grads:
            return
        # One number for all of them: what is wrong is looked for only if something is.
        sums = [grad.coalesce().values() if grad.is_sparse else grad for _, grad in grads]
        total = torch.stack([grad.sum().to("cpu", torch.float64) for grad in sums]).sum()
        if bool(torch.isfinite(total)):
            return
        for (param, _), grad in zip(grads, sums, strict=True):
            if not is_finite(grad):
                check_params(params)
                what, name = what_is_wrong(grad), param_name(param)
                raise NonFiniteError(guard_messages.nonfinite_gradient(what, name, player(param)))

    def _skip(self, error: Exception) -> None:
        """
        Count a step that was not taken.

        :raises Exception: if it has nothing to do with NaN or inf, or is not to be skipped.
        """
        found = None if self.on_nonfinite == "raise" else as_nonfinite(error)
        if found is None:
            raise error
        skipped, in_a_row, scale, _ = self.status
        if self.on_nonfinite == "reduce":
            scale *= self.factor
        self._good = 0
        self.status = GuardStatus(skipped + 1, in_a_row + 1, scale, str(found))
        if is_worth_saying(in_a_row + 1):
            message = guard_messages.only_skipped(in_a_row + 1, str(found))
            warnings.warn(message, UserWarning, stacklevel=4)

    def parts(self) -> dict[str, PyroOptim]:
        """The optimiser under guard."""
        return {"guarded": self.guarded}

    def own_state(self) -> dict[str, Any]:
        """The counts of the guard."""
        return {_STATUS: {**self.status._asdict(), "good": self._good}}

    def check_own_state(self, state: dict[str, Any]) -> None:
        """Refuse another state."""
        status = state.get(_STATUS)
        wanted = {*GuardStatus._fields, "good"}
        if not isinstance(status, dict) or status.keys() != wanted:
            raise ValueError("finite_guard has another state")
        counts = [status[name] for name in ("skipped", "in_a_row", "good")]
        right = all(type(count) is int and count >= 0 for count in counts)
        scale = status["step_scale"]
        if not right or type(scale) not in (int, float) or not 0 < scale <= 1:
            raise ValueError("finite_guard has another state")
        if type(status["last"]) is not str:
            raise ValueError("finite_guard has another state")

    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned."""
        status = dict(state[_STATUS])
        self._good = status.pop("good")
        self.status = GuardStatus(**status)


def finite_guard(
    svi: SVI, on_nonfinite: str = "raise", *, factor: float = 0.5, recover_after: int = 100
) -> SVI:
    """
    Guard the steps of an SVI: no step is taken that would end in NaN or inf.

    A step is good if data, params, the critic's logits, the loss, all gradients and the new params
    are finite. Of a bad one nothing stays but the random state: no player moves, the state of both
    optimisers, the running averages of batch normalisation and the loss's own counters are as
    before. What happens then is up to ``on_nonfinite``:

    - ``"raise"``: a :class:`NonFiniteError` names the site or param, its player and what to do;
    - ``"skip"``: the step returns NaN and training goes on, as by ``svi.stable_update`` in NumPyro;
    - ``"reduce"``: the same, and the updates of both players are scaled by ``factor`` from then on;
      after every ``recover_after`` good steps the scale is divided by it again, up to 1.

    The loss may be any of this package or a stock one.

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import GaussianNoise, SpreadELBO, finite_guard, guard_status
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Delta(w.expand(len(x))), obs=x)
        >>> pyro.clear_param_store()
        >>> loss = SpreadELBO({"x": GaussianNoise(0.5)})
        >>> svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), loss)
        >>> svi = finite_guard(svi, on_nonfinite="skip")
        >>> svi.step(torch.ones(8)) < 100
        True
        >>> svi.step(torch.full((8,), float("nan")))
        nan
        >>> guard_status(svi).skipped
        1

    It costs a copy of params and optimiser state and a sum over the gradients per step. Torch's
    ``clip_grad_norm_(error_if_nonfinite=True)`` sees gradients only: it names no param, and does
    not undo what the model has changed by then.

    :param svi: the SVI, whose ``optim`` and ``loss_and_grads`` are replaced.
    :param on_nonfinite: ``"raise"``, ``"skip"`` or ``"reduce"``.
    :param factor: of the updates after a bad step, in (0, 1).
    :param recover_after: good steps until they grow again.
    :return: the same SVI.
    :raises TypeError: if it is not an SVI.
    :raises ValueError: if it has a guard, or an argument is out of its range.
    """
    if not isinstance(svi, SVI):
        raise TypeError(guard_messages.no_svi(svi, "a pyro.infer.SVI"))
    if isinstance(svi.optim, FiniteGuard):
        raise ValueError(guard_messages.already_guarded())
    guard = FiniteGuard(svi.optim, svi.loss_and_grads, on_nonfinite, factor, recover_after)
    svi.optim, svi.loss_and_grads = guard, guard.loss_and_grads
    return svi


def guard_status(svi: SVI) -> GuardStatus:
    """
    How many steps the guard of an SVI has skipped, and why.

    :param svi: an SVI under :func:`finite_guard`.
    :return: a named tuple ``(skipped, in_a_row, step_scale, last)``.
    :raises ValueError: if it has no guard.
    """
    if not isinstance(svi.optim, FiniteGuard):
        raise ValueError(guard_messages.not_guarded())
    return svi.optim.status
