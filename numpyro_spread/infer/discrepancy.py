# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
MMD, EnergyDistance and SlicedWasserstein: discrepancies between data and samples, without a critic.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_spread._typing import RngKey
from numpyro_spread.infer._moving import declare_moves, state_sites
from numpyro_spread.infer._noise import as_noise, kernels_now
from numpyro_spread.infer._registration import Loss, Registered
from numpyro_spread.infer._two_sample import energy_distance, mmd2_unbiased, sliced_wasserstein
from numpyro_spread.infer._two_sides import TwoSides, draw_sides, no_guide
from numpyro_spread.noise import GaussianNoise
from numpyro_spread.ratio.adapters import SiteValues, site_features
from spread_core.losses.discrepancy import (
    DiscrepancyShared,
    EnergyDistanceShared,
    MMDShared,
    SlicedWassersteinShared,
)
from spread_core.messages import spreading
from spread_core.noise.moving import moving_kernels
from spread_core.typing import Guide, Model

__all__ = ["MMD", "EnergyDistance", "SlicedWasserstein"]

Kernel = Callable[[jax.Array, jax.Array], jax.Array]

# Samples of data and model, of shape (number, features), and their weights.
Both = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]


class _Discrepancy(DiscrepancyShared, Loss):
    """Base class of the losses that compare a batch of data with a batch of draws."""

    _as_noise = staticmethod(as_noise)
    _gaussian = GaussianNoise

    #: Draws need no enumeration; ``SVI.init`` asks.
    can_infer_discrete = True

    @abstractmethod
    def _once(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The discrepancy at one draw of the model for every datum, and new mutable state."""

    def register(
        self, model: Callable[..., Any], guide: Callable[..., Any] | None
    ) -> Callable[..., Any]:
        """
        The guide to pass to SVI: the guide itself, since there is no critic; if the noise moves, a
        guide that carries its state.

        :param model: the model.
        :param guide: the guide.
        """
        guide = guide or no_guide
        if not moving_kernels(self.noise):
            return guide
        return Registered(guide, after=lambda args, kwargs: declare_moves(self.noise))

    def loss(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
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
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """Like :meth:`loss`, in a dict with the new mutable state."""
        losses = []
        mutable: dict[str, Any] = {}
        for key in random.split(rng_key, self.num_particles):
            loss, mutable = self._once(key, param_map, model, guide, args, kwargs)
            losses.append(loss)
        if mutable.keys() - state_sites(self.noise) and self.num_particles > 1:
            raise NotImplementedError(spreading.mutable_particles(self.num_particles))
        return {"loss": jnp.mean(jnp.stack(losses)), "mutable_state": mutable or None}

    def _draw(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[Both, dict[str, Any]]:
        """Samples and weights of both sides, after the noise, and new mutable state."""
        kernels = kernels_now(self.noise, params, args, kwargs)
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


class MMD(MMDShared, _Discrepancy):
    """
    Squared maximum mean discrepancy between the data P and the model Q, without a critic.

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

    **Data parallelism** (batches sharded over devices, under ``jit``): exact: a compiled step means
    the whole batch, and XLA gathers it for the pairs of all samples.
    """

    def _once(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        kernels = kernels_now(self.noise, params, args, kwargs)
        sides = draw_sides(
            rng_key, params, model, guide, kernels, args, kwargs, self._has_closed_form
        )
        kernel: Any = self.kernel
        if sides.noise_left:
            kernel = kernel.convolved(self._variances(sides))
        value = mmd2_unbiased(kernel, *self._both(sides), block_size=self.block_size)
        return value, sides.mutable

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


class EnergyDistance(EnergyDistanceShared, _Discrepancy):
    """
    Energy distance between the data P and the model Q.

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
    """

    def _once(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        both, mutable = self._draw(rng_key, params, model, guide, args, kwargs)
        return energy_distance(*both, beta=self.beta, block_size=self.block_size), mutable


class SlicedWasserstein(SlicedWassersteinShared, _Discrepancy):
    """
    Sliced Wasserstein distance between the data P and the model Q, to the power p.

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
    """

    def _once(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        draw_key, key = random.split(rng_key)
        both, mutable = self._draw(draw_key, params, model, guide, args, kwargs)
        data, draws, *weights = both
        directions = random.normal(key, (self.num_projections, data.shape[-1]), data.dtype)
        directions = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
        return sliced_wasserstein(data, draws, directions, self.p, *weights), mutable
