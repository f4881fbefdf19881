# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Convert arrays of other libraries to tensors, once for all arguments of model and guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger

from spread_core.inputs import (
    MisplacedError,
    is_foreign,
    is_misplaced,
    is_plain_numeric,
    taking_arrays,
)
from spread_core.messages import inputs

WANTED = "a torch.Tensor"


def as_tensor(value: Any) -> Any:
    """
    The numbers of a NumPy or JAX array as a tensor; anything else as it is.

    NumPy's float64 becomes torch's default type: it is what NumPy gives whoever asked for none.
    """
    if is_plain_numeric(value):
        tensor = _from_numpy(value)
        return (
            tensor.to(torch.get_default_dtype())
            if value.dtype.kind == "f" and (value.dtype.itemsize > 4)
            else tensor
        )
    if is_foreign(value, "jax", "Array"):
        try:
            array = np.asarray(value)
        except (TypeError, NotImplementedError):  # a random key, or a tracer
            return value
        if array.dtype.name == "bfloat16":  # which NumPy has not
            return torch.tensor(array.astype(np.float32)).to(torch.bfloat16)
        return _from_numpy(array)
    return value


def tensor_of(value: Any) -> torch.Tensor:
    """
    A number or an array as a tensor; a tensor as it is, which ``torch.jit`` goes on to see.

    :param value: the number.
    """
    value = as_tensor(value)
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)


def _from_numpy(array: np.ndarray[Any, Any]) -> torch.Tensor:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and size > 1:
        array = array.astype(np.int64)  # torch computes little with such types
    elif kind in "fc" and size > {"f": 8, "c": 16}[kind]:
        array = array.astype(np.float64 if kind == "f" else np.complex128)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.as_tensor(array)


def takes_arrays(fn: Callable[..., Any]) -> Callable[..., Any]:
    """
    Wrap a function of a model and its arguments, so that arrays of other libraries become tensors.
    """
    return taking_arrays(fn, as_tensor, ObservedArrays, WANTED)


class ObservedArrays(Messenger):
    """
    Convert what a model observes inside the context to tensors, or raise an error that names the
    site.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("was_observed"):  # it is drawn again, and the data are put aside
            msg["infer"]["obs"] = observed_tensor(msg["name"], msg["infer"]["obs"])
        elif msg["is_observed"] and not msg["infer"].get("_deterministic"):
            msg["value"] = observed_tensor(msg["name"], msg["value"])


def observed_tensor(site: str, value: Any) -> Any:
    """
    What a site observes, as a tensor; unknown types are left to its distribution.

    :raises ValueError: if it is a list, a labelled or masked array, or the like.
    """
    value = as_tensor(value)
    if is_misplaced(value):
        raise MisplacedError(inputs.misplaced_observation(site, value, WANTED))
    return value
