# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The effect handler ``spread``, which adds noise to the distributions at observed sites."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger

from pyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.noise.handler import SpreadSites


def is_delta(fn: Any, value: Any = None) -> bool:
    """
    Whether ``fn`` is a ``Delta`` or a mixture of them, also inside wrappers, that scores ``value``.

    Pyro's reparametrisers leave Deltas that are masked out or stand at their own value.
    """
    wrappers = (torch.distributions.Independent, MaskedDistribution, ExpandedDistribution)
    while isinstance(fn, wrappers):
        if getattr(fn, "_mask", None) is False:
            return False
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.MixtureSameFamily):
        return is_delta(fn.component_distribution)
    return isinstance(fn, Delta) and fn.v is not value


def is_data(msg: Any) -> bool:
    """Whether a message is an observation; ``pyro.deterministic`` sites only look like one."""
    return msg["is_observed"] and not msg["infer"].get("_deterministic", False)


class SpreadMessenger(SpreadSites, Messenger):
    """
    Replace the distribution at observed sites by its spread; see :func:`spread`.

    :param noise: dict from site to kernel.
    """

    _as_value = staticmethod(torch.as_tensor)

    def __init__(self, noise: Mapping[str, SpreadNoise]) -> None:
        super().__init__()
        self._begin(BACKEND.check_noise(noise))

    def _pyro_sample(self, msg: Any) -> None:
        kernel = self._see(msg["name"], is_data(msg))
        if kernel is not None:
            self._spread(msg, msg["name"], kernel, msg["value"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_data(msg):
            self._check_too_late(msg["name"])


def spread(
    fn: Callable[..., Any] | None = None, noise: Mapping[str, SpreadNoise] | None = None
) -> Any:
    r"""
    Effect handler that passes the distribution at observed sites through a noise kernel.

    At every observed site that ``noise`` names, the distribution p becomes
    :math:`\int k(y \mid x)\, p(x)\, dx`, exactly. Values are untouched: the caller passes noisy
    values to the model. Sites that are not observed are untouched too, so ``Predictive`` gives
    clean draws.

    Both spellings work, ``spread(model, noise)`` and ``with spread(noise=noise):``.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_spread import GaussianNoise, spread
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Delta(2 * z), obs=y)
        >>> spread_model = spread(model, {"x": GaussianNoise(0.3)})
        >>> trace = pyro.poutine.trace(spread_model).get_trace(torch.tensor(1.0))
        >>> bool(torch.isfinite(trace.log_prob_sum()))
        True

    :param fn: a model.
    :param noise: dict from the names of observed sites to noise kernels; a name may be a pattern as
        for files, such as ``"x_*"``, that stands for all observed sites it fits.
    :return: the model with its observed sites spread; without ``fn``, a context manager.
    :raises TypeError: if noise is not such a dict, or a value's type does not fit its kernel.
    :raises ValueError: if a named site does not exist, a kernel does not fit it, or it was made
        observed by a handler outside this one.
    :raises NotImplementedError: if the spread of a site's distribution is not known exactly.
    """
    if fn is not None and not callable(fn):
        raise TypeError(f"{fn} is not callable, did you mean to pass it as a keyword arg?")
    messenger = SpreadMessenger(noise)  # type: ignore[arg-type]
    if fn is None:
        return messenger
    return functools.update_wrapper(messenger(fn), fn, updated=())
