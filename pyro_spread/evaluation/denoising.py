# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The mean of clean data given noisy ones, from what was trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine

from pyro_spread._inputs import takes_arrays
from pyro_spread.evaluation._sites import sample_sites
from pyro_spread.noise.base import BACKEND, SpreadNoise
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
from spread_core.typing import Args, Guide, Kwargs, Model


@takes_arrays
def denoise(
    y: torch.Tensor,
    noise: SpreadNoise | Mapping[str, SpreadNoise],
    model: Model | None = None,
    guide: Guide | None = None,
    *args: Any,
    log_density: Callable[[torch.Tensor], torch.Tensor] | None = None,
    level: Any = None,
    num_samples: int = 100,
    **kwargs: Any,
) -> torch.Tensor:
    r"""
    The mean of clean data given noisy ones, :math:`E[x \mid y]`.

        >>> import torch
        >>> from pyro_spread import GaussianNoise, denoise
        >>> def log_density(y):  # data at 1 and -1, with noise of scale 0.5
        ...     return torch.logaddexp(-2 * (y - 1) ** 2, -2 * (y + 1) ** 2)
        >>> denoise(torch.tensor([0.1, 1.0]), GaussianNoise(0.5), log_density=log_density)
        tensor([0.3799, 0.9993])

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
    level = None if level is None else torch.as_tensor(level)
    if log_density is not None:
        return torch.as_tensor(tweedie(y, kernel, functools.partial(_slope, log_density), level))
    levels = {} if level is None else {str(site): level}
    mean = _reconstruct(model, guide, kernel, site, levels, num_samples, (y, *args), kwargs)
    return mean.reshape(y.shape) if mean.numel() == y.numel() else mean


def _slope(log_density: Callable[[torch.Tensor], torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        at = y.detach().requires_grad_()
        value = log_density(at)
        if value.shape != y.shape[: value.dim()]:
            raise ValueError(messages.bad_log_density(value.shape, y.shape))
        (slope,) = torch.autograd.grad(value.sum(), at)
    return slope


def _reconstruct(
    model: Any,
    guide: Any,
    kernel: Any,
    site: str | None,
    levels: Mapping[str, Any],
    num_samples: int,
    args: Args,
    kwargs: Kwargs,
) -> torch.Tensor:
    total: Any = None
    for _ in range(num_samples):
        with torch.no_grad():
            drawn = poutine.trace(telling(guide, levels)).get_trace(*args, **kwargs)
            replayed = poutine.replay(telling(model, levels), trace=drawn)
            sites = sample_sites(poutine.trace(replayed).get_trace(*args, **kwargs))
        name = observed_site(site, [n for n, s in sites.items() if s["is_observed"]])
        mean = _clean_mean(name, kernel, sites[name])
        total = mean if total is None else total + mean
    return torch.as_tensor(total / num_samples)


def _clean_mean(name: str, kernel: Any, site: Any) -> torch.Tensor:
    """The mean of x given y and the latents."""
    fn, y = site["fn"], site["value"]
    mean = clean_mean(name, kernel, fn, y, lambda density: functools.partial(_slope, density))
    return torch.as_tensor(fn.mean.expand(y.shape).detach() if mean is None else mean)
