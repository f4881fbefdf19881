# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Whose arrays they are, and the few operations that the array API standard lacks."""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

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
    if not _is_floating(xp, array.dtype):
        raise TypeError(samples.not_floating(name, wanted, str(array.dtype)))
    return array if array_type(value) == wanted else xp.asarray(value)


@functools.cache
def _is_floating(xp: Any, dtype: Any) -> bool:
    return xp.isdtype(dtype, "real floating")


def cast(values: Array, like: Array) -> Array:
    """
    Values in the type and on the device of an array. Gradients pass.

    :param values: an array that goes with ``like``.
    :param like: the array that says type and device.
    """
    if is_torch_array(values):
        return values.to(like)  # torch.asarray would cut the gradient
    return array_namespace(like).asarray(values, dtype=like.dtype)


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
