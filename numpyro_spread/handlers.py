# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The effect handler ``spread``, which adds noise to the distributions at observed sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpyro.distributions import (
    Delta,
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    MixtureGeneral,
    MixtureSameFamily,
)
from numpyro.primitives import Messenger

from numpyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.noise.handler import SpreadSites

_FIRST_STEPS = "_PREV_"


def is_delta(fn: Distribution) -> bool:
    """Whether ``fn`` is a ``Delta`` or a mixture of them, also inside wrappers."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        if getattr(fn, "_mask", None) is False:
            return False
        fn = fn.base_dist
    if isinstance(fn, MixtureSameFamily):
        return is_delta(fn.component_distribution)
    if isinstance(fn, MixtureGeneral):
        return any(is_delta(part) for part in fn.component_distributions)
    return isinstance(fn, Delta)


def site_of(msg: Any) -> str:
    """The name of a site; NumPyro marks the first steps of a scan that it enumerates."""
    name: str = msg["name"]
    while name.startswith(_FIRST_STEPS):
        name = name.removeprefix(_FIRST_STEPS)
    return name


class spread(SpreadSites, Messenger):  # noqa: N801
    r"""
    Effect handler that passes the distribution at observed sites through a noise kernel.

    At every observed site that ``noise`` names, the distribution p becomes
    :math:`\int k(y \mid x)\, p(x)\, dx`, exactly. Values are untouched: the caller passes noisy
    values to the model. Sites that are not observed are untouched too: ``Predictive`` gives clean
    draws.

    Both spellings work, ``spread(model, noise)`` and ``with spread(noise=noise):``.

        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer.util import log_density
        >>> from numpyro_spread import GaussianNoise, spread
        >>> def model(y):
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("x", dist.Delta(2 * z), obs=y)
        >>> spread_model = spread(model, {"x": GaussianNoise(0.3)})
        >>> density, _ = log_density(spread_model, (jnp.array(1.0),), {}, {"z": jnp.array(0.5)})
        >>> bool(jnp.isfinite(density))
        True

    :param fn: a model.
    :param noise: dict from the names of observed sites to noise kernels; a name may be a pattern as
        for files, such as ``"x_*"``, that stands for all observed sites it fits.
    :return: the model with its observed sites spread; without ``fn``, a context manager and
        decorator.
    :raises TypeError: if noise is not such a dict, or a value's type does not fit its kernel.
    :raises ValueError: if a named site does not exist, a kernel does not fit it, or it was made
        observed by a handler outside this one.
    :raises NotImplementedError: if the spread of a site's distribution is not known exactly.
    """

    def __init__(
        self,
        fn: Callable[..., Any] | None = None,
        noise: Mapping[str, SpreadNoise] | None = None,
    ) -> None:
        self._begin(BACKEND.check_noise(noise))
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Spread the distribution of an observed site, after all handlers inside this one."""
        if msg["type"] == "sample":
            site = site_of(msg)
            kernel = self._see(site, msg["is_observed"])
            if kernel is not None:
                self._spread(msg, site, kernel, msg["value"])

    def postprocess_message(self, msg: Any) -> None:
        """Notice sites that a handler outside this one made observed."""
        if msg["type"] == "sample" and msg["is_observed"]:
            self._check_too_late(site_of(msg))
