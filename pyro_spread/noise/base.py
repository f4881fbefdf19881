# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Base class of the noise kernels, on tensors and distributions of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution

from pyro_spread import _parents
from pyro_spread._recording import values_known
from spread_core.messages import noise
from spread_core.noise.base import Backend, Kernel


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


def like(value: float | tuple[float, ...] | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A parameter in x's type and on x's device, Python floats at x's full precision."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def _known(value: Any) -> Any:
    return widened(torch.as_tensor(value).detach()).cpu().numpy()


def _type_of(x: torch.Tensor) -> tuple[torch.dtype, str]:
    if x.dtype.is_floating_point:
        return x.dtype, "floating"
    return x.dtype, "other" if x.dtype.is_complex or x.dtype is torch.bool else "integer"


def _range_of(x: torch.Tensor) -> tuple[int, int] | None:
    return None if not values_known() or not x.numel() else (int(x.min()), int(x.max()))


def _expanded_inside(fn: Any) -> Any:
    expanded = fn.base_dist.expand(fn.batch_shape)
    return None if isinstance(expanded, ExpandedDistribution) else expanded


BACKEND = Backend(
    as_array=torch.as_tensor,
    widened=widened,
    as_parameter=as_parameter,
    as_positive=as_parameter,
    known=_known,
    type_of=_type_of,
    range_of=_range_of,
    identity=torch.eye,
    distribution=torch.distributions.Distribution,
    independent=torch.distributions.Independent,
    delta=dist.Delta,
    masked=MaskedDistribution,
    expanded=ExpandedDistribution,
    mask_of=_parents.mask_of,
    expanded_inside=_expanded_inside,
)
is_positive = BACKEND.is_positive


class SpreadNoise(Kernel[torch.Tensor, torch.Tensor, TorchDistribution]):
    r"""
    A noise kernel :math:`k(y \mid x)`, a small immutable object.

        >>> import dataclasses, torch, pyro.distributions as dist
        >>> from pyro_spread import SpreadNoise
        >>> @dataclasses.dataclass(frozen=True)
        ... class GumbelNoise(SpreadNoise):
        ...     scale: float
        ...     def conditional(self, x, event_dim):
        ...         return dist.Gumbel(x, self.scale).to_event(event_dim)
        >>> GumbelNoise(0.3).spread(dist.Delta(torch.zeros(5, 2), event_dim=1)).event_shape
        torch.Size([2])
    """

    _backend = BACKEND

    def draw(self, x: torch.Tensor) -> torch.Tensor:
        """
        One draw of y given x, without knowing which dimensions of x are event dims.

        :param x: values of the site, of shape batch + event.
        :return: y, of x's shape.
        :raises ValueError: if the kernel does not fit the shape of x.
        """
        self._check_drawn(x.shape)
        self.check_value(x)
        y = self._conditional(widened(x), self._coupled_dims_of(x), validate_args=False)
        return y.rsample() if y.has_rsample else y.sample()

    def _spread_delta(self, fn: dist.Delta, extra: int) -> TorchDistribution:
        value = fn.v
        if not values_known():
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
