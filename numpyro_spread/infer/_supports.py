# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Find the model's support of the sites that the guide draws without a density."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import random
from numpyro.distributions import Distribution, constraints
from numpyro.handlers import block, replay, seed, substitute, trace

from numpyro_spread.infer._scan import Inside
from numpyro_spread.noise import SpreadNoise
from numpyro_spread.noise.base import is_concrete
from spread_core.messages import semi_implicit
from spread_core.noise.implicit_sites import fixed_support
from spread_core.patterns import key_of
from spread_core.typing import Guide, Model

#: Constraints by site; all reals, as at sites that the model does not have, are left out.
Supports = Mapping[str, Any]


def find_supports(
    model: Model,
    guide: Guide,
    kernels: Mapping[str, SpreadNoise],
    params: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """
    The supports in the model of the sites that have kernels.

    Model and guide are traced with abstract params and draws, so that bounds which depend on them
    can be told from constants; nothing is computed.

    :raises ValueError: if the bounds of one depend on them, or differ between elements of a batch.
    """
    found: dict[str, Any] = {}

    def look(rng_key: jax.Array, params: dict[str, Any]) -> None:
        guide_key, model_key = random.split(rng_key)
        # Where the caller has no params at hand, they come from handlers further out.
        with block(hide_fn=lambda msg: msg["type"] not in ("param", "mutable")):
            with trace() as guide_sites:
                seed(substitute(guide, data=params), guide_key)(*args, **kwargs)
            for site in kernels:
                if site in guide_sites and guide_sites[site].get("is_observed"):
                    raise ValueError(semi_implicit.semi_fixed_site(site))  # replay would fail on it
            with _Found(kernels, found):
                fixed = replay(substitute(model, data=params), guide_sites)
                seed(fixed, model_key)(*args, **kwargs)

    # What is computed from constants alone stays concrete.
    with jax.ensure_compile_time_eval():
        jax.eval_shape(look, random.key(0), dict(params))
    return found


class _Found(Inside):
    """Notes the supports of sites, in loops too, where constants are constants still."""

    def __init__(self, kernels: Mapping[str, SpreadNoise], found: dict[str, Any]) -> None:
        super().__init__()
        self._kernels, self._found = kernels, found

    def visit(self, msg: Any, inside: bool) -> None:
        site, fn = msg["name"], msg["fn"]
        if key_of(self._kernels, site) is not None and isinstance(fn, Distribution):
            support = fixed_support(site, fn.support, fn.event_dim, constraints, _bound)
            self._found[site] = support


def _bound(value: Any) -> tuple[Any, bool] | None:
    if not isinstance(value, jax.Array | np.ndarray):
        return None
    return (np.asarray(value), True) if is_concrete(value) else (value, False)
