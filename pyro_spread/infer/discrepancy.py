# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
MMD, EnergyDistance and SlicedWasserstein: discrepancies between data and samples, without a critic.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine

from pyro_spread.infer._noise import Noise, as_noise, kernels_of
from pyro_spread.infer._ranks import agreed, gathered, whole_gradient
from pyro_spread.infer._registration import Loss
from pyro_spread.infer._two_sample import energy_distance, mmd2_unbiased, sliced_wasserstein
from pyro_spread.infer._two_sides import TwoSides, draw_sides
from pyro_spread.noise import GaussianNoise, SpreadNoise
from pyro_spread.ratio.adapters import SiteValues, site_features
from spread_core.loss_words import LossWords
from spread_core.messages import players, samples
from spread_core.validation import check_count

Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Samples of data and model, of shape (number, features), and their weights.
Both = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class _Discrepancy(Loss):
    """Base class of the losses that compare a batch of data with a batch of draws."""

    #: What is reported, and its unit.
    _value, _unit = "", ""

    def __init__(self, noise: Noise | None, given: Sequence[str], num_particles: int) -> None:
        check_count("num_particles", num_particles)
        if isinstance(given, str) or not all(isinstance(name, str) for name in given):
            raise TypeError(players.bad_range("given", given, "a sequence of argument names"))
        super().__init__(num_particles=num_particles)
        self.noise = as_noise(noise)
        self.given = tuple(given)

    @abstractmethod
    def _once(self, model: Any, guide: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """The discrepancy at one draw of the model for every datum."""

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        return LossWords(type(self).__name__, self._value, self._unit, is_divergence=True)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """
        The discrepancy at fresh draws.

        :raises ValueError: if sites, plates, masks and noise are inconsistent; the message names
            the site and says what to do, and params are as before.
        """
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def differentiable_loss(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
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
        data, data_weights = gathered(self._samples(sides.data).detach(), data_weights)
        draws, model_weights = gathered(self._samples(sides.model), model_weights)
        return data, draws, data_weights, model_weights

    def _samples(self, values: SiteValues) -> torch.Tensor:
        """All sites and given arguments, concatenated to shape (number, features)."""
        names = [*values, *self.given]
        joined = torch.cat([site_features(values, name) for name in names], -1)
        return joined.reshape(-1, joined.shape[-1])


class MMD(_Discrepancy):
    r"""
    Squared maximum mean discrepancy between the data P and the model Q, without a critic.

    .. math::
        E\,k(x, x') + E\,k(y, y') - 2 E\,k(x, y), \qquad x, x' \sim P, \; y, y' \sim Q,

    as the unbiased U-statistic over the batch [1, equation 3]: pairs of different samples only, so
    that its mean is zero where the two agree and single values may be negative. (The V-statistic
    over particles, as in Pyro's own ``Trace_MMD``, compares latents with their prior.) Here y are
    draws of the model at the sites it observes [2].

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

    Sites are concatenated, as are the arguments in ``given``; without these, a model of x given an
    argument is compared only on average over the arguments. With :class:`GaussianNoise` and a
    :class:`GaussianKernel` the noise is in closed form: the MMD of the spread distributions is that
    of the convolved kernel, and nothing is drawn. In all other cases, such as masked data or a
    scale for every datum, both sides get fresh noise.

    A Pyro kernel, such as those of ``pyro.contrib.gp.kernels``, keeps its parameters: minimising
    the discrepancy would flatten it.

    **Data parallelism** (DDP around ``loss(model, guide)``): exact: all pairs of the batch count,
    for which the ranks gather all their samples; every rank reports the same value.

    **References**

    [1] `A Kernel Two-Sample Test`, Arthur Gretton et al., JMLR 13, 2012.

    [2] `Training generative neural networks via Maximum Mean Discrepancy optimization`, Gintare
    Karolina Dziugaite, Daniel M. Roy, Zoubin Ghahramani, https://arxiv.org/abs/1505.03906

    :param kernel: a positive definite kernel: any callable from samples of shapes (n, d) and (m, d)
        to an (n, m) matrix, such as :class:`GaussianKernel`.
    :param noise: dict from observed site to noise kernel, or a callable that returns it.
    :param given: names of arguments of the model that are compared together with the sites.
    :param num_particles: number of draws of the model per datum and step.
    :param block_size: rows of the kernel matrix that are held at once; chosen if left out.
    :raises TypeError: if the kernel is not callable.
    """

    _value, _unit = "MMD², unbiased", ""

    def __init__(
        self,
        kernel: Kernel,
        noise: Noise | None = None,
        *,
        given: Sequence[str] = (),
        num_particles: int = 1,
        block_size: int | None = None,
    ) -> None:
        super().__init__(noise, given, num_particles)
        if not callable(kernel):
            raise TypeError(players.bad_range("MMD: kernel", kernel, "callable"))
        self.kernel = kernel
        self.block_size = block_size

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

    def _has_closed_form(self, noise: SpreadNoise, event_shape: tuple[int, ...]) -> bool:
        if type(noise) is not GaussianNoise or not hasattr(self.kernel, "convolved"):
            return False
        # A scale for every datum would need a kernel for every pair.
        shape = torch.as_tensor(noise.scale).shape
        return len(shape) <= len(event_shape) and all(
            size in (1, event) for size, event in zip(shape[::-1], event_shape[::-1], strict=False)
        )

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


class EnergyDistance(_Discrepancy):
    r"""
    Energy distance between the data P and the model Q.

    .. math::
        2 E|x - y|^\beta - E|x - x'|^\beta - E|y - y'|^\beta, \qquad 0 < \beta < 2,

    as the unbiased U-statistic over the batch [1]: two samples are compared, where
    ``pyro.infer.EnergyDistance`` scores every datum by particles of its own. It has no bandwidth to
    choose; it grows with the scale of x to the power :math:`\beta`, so that sites on larger scales
    weigh more.

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

    **Data parallelism** (DDP around ``loss(model, guide)``): exact: all pairs of the batch count,
    for which the ranks gather all their samples; every rank reports the same value.

    **References**

    [1] `Energy statistics: A class of statistics based on distances`, Gábor Székely, Maria Rizzo,
    Journal of Statistical Planning and Inference 143, 2013.

    :param beta: the power of the distance.
    :param noise: dict from observed site to noise kernel, or a callable that returns it.
    :param given: names of arguments of the model that are compared together with the sites.
    :param num_particles: number of draws of the model per datum and step.
    :param block_size: rows of the distance matrix that are held at once; chosen if left out.
    :raises ValueError: if beta is not inside (0, 2).
    """

    _value, _unit = "energy distance, unbiased", "units of x to the power beta"

    def __init__(
        self,
        beta: float = 1.0,
        noise: Noise | None = None,
        *,
        given: Sequence[str] = (),
        num_particles: int = 1,
        block_size: int | None = None,
    ) -> None:
        super().__init__(noise, given, num_particles)
        if not 0 < beta < 2:
            raise ValueError(samples.bad_energy_power(beta))
        self.beta = beta
        self.block_size = block_size

    def _once(self, model: Any, guide: Any, args: Any, kwargs: Any) -> torch.Tensor:
        both = self._draw(model, guide, args, kwargs)
        return energy_distance(*both, beta=self.beta, block_size=self.block_size)


class SlicedWasserstein(_Discrepancy):
    r"""
    Sliced Wasserstein distance between the data P and the model Q, to the power p.

    The mean over random directions :math:`\theta` on the sphere of the one-dimensional
    :math:`W_p^p(\theta^\top x, \theta^\top y)`, which sorting gives exactly [1, 2]. Fresh
    directions are drawn at every step. Unlike the other two losses it is biased upwards: two
    batches of one distribution are a positive distance apart.

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

    **References**

    [1] `Sliced and Radon Wasserstein Barycenters of Measures`, Nicolas Bonneel et al., Journal of
    Mathematical Imaging and Vision 51, 2015.

    [2] `Generative Modeling using the Sliced Wasserstein Distance`, Ishan Deshpande, Ziyu Zhang,
    Alexander Schwing, https://arxiv.org/abs/1803.11188

    :param num_projections: number of directions per step.
    :param noise: dict from observed site to noise kernel, or a callable that returns it.
    :param p: the order, at least 1; the value is in units of x to that power.
    :param given: names of arguments of the model that are compared together with the sites.
    :param num_particles: number of draws of the model per datum and step.
    :raises ValueError: if an argument is out of its range.
    """

    _value, _unit = "sliced Wasserstein", "units of x to the power p"

    def __init__(
        self,
        num_projections: int = 100,
        noise: Noise | None = None,
        *,
        p: float = 2.0,
        given: Sequence[str] = (),
        num_particles: int = 1,
    ) -> None:
        super().__init__(noise, given, num_particles)
        check_count("num_projections", num_projections)
        if not 1 <= p < float("inf"):
            raise ValueError(samples.bad_order(p))
        self.num_projections = num_projections
        self.p = p

    def _once(self, model: Any, guide: Any, args: Any, kwargs: Any) -> torch.Tensor:
        data, draws, *weights = self._draw(model, guide, args, kwargs)
        directions = torch.randn(self.num_projections, data.shape[-1])
        directions = agreed(directions, data).to(data)
        directions = torch.nn.functional.normalize(directions, dim=-1)
        return sliced_wasserstein(data, draws, directions, self.p, *weights)
