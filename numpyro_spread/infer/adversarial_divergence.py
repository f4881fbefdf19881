# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AdversarialDivergence: a divergence between data and model, estimated by a classifier."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_spread.divergences import Divergence, JSPi, non_saturating_loss
from numpyro_spread.infer._critic_loss import CriticLoss
from numpyro_spread.infer._noise import Noise
from numpyro_spread.infer._watch import report
from numpyro_spread.ratio._last_layer import refuse_bounded_logits
from numpyro_spread.ratio.losses import log_ratio, logistic_loss, prior_log_odds, weighted_mean
from numpyro_spread.ratio.regularizers import Regularizer
from spread_core.logits import Logits
from spread_core.loss_words import LossWords, divergence_name
from spread_core.messages import players
from spread_core.monitors import (
    PERFECT_ACCURACY,
    PERFECT_SATURATION,
    SATURATED_LOGIT,
    ClampMonitor,
    LogitRangeMonitor,
    SupportMismatchMonitor,
)
from spread_core.stateful import Stateful

_GENERATORS = ("divergence", "non_saturating")


class AdversarialDivergence(Stateful, CriticLoss):
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

        >>> import jax, numpyro, numpyro.distributions as dist, optax
        >>> from flax import linen
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import AdversarialDivergence, JSPi, concat_sites, two_player
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     pass
        >>> loss = AdversarialDivergence(concat_sites(linen.Dense(1), "x"), JSPi(0.5))
        >>> optim = two_player(optax.adam(1e-3), optax.adam(2e-3))
        >>> svi = SVI(model, loss.register(model, guide), optim, loss)
        >>> x = jax.random.normal(jax.random.key(0), (100,))
        >>> result = svi.run(jax.random.key(1), 10, x, progress_bar=False)
        >>> bool(((0 <= result.losses) & (result.losses <= 0.7)).all())
        True

    The reported value estimates the divergence in nats; those that are bounded are clipped to their
    range, for example :math:`\mathrm{JS}_\pi` to :math:`[0, H(\pi)]`: a critic that is worse than a
    constant one, as many are at first, would give less than zero. If that lasts for 20 steps, one
    warning says so, with the value. It is averaged over the data: the scale of a subsampling plate
    cancels. Masked elements are set to zero in data and draws, and a datum that is masked
    completely does not count. Where supports do not overlap, a :class:`SupportMismatchWarning` is
    issued once; the cure is ``noise``, which is added to data and draws, fresh at every step [4].
    (Evaluations count for the warning as steps do.)

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, also for critics that
    couple the samples: a compiled step means the whole batch, wherever its parts are.

    **References**

    [1] `How (not) to train your generative model`, Ferenc Huszar, https://arxiv.org/abs/1511.05101

    [2] `f-GAN`, Sebastian Nowozin, Botond Cseke, Ryota Tomioka, https://arxiv.org/abs/1606.00709

    [3] `Generative Adversarial Networks`, Ian Goodfellow et al., https://arxiv.org/abs/1406.2661

    [4] `Spread Divergence`, Mingtian Zhang et al., https://arxiv.org/abs/1811.08968

    :param discriminator: a module of flax linen, flax nnx or equinox, called as
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
    :param name: of the discriminator: its params are at ``name$params``.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range.
    :raises NotImplementedError: if ``divergence`` has no gradient, as ``TotalVariation``.
    """

    _remembers = ("_monitor",)

    def __init__(
        self,
        discriminator: Any,
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
            divergence.generator_loss(jnp.zeros(1))  # refuses here what has no gradient
        refuse_bounded_logits(discriminator)
        self.divergence = divergence
        self.generator = generator
        self.label_smoothing = label_smoothing
        self._monitor = SupportMismatchMonitor()
        self._clamp = ClampMonitor(divergence.upper)
        self._range = LogitRangeMonitor(float(prior_log_odds(divergence.pi)))

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        value = f"{divergence_name(self.divergence)} estimate"
        pi = float(self.divergence.pi)
        return LossWords(type(self).__name__, value, is_divergence=True, pi=pi)

    def _critic_loss(self, logits: Logits) -> jax.Array:
        data, model, data_weights, model_weights = logits
        pi, smoothing = self.divergence.pi, self.label_smoothing
        return logistic_loss(data, model, pi, data_weights, model_weights, smoothing)

    def _generator_loss(self, logits: jax.Array) -> jax.Array:
        if self.generator == "non_saturating":
            return non_saturating_loss(logits)
        return self.divergence.generator_loss(log_ratio(logits, self.divergence.pi))

    def _value(self, logits: Logits) -> jax.Array:
        value = self._estimate(logits)
        return (
            value
            if math.isinf(self.divergence.upper)
            else jnp.clip(value, 0.0, self.divergence.upper)
        )

    def _estimate(self, logits: Logits) -> jax.Array:
        """The estimate as it is, also outside its range."""
        pi = self.divergence.pi
        ratios = log_ratio(logits.data, pi), log_ratio(logits.model, pi)
        return self.divergence.estimate(*ratios, logits.data_weights, logits.model_weights)

    def _watch(self, rng_key: jax.Array, logits: Logits) -> None:
        pi = self.divergence.pi
        data, model, data_weights, model_weights = logits

        def share(of_data: jax.Array, of_model: jax.Array) -> jax.Array:
            data_share = weighted_mean(of_data.astype(data.dtype), data_weights)
            return pi * data_share + (1 - pi) * weighted_mean(
                of_model.astype(model.dtype), model_weights
            )

        right = share(data > 0, model < 0)
        flat = share(jnp.abs(data) >= SATURATED_LOGIT, jnp.abs(model) >= SATURATED_LOGIT)

        amiss = (right >= PERFECT_ACCURACY) & (flat >= PERFECT_SATURATION)
        low, high = logits.range()
        bounded = not math.isinf(self.divergence.upper)
        value = self._estimate(logits) if bounded else jnp.zeros(())

        def observe(right: float, flat: float, low: float, high: float, value: float) -> None:
            self._monitor.observe(right, flat)
            self._range.observe(low, high)
            self._clamp.observe(value)

        amiss |= self._range.suspects(low, high) | self._clamp.suspects(value)
        report(rng_key, observe, amiss, right, flat, low, high, value)
