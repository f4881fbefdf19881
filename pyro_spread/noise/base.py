# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Base class of the noise kernels: the call, and the recursion of ``spread`` through wrappers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution

from pyro_spread import _parents
from spread_core.messages import noise


def as_parameter(value: float | torch.Tensor) -> float | torch.Tensor:
    """A Python float, whose type follows x, or a tensor of a floating type, learnable or not."""
    if isinstance(value, int | float | np.generic):
        return float(value)
    tensor = torch.as_tensor(value)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def widened(x: torch.Tensor) -> torch.Tensor:
    """
    Values in float16 or bfloat16 as float32, all others as they are.

    Three digits are enough for a net's activations, but not for what is summed or subtracted after.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def like(value: float | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A parameter in x's type and on x's device, a Python float at x's full precision."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def is_positive(value: float | torch.Tensor) -> bool:
    """Whether every element is a positive and finite number (NaN is neither)."""
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        return False
    return bool(((tensor > 0) & torch.isfinite(tensor)).all())


class SpreadNoise:
    r"""
    A noise kernel :math:`k(y \mid x)`, a small immutable object.

    Passing data :math:`p` and model :math:`q` through the same kernel gives
    :math:`\tilde p(y) = \int k(y \mid x)\, p(x)\, dx` and :math:`\tilde q` alike, and
    :math:`\mathrm{KL}[\tilde p \,\|\, \tilde q] = 0` if and only if :math:`p = q`, provided that
    the map from :math:`p` to :math:`\tilde p` is invertible [1, section 2]. Every kernel of this
    module is, and refuses parameters for which it would not be.

    To write your own kernel, derive a frozen dataclass whose fields are its parameters and
    implement :meth:`conditional`. Make sure that it is valid: a stationary kernel is valid if its
    :meth:`characteristic_function` has no zeros.

        >>> import dataclasses, torch, pyro.distributions as dist
        >>> from pyro_spread import SpreadNoise
        >>> @dataclasses.dataclass(frozen=True)
        ... class GumbelNoise(SpreadNoise):
        ...     scale: float
        ...     def conditional(self, x, event_dim):
        ...         return dist.Gumbel(x, self.scale).to_event(event_dim)
        >>> GumbelNoise(0.3).spread(dist.Delta(torch.zeros(5, 2), event_dim=1)).event_shape
        torch.Size([2])

    **References**

    [1] `Spread Divergence`, Mingtian Zhang, Peter Hayes, Tom Bird, Raza Habib, David Barber,
    https://arxiv.org/abs/1811.08968
    """

    #: Number of rightmost dimensions of x that the kernel couples; 0 if it acts element by element.
    coupled_dims: int = 0

    def __call__(self, x: torch.Tensor, event_dim: int = 0) -> TorchDistribution:
        """
        The distribution of y given x.

        :param x: values of the site, of shape batch + event.
        :param event_dim: number of event dimensions of the site of x.
        :return: a distribution over y with the same batch and event shape, in float32 if x is in 16
            bits.
        :raises TypeError: if x has an integer type under a continuous kernel, or the reverse.
        :raises ValueError: if the event shape does not fit the kernel.
        """
        self.check_value(x)
        if not 0 <= event_dim <= x.dim():
            raise ValueError(noise.event_dim_too_large(repr(self), event_dim, x.dim()))
        if event_dim < self.coupled_dims:
            raise ValueError(
                noise.event_dim_too_small(type(self).__name__, self.coupled_dims, event_dim)
            )
        return self._conditional(widened(x), event_dim)

    def spread(self, distribution: TorchDistribution) -> TorchDistribution:
        r"""
        The exact distribution of y when x follows ``distribution``.

        :param distribution: ``Delta`` under every kernel; ``Normal`` and ``MultivariateNormal``
            under the Gaussian kernels; ``Categorical`` under a channel; mixtures of these; all also
            inside ``Independent``, masked and expanded wrappers.
        :return: :math:`\int k(y \mid x)\, p(x)\, dx`, of the same batch and event shape.
        :raises NotImplementedError: for every other distribution, naming the pair and what to do.
        """
        if not isinstance(distribution, torch.distributions.Distribution):
            name = type(distribution).__name__
            raise NotImplementedError(noise.no_spread_rule(type(self).__name__, name))
        shape = distribution.batch_shape + distribution.event_shape
        self._check_site(shape, len(distribution.event_shape))
        return self._spread(distribution, 0)

    def draw(self, x: torch.Tensor) -> torch.Tensor:
        """
        One draw of y given x, of x's shape, without knowing which dimensions of x are event dims.

        :param x: values of the site, of shape batch + event.
        :raises ValueError: if the kernel does not fit the shape of x.
        """
        self.check_value(x)
        y = self._conditional(widened(x), self._coupled_dims_of(x), validate_args=False)
        return y.rsample() if y.has_rsample else y.sample()

    def characteristic_function(self, omega: torch.Tensor) -> torch.Tensor:
        r"""
        :math:`E\, e^{i \omega (y - x)}` of a stationary kernel: real, and nowhere zero.

        :param omega: frequencies, in radians per unit of x.
        :raises NotImplementedError: for kernels that are not stationary.
        """
        raise NotImplementedError(noise.no_characteristic_function(type(self).__name__))

    def check_value(self, x: torch.Tensor) -> None:
        """
        Refuse values of the wrong type.

        :raises TypeError: if x is not of a floating type.
        """
        if not x.dtype.is_floating_point:
            raise TypeError(noise.integer_under_continuous(type(self).__name__, x.dtype))

    def conditional(self, x: torch.Tensor, event_dim: int) -> TorchDistribution:
        """
        The distribution of y given x; implement this method in your own kernel.

        The rest of the class calls it with values whose type and dims are checked. To get the
        distribution from a kernel, call the kernel.

        :param x: values of the site, of shape batch + event.
        :param event_dim: number of event dimensions of the site of x.
        :return: a distribution over y with the same batch shape and number of event dims.
        :raises NotImplementedError: if the class does not implement it.
        """
        # The kernels of the package implement the method below instead.
        if type(self)._conditional is SpreadNoise._conditional:
            raise NotImplementedError(noise.no_conditional(type(self).__name__))
        return self._conditional(x, event_dim)

    def _conditional(
        self, x: torch.Tensor, event_dim: int, validate_args: bool | None = None
    ) -> TorchDistribution:
        """The distribution of y given x, on which validation can be left out."""
        return self.conditional(x, event_dim)

    def _coupled_dims_of(self, x: torch.Tensor) -> int:
        """The smallest ``event_dim`` with which ``x`` can be noised."""
        return self.coupled_dims

    def _moves_with_data(self) -> bool:
        """Whether every element is noised alike, so that it does not matter where it stands."""
        return False

    def _placed_dims(self, event_dim: int) -> int:
        """Number of rightmost dims within which elements must keep their places."""
        return max(event_dim, 1)

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        """Whether noise on values of shape ``drawn`` is that of a site that scores ``scored``."""
        placed = 0 if self._moves_with_data() else self._placed_dims(event_dim)
        return placed == 0 or tuple(drawn[-placed:]) == tuple(scored[-placed:])

    def _check_site(self, shape: torch.Size, event_dim: int) -> None:
        """Refuse to spread a distribution of ``shape`` that the parameters would widen."""
        return

    def _for_components(self, event_dim: int) -> SpreadNoise:
        """The kernel for the components of a mixture, with a dimension left of the event dims."""
        return self

    def _spread_exactly(self, fn: Any, extra: int) -> TorchDistribution | None:
        """The spread of ``fn.to_event(extra)`` where this kernel has a closed form, else None."""
        return None

    def _spread(self, fn: Any, extra: int) -> TorchDistribution:
        """The spread of ``fn.to_event(extra)``."""
        # A kernel that couples dimensions must see them all, so the event dims of the wrappers
        # around a distribution are carried inwards as ``extra`` instead of being put back outside.
        if isinstance(fn, torch.distributions.Independent):
            return self._spread(fn.base_dist, extra + fn.reinterpreted_batch_ndims)
        if isinstance(fn, dist.Delta):
            return self._spread_delta(fn, extra)
        separable = extra == 0 or self.coupled_dims == 0
        if isinstance(fn, MaskedDistribution):
            if isinstance(_parents.mask_of(fn), bool):
                return self._spread(fn.base_dist, extra).mask(_parents.mask_of(fn))
            if separable:
                return self._spread(fn.base_dist, 0).mask(_parents.mask_of(fn)).to_event(extra)
        if isinstance(fn, ExpandedDistribution):
            if separable:
                return self._spread(fn.base_dist, 0).expand(fn.batch_shape).to_event(extra)
            expanded = fn.base_dist.expand(fn.batch_shape)
            if not isinstance(expanded, ExpandedDistribution):
                return self._spread(expanded, extra)
        exact = self._spread_exactly(fn, extra)
        if exact is not None:
            return exact
        if separable:
            mixture = self._spread_mixture(fn)
            if mixture is not None:
                return mixture.to_event(extra)
        name = type(fn).__name__
        raise NotImplementedError(
            noise.no_spread_rule(
                type(self).__name__, name if separable else f"Independent({name}, {extra})"
            )
        )

    def _spread_delta(self, fn: dist.Delta, extra: int) -> TorchDistribution:
        value = fn.v
        if torch.jit.is_tracing():
            # Unknown in later calls: what is wrong spoils the result, or is no label.
            zero = (fn.log_density == 0).reshape(fn.batch_shape + (1,) * fn.event_dim)
            wrong = float("nan") if value.is_floating_point() else -1
            value = torch.where(zero, value, torch.full_like(value, wrong))
        elif bool((fn.log_density != 0).any()):
            raise NotImplementedError(noise.delta_with_density(type(self).__name__))
        return self(value, fn.event_dim + extra)

    def _spread_mixture(self, fn: Any) -> TorchDistribution | None:
        if isinstance(fn, torch.distributions.MixtureSameFamily):
            components = fn.component_distribution
            kernel = self._for_components(len(components.event_shape))
            return dist.MixtureSameFamily(fn.mixture_distribution, kernel._spread(components, 0))
        if isinstance(fn, dist.MaskedMixture):
            return dist.MaskedMixture(
                fn.mask, self._spread(fn.component0, 0), self._spread(fn.component1, 0)
            )
        return None
