# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""HingeCritic: what is the same in both backends."""

from __future__ import annotations

from typing import Any

from spread_core.logits import Logits
from spread_core.loss_words import LossWords
from spread_core.losses.critic_loss import CriticLossShared
from spread_core.math.critic_losses import hinge_loss


class HingeCriticShared(CriticLossShared):
    r"""
    The hinge loss of GANs: **no divergence is minimised**, though the value bounds one.

    The critic minimises :math:`E_P \max(0, 1 - c) + E_Q \max(0, 1 + c)`, the model
    :math:`-E_Q[c]` [1, 2]. The best critic of all is the sign of p - q, and its loss
    :math:`2 - 2\,\mathrm{TV}` [3]: there the model's loss is flat almost everywhere. What moves the
    model is what keeps the critic smooth: its net, ``spectral_norm=True``, or a penalty. With
    critics of slope one the game comes close to that of :class:`WassersteinCritic`, which does
    estimate what it minimises.

    The reported value is 1 less half of the critic's loss. Its expectation is never above the total
    variation between P and Q, for any critic that did not see the samples, and is 0 for one that
    has learned nothing; it has no unit. The critic's numbers are no logits, and no log-ratio
    can be read from them.

    **References**

    [1] `Geometric GAN`, Jae Hyun Lim, Jong Chul Ye, https://arxiv.org/abs/1705.02894

    [2] `Spectral Normalization for Generative Adversarial Networks`, Takeru Miyato et al.,
    https://arxiv.org/abs/1802.05957

    [3] `On surrogate loss functions and f-divergences`, XuanLong Nguyen, Martin Wainwright, Michael
    Jordan, https://arxiv.org/abs/math/0510521

    :param critic: a module (a ``torch.nn.Module``; in NumPyro of flax linen, flax nnx or equinox)
        called as ``critic(values, *args, **kwargs)``, which returns one number per datum;
        ``concat_sites(net, "x")`` makes one from a plain net.
    :param noise: dict from observed site to noise kernel, or a callable that returns it.
    :param regularizer: penalty on the critic's gradient, such as ``R1(1.0)``.
    :param update: ``"one_pass"`` or ``"two_pass"``; see :class:`AdversarialDivergence`.
    :param num_particles: number of draws of the model per datum and step.
    :param name: of the critic in the param store; in NumPyro its params are at ``name$params``.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        critic: Any,
        noise: Any = None,
        *,
        regularizer: Any = None,
        update: str | None = None,
        num_particles: int = 1,
        name: str = "discriminator",
    ) -> None:
        super().__init__(critic, noise, regularizer, update, num_particles, name)

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        return LossWords(
            type(self).__name__,
            "total variation, at least",
            "",
            is_divergence=True,
            is_classifier=False,
            follows="minus the mean of the critic at its draws, which is no divergence",
        )

    def _critic_loss(self, logits: Logits) -> Any:
        return hinge_loss(*logits)

    def _generator_loss(self, logits: Any) -> Any:
        return -logits

    def _value(self, logits: Logits) -> Any:
        return 1 - self._critic_loss(logits) / 2
