# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""LeastSquaresCritic: what is the same in both backends."""

from __future__ import annotations

import math
from typing import Any

from spread_core.logits import Logits
from spread_core.loss_words import LossWords
from spread_core.losses.critic_loss import CriticLossShared
from spread_core.math.critic_losses import least_squares_loss
from spread_core.messages import critics


class LeastSquaresCriticShared(CriticLossShared):
    r"""
    The least-squares loss of GANs (LSGAN), in the usual labels an f-divergence.

    The critic c fits the label a at draws and b at data; the model moves its draws to where the
    critic is at its target:

    .. math::
        \min_c \; \tfrac12 E_P (c - b)^2 + \tfrac12 E_Q (c - a)^2, \qquad
        \min_Q \; \tfrac12 E_Q (c - c^*)^2

    with the target :math:`c^*` [1, equation 9]. The best critic is :math:`(b p + a q)/(p + q)`.

    - With the labels (0, 1, 1), the default, and all others whose target is that of the data, the
      model's gradient at the best critic is that of a **divergence**, :math:`(b - a)^2` times
      :math:`\mathrm{KL}[P \| M] - \tfrac18 \Delta` with :math:`M = (P + Q)/2` and Le Cam's
      :math:`\Delta = \int (p-q)^2/(p+q)`. :class:`LeastSquares` is that divergence for
      :class:`AdversarialDivergence`, whose critic is a classifier.
    - With others, such as (-1, 1, 0), it is that of **no divergence**: draws are pulled to where
      p = q from both sides. The theorem of [1], Pearson's :math:`\chi^2` of P + Q from 2 Q, is
      about a critic that follows the model at every change; it is :math:`\Delta` too.

    The reported value estimates :math:`\Delta`, which lies between 0 and 2, from the critic's loss
    :math:`L`: it is :math:`2 - 8 L/(b-a)^2`, never above :math:`\Delta` on average for a critic
    that did not see the samples, 0 for one that has learned the mean label only, and below 0 for a
    worse one. It has no unit. The critic's numbers are no logits.

    **References**

    [1] `Least Squares Generative Adversarial Networks`, Xudong Mao et al.,
    https://arxiv.org/abs/1611.04076

    :param critic: a module (a ``torch.nn.Module``; in NumPyro of flax linen, flax nnx or equinox)
        called as ``critic(values, *args, **kwargs)``, which returns one number per datum;
        ``concat_sites(net, "x")`` makes one from a plain net.
    :param noise: dict from observed site to noise kernel, or a callable that returns it.
    :param labels: (a, b, target): of draws, of data, and what the model aims at.
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
        labels: tuple[float, float, float] = (0.0, 1.0, 1.0),
        regularizer: Any = None,
        update: str | None = None,
        num_particles: int = 1,
        name: str = "discriminator",
    ) -> None:
        super().__init__(critic, noise, regularizer, update, num_particles, name)
        known = isinstance(labels, tuple | list) and len(labels) == 3
        if not (known and all(map(_is_finite, labels)) and labels[0] != labels[1]):
            raise ValueError(critics.bad_labels(labels))
        self.labels = tuple(labels)

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        _, of_data, target = self.labels
        missed = "the squared distance of the critic at its draws from the target, which is no"
        return LossWords(
            type(self).__name__,
            "Le Cam's divergence, at least",
            "",
            is_divergence=True,
            is_classifier=False,
            follows="LeastSquares()" if target == of_data else f"{missed} divergence",
        )

    def _critic_loss(self, logits: Logits) -> Any:
        data, model, data_weights, model_weights = logits
        of_draws, of_data, _ = self.labels
        return least_squares_loss(data, model, of_data, of_draws, data_weights, model_weights)

    def _generator_loss(self, logits: Any) -> Any:
        return (logits - self.labels[2]) ** 2 / 2

    def _value(self, logits: Logits) -> Any:
        of_draws, of_data, _ = self.labels
        return 2 - 8 * self._critic_loss(logits) / (of_data - of_draws) ** 2


def _is_finite(label: object) -> bool:
    return isinstance(label, int | float) and math.isfinite(label)
