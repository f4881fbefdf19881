# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Coverage: how often regions of a posterior hold the truth, against how often they should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from spread_analysis.plots import COLOURS, axes_for, style_axes
from spread_analysis.ranks import Ranks, as_truth_and_draws, simulation_ranks
from spread_core.messages import calibration
from spread_core.validation import FloatArray, as_count, as_float, as_probability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the rows, for the regression behind references that follow the data.
_PILOT_SHARE = 0.2
_LEAST_PILOT = 10
# References lie around the prediction at this multiple of its error: near a posterior, and outside.
_REFERENCE_SPREAD = 1.5
# Quantiles between which the others lie: a few wild draws do not carry them off.
_RANGE = (0.005, 0.995)


@dataclass(frozen=True, eq=False)
class CoverageReport:
    """
    Credibility of the smallest regions that hold the truths; uniform for an exact posterior.

    The regions of a posterior are nested: the highest of its density, balls round a point, what a
    classifier takes for the truth. The credibility of the smallest one that holds the truth is the
    share of draws in it. Over simulations it is uniform if the draws come from the posterior, in a
    finite sample and whatever the regions.

    :param ranks: how many draws lie in a smaller region than the truth, in 0, ..., ``num_draws``,
        of shape (num_simulations,).
    :param num_draws: draws for each simulation.
    :param regions: what the regions are, for tables and plots.
    :param seed: of the places of truths within their ranks.
    :raises ValueError: if ranks are no integers in that range, or there are none.
    """

    ranks: Ranks
    num_draws: int
    regions: str = "regions"
    seed: int = 0

    def __post_init__(self) -> None:
        limit, array = as_count(self.num_draws, "num_draws"), np.asarray(self.ranks)
        if array.dtype.kind not in "iu" or array.ndim != 1 or array.size == 0:
            raise ValueError(calibration.ranks_shape(array.dtype, array.shape))
        if array.min() < 0 or array.max() > limit:
            raise ValueError(calibration.ranks_range(limit, array.min(), array.max()))

    @property
    def credibilities(self) -> FloatArray:
        """
        Of the smallest regions with the truth, of shape (num_simulations,), between 0 and 1.

        A rank is a whole number, and a truth lies anywhere between two draws: its place there is
        drawn at random, so that the credibilities of an exact posterior are independent and
        uniform, and a test of that is exact.
        """
        places = np.random.default_rng([self.seed, 1]).uniform(size=len(self.ranks))
        found: FloatArray = (np.asarray(self.ranks) + places) / (self.num_draws + 1)
        return found

    def coverage(self, credibility: ArrayLike) -> FloatArray:
        """
        Share of truths that lie in the regions of a credibility.

        :param credibility: numbers between 0 and 1, any shape.
        :return: shares of that shape; below the credibility the posterior is overconfident.
        """
        levels = np.sort(self.credibilities)
        return np.searchsorted(levels, as_float(credibility, "credibility"), "right") / len(levels)

    @property
    def accuracy(self) -> float:
        """
        Share of pairs of a truth and a draw with the truth in the smaller region.

        One half for an exact posterior. Where a classifier makes the regions, it is the share of
        pairs that it tells apart; less than one half is noise.
        """
        return float(1.0 - np.mean(np.asarray(self.ranks) / self.num_draws))

    def p_value(self) -> float:
        """P-value of the Kolmogorov-Smirnov test of uniform credibilities, exact."""
        return float(stats.kstest(self.credibilities, "uniform").pvalue)

    def __str__(self) -> str:
        return (
            f"{self.regions}: {self.words()} of {len(self.ranks)} truths, p = {self.p_value():.3g}"
        )

    def words(self) -> str:
        """What regions of two credibilities hold."""
        half, most = 100 * self.coverage([0.5, 0.9])
        return f"regions of 50 % and 90 % hold {half:.0f} % and {most:.0f} %"


