# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AdversarialDivergence: a divergence between data and model, estimated by a classifier."""

from __future__ import annotations

import math

import torch
from torch import nn

from pyro_spread.divergences import Divergence, JSPi, non_saturating_loss
from pyro_spread.infer._critic_loss import CriticLoss
from pyro_spread.infer._noise import Noise
from pyro_spread.ratio._last_layer import refuse_bounded_logits
from pyro_spread.ratio.losses import log_ratio, logistic_loss, prior_log_odds, weighted_mean
from pyro_spread.ratio.regularizers import Regularizer
from spread_core.logits import Logits
from spread_core.loss_words import LossWords, divergence_name
from spread_core.messages import players
from spread_core.monitors import (
    SATURATED_LOGIT,
    ClampMonitor,
    LogitRangeMonitor,
    SupportMismatchMonitor,
)

_GENERATORS = ("divergence", "non_saturating")
_WATCH_EVERY = 4


class AdversarialDivergence(CriticLoss):
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

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import AdversarialDivergence, JSPi, concat_sites, two_player
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     pass
        >>> pyro.clear_param_store()
        >>> loss = AdversarialDivergence(concat_sites(torch.nn.Linear(1, 1), "x"), JSPi(0.5))
        >>> adam = pyro.optim.Adam({"lr": 1e-3})
        >>> optim = two_player(adam, pyro.optim.Adam({"lr": 2e-3}))
        >>> svi = SVI(model, loss.register(model, guide), optim, loss)
        >>> 0 <= svi.step(torch.randn(100)) <= 0.7
        True

    The reported value estimates the divergence in nats; those that are bounded are clipped to their
    range, for example :math:`\mathrm{JS}_\pi` to :math:`[0, H(\pi)]`: a critic that is worse than a
    constant one, as many are at first, would give less than zero. If that lasts for 20 steps, one
    warning says so, with the value. It is averaged over the data: the scale of a subsampling plate
    cancels. Masked elements are set to zero in data and draws, and a datum that is masked
    completely does not count. Where supports do not overlap, a :class:`SupportMismatchWarning` is
    issued once; the cure is ``noise``, which is added to data and draws, fresh at every step [4].

    **Data parallelism** (DDP around ``loss(model, guide)``): exact: every player's mean is that
    over the whole batch, whatever the shards, if something counts on each. The value is that of the
    rank's own shard. Discriminators with batch normalisation couple the shard's samples and are
    refused, except ``SyncBatchNorm``.

    **References**

    [1] `How (not) to train your generative model`, Ferenc Huszar, https://arxiv.org/abs/1511.05101

    [2] `f-GAN`, Sebastian Nowozin, Botond Cseke, Ryota Tomioka, https://arxiv.org/abs/1606.00709

    [3] `Generative Adversarial Networks`, Ian Goodfellow et al., https://arxiv.org/abs/1406.2661

    [4] `Spread Divergence`, Mingtian Zhang et al., https://arxiv.org/abs/1811.08968

    :param discriminator: a ``torch.nn.Module`` called as
        ``discriminator(values, *args, **kwargs)``, where ``values`` is a dict of the contrasted
        sites and ``args`` are those of the model; it returns one logit for every datum.
        ``concat_sites(net, "x")`` makes one from a plain net.
    :param divergence: what the model minimises; ``JSPi(0.5)`` by default. Its ``pi`` is the class
        prior of the discriminator.
    :param noise: dict from observed site to noise kernel; or a callable that returns it, called
        with the model's arguments at every step. None: no noise.
    :param generator: ``"divergence"`` for the gradient of the divergence; ``"non_saturating"`` for
        :math:`-E_Q \log D`, which moves faster from a bad start but follows
        :math:`\nabla \mathrm{KL}[Q \| P] - \nabla \mathrm{JS}_\pi / (1 - \pi)` instead.
    :param regularizer: penalty on the discriminator's gradient, such as ``R1(1.0)``.
    :param label_smoothing: the data's label is 1 minus this. It biases the log-ratio.
    :param update: ``"one_pass"`` or ``"two_pass"``: one backward pass for both players, which is
        exact where the discriminator treats samples one by one, or two. By default one
        where that is proven, else two.
    :param num_particles: number of draws of the model per datum and step.
    :param name: of the discriminator in the param store.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range.
    :raises NotImplementedError: if ``divergence`` has no gradient, as ``TotalVariation``.
    """

    _remembers = ("_monitor", "_watched")

    def __init__(
        self,
        discriminator: nn.Module,
        divergence: Divergence | None = None,
        noise: Noise | None = None,
        *,
        generator: str = "divergence",
        regularizer: Regularizer | None = None,
        label_smoothing: float = 0.0,
        update: str | None = None,
        num_particles: int = 1,
        name: str = "discriminator",
    ) -> None:
        super().__init__(discriminator, noise, regularizer, update, num_particles, name)
        divergence = JSPi(0.5) if divergence is None else divergence
        if not isinstance(divergence, Divergence):
            raise TypeError(players.no_divergence(divergence))
        if generator not in _GENERATORS:
            raise ValueError(players.bad_choice("generator", generator, _GENERATORS))
        if not 0 <= label_smoothing < 1:
            raise ValueError(players.bad_range("label_smoothing", label_smoothing, "in [0, 1)"))
        if generator == "divergence":
            divergence.generator_loss(torch.zeros(1))  # refuses here what has no gradient
        self.divergence = divergence
        self.generator = generator
        self.label_smoothing = label_smoothing
        refuse_bounded_logits(discriminator)
        self._monitor = SupportMismatchMonitor()
        self._range = LogitRangeMonitor(prior_log_odds(divergence.pi))
        self._clamp = ClampMonitor(divergence.upper)
        self._watched = 0

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        value = f"{divergence_name(self.divergence)} estimate"
        pi = float(self.divergence.pi)
        return LossWords(type(self).__name__, value, is_divergence=True, pi=pi)

    def _critic_loss(self, logits: Logits) -> torch.Tensor:
        data, model, data_weights, model_weights = logits
        pi, smoothing = self.divergence.pi, self.label_smoothing
        return logistic_loss(data, model, pi, data_weights, model_weights, smoothing)

    def _generator_loss(self, logits: torch.Tensor) -> torch.Tensor:
        if self.generator == "non_saturating":
            return non_saturating_loss(logits)
        return self.divergence.generator_loss(log_ratio(logits, self.divergence.pi))

    def _value(self, logits: Logits) -> torch.Tensor:
        value = self._estimate(logits)
        return (
            value if math.isinf(self.divergence.upper) else value.clamp(0.0, self.divergence.upper)
        )

    def _estimate(self, logits: Logits) -> torch.Tensor:
        """The estimate as it is, also outside its range."""
        pi = self.divergence.pi
        ratios = log_ratio(logits.data, pi), log_ratio(logits.model, pi)
        return self.divergence.estimate(*ratios, logits.data_weights, logits.model_weights)

    def _watch(self, logits: Logits) -> None:
        self._watched += 1
        # Looking takes time: every step is looked at once one of them was amiss.
        streak = self._monitor.streak or self._range.streak or self._clamp.streak
        if not streak and self._watched % _WATCH_EVERY:
            return
        pi = self.divergence.pi
        data, model, data_weights, model_weights = logits
        self._range.observe(*logits.range())
        if not math.isinf(self.divergence.upper):
            self._clamp.observe(float(self._estimate(logits)))

        def share(of_data: torch.Tensor, of_model: torch.Tensor) -> float:
            data_share = weighted_mean(of_data.to(data.dtype), data_weights)
            model_share = weighted_mean(of_model.to(model.dtype), model_weights)
            return float(pi * data_share + (1 - pi) * model_share)

        right = share(data > 0, model < 0)
        flat = share(data.abs() >= SATURATED_LOGIT, model.abs() >= SATURATED_LOGIT)
        self._monitor.observe(right, flat)
