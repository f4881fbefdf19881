# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
WassersteinCritic: the Wasserstein distance between data and model, by a critic of bounded slope.
"""

from __future__ import annotations

import torch
from torch import nn

from pyro_spread.infer._critic_loss import CriticLoss
from pyro_spread.infer._noise import Noise
from pyro_spread.ratio.losses import weighted_mean
from pyro_spread.ratio.regularizers import GradientPenalty
from spread_core.logits import Logits
from spread_core.loss_words import LossWords
from spread_core.messages import players


class WassersteinCritic(CriticLoss):
    r"""
    Wasserstein-1 distance of data P and model Q in its dual form, with a gradient penalty.

    .. math::
        W_1(P, Q) = \sup_{|\nabla c| \le 1} E_P[c(x)] - E_Q[c(x)]

    The critic c maximises this minus ``gradient_penalty`` :math:`E (|\nabla c| - 1)^2` at random
    points between data and draws [1, equation 3]; the model minimises :math:`-E_Q[c]`. Both players
    get their own gradients from one backward pass. It needs no overlap of supports. The critic has
    to keep up with the model: several of its steps for one of the generator are usual (5 in [1]).

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import WassersteinCritic, concat_sites, two_player
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     pass
        >>> pyro.clear_param_store()
        >>> loss = WassersteinCritic(concat_sites(torch.nn.Linear(1, 1), "x"))
        >>> adam = pyro.optim.Adam({"lr": 1e-3})
        >>> optim = two_player(adam, pyro.optim.Adam({"lr": 2e-3}), discriminator_steps=5)
        >>> svi = SVI(model, loss.register(model, guide), optim, loss)
        >>> svi.step(torch.randn(100)) < float("inf")
        True

    The reported value is :math:`E_P[c] - E_Q[c]`, in the units of x: it estimates :math:`W_1` only
    once the critic is good.

    **Data parallelism** (DDP around ``loss(model, guide)``): exact: every player's mean is that
    over the whole batch, whatever the shards, if something counts on each. The value is that of the
    rank's own shard. Critics with batch normalisation are refused, except ``SyncBatchNorm``.

    **References**

    [1] `Improved Training of Wasserstein GANs`, Ishaan Gulrajani et al.,
    https://arxiv.org/abs/1704.00028

    :param critic: a ``torch.nn.Module`` called as ``critic(values, *args, **kwargs)``, which
        returns one number per datum; ``concat_sites(net, "x")`` makes one from a plain net.
    :param gradient_penalty: weight of the penalty; 0 for a critic that is Lipschitz by
        construction.
    :param noise: dict from observed site to noise kernel, or a callable that returns it.
    :param update: ``"one_pass"`` or ``"two_pass"``; see :class:`AdversarialDivergence`.
    :param num_particles: number of draws of the model per datum and step.
    :param name: of the critic in the param store.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        critic: nn.Module,
        gradient_penalty: float = 10.0,
        noise: Noise | None = None,
        *,
        update: str | None = None,
        num_particles: int = 1,
        name: str = "discriminator",
    ) -> None:
        if not gradient_penalty >= 0:
            wanted = "zero or positive"
            raise ValueError(players.bad_range("gradient_penalty", gradient_penalty, wanted))
        penalty = GradientPenalty(gradient_penalty) if gradient_penalty else None
        super().__init__(critic, noise, penalty, update, num_particles, name)

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        return LossWords(
            type(self).__name__,
            "Wasserstein estimate",
            "units of x",
            is_divergence=True,
            is_classifier=False,
        )

    def _critic_loss(self, logits: Logits) -> torch.Tensor:
        return -self._value(logits)

    def _generator_loss(self, logits: torch.Tensor) -> torch.Tensor:
        return -logits

    def _value(self, logits: Logits) -> torch.Tensor:
        data, model, data_weights, model_weights = logits
        return weighted_mean(data, data_weights) - weighted_mean(model, model_weights)
