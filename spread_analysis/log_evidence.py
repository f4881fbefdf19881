# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Estimates of log p(x) from importance weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from spread_core.validation import FloatArray, as_float

# With fewer, the delta method's error comes from a few weights, the largest of which is there by
# chance: on heavy tails both estimate and error are too small.
_FEW_SAMPLES = 5.0


@dataclass(frozen=True, eq=False, repr=False)
class LogEvidence:
    r"""
    Estimates of :math:`\log p(x)` in nats, each the log of a mean of importance weights.

    The mean is unbiased, so its log is a lower bound in expectation; the effective sample size
    shows how loose it is. Where it is small, a few weights dominate the estimate, which is then too
    low by an unknown amount: it is a lower bound and has no error bar.

    :param values: estimates, one per datum, shape () if data do not come apart; 0 for a datum that
        is masked out.
    :param standard_error: of ``values`` in nats over the weights, by the delta method; NaN for a
        single weight. It means nothing where :attr:`is_lower_bound`.
    :param effective_sample_size: :math:`(\sum w)^2 / \sum w^2`, from 1 to ``num_samples``.
    :param num_samples: number of weights per datum.
    :param acceptance: share of accepted Monte Carlo moves per datum, None where there are none.
    :param observed: whether anything of a datum is observed, in the shape of ``values``; others
        are masked out and in no mean. None is all.
    """

    values: FloatArray
    standard_error: FloatArray
    effective_sample_size: FloatArray
    num_samples: int
    acceptance: FloatArray | None = None
    observed: NDArray[np.bool_] | None = None

    @property
    def is_lower_bound(self) -> NDArray[np.bool_]:
        """Where fewer than five effective samples make an estimate, which then has no error bar."""
        few = self.effective_sample_size < min(_FEW_SAMPLES, self.num_samples / 2)
        return np.asarray(~np.isfinite(self.standard_error) | few)

    def reshape(self, shape: Sequence[int]) -> LogEvidence:
        """Reshape the estimates to data of this shape."""
        moves, observed = self.acceptance, self.observed
        return LogEvidence(
            self.values.reshape(shape),
            self.standard_error.reshape(shape),
            self.effective_sample_size.reshape(shape),
            self.num_samples,
            None if moves is None else moves.reshape(shape),
            None if observed is None else observed.reshape(shape),
        )

    def _of_data(self, values: NDArray) -> NDArray:
        """The entries of the data that are observed, flat."""
        return values.ravel() if self.observed is None else values[self.observed]

    def _mean(self) -> str:
        """The mean over data, with its error or what else is to be said of it."""
        values, loose = self._of_data(self.values), self._of_data(self.is_lower_bound)
        if not values.size:
            return f"{math.nan:10.4f}  nats: all data are masked out"
        if loose.any():
            few = min(_FEW_SAMPLES, self.num_samples / 2)
            which = f"{int(loose.sum())} of {loose.size} data have" if loose.size > 1 else "it has"
            reason = f"{which} fewer than {few:g} effective samples"
            if self.num_samples == 1:
                reason = "there is a single weight"
            return f"{values.mean():10.4f}  nats, a lower bound: {reason}"
        error = np.sqrt(np.square(self._of_data(self.standard_error)).sum()) / values.size
        return f"{values.mean():10.4f}  ± {error:.4f} nats (Monte Carlo)"

    def __str__(self) -> str:
        ess = self._of_data(self.effective_sample_size)
        masked = self.values.size - ess.size
        out = f"  and {masked} masked out" if masked else ""
        rows = [f"mean log p(x)      {self._mean()}", f"data               {ess.size:10d}{out}"]
        if ess.size:
            most, least = self.num_samples, ess.min()
            rows.append(f"effective samples  {ess.mean():10.1f}  of {most}, least {least:.1f}")
        if self.acceptance is not None and ess.size:
            rows.append(f"acceptance         {self._of_data(self.acceptance).mean():10.2f}")
        return "\n".join(rows)

    def __repr__(self) -> str:
        return f"<LogEvidence of {self.values.size} data: {' '.join(self._mean().split())}>"


def log_mean_exp(log_weights: ArrayLike, acceptance: FloatArray | None = None) -> LogEvidence:
    """
    The log of the mean of importance weights, and its error.

    :param log_weights: log-weights of shape (num_samples, ...), -inf for weights of zero.
    :param acceptance: share of accepted moves of shape (...), to be reported.
    :raises ValueError: if there are none, or an entry is NaN or +inf.

        >>> evidence = log_mean_exp([[0.0], [0.0], [np.log(4.0)]])
        >>> round(float(evidence.values[0]), 6), round(float(evidence.effective_sample_size[0]), 6)
        (0.693147, 2.0)
    """
    weights = as_float(log_weights, "log_weights")
    if weights.ndim == 0 or weights.size == 0:
        raise ValueError(f"`log_weights` must have shape (num_samples, ...), got {weights.shape}.")
    if np.isnan(weights).any() or (weights == np.inf).any():
        raise ValueError("`log_weights` must not hold NaN or +inf.")
    num = len(weights)
    log_sum = special.logsumexp(weights, 0)
    with np.errstate(invalid="ignore"):  # weights that are all zero: -inf - -inf
        ess = np.exp(2 * log_sum - special.logsumexp(2 * weights, 0))
    ess = np.clip(np.where(np.isfinite(log_sum), ess, np.nan), 1.0, num)
    # The variance of the mean over its square is (E w² / (E w)² - 1) / n; unbiased by n - 1.
    error = np.sqrt((num / ess - 1) / (num - 1)) if num > 1 else np.full_like(ess, np.nan)
    return LogEvidence(np.asarray(log_sum - math.log(num)), error, np.asarray(ess), num, acceptance)
