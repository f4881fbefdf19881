# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The mean of clean data given noisy ones, from what was trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.typing import ArrayLike
from numpyro.handlers import replay

from numpyro_spread._inputs import takes_arrays
from numpyro_spread._typing import Args, Kwargs, Params, RngKey
from numpyro_spread.evaluation._sites import sample_sites, trace_of
from numpyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.denoising import (
    check_level,
    check_sources,
    clean_mean,
    kernel_and_site,
    observed_site,
    tweedie,
)
from spread_core.messages import denoising as messages
from spread_core.noise.levels import telling
from spread_core.typing import Guide, Model


@takes_arrays
def denoise(
    y: ArrayLike,
    noise: SpreadNoise | Mapping[str, SpreadNoise],
    model: Model | None = None,
    guide: Guide | None = None,
    *args: Any,
    rng_key: RngKey | None = None,
    params: Params | None = None,
    log_density: Callable[[jax.Array], jax.Array] | None = None,
    level: Any = None,
    num_samples: int = 100,
    **kwargs: Any,
) -> jax.Array:
    r"""
    The mean of clean data given noisy ones, :math:`E[x \mid y]`.

        >>> import jax.numpy as jnp
        >>> from numpyro_spread import GaussianNoise, denoise
        >>> def log_density(y):  # data at 1 and -1, with noise of scale 0.5
        ...     return jnp.logaddexp(-2 * (y - 1) ** 2, -2 * (y + 1) ** 2)
        >>> mean = denoise(jnp.array([0.1, 1.0]), GaussianNoise(0.5), log_density=log_density)
        >>> [round(float(m), 4) for m in mean]
        [0.3799, 0.9993]

    There are two sources. The guide's reconstruction, from a guide and a model trained by
    ``SpreadELBO`` or another ELBO on noisy data: the mean of :math:`E[x \mid y, z]` over draws z of
    the guide, which under a ``Delta`` likelihood is the mean of g(z). It is as good as the guide
    is. Or Tweedie's formula [1] for Gaussian noise of covariance :math:`\Sigma`,

    .. math:: E[x \mid y] = y + \Sigma \, \nabla_y \log \tilde p(y),

    from the log density of noisy data up to a constant. A critic knows it relative to the model:
    give its log-ratio plus the log density of the spread model. The slope is as good as the
    critic's.

    **References**

    [1] `Tweedie's Formula and Selection Bias`, Bradley Efron,
    https://doi.org/10.1198/jasa.2011.tm11181

    :param y: noisy data, of shape batch + event.
    :param noise: the kernel, or a dict from the site to it.
    :param model: the model, called as ``model(y, *args, **kwargs)``.
    :param guide: the guide, called in the same way.
    :param args: further positional arguments of both.
    :param log_density: from y to one number for every datum, instead of model and guide.
    :param level: under ``MultiLevelNoise`` the levels at which y was drawn, of shape batch; a guide
        that asks for them is told.
    :param rng_key: random key, for the guide's draws.
    :param params: dict from param site to value, such as ``svi.get_params(state)``.
    :param num_samples: draws of the guide for every datum.
    :param kwargs: keyword arguments of model and guide.
    :return: the mean, of the shape of y.
    :raises TypeError: if there are no or two sources, or noise is not one kernel of a known scale.
    :raises ValueError: if the site is not told and there are several or a level, if the level does
        not go with the kernel, or log_density has another shape.
    :raises NotImplementedError: if the kernel is not Gaussian where it has to be.
    """
    kernel, site = kernel_and_site(noise, BACKEND)
    check_sources(model, guide, log_density, num_samples)
    check_level(kernel, site, level, (y, *args), kwargs, model, guide)
    y, level = jnp.asarray(y), None if level is None else jnp.asarray(level)
    if log_density is not None:
        return jnp.asarray(tweedie(y, kernel, functools.partial(_slope, log_density), level))
    if rng_key is None or params is None:
        raise TypeError(messages.no_key())
    levels = {} if level is None else {str(site): level}
    mean = _reconstruct(
        rng_key, params, model, guide, kernel, site, levels, num_samples, (y, *args), kwargs
    )
    return mean.reshape(y.shape) if mean.size == y.size else mean


def _slope(log_density: Callable[[jax.Array], jax.Array], y: jax.Array) -> jax.Array:
    value, pull_back = jax.vjp(log_density, y)
    if value.shape != y.shape[: value.ndim]:
        raise ValueError(messages.bad_log_density(value.shape, y.shape))
    (slope,) = pull_back(jnp.ones_like(value))
    return jnp.asarray(slope)


def _reconstruct(
    rng_key: RngKey,
    params: Params,
    model: Any,
    guide: Any,
    kernel: Any,
    site: str | None,
    levels: Mapping[str, Any],
    num_samples: int,
    args: Args,
    kwargs: Kwargs,
) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        guide_key, model_key = random.split(key)
        drawn = trace_of(guide_key, params, telling(guide, levels), args, kwargs)
        replayed = replay(telling(model, levels), trace=drawn)
        sites = sample_sites(trace_of(model_key, params, replayed, args, kwargs))
        name = observed_site(site, [n for n, s in sites.items() if s["is_observed"]])
        return _clean_mean(name, kernel, sites[name])

    # One after the other: what is added up need not be kept.
    keys = random.split(rng_key, num_samples)
    total = lax.fori_loop(1, num_samples, lambda i, mean: mean + one(keys[i]), one(keys[0]))
    return jnp.asarray(total / num_samples)


def _clean_mean(name: str, kernel: Any, site: Any) -> jax.Array:
    """The mean of x given y and the latents."""
    fn, y = site["fn"], jnp.asarray(site["value"])
    mean = clean_mean(name, kernel, fn, y, lambda density: functools.partial(_slope, density))
    return jnp.asarray(jnp.broadcast_to(fn.mean, y.shape) if mean is None else mean)
