# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""compiled: losses whose steps are traced once, and then run without Python."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from torch import nn

from pyro_spread import _parents
from pyro_spread._kinds import ById, Part
from pyro_spread._snapshot import StepSnapshot
from pyro_spread._steps import Grads, Steps, gradients
from pyro_spread._transaction import arm, is_running, transaction, zeros_for_none
from pyro_spread.infer._guards import captured
from pyro_spread.infer._ranks import LossModule
from pyro_spread.infer._registration import Loss
from spread_core.messages import compiled as messages
from spread_core.typing import Guide, Model

__all__ = ["compiled"]

_L = TypeVar("_L", bound=ELBO)


def compiled(loss: _L, **options: Any) -> _L:
    """
    A loss whose steps are traced once and compiled, for SVI or as a module.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_spread import compiled
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     pyro.sample("z", dist.Normal(loc, 0.1))
        >>> pyro.clear_param_store()
        >>> loss = compiled(Trace_ELBO(), backend="eager")
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
        >>> for _ in range(3):
        ...     value = svi.step(torch.ones(10))

    The first step for arguments of new shapes runs as always, with all checks. The second one is
    traced by ``make_fx``, forward and backward pass in one graph, and compiled by
    ``torch.compile``. From then on handlers, messengers and checks of shapes cost nothing; NaN and
    inf are still found.

    :param loss: a loss of this library, or an ELBO of Pyro.
    :param options: those of ``torch.compile``.
    :return: a copy of the loss, of a class derived from its own.
    :raises TypeError: if it is no loss.
    """
    if not isinstance(loss, ELBO):
        raise TypeError(messages.no_loss(loss))
    found: Any = copy.copy(loss)
    found.__class__ = _compiled_class(type(loss))
    found._compile_options, found._compiled_steps = options, {}
    return found


_classes: dict[type, type] = {}


def _compiled_class(cls: type) -> type:
    if issubclass(cls, _Compiled):
        return cls
    if cls not in _classes:
        names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        _classes[cls] = type(cls.__name__, (_Compiled, cls), names)
    return _classes[cls]


class _Compiled:
    """What a compiled loss does in place of its own class."""

    _compile_options: dict[str, Any]
    _compiled_steps: dict[Any, _OfPrograms]

    def __reduce__(self) -> Any:
        cls = next(c for c in type(self).__mro__[1:] if c is not _Compiled)
        own = {n: v for n, v in vars(self).items() if not n.startswith("_compile")}
        return _again, (cls, own, self._compile_options)

    def __call__(self, model: nn.Module, guide: nn.Module) -> nn.Module:
        base: Any = super()
        module = base.__call__(model, guide)
        if not isinstance(module, LossModule):
            module = LossModule(model, guide, module.elbo)
        module.compile(**self._compile_options)
        return module

    def loss_and_grads(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, and add its gradients to those of the params."""
        stock: Any = super()
        key = ById(model), ById(guide)
        if key not in self._compiled_steps:
            self._compiled_steps[key] = _OfPrograms(self._compile_options)
        steps = self._compiled_steps[key]
        if not isinstance(self, Loss) and not is_running():
            step, found = None, steps.run(self, stock, (model, guide), args, kwargs)
        else:
            with transaction(self) as step:
                steps.keep_buffers(step)
                found = steps.run(self, stock, (model, guide), args, kwargs)
        if found is None:
            return steps.run_first(self, stock, (model, guide), args, kwargs)
        # In a transaction that goes on, such as that of a guard, the step is not ours to undo.
        arm(None if is_running() else step, at_once=True)
        return found


def _again(cls: type, own: dict[str, Any], options: dict[str, Any]) -> Any:
    """A copy of a compiled loss, which records steps of its own."""
    plain: Any = object.__new__(cls)
    plain.__dict__.update(own)
    return compiled(plain, **options)


class _OfPrograms:
    """The steps of a model and a guide under SVI."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._steps = Steps(options)
        self._names: list[str] = []

    def keep_buffers(self, snapshot: StepSnapshot) -> None:
        """Keep the buffers of all modules: a graph changes them, and calls none."""
        self._steps.keep_buffers(snapshot)

    def run_first(self, loss: Any, stock: Any, programs: Any, args: Any, kwargs: Any) -> Any:
        """A step with all its Python, which shows what it calls and trains."""
        with self._steps.watch(), poutine.trace(param_only=True) as capture:
            value = stock.loss_and_grads(*programs, *args, **kwargs)
        self._names = list(capture.trace.nodes)
        self._steps.add(*programs)
        self._steps.see(self._params, loss, (args, kwargs))
        zeros_for_none(captured(capture))
        return value

    def _params(self) -> tuple[list[torch.Tensor], list[Part]] | None:
        """What the first step trained, if all of it is in the store."""
        stored = _parents.stored_params()
        if not self._names or any(name not in stored for name in self._names):
            return None
        params = {id(stored[name]): stored[name] for name in self._names}
        return list(params.values()), [(stored, self._names), _parents.store_place()]

    def run(self, loss: Any, stock: Any, programs: Any, args: Any, kwargs: Any) -> float | None:
        """A step by its graph; None if there is none."""

        def step(wanted: list[torch.Tensor], args: Any, kwargs: Any) -> tuple[Any, Grads]:
            own = stock.loss_and_grads
            if isinstance(loss, Loss) and own.__func__ is Loss.loss_and_grads:
                return gradients(stock.differentiable_loss(*programs, *args, **kwargs), wanted)
            held = [param.grad for param in wanted]
            for param in wanted:
                param.grad = None
            try:
                value = own(*programs, *args, **kwargs)
                if isinstance(value, tuple):
                    raise NotImplementedError(messages.several_losses(type(loss).__name__))
                return value, [param.grad for param in wanted]
            finally:
                for param, grad in zip(wanted, held, strict=True):
                    param.grad = grad

        found = self._steps(step, self._params, loss, (args, kwargs))
        if found is None:
            return None
        value, grads, params = found
        _parents.report_params(self._names)
        for param, grad in zip(params, grads, strict=True):
            if grad is not None:
                param.grad = grad if param.grad is None else param.grad.add_(grad)
        zeros_for_none(params)
        return float(value)
