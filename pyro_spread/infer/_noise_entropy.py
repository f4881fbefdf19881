# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The entropy of noisy data, which learned noise needs and a bound leaves out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution

from pyro_spread import _parents
from pyro_spread._recording import values_known
from pyro_spread.infer._datum import frames_of
from pyro_spread.infer._two_sides import mask_at
from pyro_spread.noise import SpreadNoise
from spread_core.messages import learned
from spread_core.noise import mixture


class _WithEntropy(TorchDistribution):
    """
    A distribution with a term in its log density at what is observed.

    :param fn: the distribution.
    :param term: of a shape that broadcasts to the batch shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, fn: TorchDistribution, term: torch.Tensor) -> None:
        self.fn, self._term = fn, term
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """As of ``fn``."""
        return bool(self.fn.has_rsample)

    @property
    def support(self) -> Any:
        """Support of ``fn``."""
        return self.fn.support

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> _WithEntropy:
        """Expand the distribution; the term broadcasts."""
        return _WithEntropy(self.fn.expand(batch_shape), self._term)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        """Sample from ``fn``."""
        return self.fn.rsample(sample_shape)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        """Sample from ``fn``."""
        return self.fn.sample(sample_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log density at the value that is observed."""
        return self.fn.log_prob(value) + self._term


def with_entropy(
    msg: Any, kernel: SpreadNoise, handed: torch.Tensor, clean: torch.Tensor
) -> TorchDistribution:
    r"""
    The distribution of a site, whose log density has a term of value 0: its gradient is that of
    minus :math:`\log\tilde p(y)`, by the mixture of the mini-batch.

    Only the noise depends on it, of whose gradient the sign is turned.

    :param msg: the site.
    :param kernel: that makes its noise.
    :param handed: what the plates take of the noisy values.
    :param clean: the same of the clean values.
    :raises NotImplementedError: if the mixture is not known.
    """
    site, fn, value = msg["name"], msg["fn"], torch.as_tensor(msg["value"])
    if mask_at(site, msg, value) is not None:
        raise NotImplementedError(learned.mixture_of_masked(site))
    event_dim, frames = fn.event_dim, frames_of(msg)
    dim = mixture.check_batch(site, kernel, value.shape, event_dim, frames, msg["scale"])
    if handed.numel() != value.numel():
        raise NotImplementedError(learned.mixture_moved(site))
    is_same = (handed.reshape(value.shape) == value).all()
    if values_known() and not bool(is_same):
        raise NotImplementedError(learned.mixture_moved(site))
    log_p = mixture.log_mixture(kernel, value, clean.reshape(value.shape), event_dim, dim)
    term = log_p.detach() - log_p
    return _WithEntropy(fn, torch.where(is_same, term, torch.full_like(term, float("nan"))))


def check_arguments(
    site: str, value: torch.Tensor, handed: torch.Tensor, arguments: tuple[Any, Any]
) -> None:
    """
    Refuse arguments that go with the data one by one, and are not the data.

    :param site: name of the site.
    :param value: what it observes.
    :param handed: the noisy data, as the model was given them.
    :param arguments: positional and keyword arguments of the model.
    :raises NotImplementedError: naming the shape.
    """
    mixture.check_leaves(site, value.shape, handed, arguments, _parents.tree_leaves)
