# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""RelativisticCritic: pairs of a datum and a draw, with zero-centred penalties."""

from __future__ import annotations

from numpyro_spread.infer._critic_loss import CriticLoss
from numpyro_spread.ratio.regularizers import R1, R2, Regularizer
from spread_core.losses.relativistic_critic import RelativisticCriticShared


class RelativisticCritic(RelativisticCriticShared, CriticLoss):
    r"""
    Relativistic pairing (RpGAN) with zero-centred penalties on both sides, R1 and R2.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        >>> from flax import linen
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import RelativisticCritic, concat_sites, two_player
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     pass
        >>> loss = RelativisticCritic(concat_sites(linen.Dense(1), "x"))
        >>> optim = two_player(optax.adam(1e-3), optax.adam(2e-3))
        >>> svi = SVI(model, loss.register(model, guide), optim, loss)
        >>> x = jax.random.normal(jax.random.key(0), (100,))
        >>> result = svi.run(jax.random.key(1), 10, x, progress_bar=False)
        >>> bool(jnp.isfinite(result.losses).all())
        True

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, also for critics that
    couple the samples: a compiled step means the whole batch, wherever its parts are.
    """

    @staticmethod
    def _zero_centred(gamma: float) -> Regularizer:
        return R1(gamma=gamma) + R2(gamma=gamma)