def expected_coverage(
    log_prob_truth: ArrayLike, log_prob_draws: ArrayLike, seed: int = 0
) -> CoverageReport:
    """
    Coverage of the regions of highest posterior density.

    A posterior with less coverage than its credibility is overconfident, its regions are too small
    (Hermans et al. 2022, arXiv:2110.06581, algorithm 1). All latents are looked at together, by
    the posterior's own density. A posterior that equals the prior passes.

    :param log_prob_truth: log densities of the truths under the posteriors given their data, of
        shape (num_simulations,), normalised or not; -inf outside the support.
    :param log_prob_draws: those of draws, of shape (num_draws, num_simulations).
    :param seed: of ties, which discrete latents have, and of places within ranks.
    :raises ValueError: if shapes do not fit or a log density is NaN.

        >>> rng = np.random.default_rng(0)
        >>> truth, draws = rng.standard_normal(1000), 0.5 * rng.standard_normal((99, 1000))
        >>> narrow = expected_coverage(-2 * truth**2, -2 * draws**2)
        >>> bool(narrow.coverage(0.9) < 0.7), narrow.p_value() < 1e-6
        (True, True)
    """
    truth, draws = as_truth_and_draws(
        log_prob_truth, log_prob_draws, "log_prob_truth", "log_prob_draws"
    )
    if truth.ndim != 1:
        raise ValueError(calibration.one_per_simulation("log_prob_truth", truth.shape))
    for name, values in (("log_prob_truth", truth), ("log_prob_draws", draws)):
        if np.isnan(values).any():
            raise ValueError(calibration.not_a_number(name, int(np.isnan(values).sum())))
    ranks = simulation_ranks(-truth, -draws, seed)
    return CoverageReport(ranks, draws.shape[0], "highest density", seed)


def tarp(
    truths: ArrayLike,
    draws: ArrayLike,
    references: ArrayLike | None = None,
    *,
    data: ArrayLike | None = None,
    seed: int = 0,
) -> CoverageReport:
    """
    Coverage of balls round random points (TARP), which needs no density.

    The ball round a reference point that reaches to the truth holds a share of the draws that is
    uniform if they come from the posterior (Lemos et al. 2023, arXiv:2302.03026, algorithm 2).
    Distances are Euclidean, in units of the latents' standard deviations.

    References that know nothing of the data, as the default ones, do not see the error of a
    posterior that is always the prior. With ``data`` they follow the data: they lie round a
    regression of the truths on them. It is fitted to a fifth of the rows, which is not tested, so
    that the test stays exact.

    :param truths: of shape (num_simulations, dim), all latents side by side.
    :param draws: of shape (num_draws, num_simulations, dim).
    :param references: points of shape (num_simulations, dim), which must not depend on the truths
        other than through the data; None draws them uniformly in the range of the latents.
    :param data: of shape (num_simulations, any), for references that follow them.
    :param seed: of references, ties and places within ranks.
    :return: the ranks, over fewer rows if there are ``data``.
    :raises ValueError: if shapes do not fit, something is NaN or inf, there are too few rows for a
        regression, or both ``references`` and ``data`` are given.

        >>> rng = np.random.default_rng(0)
        >>> truths, prior = rng.standard_normal((500, 1)), rng.standard_normal((49, 500, 1))
        >>> data = truths + 0.5 * rng.standard_normal((500, 1))
        >>> tarp(truths, prior).p_value() > 0.01, tarp(truths, prior, data=data).p_value() < 1e-6
        (True, True)
    """
    truth, drawn = as_truth_and_draws(truths, draws, "truths", "draws")
    if truth.ndim != 2 or truth.shape[1] == 0:
        raise ValueError(calibration.rows_of("truths", "dim", truth.shape))
    for name, values in (("truths", truth), ("draws", drawn)):
        if not np.isfinite(values).all():
            raise ValueError(calibration.not_finite(name, int((~np.isfinite(values)).sum())))
    if references is not None and data is not None:
        raise ValueError(calibration.references_or_data())
    rng = np.random.default_rng([seed, 2])
    # Units and ranges of truths and draws alike: in those of the truths alone a truth would know
    # itself, and the test would not be exact.
    pooled = np.concatenate([truth, drawn.reshape(-1, truth.shape[1])])
    centre, scale = standardisation(pooled)
    low, high = (np.quantile(pooled, _RANGE, axis=0) - centre) / scale
    truth, drawn = (truth - centre) / scale, (drawn - centre) / scale
    if data is not None:
        rows = as_rows(data, "data", len(truth))
        pilot, rest = split_rows(rng, len(truth), _PILOT_SHARE, _LEAST_PILOT)
        predicted = predict(rows[pilot], truth[pilot], rows)
        error = np.sqrt(np.square(truth[pilot] - predicted[pilot]).mean(0))
        points = predicted + _REFERENCE_SPREAD * error * rng.standard_normal(truth.shape)
        truth, drawn, points = truth[rest], drawn[:, rest], points[rest]
    elif references is None:
        points = rng.uniform(low, high, truth.shape)
    else:
        points = as_rows(references, "references", len(truth))
        if points.shape != truth.shape:
            raise ValueError(calibration.references_shape(truth.shape, points.shape))
        points = (points - centre) / scale
    # The ball of the truth holds the draws that are nearer: how many distances lie below its own.
    to_truth = np.square(truth - points).sum(-1)
    to_draws = np.stack([np.square(each - points).sum(-1) for each in drawn])
    ranks = simulation_ranks(to_truth, to_draws, seed)
    return CoverageReport(ranks, len(drawn), "balls round points (TARP)", seed)


