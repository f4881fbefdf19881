# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Steps that are recorded once for arguments of one kind, compiled, and run without Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_spread import _parents
from pyro_spread._called_modules import each_call
from pyro_spread._kinds import (
    PLAIN,
    Params,
    Surroundings,
    buffers_of,
    flattened,
    is_laid_out_like,
    kind_of,
)
from pyro_spread._recording import Recording, draw_directly, recorded, settle
from pyro_spread._snapshot import StepSnapshot
from spread_core.caller_warning import warn_user
from spread_core.messages import compiled as messages

# A step for which arguments of more kinds come than these will meet new ones for ever.
_MOST_KINDS = 64

Grads = list[torch.Tensor | None]
#: A step with its arguments, which gives the loss and its gradients by some params.
Step = Callable[[list[torch.Tensor], Any, Any], tuple[Any, Grads]]


class Steps:
    """
    The compiled steps of a model and a guide, by the signature of their arguments.

    :param options: those of ``torch.compile``.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._seen: set[Any] = set()
        self._graphs: dict[Any, _Graph] = {}
        self._deciders: dict[Any, list[Callable[[], bool]]] = {}
        self._called: dict[nn.Module, None] = {}
        self._owners: dict[int, Any] = {}
        self._last: Surroundings | None = None

    def __call__(
        self, step: Step, params: Params, loss: Any, arguments: tuple[Any, Any]
    ) -> tuple[torch.Tensor, Grads, list[torch.Tensor]] | None:
        """
        Run a step by its graph.

        :param step: the step.
        :param params: finds what to differentiate by.
        :param loss: whose settings the graph depends on.
        :param arguments: positional and keyword arguments of model and guide.
        :return: the loss, its gradients and the params; None if the step has to be run as it is:
            the first of its kind, and one in which something is not finite.
        """
        surroundings = self._surroundings(params, loss)
        if surroundings is None:
            return None
        leaves, structure = flattened(arguments)
        kind = kind_of(leaves, structure, surroundings), self._set_on_programs()
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        # Handlers around the step, and gradients by arguments, are for the step as it is.
        if kind not in self._seen or _is_handled() or any(x.requires_grad for x in tensors):
            return None
        tensors_of = surroundings.params, surroundings.buffers, tensors
        settled = None
        if kind in self._deciders:
            settled = tuple(settle(decide) for decide in self._deciders[kind])
        graph = self._graphs.get((kind, settled))
        if graph is None:
            graph = _Graph(self._checked(step), *tensors_of, settled, arguments, self._options)
            self._deciders[kind] = graph.deciders
            self._graphs[kind, graph.settled] = graph
        found = graph(*tensors_of)
        return None if found is None else (*found, surroundings.params)

    def _surroundings(self, params: Params, loss: Any) -> Surroundings | None:
        last = self._last
        if last is None or last.num_modules < len(self._called) or not last.are_as_they_were():
            found = params()
            last = self._last = found and Surroundings(*found, self._called, loss)
        return last

    def _checked(self, step: Step) -> Step:
        """The step, which must not put other buffers in place of those of its modules."""

        def checked(wanted: list[torch.Tensor], args: Any, kwargs: Any) -> tuple[Any, Grads]:
            before = list(map(id, buffers_of(self._called)))
            found = step(wanted, args, kwargs)
            if before != list(map(id, buffers_of(self._called))):
                raise NotImplementedError(messages.rebinds_buffers())
            return found

        return checked

    def see(self, params: Params, loss: Any, arguments: tuple[Any, Any]) -> None:
        """
        Note that a step of this kind was run as it is, so that the next one may be recorded.

        :param params: as of the step, and so on.
        """
        if len(self._seen) == _MOST_KINDS:
            warn_user(messages.too_many_kinds(_MOST_KINDS))
        surroundings = self._surroundings(params, loss)
        if surroundings is not None and len(self._seen) <= _MOST_KINDS:
            kind = kind_of(*flattened(arguments), surroundings)
            self._seen.add((kind, self._set_on_programs()))

    def __reduce__(self) -> Any:
        return Steps, (self._options,)  # a copy records its own

    def add(self, *programs: Any) -> None:
        """
        Note the parts of modules, of which a step may read what it does not call.

        :param programs: model, guide, loss and their like.
        """
        for program in programs:
            owner = getattr(program, "__self__", program)  # of a method
            for part in owner.modules() if isinstance(owner, nn.Module) else ():
                self._called.setdefault(part)
            if not isinstance(owner, nn.Module) and getattr(owner, "__dict__", None):
                self._owners[id(owner)] = owner

    def _set_on_programs(self) -> tuple[Any, ...]:
        """Numbers and names set on programs that are no modules."""
        owners = self._owners.values()
        return tuple((n, v) for o in owners for n, v in vars(o).items() if isinstance(v, PLAIN))

    def keep_buffers(self, snapshot: StepSnapshot) -> None:
        """
        Keep the buffers that a graph may change.

        :param snapshot: that restores them.
        """
        if self._last is None or self._last.buffers:
            for module in self._called:
                snapshot.keep_buffers(module)

    def watch(self) -> AbstractContextManager[None]:
        """A context in which the modules are noted that a step calls."""
        return each_call(lambda module: self._called.setdefault(module))


class _Graph:
    """A recorded step."""

    def __init__(
        self,
        step: Step,
        params: list[torch.Tensor],
        buffers: list[torch.Tensor],
        tensors: list[torch.Tensor],
        settled: tuple[bool, ...] | None,
        arguments: tuple[Any, Any],
        options: Mapping[str, Any],
    ) -> None:
        recordings: list[Recording] = []
        wanted = [param for param in params if param.requires_grad]

        # What the step is given are inputs, and what it takes from outside are not, though it be
        # the same tensor: inputs are known by their identity.
        twins = {id(tensor): tensor.detach().clone() for tensor in tensors}
        args, kwargs = _parents.tree_map(lambda leaf: twins.get(id(leaf), leaf), arguments)
        tensors = [twins[id(tensor)] for tensor in tensors]

        def run(*_: Any) -> Any:
            with torch.enable_grad(), recorded(settled) as recording:
                recordings[:] = [recording]
                loss, grads = step(wanted, args, kwargs)
                loss = torch.as_tensor(loss).detach()
                finite = torch.stack([torch.isfinite(loss), *recording.finite]).all()
                return loss, grads, finite, [list(values) for _, values in recording.later]

        before = StepSnapshot()
        before.keep_store()
        before.keep_random_state()
        try:
            with before:
                graph = make_fx(run)(params, buffers, tensors)
        finally:
            before.restore()
        draw_directly(graph.graph)
        graph.recompile()
        for node in graph.graph.nodes:
            held = getattr(graph, node.target) if node.op == "get_attr" else None
            if isinstance(held, torch.Tensor) and held.requires_grad:
                raise NotImplementedError(messages.unknown_param(tuple(held.shape)))
        self._later, self._numbers = [f for f, _ in recordings[0].later], recordings[0].numbers
        self.deciders, self.settled = recordings[0].deciders, tuple(recordings[0].settled)
        self._wanted = [param.requires_grad for param in params]
        # Not the module, whose hooks would run too.
        on_cpu = all(x.device.type == "cpu" for x in (*params, *buffers, *tensors))
        self._run = torch.compile(graph.forward, **_parents.compile_options(options, on_cpu))
        self._is_new = True
        self._to_copy: list[int] | None = None

    def __call__(
        self,
        params: list[torch.Tensor],
        buffers: list[torch.Tensor],
        tensors: list[torch.Tensor],
    ) -> tuple[torch.Tensor, Grads] | None:
        with torch.no_grad():
            for function, held in self._numbers:
                held.fill_(function())
            state = torch.get_rng_state()
            copies = [buffer.clone() for buffer in buffers]
            if self._is_new:  # it would be compiled for arguments that are also held as constants
                tensors, self._is_new = [tensor.detach() for tensor in tensors], False
            loss, grads, finite, values = self._run(params, buffers, tensors)
            if not finite:
                torch.set_rng_state(state)
                for buffer, copied in zip(buffers, copies, strict=True):
                    buffer.copy_(copied)
                return None
        for function, given in zip(self._later, values, strict=True):
            function(*given)
        wanted = [param for param, is_wanted in zip(params, self._wanted, strict=True) if is_wanted]
        if self._to_copy is None:  # the same at every step
            self._to_copy = _not_to_hand_over(grads, wanted, [*params, *buffers, *tensors])
        for place in self._to_copy:
            grads[place] = torch.empty_like(wanted[place]).copy_(grads[place])
        each = iter(grads)
        return loss, [next(each) if wanted else None for wanted in self._wanted]


def _not_to_hand_over(
    grads: Grads, wanted: list[torch.Tensor], inputs: list[torch.Tensor]
) -> list[int]:
    """
    Places of gradients that a param must not have as they are.

    Those are gradients that share their memory, to which a second backward pass would add twice,
    and those that do not lie in memory as their param does: fused optimisers do not look.
    """
    places, taken = [], {_memory(tensor) for tensor in inputs}
    for place, (grad, param) in enumerate(zip(grads, wanted, strict=True)):
        if grad is None:
            continue
        if _memory(grad) in taken or not is_laid_out_like(grad, param):
            places.append(place)
        else:
            taken.add(_memory(grad))
    return places


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def gradients(loss: torch.Tensor, wanted: list[torch.Tensor]) -> tuple[torch.Tensor, Grads]:
    """A loss and its gradients; None by params that it does not depend on."""
    if not wanted or not loss.requires_grad:
        return loss, [None] * len(wanted)
    return loss, list(torch.autograd.grad(loss, wanted, allow_unused=True))


def served(loss: torch.Tensor, grads: Grads, params: list[torch.Tensor]) -> torch.Tensor:
    """A loss whose gradients are known, to be differentiated."""
    found: torch.Tensor = _Served.apply(loss, grads, *params)
    return found


class _Served(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, grads: Grads, *params: torch.Tensor) -> torch.Tensor:
        ctx.grads = grads
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        grads = ctx.grads
        if grads is None:
            raise RuntimeError(messages.second_backward())
        is_kept = _parents.keeps_graph()
        if not is_kept:  # params take over what nobody else holds, without a copy
            ctx.grads = None
        # A copy of all gradients takes as long as a small net.
        if is_kept or slope.is_cuda or slope.item() != 1:
            grads = [None if grad is None else slope * grad for grad in grads]
        return None, None, *grads


def _is_handled() -> bool:
    """Whether a handler is in effect around the step, except SVI's that lists params."""
    handlers = _parents.active_handlers()
    return not all(getattr(handler, "param_only", False) for handler in handlers)
