# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""LeastSquaresCritic: the least-squares loss of GANs."""

from __future__ import annotations

from numpyro_spread.infer._critic_loss import CriticLoss
from spread_core.losses.least_squares_critic import LeastSquaresCriticShared


class LeastSquaresCritic(LeastSquaresCriticShared, CriticLoss):
    r"""
    The least-squares loss of GANs (LSGAN), in the usual labels an f-divergence.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        >>> from flax import linen
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import LeastSquaresCritic, concat_sites, two_player
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     pass
        >>> loss = LeastSquaresCritic(concat_sites(linen.Dense(1), "x"))
        >>> optim = two_player(optax.adam(1e-3), optax.adam(2e-3))
        >>> svi = SVI(model, loss.register(model, guide), optim, loss)
        >>> x = jax.random.normal(jax.random.key(0), (100,))
        >>> result = svi.run(jax.random.key(1), 10, x, progress_bar=False)
        >>> bool(jnp.isfinite(result.losses).all())
        True

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, also for critics that
    couple the samples: a compiled step means the whole batch, wherever its parts are.
    """
