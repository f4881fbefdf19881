# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The mean of clean data given noisy ones: what is the same in both backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spread_core.math._arrays import cast
from spread_core.messages import denoising as messages
from spread_core.messages import general
from spread_core.noise.levels import MultiLevel, level_name, levels_asked_for
from spread_core.noise.low_rank import LowRankGaussian
from spread_core.noise.moving import Moving
from spread_core.noise.stationary import Gaussian
from spread_core.validation import check_count


def kernel_and_site(noise: Any, backend: Any) -> tuple[Any, str | None]:
    """
    The kernel, and its site if ``noise`` tells it.

    :param noise: a kernel, or a dict with one.
    :param backend: the backend's.
    :raises TypeError: if it is neither, or its scale moves.
    """
    site, kernel = None, noise
    if isinstance(noise, Mapping) and len(noise) == 1:
        ((site, kernel),) = noise.items()
    if not backend.is_kernel(kernel):
        raise TypeError(messages.bad_noise(noise))
    if isinstance(kernel, Moving):
        raise TypeError(messages.moving_noise(kernel._name))
    return kernel, site


def check_sources(model: Any, guide: Any, log_density: Any, num_samples: int) -> None:
    """
    Refuse anything but one way to denoise.

    :raises TypeError: if there are none or two.
    """
    by_guide = model is not None and guide is not None
    if by_guide is (log_density is not None) or (model is None) is not (guide is None):
        raise TypeError(messages.one_source())
    check_count("num_samples", num_samples)


def check_level(
    kernel: Any,
    site: str | None,
    level: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *functions: Any,
) -> None:
    """
    Refuse a level that nobody would use, and one that is missing.

    :param kernel: the kernel.
    :param site: its site, as far as it is told.
    :param level: None, or the level of every datum.
    :param args: positional arguments of the functions.
    :param kwargs: keyword arguments of the functions.
    :param functions: model and guide, or None.
    :raises ValueError: if so.
    """
    by_guide = any(function is not None for function in functions)
    if level is not None and not isinstance(kernel, MultiLevel):
        raise ValueError(messages.level_of_other_kernel(type(kernel).__name__))
    if level is not None and by_guide and site is None:
        raise ValueError(messages.level_of_which_site())
    if level is not None or site is None or level_name(site) in kwargs:
        return
    if levels_asked_for({site: kernel}, args, kwargs, *functions):
        raise ValueError(messages.level_not_given(level_name(site)))


def plain_gaussian(kernel: Any, level: Any) -> Any:
    """
    The Gaussian kernel behind ``kernel``, without its levels.

    :param level: its level for every datum, if it has several.
    :raises NotImplementedError: if it is none: Tweedie's formula is of Gaussian noise.
    """
    if isinstance(kernel, MultiLevel):
        if level is None:
            raise NotImplementedError(messages.level_unknown())
        kernel = kernel.kernel
    if not isinstance(kernel, Gaussian | LowRankGaussian):
        raise NotImplementedError(messages.not_gaussian(type(kernel).__name__))
    return kernel


def observed_site(site: str | None, observed: Sequence[str]) -> str:
    """
    The site that y belongs to.

    :param site: as far as it is told.
    :param observed: names of the sites that the model observes.
    :raises ValueError: if it is not among them, or there are several.
    """
    if site is None and len(observed) == 1:
        return observed[0]
    if site is None or site not in observed:
        raise ValueError(messages.which_site(observed))
    return site


def covariance_times(kernel: Any, slope: Any, level: Any) -> Any:
    r"""
    The covariance of the noise times the slope at every datum.

    :param kernel: what :func:`plain_gaussian` returned.
    :param slope: array of shape batch + event.
    :param level: None, or the level of every datum, of shape batch.
    """
    if isinstance(kernel, LowRankGaussian):
        event_dim = kernel._coupled_dims_of(slope)
        cut = slope.ndim - event_dim
        flat = slope.reshape((*slope.shape[:cut], -1))
        scale, factor = kernel.scale, cast(kernel.factor, flat)
        product = (flat * scale**2 + (flat @ factor) @ factor.T).reshape(slope.shape)
    else:
        product = slope * kernel.scale**2
    if level is None:
        return product
    level = cast(level, product)
    return product * level.reshape((*level.shape, *[1] * (slope.ndim - level.ndim))) ** 2


def tweedie(y: Any, kernel: Any, slope: Callable[[Any], Any], level: Any) -> Any:
    """
    Tweedie's formula.

    :param y: noisy data, of shape batch + event.
    :param kernel: the kernel.
    :param slope: of the log density of noisy data, a function of them.
    :param level: None, or the level of every datum.
    :raises NotImplementedError: if the kernel is not Gaussian.
    """
    gaussian = plain_gaussian(kernel, level)
    gaussian.check_value(y)
    return y + covariance_times(gaussian, slope(y), level)


def clean_mean(
    site: str, kernel: Any, fn: Any, y: Any, slope_of: Callable[[Any], Callable[[Any], Any]]
) -> Any:
    """
    The mean of x given y and the latents; None for a ``Delta``, whose own mean it is.

    :param site: that y belongs to.
    :param kernel: the kernel.
    :param fn: the distribution of x given the latents.
    :param y: noisy data.
    :param slope_of: from a log density to its slope.
    """
    inner = fn
    while hasattr(inner, "base_dist"):
        inner = inner.base_dist
    if isinstance(inner, kernel._backend.delta):
        return None
    if isinstance(kernel, MultiLevel):
        raise NotImplementedError(messages.levels_of_density(site))
    try:
        spread = plain_gaussian(kernel, None).spread(fn)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise type(error)(general.at_site(site, error)) from error
    return tweedie(y, kernel, slope_of(spread.log_prob), None)
