# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
WassersteinCritic: the Wasserstein distance between data and model, by a critic of bounded slope.
"""

from __future__ import annotations

from numpyro_spread.infer._critic_loss import CriticLoss
from numpyro_spread.ratio.regularizers import GradientPenalty
from spread_core.losses.wasserstein_critic import WassersteinCriticShared


class WassersteinCritic(WassersteinCriticShared, CriticLoss):
    r"""
    Wasserstein-1 distance of data P and model Q in its dual form, with a gradient penalty.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        >>> from flax import linen
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import WassersteinCritic, concat_sites, two_player
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     pass
        >>> loss = WassersteinCritic(concat_sites(linen.Dense(1), "x"))
        >>> optim = two_player(optax.adam(1e-3), optax.adam(2e-3), discriminator_steps=5)
        >>> svi = SVI(model, loss.register(model, guide), optim, loss)
        >>> x = jax.random.normal(jax.random.key(0), (100,))
        >>> result = svi.run(jax.random.key(1), 10, x, progress_bar=False)
        >>> bool(jnp.isfinite(result.losses).all())
        True

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, also for critics that
    couple the samples: a compiled step means the whole batch, wherever its parts are.
    """

    _gradient_penalty = GradientPenalty
