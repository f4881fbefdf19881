# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""WassersteinCritic: what is the same in both backends."""

from __future__ import annotations

from typing import Any, ClassVar

from spread_core.logits import Logits
from spread_core.loss_words import LossWords
from spread_core.losses.critic_loss import CriticLossShared
from spread_core.math.ratio import weighted_mean
from spread_core.messages import players


class WassersteinCriticShared(CriticLossShared):
    r"""
    Wasserstein-1 distance of data P and model Q in its dual form, with a gradient penalty.

    .. math::
        W_1(P, Q) = \sup_{|\nabla c| \le 1} E_P[c(x)] - E_Q[c(x)]

    The critic c maximises this minus ``gradient_penalty`` :math:`E (|\nabla c| - 1)^2` at random
    points between data and draws [1, equation 3]; the model minimises :math:`-E_Q[c]`. Both players
    get their own gradients from one backward pass. It needs no overlap of supports. The critic has
    to keep up with the model: several of its steps for one of the generator are usual (5 in [1]).

    The reported value is :math:`E_P[c] - E_Q[c]`, in the units of x: it estimates :math:`W_1` only
    once the critic is good.

    **References**

    [1] `Improved Training of Wasserstein GANs`, Ishaan Gulrajani et al.,
    https://arxiv.org/abs/1704.00028

    :param critic: a module (a ``torch.nn.Module``; in NumPyro of flax linen, flax nnx or equinox)
        called as ``critic(values, *args, **kwargs)``, which returns one number per datum;
        ``concat_sites(net, "x")`` makes one from a plain net.
    :param gradient_penalty: weight of the penalty; 0 for a critic that is Lipschitz by
        construction.
    :param noise: dict from observed site to noise kernel, or a callable that returns it.
    :param update: ``"one_pass"`` or ``"two_pass"``; see :class:`AdversarialDivergence`.
    :param num_particles: number of draws of the model per datum and step.
    :param name: of the critic in the param store; in NumPyro its params are at ``name$params``.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range.
    """

    #: The backend's penalty.
    _gradient_penalty: ClassVar[Any]

    def __init__(
        self,
        critic: Any,
        gradient_penalty: float = 10.0,
        noise: Any = None,
        *,
        update: str | None = None,
        num_particles: int = 1,
        name: str = "discriminator",
    ) -> None:
        if not gradient_penalty >= 0:
            wanted = "zero or positive"
            raise ValueError(players.bad_range("gradient_penalty", gradient_penalty, wanted))
        penalty = self._gradient_penalty(gradient_penalty) if gradient_penalty else None
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

    def _critic_loss(self, logits: Logits) -> Any:
        return -self._value(logits)

    def _generator_loss(self, logits: Any) -> Any:
        return -logits

    def _value(self, logits: Logits) -> Any:
        data, model, data_weights, model_weights = logits
        return weighted_mean(data, data_weights) - weighted_mean(model, model_weights)
