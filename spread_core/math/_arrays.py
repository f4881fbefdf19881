# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Whose arrays they are, and the few operations that the array API standard lacks."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import scipy.special
from array_api_compat import array_namespace, is_jax_array, is_numpy_array, is_torch_array

from spread_core.messages import samples

#: A torch.Tensor, a jax.Array or a numpy.ndarray.
Array: TypeAlias = Any

_LEADING = ("", "numpy.ndarray", "jax.Array", "torch.Tensor")


def array_type(value: object) -> str:
    """
    Which library's array it is.

    :param value: anything.
    :return: "torch.Tensor", "jax.Array", "numpy.ndarray", or "" for what is no array.
    """
    if is_torch_array(value):
        return "torch.Tensor"
    if is_jax_array(value):
        return "jax.Array"
    return "numpy.ndarray" if is_numpy_array(value) else ""


def leading(*values: object) -> object:
    """
    The array whose type all of a computation should have: NumPy's stand back.

    :param values: anything; what is no array stands back too.
    """
    return max(values, key=lambda value: _LEADING.index(array_type(value)))


def is_array(value: object, wanted: str) -> bool:
    """
    Whether a value is an array of a type, or will do as one: JAX takes NumPy's arrays.

    :param value: anything.
    :param wanted: as :func:`array_type` says it.
    """
    own = array_type(value)
    return own != "" and (own == wanted or (own, wanted) == ("numpy.ndarray", "jax.Array"))


def floating(name: str, value: object, like: object = None) -> Array:
    """
    An array, if it holds floating-point numbers.

    :param name: what the argument is called.
    :param value: what was given.
    :param like: an array of the type that is wanted; None for any.
    :return: the array, in that type.
    :raises TypeError: if it is no array of that type, or holds no floating-point numbers.
    """
    array: Array = value
    wanted = array_type(value if like is None else like)
    if not is_array(value, wanted):
        known = wanted or "torch.Tensor, jax.Array or numpy.ndarray"
        raise TypeError(samples.not_floating(name, known, type(value).__name__))
    xp = array_namespace(value if like is None else like)
    if not is_floating(xp, array.dtype):
        raise TypeError(samples.not_floating(name, wanted, str(array.dtype)))
    return array if array_type(value) == wanted else xp.asarray(value)


@functools.cache
def is_floating(xp: Any, dtype: Any) -> bool:
    """
    Whether a type is one of real floating-point numbers.

    :param xp: the namespace that the type is of.
    :param dtype: the type.
    """
    return xp.isdtype(dtype, "real floating")


def cast(values: Any, like: Array) -> Array:
    """
    Values in the type and on the device of an array. Gradients pass.

    :param values: a number, a sequence of numbers, or an array that goes with ``like``.
    :param like: the array that says type and device.
    """
    if is_torch_array(values):
        return values.to(like)  # torch.asarray would cut the gradient
    return array_namespace(like).asarray(values, dtype=like.dtype, **_device(like))


def as_bool(values: np.ndarray, like: Array) -> Array:
    """
    NumPy's bools in the type and on the device of an array.

    :param values: the bools.
    :param like: the array.
    """
    return array_namespace(like).asarray(values, **_device(like))


def indices(count: int, like: Array) -> Array:
    """
    0, 1, ... on the device of an array.

    :param count: how many.
    :param like: the array.
    """
    return array_namespace(like).arange(count, **_device(like))


def _device(like: Array) -> dict[str, Any]:
    # NumPy and JAX put things where they are needed; a tracer does not know where it will be.
    return {"device": like.device} if is_torch_array(like) else {}


def numbers(value: Any) -> np.ndarray | None:
    """
    Values as NumPy's doubles, to look at; None for a tracer of JAX, which has none yet.

    Inside ``jit`` operations of JAX on known values give tracers too, those of NumPy do not.

    :param value: a number, a sequence of numbers or an array.
    """
    if is_torch_array(value):
        return value.detach().cpu().double().numpy()
    try:
        return np.asarray(value, dtype=float)
    except TypeError:
        if is_jax_array(value):
            return None
        raise


