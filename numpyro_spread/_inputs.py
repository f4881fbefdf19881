# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Convert tensors of torch to arrays, once for all arguments of model and guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from numpyro.primitives import Messenger

from spread_core.inputs import MisplacedError, is_foreign, is_misplaced, taking_arrays
from spread_core.messages import inputs

WANTED = "an array"


def as_array(value: Any) -> Any:
    """
    The numbers of a tensor of torch as a NumPy array; anything else as it is.

    NumPy's own arrays stay: JAX takes them, and their values are known under jit too.
    """
    if not is_foreign(value, "torch", "Tensor"):
        return value
    try:
        tensor = value.detach().cpu().resolve_conj().resolve_neg()
        if str(tensor.dtype) == "torch.bfloat16":  # which NumPy has not
            return tensor.float().numpy().astype(jnp.bfloat16)
        return tensor.numpy()
    except (TypeError, RuntimeError):  # sparse, quantised, or inside a transformation of torch
        return value


def takes_arrays(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function of a model and its arguments, so that tensors of torch become arrays."""
    return taking_arrays(fn, as_array, ObservedArrays, WANTED)


class ObservedArrays(Messenger):
    """
    Convert what a model observes inside the context to arrays, or raise an error that names the
    site.
    """

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample":
            return
        if msg["infer"].get("was_observed"):  # it is drawn again, and the data are put aside
            msg["infer"]["obs"] = observed_array(msg["name"], msg["infer"]["obs"])
        elif msg["is_observed"]:
            msg["value"] = observed_array(msg["name"], msg["value"])


def observed_array(site: str, value: Any) -> Any:
    """
    What a site observes, as an array; unknown types are left to its distribution.

    :raises ValueError: if it is a list, a labelled or masked array, or the like.
    """
    value = as_array(value)
    if is_misplaced(value) or is_foreign(value, "torch", "Tensor"):
        raise MisplacedError(inputs.misplaced_observation(site, value, WANTED))
    return value
