# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""RelativisticCritic: what is the same in both backends."""

from __future__ import annotations

import math
from typing import Any

from spread_core.logits import Logits
from spread_core.loss_words import LossWords
from spread_core.losses.critic_loss import CriticLossShared
from spread_core.math.critic_losses import pairing_loss
from spread_core.messages import critics, players


class RelativisticCriticShared(CriticLossShared):
    r"""
    Relativistic pairing (RpGAN) with zero-centred penalties on both sides, R1 and R2.

    Every datum x is paired with a draw y of the model, as they come, and the critic c says which is
    which from the difference of its two numbers [1, 2]:

    .. math::
        \min_c \; E[-\log \sigma(c(x) - c(y))] + \tfrac{\gamma}{2} E_P |\nabla c|^2
        + \tfrac{\gamma}{2} E_Q |\nabla c|^2, \qquad \min_Q \; E[-\log \sigma(c(y) - c(x))]

    A draw is good if it looks more like data than the datum beside it, wherever both are. Reference
    [2] shows that this game has no bad local optima, and that it converges locally with both
    penalties. Neither replaces a critic that keeps up with the model.

    The best critic without penalties is :math:`\log p/q` plus any constant. Its loss is
    :math:`\log 2` less the Jensen-Shannon divergence between the pairs (x, y) and (y, x), of
    :math:`P \otimes Q` from :math:`Q \otimes P`, which lies between 0 and :math:`\log 2` and is 0
    only if P = Q. The reported value estimates it, in nats: on average never above it for a critic
    that did not see the samples, and below 0 for one that is worse than a constant. **It is not
    what the model minimises**: as with the non-saturating loss, the model's gradient at that critic
    is that of :math:`\mathrm{KL}[Q \| P]` less this divergence. The critic's numbers are no
    logits: the constant is unknown.

    **References**

    [1] `The relativistic discriminator`, Alexia Jolicoeur-Martineau,
    https://arxiv.org/abs/1807.00734

    [2] `The GAN is dead; long live the GAN!`, Nick Huang et al., https://arxiv.org/abs/2501.05441

    :param critic: a module (a ``torch.nn.Module``; in NumPyro of flax linen, flax nnx or equinox)
        called as ``critic(values, *args, **kwargs)``, which returns one number per datum;
        ``concat_sites(net, "x")`` makes one from a plain net.
    :param gamma: weight of each of the two penalties, ``R1(gamma) + R2(gamma)``; 0 for none.
    :param noise: dict from observed site to noise kernel, or a callable that returns it.
    :param update: ``"one_pass"`` or ``"two_pass"``; see :class:`AdversarialDivergence`.
    :param num_particles: number of draws of the model per datum and step.
    :param name: of the critic in the param store; in NumPyro its params are at ``name$params``.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range; or if there are not as many draws as
        data.
    """

    def __init__(
        self,
        critic: Any,
        gamma: float = 1.0,
        noise: Any = None,
        *,
        update: str | None = None,
        num_particles: int = 1,
        name: str = "discriminator",
    ) -> None:
        if not gamma >= 0:
            raise ValueError(players.bad_range("gamma", gamma, "zero or positive"))
        penalty = self._zero_centred(gamma) if gamma else None
        super().__init__(critic, noise, penalty, update, num_particles, name)

    @staticmethod
    def _zero_centred(gamma: float) -> Any:
        """The backend's penalties on both sides."""
        raise NotImplementedError

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        return LossWords(
            type(self).__name__,
            "Jensen-Shannon estimate of ordered pairs",
            is_divergence=True,
            is_classifier=False,
            follows="the critic's loss at pairs in the other order, which is no divergence",
        )

    def _critic_loss(self, logits: Logits) -> Any:
        return pairing_loss(*self._pairs(logits))

    def _generator_mean(self, logits: Logits) -> Any:
        data, model, weights = self._pairs(logits)
        return pairing_loss(model, data, weights)

    def _value(self, logits: Logits) -> Any:
        return math.log(2) - self._critic_loss(logits)

    @staticmethod
    def _pairs(logits: Logits) -> tuple[Any, Any, Any]:
        """The critic's numbers at data and draws, and the weight of each pair."""
        data, model, data_weights, _ = logits
        if tuple(data.shape) != tuple(model.shape):
            raise ValueError(critics.unequal_pairs(tuple(data.shape), tuple(model.shape)))
        # Masks and scales are the site's, and so the same on both sides.
        return data, model, data_weights
