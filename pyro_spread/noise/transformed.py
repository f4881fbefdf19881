# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernels in the coordinates of an injective function of x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions import transforms as pyro_transforms
from torch.distributions import constraints, transforms
from torch.distributions.transforms import Transform

from pyro_spread import _parents
from pyro_spread.noise.base import SpreadNoise
from spread_core.messages import noise as noise_messages


def _why_not_injective(transform: Any) -> str | None:
    """
    Why a transform is not injective, or None if no reason is known. Degenerate parameters pass
    torch's own flag.
    """
    for part in _parts(transform):
        reason = _why_not_injective(part)
        if reason is not None:
            return reason
    if isinstance(transform, transforms.AffineTransform) and _is_degenerate(transform.scale):
        return "a scale of 0 maps every value to the same one"
    if isinstance(transform, transforms.PowerTransform) and _is_degenerate(transform.exponent):
        return "an exponent of 0 maps every value to 1"
    triangular = isinstance(transform, pyro_transforms.LowerCholeskyAffine)
    if triangular and _is_degenerate(transform.scale_tril.diagonal(dim1=-2, dim2=-1)):
        return "its scale_tril is singular"
    if isinstance(transform, pyro_transforms.Permute):
        indices = transform.permutation
        if not torch.equal(indices.sort().values, torch.arange(len(indices)).to(indices)):
            return "its permutation drops an element"
    if not transform.bijective:
        return "its attribute bijective is False"
    return None


def _name(transform: Transform) -> str:
    """What to call a transform: torch and NumPyro wrap inverses into a class without a name."""
    if _parents.is_inverse(transform):
        return f"the inverse of {_name(transform.inv)}"
    return type(transform).__name__


def _parts(transform: Transform) -> list[Transform]:
    if isinstance(transform, transforms.ComposeTransform):
        return list(transform.parts)
    if isinstance(transform, transforms.CatTransform | transforms.StackTransform):
        return list(transform.transforms)
    if isinstance(transform, transforms.IndependentTransform):
        return [transform.base_transform]
    if _parents.is_inverse(transform):
        return [transform.inv]
    return []


def _parameter_dims(transform: Any) -> int:
    """Number of rightmost dims over which its own numbers differ."""
    dims = [_parameter_dims(part) for part in _parts(transform)]
    values = [v for v in vars(transform).values() if isinstance(v, torch.Tensor)]
    if isinstance(transform, torch.nn.Module):
        values += [*transform.parameters(), *transform.buffers()]
    return max(dims + [v.dim() for v in values if v.numel() > 1], default=0)


def _is_degenerate(value: float | torch.Tensor) -> bool:
    tensor = torch.as_tensor(value)
    return bool(((tensor == 0) | ~torch.isfinite(tensor)).any())


@dataclass(frozen=True, eq=False)
class TransformedNoise(SpreadNoise):
    r"""
    Noise in the coordinates of an injective transform: :math:`y = f(x) + \text{noise}`.

    Injectivity of f is what keeps the spread divergence zero only at equality [1, section 3.2].
    Values that the model observes, and that the guide reads, live in the coordinates of y.

        >>> import torch
        >>> from torch.distributions.transforms import ExpTransform
        >>> from pyro_spread import GaussianNoise
        >>> TransformedNoise(ExpTransform(), GaussianNoise(0.1))(torch.zeros(3)).mean
        tensor([1., 1., 1.])

    **References**

    [1] `Spread Divergence`, Zhang, Hayes, Bird, Habib, Barber, https://arxiv.org/abs/1811.08968

    :param transform: a :class:`torch.distributions.transforms.Transform` with ``bijective = True``
        (onto its image), Pyro's flows included.
    :param noise: the kernel around f(x).
    :raises TypeError: if transform is not a Transform or noise is not a kernel.
    :raises ValueError: if the transform is not injective.
    """

    transform: Transform
    noise: SpreadNoise

    def __post_init__(self) -> None:
        if not isinstance(self.transform, Transform):
            base = "torch.distributions.transforms.Transform"
            raise TypeError(noise_messages.not_a_transform(self.transform, base))
        if not isinstance(self.noise, SpreadNoise):
            raise TypeError("TransformedNoise: " + noise_messages.not_a_kernel(self.noise))
        reason = _why_not_injective(self.transform)
        if reason is not None:
            raise ValueError(noise_messages.not_injective(_name(self.transform), reason))

    @property
    def coupled_dims(self) -> int:  # type: ignore[override]
        """Event dims of x that the transform or the noise around it needs."""
        return max(self.transform.domain.event_dim, self.noise.coupled_dims - self._added_dims)

    @property
    def _added_dims(self) -> int:
        return self.transform.codomain.event_dim - self.transform.domain.event_dim

    def check_value(self, x: torch.Tensor) -> None:
        """Refuse values that the noise around f(x) would refuse."""
        self.noise.check_value(x)

    def draw(self, x: torch.Tensor) -> torch.Tensor:
        """One draw of y given x, of the shape of f(x)."""
        self.check_value(x)
        self._check_widening(x.shape)
        return self.noise.draw(self._map(x))

    def _check_widening(self, shape: torch.Size) -> None:
        if self.transform.domain.event_dim > 0 or not _parameter_dims(self.transform):
            return
        try:
            fits = self.transform.forward_shape(shape) == shape
        except (RuntimeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(noise_messages.transform_misfit(_name(self.transform), shape))

    def _moves_with_data(self) -> bool:
        alike = self.coupled_dims == 0 and not _parameter_dims(self.transform)
        return alike and self.noise._moves_with_data()

    def _placed_dims(self, event_dim: int) -> int:
        own = max(self.coupled_dims, _parameter_dims(self.transform))
        return max(event_dim, own, self.noise._placed_dims(event_dim))

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        if self.transform.domain.event_dim == 0 and not _parameter_dims(self.transform):
            return self.noise._drawn_alike(drawn, scored, event_dim)
        return super()._drawn_alike(drawn, scored, event_dim)

    def _check_site(self, shape: torch.Size, event_dim: int) -> None:
        if event_dim >= self.coupled_dims:
            mapped = torch.Size(self.transform.forward_shape(shape))
            self.noise._check_site(mapped, event_dim + self._added_dims)

    def _for_components(self, event_dim: int) -> SpreadNoise:
        inner = self.noise._for_components(event_dim + self._added_dims)
        return TransformedNoise(self.transform, inner)

    def _map(self, x: torch.Tensor) -> torch.Tensor:
        domain = self.transform.domain
        everywhere = getattr(domain, "base_constraint", domain) is constraints.real
        checked = everywhere or torch.jit.is_tracing()
        if not checked and not bool(domain.check(x).all()):
            name = _name(self.transform)
            raise ValueError(noise_messages.outside_domain(name, domain))
        # A view: Pyro's transforms remember f(x) of the last x they saw, whatever it holds by now.
        return self.transform(x.view_as(x))

    def _conditional(
        self, x: torch.Tensor, event_dim: int, validate_args: bool | None = None
    ) -> TorchDistribution:
        return self.noise._conditional(self._map(x), event_dim + self._added_dims, validate_args)
