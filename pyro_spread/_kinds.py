# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What kind a step is of: what the graph of a recorded step depends on, compared at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import nn

from pyro_spread import _parents
from spread_core.stateful import Stateful

PLAIN = bool | int | float | str | None
_KEYS = bool | int | float | complex | str | bytes | None | torch.dtype | torch.device | Enum


#: A dict and names in it.
Part = tuple[dict[Any, Any], Iterable[str]]


class Places:
    """
    Dicts, and what stood in them.

    :param whole: dicts of which all entries matter.
    :param parts: others, with the names that matter.
    """

    __slots__ = ("_parts", "_sizes", "_values", "_whole")

    def __init__(self, whole: Iterable[dict[Any, Any]], parts: Iterable[Part] = ()) -> None:
        self._whole = list(whole)
        self._parts = [(inside, tuple(names)) for inside, names in parts]
        self._sizes, self._values = self._sizes_now(), list(self._values_now())

    def _sizes_now(self) -> list[int]:
        return [*map(len, self._whole), *(len(inside) for inside, _ in self._parts)]

    def _values_now(self) -> Iterable[Any]:
        found = chain.from_iterable(map(dict.values, self._whole))
        return chain(found, *(map(inside.get, names) for inside, names in self._parts))

    def are_as_they_were(self) -> bool:
        """Whether the very same objects stand there."""
        # Each step asks: a comparison of values would take as long as a small net.
        same = self._sizes_now() == self._sizes
        return same and all(map(is_, self._values_now(), self._values))


class Surroundings:
    """
    The params, modules and settings of a step, and a key that is equal for equal ones.

    :param params: what to differentiate by.
    :param parts: where they stand, other than in modules.
    :param modules: those whose state the step may read.
    :param loss: whose settings count.
    """

    def __init__(
        self,
        params: list[torch.Tensor],
        parts: Iterable[Part],
        modules: Iterable[nn.Module],
        loss: Any,
    ) -> None:
        self.params, modules = params, list(modules)
        self.num_modules = len(modules)
        self.buffers = buffers_of(modules)
        settings, read, private = settings_of(loss)
        own = tuple(map(id, params)), tuple(map(_state_of, modules)), settings
        self._key, self._hash = own, hash(own)
        own_of_loss = getattr(loss, "__dict__", {})
        kept = (
            (vars(module), module._parameters, module._buffers, module._modules)
            for module in modules
        )
        dicts = [own_of_loss[n] for n in read if isinstance(own_of_loss[n], dict)]  # noise
        whole = chain(chain.from_iterable(kept), dicts)
        self._places = Places(whole, [*parts, (own_of_loss, read)])
        self._own_of_loss, self._private = own_of_loss, private

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Surroundings) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def are_as_they_were(self) -> bool:
        """Whether all of it is what it was when this was made."""
        # What is the loss's own to replace may become a setting: None, say.
        private = (self._own_of_loss.get(name) for name in self._private)
        if any(isinstance(value, PLAIN) for value in private):
            return False
        return self._places.are_as_they_were()

    def signatures(self) -> tuple[Any, ...]:
        """Shapes, types and flags of params and buffers, which change in place."""
        return tuple(map(signature, self.params)), tuple(map(signature, self.buffers))


def flattened(arguments: tuple[Any, Any]) -> tuple[list[Any], Any]:
    """
    The leaves of positional and keyword arguments, and what tells how they were nested.

    :param arguments: both.
    """
    args, kwargs = arguments
    if not kwargs and all(isinstance(value, torch.Tensor) for value in args):
        return list(args), len(args)  # as most are
    leaves, structure = _parents.tree_flatten(arguments)
    return leaves, str(structure)


def kind_of(leaves: list[Any], structure: Any, surroundings: Surroundings) -> tuple[Any, ...]:
    """
    What is equal for steps that one graph serves.

    :param leaves: of the arguments.
    :param structure: of the arguments.
    :param surroundings: of the step.
    """
    first: dict[int, int] = {}  # which arguments are one and the same
    same = tuple(first.setdefault(id(leaf), place) for place, leaf in enumerate(leaves))
    own = tuple(map(signature, leaves)), surroundings.signatures()
    return structure, same, own, surroundings, _modes()


def signature(value: Any) -> Any:
    """What a graph depends on of an argument, a param or a buffer."""
    if isinstance(value, torch.Tensor):
        if nn.parameter.is_lazy(value):
            return None
        return tuple(value.shape), value.dtype, value.device, value.requires_grad, value.stride()
    if isinstance(value, _KEYS):
        return type(value), value
    return object()  # which may change inside: it is like none before


def is_laid_out_like(tensor: torch.Tensor, param: torch.Tensor) -> bool:
    """Whether a tensor of the shape of a param lies in memory as that does."""
    each = zip(param.shape, tensor.stride(), param.stride(), strict=True)
    return all(size == 1 or own == wanted for size, own, wanted in each)


def settings_of(loss: Any) -> tuple[Any, list[str], list[str]]:
    """
    The attributes of a loss that a graph depends on.

    :param loss: the loss.
    :return: numbers and names, and which object each other one is; their names; and the names of
        what is private, which is the loss's own to replace.
    """
    counted = loss._remembered() if isinstance(loss, Stateful) else ()
    found = {n: v for n, v in getattr(loss, "__dict__", {}).items() if n not in counted}
    plain = {n: v for n, v in found.items() if isinstance(v, PLAIN)}
    private = [n for n in found if n.startswith("_") and n not in plain]
    others = {n: v for n, v in found.items() if n not in plain and n not in private}
    objects = tuple((n, _by_id(v)) for n, v in others.items())
    return (tuple(plain.items()), objects), [*plain, *others], private


def _by_id(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((name, ById(each)) for name, each in value.items())
    return ById(value)


def buffers_of(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    """The buffers of modules, without their parts."""
    found = (buffer for module in modules for buffer in module._buffers.values())
    return [buffer for buffer in found if buffer is not None]


def _state_of(module: nn.Module) -> tuple[Any, ...]:
    """The mode of a module and all that is set on it, and which its parts are."""
    own = vars(module).items()
    plain = tuple((n, v) for n, v in own if isinstance(v, PLAIN))
    # Other objects are not compared: autoguides make new plates, in every call.
    others = tuple((n, ById(v)) for n, v in own if isinstance(v, torch.Tensor) or callable(v))
    parts = module._parameters, module._buffers, module._modules
    return plain, others, tuple(tuple((n, id(v)) for n, v in part.items()) for part in parts)


def _modes() -> tuple[Any, ...]:
    """What a graph depends on that nothing holds which is passed or called."""
    devices = [d for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
    casts = tuple((device, torch.get_autocast_dtype(device)) for device in devices)
    strict = torch.are_deterministic_algorithms_enabled()
    return torch.is_grad_enabled(), torch.get_default_dtype(), casts, strict


class ById:
    """An object that equals itself only, and lives as long as this does."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


#: Finds the params of a step, and where they stand other than in modules; None if one is missing.
Params = Callable[[], tuple[list[torch.Tensor], list[Part]] | None]
