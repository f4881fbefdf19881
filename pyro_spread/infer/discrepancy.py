# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
MMD, EnergyDistance and SlicedWasserstein: discrepancies between data and samples, without a critic.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine

from pyro_spread.infer._noise import as_noise, kernels_of
from pyro_spread.infer._ranks import all_gather_rows, broadcast_from_first, whole_gradient
from pyro_spread.infer._registration import Loss
from pyro_spread.infer._two_sample import energy_distance, mmd2_unbiased, sliced_wasserstein
from pyro_spread.infer._two_sides import TwoSides, draw_sides
from pyro_spread.noise import GaussianNoise
from pyro_spread.ratio.adapters import SiteValues, site_features
from spread_core.losses.discrepancy import (
    DiscrepancyShared,
    EnergyDistanceShared,
    MMDShared,
    SlicedWassersteinShared,
)
from spread_core.typing import Guide, Model

__all__ = ["MMD", "EnergyDistance", "SlicedWasserstein"]

Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Samples of data and model, of shape (number, features), and their weights.
Both = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class _Discrepancy(DiscrepancyShared, Loss):
    """Base class of the losses that compare a batch of data with a batch of draws."""

    _as_noise = staticmethod(as_noise)
    _gaussian = GaussianNoise

    @abstractmethod
    def _once(self, model: Any, guide: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """The discrepancy at one draw of the model for every datum."""

    def loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """
        The discrepancy at fresh draws.

        :raises ValueError: if sites, plates, masks and noise are inconsistent; the message names
            the site and says what to do, and params are as before.
        """
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def differentiable_loss(
        self, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Like :meth:`loss`, as a tensor to differentiate."""
        losses = [self._once(model, guide, args, kwargs) for _ in range(self.num_particles)]
        return whole_gradient(sum(losses[1:], losses[0]) / self.num_particles)

    def _draw(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Both:
        """Samples and weights of both sides, after the noise."""
        kernels = kernels_of(self.noise, args, kwargs)
        return self._both(draw_sides(model, guide, kernels, args, kwargs))

    def _both(self, sides: TwoSides) -> Both:
        data_weights, model_weights = (
            None if weights is None else weights.detach().reshape(-1)
            for weights in (sides.data_weights, sides.model_weights)
        )
        # Every sample is compared with every other, those of other ranks included.
        data, data_weights = all_gather_rows(self._samples(sides.data).detach(), data_weights)
        draws, model_weights = all_gather_rows(self._samples(sides.model), model_weights)
        return data, draws, data_weights, model_weights

    def _samples(self, values: SiteValues) -> torch.Tensor:
        """All sites and given arguments, concatenated to shape (number, features)."""
        names = [*values, *self.given]
        joined = torch.cat([site_features(values, name) for name in names], -1)
        return joined.reshape(-1, joined.shape[-1])


class MMD(MMDShared, _Discrepancy):
    """
    Squared maximum mean discrepancy between the data P and the model Q, without a critic.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import MMD, GaussianKernel
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     pass
        >>> loss = MMD(GaussianKernel([0.5, 1.0, 2.0]))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
        >>> svi.step(torch.randn(100)) < 1.0
        True

    Pyro's own ``Trace_MMD`` is another thing: its V-statistic over particles compares latents with
    their prior.

    A Pyro kernel, such as those of ``pyro.contrib.gp.kernels``, keeps its parameters: minimising
    the discrepancy would flatten it.

    **Data parallelism** (DDP around ``loss(model, guide)``): exact: all pairs of the batch count,
    for which the ranks gather all their samples; every rank reports the same value.
    """

    def _once(self, model: Any, guide: Any, args: Any, kwargs: Any) -> torch.Tensor:
        kernels = kernels_of(self.noise, args, kwargs)
        sides = draw_sides(model, guide, kernels, args, kwargs, self._has_closed_form)
        kernel: Any = self.kernel
        if sides.noise_left:
            kernel = kernel.convolved(self._variances(sides))

        def fixed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            with poutine.block():  # SVI would train the params that the kernel names
                return kernel(x, y)

        return mmd2_unbiased(fixed, *self._both(sides), block_size=self.block_size)

    def _variances(self, sides: TwoSides) -> torch.Tensor:
        """The noise variance of every feature that is not in the samples already."""
        parts = []
        for name in [*sides.data, *self.given]:
            values = site_features(sides.data, name)
            variance = values.new_zeros(())
            shape = values.shape[sides.data.batch_ndim :]
            if name in sides.data and name in sides.noise_left:
                scale = sides.noise_left[name].scale  # type: ignore[attr-defined]
                variance = torch.as_tensor(scale, dtype=values.dtype, device=values.device).square()
                shape = sides.data[name].shape[sides.data.batch_ndim :]
            parts.append(variance.expand(shape).reshape(-1))
        return torch.cat(parts)


class EnergyDistance(EnergyDistanceShared, _Discrepancy):
    """
    Energy distance between the data P and the model Q.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import EnergyDistance
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Delta(w * z), obs=x)
        >>> svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), EnergyDistance())
        >>> svi.step(torch.randn(100)) < 1.0
        True

    ``pyro.infer.EnergyDistance`` is another thing: it scores every datum by particles of its own.

    **Data parallelism** (DDP around ``loss(model, guide)``): exact: all pairs of the batch count,
    for which the ranks gather all their samples; every rank reports the same value.
    """

    def _once(self, model: Any, guide: Any, args: Any, kwargs: Any) -> torch.Tensor:
        both = self._draw(model, guide, args, kwargs)
        return energy_distance(*both, beta=self.beta, block_size=self.block_size)


class SlicedWasserstein(SlicedWassersteinShared, _Discrepancy):
    """
    Sliced Wasserstein distance between the data P and the model Q, to the power p.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import SlicedWasserstein
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Delta(w * z), obs=x)
        >>> svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), SlicedWasserstein(10))
        >>> 0.0 < svi.step(torch.randn(100)) < 1.0
        True

    **Data parallelism** (DDP around ``loss(model, guide)``): exact: all samples are sorted
    together, for which the ranks gather them and take one rank's directions; every rank reports the
    same value.
    """

    def _once(self, model: Any, guide: Any, args: Any, kwargs: Any) -> torch.Tensor:
        data, draws, *weights = self._draw(model, guide, args, kwargs)
        directions = torch.randn(self.num_projections, data.shape[-1])
        directions = broadcast_from_first(directions, data).to(data)
        directions = torch.nn.functional.normalize(directions, dim=-1)
        return sliced_wasserstein(data, draws, directions, self.p, *weights)
