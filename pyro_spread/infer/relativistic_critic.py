# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""RelativisticCritic: pairs of a datum and a draw, with zero-centred penalties."""

from __future__ import annotations

from pyro_spread.infer._critic_loss import CriticLoss
from pyro_spread.ratio.regularizers import R1, R2, Regularizer
from spread_core.losses.relativistic_critic import RelativisticCriticShared


class RelativisticCritic(RelativisticCriticShared, CriticLoss):
    r"""
    Relativistic pairing (RpGAN) with zero-centred penalties on both sides, R1 and R2.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import RelativisticCritic, concat_sites, two_player
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     pass
        >>> pyro.clear_param_store()
        >>> loss = RelativisticCritic(concat_sites(torch.nn.Linear(1, 1), "x"))
        >>> adam = pyro.optim.Adam({"lr": 1e-3})
        >>> optim = two_player(adam, pyro.optim.Adam({"lr": 2e-3}))
        >>> svi = SVI(model, loss.register(model, guide), optim, loss)
        >>> svi.step(torch.randn(100)) < float("inf")
        True

    **Data parallelism** (DDP around ``loss(model, guide)``): exact: every player's mean is that
    over the whole batch, whatever the shards, if something counts on each. The value is that of the
    rank's own shard. Critics with batch normalisation are refused, except ``SyncBatchNorm``.
    """

    @staticmethod
    def _zero_centred(gamma: float) -> Regularizer:
        return R1(gamma=gamma) + R2(gamma=gamma)
