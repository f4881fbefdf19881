# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
MMD, EnergyDistance and SlicedWasserstein: discrepancies between data and samples, without a critic.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_spread.infer._noise import Noise, as_noise, kernels_of
from numpyro_spread.infer._registration import Loss
from numpyro_spread.infer._two_sample import energy_distance, mmd2_unbiased, sliced_wasserstein
from numpyro_spread.infer._two_sides import TwoSides, draw_sides, no_guide
from numpyro_spread.noise import GaussianNoise, SpreadNoise
from numpyro_spread.ratio.adapters import SiteValues, site_features
from spread_core.loss_words import LossWords
from spread_core.messages import players, samples, spreading
from spread_core.validation import check_count

Kernel = Callable[[jax.Array, jax.Array], jax.Array]

# Samples of data and model, of shape (number, features), and their weights.
Both = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]


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

    #: Draws need no enumeration; ``SVI.init`` asks.
    can_infer_discrete = True

    @abstractmethod
    def _once(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The discrepancy at one draw of the model for every datum, and new mutable state."""

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        return LossWords(type(self).__name__, self._value, self._unit, is_divergence=True)

    def register(
        self, model: Callable[..., Any], guide: Callable[..., Any] | None
    ) -> Callable[..., Any]:
        """
        The guide to pass to SVI: the guide itself, since there is no critic.

        :param model: the model.
        :param guide: the guide.
        """
        return guide or no_guide

    def loss(
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """
        The discrepancy at fresh draws.

        :param rng_key: random key; the same key gives the same draws.
        :param param_map: dict from param site to value.
        :param model: the model, as it is.
        :param guide: empty, or over global latents.
        :raises ValueError: if sites, plates, masks and noise are inconsistent; the message names
            the site and says what to do.
        """
        return self.loss_with_mutable_state(rng_key, param_map, model, guide, *args, **kwargs)[
            "loss"
        ]

    def loss_with_mutable_state(
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Like :meth:`loss`, in a dict with the new mutable state."""
        losses = []
        mutable: dict[str, Any] = {}
        for key in random.split(rng_key, self.num_particles):
            loss, mutable = self._once(key, param_map, model, guide, args, kwargs)
            losses.append(loss)
        if mutable and self.num_particles > 1:
            raise NotImplementedError(spreading.mutable_particles(self.num_particles))
        return {"loss": jnp.mean(jnp.stack(losses)), "mutable_state": mutable or None}

    def _draw(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[Both, dict[str, Any]]:
        """Samples and weights of both sides, after the noise, and new mutable state."""
        kernels = kernels_of(self.noise, args, kwargs)
        sides = draw_sides(rng_key, params, model, guide, kernels, args, kwargs)
        return self._both(sides), sides.mutable

    def _both(self, sides: TwoSides) -> Both:
        data_weights, model_weights = sides.data_weights, sides.model_weights
        return (
            lax.stop_gradient(self._samples(sides.data)),
            self._samples(sides.model),
            None if data_weights is None else lax.stop_gradient(data_weights).reshape(-1),
            None if model_weights is None else lax.stop_gradient(model_weights).reshape(-1),
        )

    def _samples(self, values: SiteValues) -> jax.Array:
        """All sites and given arguments, concatenated to shape (number, features)."""
        names = [*values, *self.given]
        joined = jnp.concatenate([site_features(values, name) for name in names], -1)
        return joined.reshape(-1, joined.shape[-1])


class MMD(_Discrepancy):
    r"""
    Squared maximum mean discrepancy between the data P and the model Q, without a critic.

    .. math::
        E\,k(x, x') + E\,k(y, y') - 2 E\,k(x, y), \qquad x, x' \sim P, \; y, y' \sim Q,

    as the unbiased U-statistic over the batch [1, equation 3]: pairs of different samples only, so
    that its mean is zero where the two agree and single values may be negative. Draws of the model
    at the sites it observes take the place of y [2].

        >>> import jax, numpyro, numpyro.distributions as dist, optax
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import MMD, GaussianKernel
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Delta(w * z), obs=x)
        >>> svi = SVI(model, lambda x: None, optax.adam(1e-2), MMD(GaussianKernel([0.5, 1.0, 2.0])))
        >>> x = jax.random.normal(jax.random.key(0), (100,))
        >>> bool((svi.run(jax.random.key(1), 10, x, progress_bar=False).losses < 1.0).all())
        True

    Sites are concatenated, as are the arguments in ``given``; without these, a model of x given an
    argument is compared only on average over the arguments. With :class:`GaussianNoise` and a
    :class:`GaussianKernel` the noise is in closed form: the MMD of the spread distributions is that
    of the convolved kernel, and nothing is drawn. In all other cases, such as masked data or a
    scale for every datum, both sides get fresh noise.

    **Data parallelism** (batches sharded over devices, under ``jit``): exact: a compiled step means
    the whole batch, and XLA gathers it for the pairs of all samples.

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

    def _once(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        kernels = kernels_of(self.noise, args, kwargs)
        sides = draw_sides(
            rng_key, params, model, guide, kernels, args, kwargs, self._has_closed_form
        )
        kernel: Any = self.kernel
        if sides.noise_left:
            kernel = kernel.convolved(self._variances(sides))
        value = mmd2_unbiased(kernel, *self._both(sides), block_size=self.block_size)
        return value, sides.mutable

    def _has_closed_form(self, noise: SpreadNoise, event_shape: tuple[int, ...]) -> bool:
        if type(noise) is not GaussianNoise or not hasattr(self.kernel, "convolved"):
            return False
        # A scale for every datum would need a kernel for every pair.
        shape = jnp.shape(noise.scale)
        return len(shape) <= len(event_shape) and all(
            size in (1, event) for size, event in zip(shape[::-1], event_shape[::-1], strict=False)
        )

    def _variances(self, sides: TwoSides) -> jax.Array:
        """The noise variance of every feature that is not in the samples already."""
        parts = []
        for name in [*sides.data, *self.given]:
            values = site_features(sides.data, name)
            variance = jnp.zeros((), values.dtype)
            shape = values.shape[sides.data.batch_ndim :]
            if name in sides.data and name in sides.noise_left:
                scale = sides.noise_left[name].scale  # type: ignore[attr-defined]
                variance = jnp.square(jnp.asarray(scale, values.dtype))
                shape = sides.data[name].shape[sides.data.batch_ndim :]
            parts.append(jnp.broadcast_to(variance, shape).reshape(-1))
        return jnp.concatenate(parts)


class EnergyDistance(_Discrepancy):
    r"""
    Energy distance between the data P and the model Q.

    .. math::
        2 E|x - y|^\beta - E|x - x'|^\beta - E|y - y'|^\beta, \qquad 0 < \beta < 2,

    as the unbiased U-statistic over the batch [1]: two samples are compared. It has no bandwidth to
    choose; it grows with the scale of x to the power :math:`\beta`, so that sites on larger scales
    weigh more.

        >>> import jax, numpyro, numpyro.distributions as dist, optax
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import EnergyDistance
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Delta(w * z), obs=x)
        >>> svi = SVI(model, lambda x: None, optax.adam(1e-2), EnergyDistance())
        >>> x = jax.random.normal(jax.random.key(0), (100,))
        >>> bool((svi.run(jax.random.key(1), 10, x, progress_bar=False).losses < 1.0).all())
        True

    **Data parallelism** (batches sharded over devices, under ``jit``): exact: a compiled step means
    the whole batch, and XLA gathers it for the pairs of all samples.

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

    def _once(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        both, mutable = self._draw(rng_key, params, model, guide, args, kwargs)
        return energy_distance(*both, beta=self.beta, block_size=self.block_size), mutable


class SlicedWasserstein(_Discrepancy):
    r"""
    Sliced Wasserstein distance between the data P and the model Q, to the power p.

    The mean over random directions :math:`\theta` on the sphere of the one-dimensional
    :math:`W_p^p(\theta^\top x, \theta^\top y)`, which sorting gives exactly [1, 2]. Fresh
    directions are drawn at every step. Unlike the other two losses it is biased upwards: two
    batches of one distribution are a positive distance apart.

        >>> import jax, numpyro, numpyro.distributions as dist, optax
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import SlicedWasserstein
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Delta(w * z), obs=x)
        >>> svi = SVI(model, lambda x: None, optax.adam(1e-2), SlicedWasserstein(10))
        >>> x = jax.random.normal(jax.random.key(0), (100,))
        >>> bool((svi.run(jax.random.key(1), 10, x, progress_bar=False).losses < 1.0).all())
        True

    **Data parallelism** (batches sharded over devices, under ``jit``): exact: a compiled step means
    the whole batch, and XLA gathers it to be sorted.

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

    def _once(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        draw_key, key = random.split(rng_key)
        both, mutable = self._draw(draw_key, params, model, guide, args, kwargs)
        data, draws, *weights = both
        directions = random.normal(key, (self.num_projections, data.shape[-1]), data.dtype)
        directions = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
        return sliced_wasserstein(data, draws, directions, self.p, *weights), mutable