def is_tracing(value: object) -> bool:
    """
    Whether ``torch.jit.trace`` records what is done now, when values should not be looked at.

    :param value: an array, or anything.
    """
    return is_torch_array(value) and array_namespace(value).jit.is_tracing()


def stop_gradient(x: Array) -> Array:
    """
    The array as a constant.

    :param x: of any shape.
    """
    if is_torch_array(x):
        return x.detach()
    return _jax().lax.stop_gradient(x) if is_jax_array(x) else x


def product(a: Array, b: Array) -> Array:
    """
    The matrix product, in as many digits as the arrays have.

    :param a: of shape (n, d).
    :param b: of shape (d, m) or (d,).
    """
    # Accelerators multiply in fewer digits by default under JAX.
    digits = {"precision": "highest"} if is_jax_array(a) or is_jax_array(b) else {}
    return array_namespace(a, b).matmul(a, b, **digits)


def fold(step: Callable[[Array, Any], Array], start: Array, items: Iterable[Any]) -> Array:
    """
    Apply ``step(total, item)`` to each item in turn, and hold the totals only.

    :param step: cheap, since JAX computes it again in the backward pass.
    :param start: the first total.
    :param items: a pair of arrays; an item is a pair of their rows.
    """
    if is_jax_array(start):
        # A scan does not merge the two computations, so that nothing need prevent it.
        again = _jax().checkpoint(lambda total, item: (step(total, item), None), prevent_cse=False)
        return _jax().lax.scan(again, start, tuple(items))[0]
    return functools.reduce(step, zip(*items, strict=True), start)


def _jax() -> Any:
    """The module of whoever made an array of JAX; this package imports none."""
    return sys.modules["jax"]


def special(x: Array) -> Any:
    """
    Where the special functions of an array's library are: ``ndtr``, ``ndtri``.

    :param x: the array.
    """
    if is_torch_array(x):
        return array_namespace(x).special
    return _jax().scipy.special if is_jax_array(x) else scipy.special


def interpolate(x: Array, knots: Array, values: Array) -> Array:
    """
    Piecewise linear functions, one for each column, constant outside of their knots.

    :param x: of shape (n, d).
    :param knots: of shape (d, k), increasing; a knot that repeats the last one is none.
    :param values: at the knots, of shape (d, k).
    """
    xp = array_namespace(x)
    x = xp.moveaxis(x, 0, 1)
    if is_torch_array(x):
        index = xp.searchsorted(knots, x.contiguous(), right=True)
    elif is_jax_array(x) or is_jax_array(knots):
        index = _jax().vmap(lambda row, at: xp.searchsorted(row, at, side="right"))(knots, x)
    else:
        pairs = zip(knots, x, strict=True)
        index = xp.stack([xp.searchsorted(row, at, side="right") for row, at in pairs])
    index = xp.clip(index, 1, knots.shape[1] - 1)
    left, right = (xp.take_along_axis(knots, index - k, axis=1) for k in (1, 0))
    low, high = (xp.take_along_axis(values, index - k, axis=1) for k in (1, 0))
    width = right - left
    share = xp.clip((x - left) / xp.where(width > 0, width, 1.0), 0.0, 1.0)
    return xp.moveaxis(low + share * (high - low), 0, 1)


def softplus(x: Array) -> Array:
    """
    log(1 + exp(x)), element by element.

    :param x: of any shape.
    """
    xp = array_namespace(x)
    if is_torch_array(x):
        # One operation forwards and backwards, where logaddexp takes several. PyTorch goes over to
        # x itself at 20 by default, which double precision still sees.
        return xp.nn.functional.softplus(x, threshold=40)
    return xp.logaddexp(x, 0.0)
