# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""
Diagnostics of the critic of an adversarial loss, computed from its logits.

A critic that distinguishes data (probability ``pi``) from model draws has the optimal logit
``log(P / Q) + log(pi / (1 - pi))``. The value of a loss is only as accurate as its critic. Use
**held-out** samples for these diagnostics: on its training batches, a critic that memorises looks
good.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from spread_analysis.reference.divergences import class_entropy
from spread_core.monitors import SATURATED_LOGIT, gap_tolerance, is_suspicious
from spread_core.validation import FloatArray, as_count, as_finite, as_probability


@dataclass(frozen=True, eq=False)
class CriticReport:
    r"""
    Diagnostics of a critic from held-out logits; made by :func:`critic_report`.

    :param pi: Weight of the data, the class prior of the critic.
    :param accuracy: Share of samples on the right side of logit zero; zero itself counts half.
    :param cross_entropy: Mean negative log probability of the right class, in nats.
    :param divergence: ``H(pi) - cross_entropy`` in nats. In expectation a lower bound of
        :math:`JS_\pi`, tight for the optimal critic; negative for one worse than a constant.
    :param expected_calibration_error: Mean of ``|bin_confidence - bin_frequency|`` over
        ``bin_weight``.
    :param saturated: Share of samples with a logit of at least 10 in size.
    :param effective_sample_size: Of the importance weights ``exp(log_ratio)`` at the model samples,
        as a fraction of their number, in (0, 1]; one for equal weights. Near zero, a few model
        samples stand for all the data.
    :param bin_confidence: Mean probability of "data" in each bin, shape ``(num_bins,)``; NaN in an
        empty bin.
    :param bin_frequency: Share of data in each bin, shape ``(num_bins,)``; NaN in an empty bin.
    :param bin_weight: Share of all samples in each bin, shape ``(num_bins,)``; sums to one.

    All shares give the data the total weight ``pi`` and the model draws ``1 - pi``.
    """

    pi: float
    accuracy: float
    cross_entropy: float
    divergence: float
    expected_calibration_error: float
    saturated: float
    effective_sample_size: float
    bin_confidence: FloatArray
    bin_frequency: FloatArray
    bin_weight: FloatArray

    @property
    def supports_overlap(self) -> bool:
        r"""False if the critic is right about at least 99 % with at least 90 % of logits saturated.

        Then data and model have practically no common support, :math:`JS_\pi` is stuck at its
        maximum and the generator gets no gradient.
        """
        return not is_suspicious(self.accuracy, self.saturated)

    def __str__(self) -> str:
        rows = [
            ("accuracy", f"{self.accuracy:.4f}", f"pi = {self.pi:g}"),
            ("cross-entropy", f"{self.cross_entropy:.4f}", "nats"),
            ("divergence", f"{self.divergence:.4f}", f"nats, of {class_entropy(self.pi):.4f}"),
            ("calibration error", f"{self.expected_calibration_error:.4f}", ""),
            ("saturated", f"{self.saturated:.4f}", f"|logit| >= {SATURATED_LOGIT:g}"),
            ("effective samples", f"{self.effective_sample_size:.4f}", "of the model's"),
            ("supports overlap", "yes" if self.supports_overlap else "no", ""),
        ]
        return "\n".join(f"{name:<18}{value:>9}  {note}".rstrip() for name, value, note in rows)


def _logits_and_shares(
    logits: ArrayLike, weights: ArrayLike | None, side: str
) -> tuple[FloatArray, FloatArray]:
    """Flat logits and weights that sum to one."""
    values = as_finite(logits, f"logits_{side}")
    if values.size == 0:
        raise ValueError(f"`logits_{side}` is empty; pass the critic's logits of held-out samples.")
    if weights is None:
        return values.ravel(), np.full(values.size, 1.0 / values.size)
    share = as_finite(weights, f"weights_{side}")
    try:
        share = np.broadcast_to(share, values.shape).ravel()
    except ValueError as error:
        raise ValueError(
            f"`weights_{side}` of shape {share.shape} does not broadcast to the shape "
            f"{values.shape} of `logits_{side}`; give one weight per logit."
        ) from error
    if (share < 0).any() or not share.any():
        raise ValueError(
            f"`weights_{side}` must be nonnegative with at least one positive entry; a weight of "
            "zero leaves a sample out."
        )
    share = share / share.max()  # so that neither huge nor tiny weights overflow in the sum
    return values.ravel(), share / share.sum()


