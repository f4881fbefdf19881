# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""HingeCritic: the hinge loss of GANs, which is no divergence."""

from __future__ import annotations

from numpyro_spread.infer._critic_loss import CriticLoss
from spread_core.losses.hinge_critic import HingeCriticShared


class HingeCritic(HingeCriticShared, CriticLoss):
    r"""
    The hinge loss of GANs: **no divergence is minimised**, though the value bounds one.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        >>> from flax import linen
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import HingeCritic, concat_sites, two_player
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     pass
        >>> loss = HingeCritic(concat_sites(linen.Dense(1), "x"))
        >>> optim = two_player(optax.adam(1e-3), optax.adam(2e-3))
        >>> svi = SVI(model, loss.register(model, guide), optim, loss)
        >>> x = jax.random.normal(jax.random.key(0), (100,))
        >>> result = svi.run(jax.random.key(1), 10, x, progress_bar=False)
        >>> bool(jnp.isfinite(result.losses).all())
        True

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, also for critics that
    couple the samples: a compiled step means the whole batch, wherever its parts are.
    """