def standardisation(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of columns; 1 for a constant column."""
    deviation = values.std(0)
    # Of equal numbers the deviation may be a rounding error.
    moves = np.ptp(values, axis=0) > 0
    return values.mean(0), np.where(moves & (deviation > 0), deviation, 1.0)


def as_rows(values: ArrayLike, name: str, number: int) -> FloatArray:
    """
    Return a finite matrix with one row per simulation.

    :param values: of shape (num_simulations, ...); what follows is flattened.
    :param name: for messages.
    :param number: of simulations.
    :raises ValueError: if there are not so many rows, or an entry is not finite.
    """
    array = as_float(values, name)
    if array.ndim == 0 or len(array) != number:
        raise ValueError(calibration.number_of_rows(name, number, array.shape))
    if not np.isfinite(array).all():
        raise ValueError(calibration.not_finite(name, int((~np.isfinite(array)).sum())))
    return array.reshape(number, -1)


def split_rows(
    rng: np.random.Generator, number: int, share: float, least: int
) -> tuple[Ranks, Ranks]:
    """Two sets of rows at random, the first of them with ``share`` and at least ``least``."""
    first = max(int(share * number), least)
    if first > number // 2:
        raise ValueError(calibration.too_few(number, 2 * least))
    order = rng.permutation(number)
    return order[:first], order[first:]


def predict(data: FloatArray, targets: FloatArray, new: FloatArray) -> FloatArray:
    """
    Ridge regression of targets on data.

    :param data: of shape (num_rows, dim).
    :param targets: of shape (num_rows, num_targets).
    :param new: data to predict at, of shape (num_new, dim).
    :return: of shape (num_new, num_targets).
    """
    centre, scale = standardisation(data)
    x, mean = (data - centre) / scale, targets.mean(0)
    # In the rows' own space, so that images cost as little as numbers.
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    shrunk = s / (np.square(s) + x.shape[1])
    weights = vt.T @ (shrunk[:, None] * (u.T @ (targets - mean)))
    # Data far from all others must not carry a prediction away with them.
    return mean + np.clip((new - centre) / scale, -5.0, 5.0) @ weights


def plot_coverage(
    report: CoverageReport,
    *,
    level: float = 0.99,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """
    Share of truths in the regions of a posterior against their credibility, with its band.

    The whole curve of an exact posterior stays in the band with probability ``level``: it leaves it
    where :meth:`CoverageReport.p_value` is below ``1 - level``. A curve below the diagonal: regions
    hold fewer truths than they say, the posterior is overconfident; above: too wide.

    :param report: what :func:`expected_coverage`, :func:`tarp` or :func:`joint_c2st` returns.
    :param level: probability of the band.
    :param title: title of the axes; None gives the regions and the p-value.
    :param ax: axes to draw on; None makes a figure.
    :return: the axes.
    :raises ValueError: if ``level`` is out of range.
    :raises ImportError: if matplotlib is missing.
    """
    probability = as_probability(level, "level")
    number = len(report.ranks)
    width = float(stats.kstwo.ppf(probability, number))
    axes = axes_for(ax, (4.2, 4.0), "plot_coverage")
    ends = np.array([0.0, 1.0])
    axes.fill_between(ends, ends - width, ends + width, color=COLOURS[5], alpha=0.25, lw=0)
    axes.plot(ends, ends, color=COLOURS[5], lw=1, ls="--")
    levels = np.concatenate([[0.0], np.sort(report.credibilities), [1.0]])
    shares = np.concatenate([np.arange(number + 1) / number, [1.0]])
    axes.step(levels, shares, where="post", color=COLOURS[0], lw=1.6)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    if title is None:
        title = f"{report.regions}: p = {report.p_value():.2g}"
    return style_axes(axes, "credibility of the region", "share of truths in it", title)
