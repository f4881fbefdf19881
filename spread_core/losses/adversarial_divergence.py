# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AdversarialDivergence: what is the same in both backends."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from spread_core.logits import Logits
from spread_core.loss_words import LossWords, divergence_name
from spread_core.losses.critic_loss import CriticLossShared
from spread_core.math._arrays import cast
from spread_core.math._exponentials import exp
from spread_core.math.divergences import Divergence, JSPi
from spread_core.math.ratio import (
    log_ratio,
    logistic_loss,
    non_saturating_loss,
    prior_log_odds,
    weighted_mean,
)
from spread_core.messages import learned, players
from spread_core.monitors import (
    SATURATED_LOGIT,
    ClampMonitor,
    LogitRangeMonitor,
    SupportMismatchMonitor,
)
from spread_core.noise.learnable import learned_of

_GENERATORS = ("divergence", "non_saturating")


class AdversarialDivergenceShared(CriticLossShared):
    r"""
    Divergence of the data P from the model Q, with the log-ratio learned by a classifier.

    The samples of P are the values the model observes, those of Q its own draws at the same sites,
    so no likelihood is needed. The ``discriminator`` is trained to distinguish them by the logistic
    loss with class prior :math:`\pi`,

    .. math::
        \min_D \; \pi E_P[-\log D] + (1 - \pi) E_Q[-\log(1 - D)] = H(\pi) - \mathrm{JS}_\pi[P \| Q],

    and its logit minus :math:`\log \pi/(1-\pi)` is the log-ratio :math:`\log P/Q` from which
    ``divergence`` is taken [1, 2, 3]. Every param gets the gradient of its own player: the
    discriminator's that of the logistic loss, all others that of the divergence with the
    discriminator frozen, :math:`E_Q[-f^*(f'(P/Q))]`. Both come from one backward pass.

    With ``unroll=k`` the generator looks ahead [5]: its gradient is that of
    :math:`E_P[f'(P/Q)] - E_Q[f^*(f'(P/Q))]`, or of :math:`-E_Q \log D`, with the discriminator that
    k plain gradient steps lead to, on the same batch and on its own loss with the penalty (at every
    one of these steps, whatever ``every`` is). It passes through these steps, also from the data's
    logits: with many of them it is the gradient of the divergence, or of :math:`-E_Q \log D`, at
    the discriminator's best answer. The discriminator's own gradient, its params and buffers, and
    the reported value are those without. A step costs about 3k more passes, and their memory.

    The reported value estimates the divergence in nats; those that are bounded are clipped to their
    range, for example :math:`\mathrm{JS}_\pi` to :math:`[0, H(\pi)]`: a critic that is worse than a
    constant one, as many are at first, would give less than zero. If that lasts for 20 steps, one
    warning says so, with the value. It is averaged over the data: the scale of a subsampling plate
    cancels. Masked elements are set to zero in data and draws, and a datum that is masked
    completely does not count. Where supports do not overlap, a :class:`SupportMismatchWarning` is
    issued once; the cure is ``noise``, which is added to data and draws, fresh at every step [4].

    **References**

    [1] `How (not) to train your generative model`, Ferenc Huszar, https://arxiv.org/abs/1511.05101

    [2] `f-GAN`, Sebastian Nowozin, Botond Cseke, Ryota Tomioka, https://arxiv.org/abs/1606.00709

    [3] `Generative Adversarial Networks`, Ian Goodfellow et al., https://arxiv.org/abs/1406.2661

    [4] `Spread Divergence`, Mingtian Zhang et al., https://arxiv.org/abs/1811.08968

    [5] `Unrolled Generative Adversarial Networks`, Luke Metz et al.,
    https://arxiv.org/abs/1611.02163

    :param discriminator: a module (a ``torch.nn.Module``; in NumPyro of flax linen, flax nnx or
        equinox) called as ``discriminator(values, *args, **kwargs)``, where ``values`` is a dict of
        the contrasted sites and ``args`` are those of the model; it returns one logit for every
        datum. ``concat_sites(net, "x")`` makes one from a plain net.
    :param divergence: what the model minimises; ``JSPi(0.5)`` by default. Its ``pi`` is the class
        prior of the discriminator.
    :param noise: dict from observed site to noise kernel, or to noise of ``learned``; or a callable
        that returns kernels, called with the model's arguments at every step. None: no noise.
    :param generator: ``"divergence"`` for the gradient of the divergence; ``"non_saturating"`` for
        :math:`-E_Q \log D`, which moves faster from a bad start but follows
        :math:`\nabla \mathrm{KL}[Q \| P] - \nabla \mathrm{JS}_\pi / (1 - \pi)` instead.
    :param regularizer: penalty on the discriminator's gradient, such as ``R1(1.0)``.
    :param label_smoothing: the data's label is 1 minus this. It biases the log-ratio.
    :param update: ``"one_pass"`` or ``"two_pass"``: one backward pass for both players, which is
        exact where the discriminator treats samples one by one, or two. By default one
        where that is proven, else two.
    :param num_particles: number of draws of the model per datum and step.
    :param name: of the discriminator in the param store; in NumPyro its params are at
        ``name$params``.
    :param unroll: how many steps of the discriminator the generator's gradient passes through.
    :param unroll_step_size: of these gradient steps. They are not those of the optimiser, which a
        loss does not see; where they are too long for a steep critic, the model learns nothing.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range.
    :raises NotImplementedError: if ``divergence`` has no gradient, as ``TotalVariation``.
    """

    #: From a number of logits to an array of them.
    _zeros: ClassVar[Any]
    _plays_noise = True

    def __init__(
        self,
        discriminator: Any,
        divergence: Divergence | None = None,
        noise: Any = None,
        *,
        generator: str = "divergence",
        regularizer: Any = None,
        label_smoothing: float = 0.0,
        update: str | None = None,
        num_particles: int = 1,
        name: str = "discriminator",
        unroll: int = 0,
        unroll_step_size: float = 0.1,
    ) -> None:
        ahead = unroll, unroll_step_size
        super().__init__(discriminator, noise, regularizer, update, num_particles, name, *ahead)
        divergence = JSPi(0.5) if divergence is None else divergence
        if not isinstance(divergence, Divergence):
            raise TypeError(players.no_divergence(divergence))
        if generator not in _GENERATORS:
            raise ValueError(players.bad_choice("generator", generator, _GENERATORS))
        if not 0 <= label_smoothing < 1:
            raise ValueError(players.bad_range("label_smoothing", label_smoothing, "in [0, 1)"))
        if generator == "divergence":
            divergence.generator_loss(self._zeros(1))  # refuses here what has no gradient
        if learned_of(self.noise):
            if generator != "divergence":
                raise ValueError(learned.foreign_generator(generator))
            if unroll:
                raise NotImplementedError(learned.unrolled(unroll))
        self.divergence = divergence
        self.generator = generator
        self.label_smoothing = label_smoothing
        self._refuse_bounded_logits(discriminator)
        self._monitor = SupportMismatchMonitor()
        self._range = LogitRangeMonitor(prior_log_odds(divergence.pi))
        self._clamp = ClampMonitor(divergence.upper)
        self._watched = 0  # steps, where not all of them are watched

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        value = f"{divergence_name(self.divergence)} estimate"
        pi = float(self.divergence.pi)
        return LossWords(type(self).__name__, value, is_divergence=True, pi=pi)

    def _critic_loss(self, logits: Logits) -> Any:
        data, model, data_weights, model_weights = logits
        pi, smoothing = self.divergence.pi, self.label_smoothing
        return logistic_loss(data, model, pi, data_weights, model_weights, smoothing)

    def _generator_loss(self, logits: Any) -> Any:
        if self.generator == "non_saturating":
            return non_saturating_loss(logits)
        return self.divergence.generator_loss(log_ratio(logits, self.divergence.pi))

    def _at_data(self, logits: Any, slopes: Any) -> Any:
        r"""
        Slopes at the data's logits of what the generator minimises if the critic follows it.

        That is :math:`E_P[f'(u)] + E_Q[g(\ell)]` with :math:`u = e^\ell = P/Q` and the generator's
        loss :math:`g = f - u f'`, of which the optimal critic makes the largest value, the
        divergence. From :math:`g'(\ell) = -u^2 f''(u)` follows the slope :math:`u f''(u)`.

        :param logits: at the data.
        :param slopes: of the generator's loss, if the data were its draws.
        """
        return -exp(-log_ratio(logits, self.divergence.pi)) * slopes

    def _value(self, logits: Logits) -> Any:
        value = self._estimate(logits)
        return value.clip(0.0, self.divergence.upper) if self._is_bounded else value

    def _estimate(self, logits: Logits) -> Any:
        """The estimate as it is, also outside its range."""
        pi = self.divergence.pi
        ratios = log_ratio(logits.p, pi), log_ratio(logits.q, pi)
        return self.divergence.estimate(*ratios, logits.weights_p, logits.weights_q)

    @property
    def _is_bounded(self) -> bool:
        return not math.isinf(self.divergence.upper)

    @staticmethod
    def _refuse_bounded_logits(discriminator: Any, /) -> None:
        """Refuse a critic whose last layer bounds its logits."""
        raise NotImplementedError

    def _accuracy(self, logits: Logits) -> Any:
        """How often the sign of the log-ratio is right, both sides counting alike."""
        pi = self.divergence.pi
        return Logits(log_ratio(logits.p, pi), log_ratio(logits.q, pi), *logits[2:]).accuracy()

    def _shares(self, logits: Logits) -> tuple[Any, Any]:
        """The shares of logits on the right side of zero, and of logits that are saturated."""
        pi = self.divergence.pi
        data, model, data_weights, model_weights = logits

        def share(of_data: Any, of_model: Any) -> Any:
            data_share = weighted_mean(cast(of_data, data), data_weights)
            return pi * data_share + (1 - pi) * weighted_mean(cast(of_model, model), model_weights)

        flat = abs(data) >= SATURATED_LOGIT, abs(model) >= SATURATED_LOGIT
        return share(data > 0, model < 0), share(*flat)
