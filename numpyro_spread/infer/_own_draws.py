# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Check that what a model observes is data, not its own draws or params."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.handlers import seed, substitute, trace

from numpyro_spread.infer._jaxpr import sources_of
from numpyro_spread.infer._scan import Inside, Unconditioned
from spread_core.messages import players
from spread_core.remembered import Remembered

# The observed sites of a model that were found to hold data.
_accepted: Remembered[frozenset[str]] = Remembered()
#: What a model raises that asks for the value of what is abstract.
ABSTRACT = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def refuse_own_draws(
    params: Mapping[str, Any],
    model: Callable[..., Any],
    observed: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """
    Refuse observed values that depend on what the model draws, or on params.

    What is an argument is data. All else is looked at once for every model: it is traced as a
    function of a change in its draws and params; nothing is computed.

    :param params: values of param and mutable sites.
    :param model: the model.
    :param observed: its sites that are compared, of a run of the unconditioned model.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :raises ValueError: naming the site.
    """
    known = _accepted.get(model) or frozenset()
    given = jax.tree.leaves((args, dict(kwargs)))
    suspects = [
        name
        for name, site in observed.items()
        if name not in known and not any(site["infer"]["obs"] is leaf for leaf in given)
    ]
    if not suspects:
        return

    def observations(draws: Any, params_too: Any) -> dict[str, Any]:
        # Containers are copied, since a model may write to those of mutable sites.
        own = jax.tree.map(lambda leaf: leaf, dict(params))
        with trace() as sites, _Changed(draws, params_too), Unconditioned():
            seed(substitute(model, data=own), random.key(0))(*args, **kwargs)
        return {name: jnp.asarray(sites[name]["infer"]["obs"]) for name in suspects}

    try:
        sources = sources_of(observations, draws=jnp.zeros(()), params_too=jnp.zeros(()))
    except ABSTRACT:
        sources = _by_value(observations, suspects)
    for name in suspects:
        if "draws" in sources[name]:
            raise ValueError(players.own_draw(name))
        if "params_too" in sources[name]:
            raise ValueError(players.learned_data(name))
    _accepted.keep(model, known | set(suspects))


def _by_value(
    observations: Callable[[Any, Any], Mapping[str, Any]], sites: Collection[str]
) -> dict[str, frozenset[str]]:
    """
    Like the above for a model that has to be run: which outputs change with a change in either
    input.
    """
    runs = {name: observations(*change) for name, change in _CHANGES.items()}
    return {
        site: frozenset(
            name
            for name in ("draws", "params_too")
            if not np.array_equal(runs[name][site], runs["none"][site], equal_nan=True)
        )
        for site in sites
    }


_CHANGES = {"none": (0.0, 0.0), "draws": (0.01, 0.0), "params_too": (0.0, 0.01)}


class _Changed(Inside):
    """Draws and params of a model, all changed by a little."""

    def __init__(self, draws: Any, params: Any) -> None:
        super().__init__()
        self._draws, self._params = draws, params

    def leave(self, msg: Any) -> None:
        msg["value"] = _plus(msg["value"], self._draws)

    def postprocess_message(self, msg: Any) -> None:
        super().postprocess_message(msg)
        if msg["type"] == "param":
            msg["value"] = jax.tree.map(lambda leaf: _plus(leaf, self._params), msg["value"])
        elif msg["type"] == "sample" and not msg["is_observed"]:
            msg["value"] = _plus(msg["value"], self._draws)


def _plus(value: Any, change: Any) -> Any:
    if not isinstance(value, jax.Array | np.ndarray | float | int):
        return value
    dtype = jnp.result_type(value)
    if jnp.issubdtype(dtype, jnp.bool_):
        return jnp.logical_xor(value, change != 0)
    if jnp.issubdtype(dtype, jnp.integer):
        return value + jnp.ceil(change).astype(dtype)
    # A key of random numbers is no number.
    return value + jnp.asarray(change, dtype) if jnp.issubdtype(dtype, jnp.number) else value
