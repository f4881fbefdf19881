# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel in the coordinates of an injective function of x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import transforms as pyro_transforms
from torch.distributions import constraints, transforms
from torch.distributions.transforms import Transform

from pyro_spread import _parents
from pyro_spread._recording import values_known
from pyro_spread.noise.base import SpreadNoise
from spread_core.messages import noise as noise_messages
from spread_core.noise import transformed


def _parts(transform: Any) -> list[Transform]:
    if isinstance(transform, transforms.ComposeTransform):
        return list(transform.parts)
    if isinstance(transform, transforms.CatTransform | transforms.StackTransform):
        return list(transform.transforms)
    if isinstance(transform, transforms.IndependentTransform):
        return [transform.base_transform]
    return []


def _arrays(transform: Any) -> list[torch.Tensor]:
    own = [value for value in vars(transform).values() if isinstance(value, torch.Tensor)]
    if isinstance(transform, torch.nn.Module):
        own += [*transform.parameters(), *transform.buffers()]
    return own


def _vanishing(transform: Any) -> list[tuple[Any, str]]:
    if isinstance(transform, transforms.AffineTransform):
        return [(transform.scale, transformed.ZERO_SCALE)]
    if isinstance(transform, transforms.PowerTransform):
        return [(transform.exponent, transformed.ZERO_EXPONENT)]
    if isinstance(transform, pyro_transforms.LowerCholeskyAffine):
        return [(transform.scale_tril.diagonal(dim1=-2, dim2=-1), transformed.SINGULAR)]
    return []


def _permutation(transform: Any) -> Any:
    return transform.permutation if isinstance(transform, pyro_transforms.Permute) else None


@dataclass(frozen=True, eq=False)
class TransformedNoise(transformed.Transformed, SpreadNoise):
    r"""
    Noise in the coordinates of an injective transform: :math:`y = f(x) + \text{noise}`.

        >>> import torch
        >>> from torch.distributions.transforms import ExpTransform
        >>> from pyro_spread import GaussianNoise
        >>> TransformedNoise(ExpTransform(), GaussianNoise(0.1))(torch.zeros(3)).mean
        tensor([1., 1., 1.])
    """

    transform: Transform
    noise: SpreadNoise

    _transforms = transformed.Transforms(
        base=Transform,
        base_name="torch.distributions.transforms.Transform",
        inverted=_parents.inverted,
        parts=_parts,
        arrays=_arrays,
        vanishing=_vanishing,
        permutation=_permutation,
        other_reason=lambda t: None if t.bijective else transformed.NOT_BIJECTIVE,
    )

    def draw(self, x: torch.Tensor) -> torch.Tensor:
        """One draw of y given x, of the shape of f(x)."""
        self.check_value(x)
        self._check_drawn(x.shape)
        return self.noise.draw(self._map(x))

    def _map(self, x: torch.Tensor) -> torch.Tensor:
        domain = self.transform.domain
        everywhere = getattr(domain, "base_constraint", domain) is constraints.real
        checked = everywhere or not values_known()
        if not checked and not bool(domain.check(x).all()):
            name = self._transforms.name(self.transform)
            raise ValueError(noise_messages.outside_domain(name, domain))
        # A view: Pyro's transforms remember f(x) of the last x they saw, whatever it holds by now.
        return self.transform(x.view_as(x))
