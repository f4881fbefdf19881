# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Refuse a guide like ``Delta(m + s * eps)``: the entropy of its draws would be left out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.handlers import seed, substitute, trace

from numpyro_spread.infer._jaxpr import sources_of
from numpyro_spread.infer._sites import inside_wrappers, is_bare_delta
from spread_core.messages import contrasts
from spread_core.remembered import Remembered

# The sites of a guide that were checked; None stands for all.
_accepted: Remembered[set[frozenset[str] | None]] = Remembered()


def refuse_random_deltas(
    params: Mapping[str, Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    among: Collection[str] | None = None,
) -> None:
    """
    Refuse a guide with a ``Delta`` at a function of random noise and of params.

    A Delta of params alone is a point estimate. One of draws alone, with no params in between, is a
    change of variables whose density the draws carry. Each guide is checked once; its jaxpr is
    analysed and nothing is computed.

    :param params: values of param sites.
    :param guide: the guide.
    :param args: positional arguments of the guide.
    :param kwargs: keyword arguments of the guide.
    :param among: the sites whose density counts; None stands for all.
    :raises ValueError: naming the site.
    """
    key = None if among is None else frozenset(among)
    looked = _accepted.get(guide) or set()
    if key in looked:
        return
    for site in sorted(_random_deltas(params, guide, args, kwargs)):
        if among is None or site in among:
            raise ValueError(contrasts.random_delta(site))
    _accepted.keep(guide, looked | {key})


def _random_deltas(
    params: Mapping[str, Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> list[str]:
    def run(params: Mapping[str, Any], fixed: Mapping[str, Any], rng_key: jax.Array) -> Any:
        # Containers are copied, since a guide may write to those of mutable sites.
        params = jax.tree.map(lambda leaf: leaf, dict(params))
        seeded = seed(substitute(substitute(guide, data=params), data=dict(fixed)), rng_key)
        return trace(seeded).get_trace(*args, **kwargs)

    def values(rng_key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        sites = run(params, {}, rng_key)
        draws = {name: site["value"] for name, site in sites.items() if is_draw(site)}
        plates = {name: site["value"] for name, site in sites.items() if site["type"] == "plate"}
        return draws, plates

    # A Delta whose density is computed from something has a term of its own, as draws have: it is
    # a change of variables. Whether that of another is zero need not be known to look at it.
    scored: set[str] = set()

    def is_draw(site: Mapping[str, Any]) -> bool:
        return site["type"] == "sample" and (not _is_bare(site) or site["name"] in scored)

    rng_key = random.key(0)
    is_array = {
        name: all(isinstance(leaf, jax.Array | np.ndarray | float) for leaf in jax.tree.leaves(p))
        for name, p in params.items()
    }
    others = {name: value for name, value in params.items() if not is_array[name]}
    learned = {name: value for name, value in params.items() if is_array[name]}

    def sources(of: Callable[[Any], Any]) -> dict[str, frozenset[str]]:
        # Only what is an input can be depended on: plates are not, and which data they take is no
        # randomness of the posterior.
        shapes = jax.eval_shape(values, rng_key)
        draws, plates = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def deltas(params: Any, draws: Any, rng_key: Any) -> dict[str, Any]:
            sites = run({**others, **params}, {**draws, **plates}, rng_key)
            found = {n: s for n, s in sites.items() if _is_bare(s) and n not in scored}
            return {name: jnp.asarray(of(site)) for name, site in found.items()}

        names: dict[str, frozenset[str]] = sources_of(
            deltas, params=learned, draws=draws, rng_key=rng_key
        )
        return names

    densities = sources(lambda site: inside_wrappers(site["fn"]).log_density)
    scored.update(site for site, names in densities.items() if names)
    points = sources(lambda site: site["value"])
    return [site for site, names in points.items() if "params" in names and len(names) > 1]


def _is_bare(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and is_bare_delta(site["fn"])