def critic_report(
    logits_p: ArrayLike,
    logits_q: ArrayLike,
    pi: float = 0.5,
    num_bins: int = 10,
    weights_p: ArrayLike | None = None,
    weights_q: ArrayLike | None = None,
) -> CriticReport:
    r"""Diagnose a critic from its logits on held-out data and model draws.

    The cross-entropy is
    :math:`\pi E_P[-\log D] + (1 - \pi) E_Q[-\log(1 - D)]`, :math:`D` the sigmoid of the logit; its
    least value is :math:`H(\pi) - JS_\pi[P \| Q]` (Huszar 2015, arXiv:1511.05101). The calibration
    curve compares, in bins of equal width over [0, 1], the mean of :math:`D` with the share of
    data: a critic whose logits are log-ratios lies on the diagonal.

    :param logits_p: Logits at data, any nonempty shape.
    :param logits_q: Logits at model draws, any nonempty shape.
    :param pi: Weight of the data that the critic was trained with, strictly between 0 and 1.
    :param num_bins: Bins of the calibration curve.
    :param weights_p: Nonnegative weights or a mask that broadcast to ``logits_p``; None is equal.
    :param weights_q: The same for ``logits_q``.
    :raises ValueError: If logits are empty or not finite, weights do not fit or are all zero, or
        ``pi`` or ``num_bins`` is out of range.

    >>> report = critic_report([2.0, 1.0, -0.5], [-2.0, -1.0, 0.5])
    >>> print(report)
    accuracy             0.6667  pi = 0.5
    cross-entropy        0.4714  nats
    divergence           0.2217  nats, of 0.6931
    calibration error    0.3369
    saturated            0.0000  |logit| >= 10
    effective samples    0.5375  of the model's
    supports overlap        yes
    """
    prior, bins = as_probability(pi, "pi"), as_count(num_bins, "num_bins")
    data, data_share = _logits_and_shares(logits_p, weights_p, "p")
    model, model_share = _logits_and_shares(logits_q, weights_q, "q")

    logits = np.concatenate([data, model])
    is_data = np.arange(logits.size) < data.size
    share = np.concatenate([prior * data_share, (1.0 - prior) * model_share])
    margin = np.where(is_data, logits, -logits)  # positive where the critic is right
    # -log sigmoid(m) = log(1 + e^-m), which neither overflows nor rounds to zero early
    cross_entropy = float(share @ np.logaddexp(0.0, -margin))

    probability = special.expit(logits)
    index = np.minimum((probability * bins).astype(int), bins - 1)
    weight = np.bincount(index, share, bins).astype(np.float64)
    safe = np.where(weight > 0, weight, np.nan)
    confidence = np.bincount(index, share * probability, bins) / safe
    frequency = np.bincount(index, share * is_data, bins) / safe

    # (E w)² / E w² of w = exp(log-ratio); the prior log-odds are a constant factor, and cancel.
    log_ess = 2 * special.logsumexp(model, b=model_share)
    log_ess -= special.logsumexp(2 * model, b=model_share)

    return CriticReport(
        pi=prior,
        accuracy=float(share @ np.where(margin == 0, 0.5, margin > 0)),
        cross_entropy=cross_entropy,
        divergence=class_entropy(prior) - cross_entropy,
        expected_calibration_error=float(np.nansum(weight * np.abs(confidence - frequency))),
        saturated=float(share @ (np.abs(logits) >= SATURATED_LOGIT)),
        effective_sample_size=float(min(np.exp(log_ess), 1.0)),
        bin_confidence=confidence,
        bin_frequency=frequency,
        bin_weight=weight,
    )


