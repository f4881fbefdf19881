# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Make torch's random functions deterministic, to compare two runs of different shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# No special number of any distribution.
_DRAW = 0.37


class FixedRandom(TorchDispatchMode):
    """
    Inside the context a random draw is a function of its parameters, element by element.

    Normal draws lie at one quantile, Poisson ones at their rate, and so on. Functions that are not
    known here stay random, so that what uses them is not the same in two runs.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        fixed = _FIXED.get(func.overloadpacket.__name__)
        if fixed is None or torch.Tag.nondeterministic_seeded not in func.tags:
            return result
        if func._schema.is_mutable:
            args = args[1:]  # the tensor itself
        return result.copy_(fixed(result, func._overloadname, *args))


def _number(value: float) -> Callable[..., torch.Tensor]:
    return lambda result, overload, *args: torch.full_like(result, value)


def _normal(result: Any, overload: str, mean: Any = 0.0, std: Any = 1.0, *args: Any) -> Any:
    return torch.zeros_like(result) + mean + _DRAW * std


def _uniform(result: Any, overload: str, low: float = 0.0, high: float = 1.0, *args: Any) -> Any:
    return torch.full_like(result, low + _DRAW * (high - low))


def _lowest(result: Any, overload: str, *args: Any) -> Any:
    numbers = [arg for arg in args if isinstance(arg, int)]
    return torch.full_like(result, numbers[0] if overload.startswith("low") else 0)


def _parameter(result: Any, overload: str, parameter: Any = 0.5, *args: Any) -> Any:
    return torch.zeros_like(result) + parameter


def _bernoulli(result: Any, overload: str, *args: Any) -> Any:
    tensors_first = args[1:] if overload == "p" else args
    return _parameter(result, overload, *tensors_first)


def _likeliest(result: Any, overload: str, probs: Any, *args: Any) -> Any:
    return probs.argmax(-1, keepdim=True).expand(result.shape)


_FIXED: dict[str, Callable[..., torch.Tensor]] = {
    "randn": _number(_DRAW),
    "randn_like": _number(_DRAW),
    "rand": _number(_DRAW),
    "rand_like": _number(_DRAW),
    "normal": _normal,
    "normal_": _normal,
    "uniform_": _uniform,
    "exponential_": _number(_DRAW),
    "cauchy_": _number(_DRAW),
    "log_normal_": _number(_DRAW),
    "geometric_": _number(1.0),
    "randint": _lowest,
    "randint_like": _lowest,
    "random_": _number(0.0),
    "bernoulli": _bernoulli,
    "bernoulli_": _parameter,
    "poisson": _parameter,
    "binomial": lambda result, overload, count, probs, *args: count * probs,
    "_standard_gamma": _parameter,
    "_sample_dirichlet": lambda result, overload, alpha, *args: alpha / alpha.sum(-1, True),
    "multinomial": _likeliest,
}