@dataclass(frozen=True)
class EvidenceReport:
    """
    An adversarial ELBO estimate and one that is no higher than the ELBO allows, on the same draws.

    :param estimate: The estimate in nats with the critic of the training run.
    :param fresh_estimate: The estimate in nats with what has been fitted to fresh draws of the
        guide: of several, that which is lower on other draws. On average it is at least the ELBO.
    :param gap: ``estimate - fresh_estimate``. On average it is at most what training overstates the
        ELBO by.
    :param standard_error: Of the gap, over the draws that both judge.
    :param num_draws: How many draws those are.
    :param num_data: Number of data that the ELBO sums over.
    """

    estimate: float
    fresh_estimate: float
    gap: float
    standard_error: float
    num_draws: int
    num_data: float = 1.0

    @classmethod
    def from_draws(cls, estimates: ArrayLike, fresh_estimates: ArrayLike) -> EvidenceReport:
        """
        Compare critics that judge the same draws.

        Of several fresh ones each half of the draws chooses that which gives the lower estimate,
        and the other half measures it: choosing and measuring on the same draws would find a gap
        where there is none.

        :param estimates: The estimate at each draw with the critic of the training run.
        :param fresh_estimates: The estimate at each draw with the fresh critic; of several, one row
            for each.
        """
        reported, fresh = np.asarray(estimates, float), np.atleast_2d(fresh_estimates)
        if len(fresh) > 1:
            half = len(reported) // 2
            first, second = fresh[:, :half].mean(1), fresh[:, half:].mean(1)
            best = [np.nanargmin(np.where(np.isnan(m), np.inf, m)) for m in (second, first)]
            fresh = np.concatenate([fresh[best[0], :half], fresh[best[1], half:]])
        else:
            fresh = fresh[0]
        gaps = reported - fresh
        error = gaps.std(ddof=1) / np.sqrt(len(gaps))
        means = [float(each.mean()) for each in (reported, fresh, gaps)]
        return cls(means[0], means[1], means[2], float(error), len(gaps))

    def is_false(self, threshold: float | None = None) -> bool:
        """Whether the estimate is false evidence.

        It is if the gap exceeds both ``threshold`` and two standard errors, and also if either is
        NaN, since it cannot be checked then.

        :param threshold: Gap in nats that does no harm: 0.3 by default, or 0.1 per datum if that is
            more.
        """
        threshold = gap_tolerance(self.num_data) if threshold is None else threshold
        return not self.gap <= np.maximum(threshold, 2 * self.standard_error)  # NaN propagates

    def is_known(self, threshold: float | None = None) -> bool:
        """Whether the check can tell; else the fitted critics are worse than the trained one.

        Then the fresh estimate is the higher one by more than chance, or the error is so large that
        a gap of a nat, or of three times what does no harm, would not be seen.

        :param threshold: Gap in nats that does no harm, as for :meth:`is_false`.
        """
        threshold = gap_tolerance(self.num_data) if threshold is None else threshold
        error = 2 * self.standard_error
        seen = self.gap >= -max(threshold, error) and error <= max(1.0, 3 * threshold)
        return self.is_false(threshold) or seen

    def __str__(self) -> str:
        rows = [
            ("estimate", self.estimate, "nats, critic of the training run"),
            ("fresh estimate", self.fresh_estimate, "nats, fitted anew"),
            ("gap", self.gap, f"± {self.standard_error:.4f} nats over {self.num_draws} draws"),
        ]
        lines = [f"{name:<16}{value:>11.4f}  {note}" for name, value, note in rows]
        verdict = "not known" if not self.is_known() else "yes" if self.is_false() else "no"
        return "\n".join([*lines, f"{'false evidence':<16}{verdict:>11}"])
