# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulation-based calibration: the ranks of true latents among draws of a guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from spread_analysis._validation import FloatArray, as_count, as_float, as_probability
from spread_analysis.plots import _COLOURS, _INK, _axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Ranks = NDArray[np.int64]

# A chi-square statistic is one only if every bin expects several counts.
_COUNTS_PER_BIN = 10
_MOST_BINS = 20


def simulation_ranks(truth: ArrayLike, draws: ArrayLike, seed: int = 0) -> Ranks:
    """
    How many draws lie below the truth; ties, as discrete latents have them, are broken at random.

    :param truth: the latents that made the data, any shape.
    :param draws: draws given the data, of shape (num_draws,) + that of ``truth``.
    :param seed: of the ties.
    :return: ranks in 0, ..., num_draws, of the shape of ``truth``.
    :raises ValueError: if shapes do not fit or an entry is NaN.

        >>> simulation_ranks([0.5, 9.0], [[0.0, 1.0], [1.0, 2.0], [0.2, 3.0]])
        array([2, 3])
    """
    values, samples = as_float(truth, "truth"), as_float(draws, "draws")
    if samples.ndim == 0 or samples.shape[1:] != values.shape or len(samples) == 0:
        raise ValueError(
            f"`draws` must have shape (num_draws, {', '.join(map(str, values.shape))}), got "
            f"{samples.shape}."
        )
    if np.isnan(values).any() or np.isnan(samples).any():
        raise ValueError("`truth` and `draws` must not hold NaN, which has no rank.")
    below = (samples < values).sum(0)
    ties = (samples == values).sum(0)
    rng = np.random.default_rng(seed)
    ranks: Ranks = below + rng.integers(0, ties, endpoint=True)
    return ranks


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """
    Ranks of simulation-based calibration; uniform if the guide is the model's posterior.

    A guide that is too narrow piles ranks up at both ends, one that is too wide in the middle, a
    biased one at one end. Uniform ranks are necessary, not sufficient: a guide that ignores the
    data and draws from the prior has them too.

    :param ranks: dict from site to ranks in 0, ..., ``num_draws``, of shape (num_simulations, ...);
        what follows the simulations are the components of the site, each ranked on its own.
    :param num_draws: draws of the guide for each simulation.
    """

    ranks: Mapping[str, Ranks]
    num_draws: int

    def __post_init__(self) -> None:
        limit = as_count(self.num_draws, "num_draws")
        for site, ranks in self.ranks.items():
            array = np.asarray(ranks)
            if array.dtype.kind not in "iu" or array.ndim == 0 or array.size == 0:
                raise ValueError(
                    f"ranks of '{site}' must be integers of shape (num_simulations, ...), got "
                    f"{array.dtype} of shape {array.shape}."
                )
            if array.min() < 0 or array.max() > limit:
                raise ValueError(
                    f"ranks of '{site}' must lie in 0, ..., num_draws = {limit}, got "
                    f"{array.min()} to {array.max()}."
                )

    def p_values(self, num_bins: int | None = None) -> dict[str, FloatArray]:
        """
        P-values of the chi-square test of uniform ranks, one per component of a site.

        :param num_bins: bins of the ranks; None takes at most 20 with at least 10 expected counts.
        :return: dict from site to p-values of the shape of its components; () for a scalar site.
        :raises ValueError: if there are fewer than 2 bins or more than ranks.
        """
        result = {}
        for site, ranks in self.ranks.items():
            columns = ranks.reshape(len(ranks), -1)
            values = [self._p_value(column, num_bins) for column in columns.T]
            result[site] = np.array(values).reshape(ranks.shape[1:])
        return result

    def p_value(self, num_bins: int | None = None) -> float:
        """
        One p-value for all sites and components: the least, times their number (Bonferroni).

        It holds whatever the dependence between components. Near one there is nothing to see;
        below one in a hundred the guide is not the posterior.

        :param num_bins: as in :meth:`p_values`.
        """
        values = np.concatenate([p.ravel() for p in self.p_values(num_bins).values()])
        return float(min(1.0, values.size * values.min()))

    def histogram(
        self, site: str, index: tuple[int, ...] = (), num_bins: int | None = None
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """
        Counts of the ranks of one component, and the counts that uniform ranks give on average.

        :param site: the site.
        :param index: of the component, ``()`` for a scalar site.
        :param num_bins: as in :meth:`p_values`.
        :return: counts and expected counts, both of shape (num_bins,).
        :raises ValueError: if there is no such site or component.
        """
        if site not in self.ranks:
            raise ValueError(f"there are no ranks of site '{site}'; there are {list(self.ranks)}.")
        ranks = self.ranks[site]
        if len(index) != ranks.ndim - 1:
            raise ValueError(
                f"`index` of site '{site}' must name one component of shape {ranks.shape[1:]}, got "
                f"{index}."
            )
        chosen: Any = (slice(None), *index)
        return self._histogram(ranks[chosen], num_bins)

    def _histogram(
        self, ranks: Ranks, num_bins: int | None
    ) -> tuple[NDArray[np.int64], FloatArray]:
        num_ranks = self.num_draws + 1
        if num_bins is None:
            bins = max(2, min(_MOST_BINS, num_ranks, len(ranks) // _COUNTS_PER_BIN))
        else:
            bins = as_count(num_bins, "num_bins", 2)
            if bins > num_ranks:
                raise ValueError(f"`num_bins` must be at most num_draws + 1 = {num_ranks}.")
        # Where the bins do not divide the ranks some bins hold one rank more, and expect more.
        bin_of_rank = np.arange(num_ranks) * bins // num_ranks
        share = np.bincount(bin_of_rank, minlength=bins) / num_ranks
        return np.bincount(bin_of_rank[ranks], minlength=bins), share * len(ranks)

    def _p_value(self, ranks: Ranks, num_bins: int | None) -> float:
        counts, expected = self._histogram(ranks, num_bins)
        return float(stats.chisquare(counts, expected).pvalue)

    def __str__(self) -> str:
        rows = []
        for site, values in self.p_values().items():
            for index in np.ndindex(values.shape):
                name = site + (f"[{', '.join(map(str, index))}]" if index else "")
                mean = self.ranks[site][(slice(None), *index)].mean() / self.num_draws
                rows.append(f"{name:<20} p = {values[index]:<9.3g} mean rank {mean:.3f}")
        num = len(next(iter(self.ranks.values())))
        rows.append(f"{'all':<20} p = {self.p_value():<9.3g} {num} simulations")
        return "\n".join(rows)


def plot_sbc(
    report: CalibrationReport,
    site: str,
    index: tuple[int, ...] = (),
    *,
    num_bins: int | None = None,
    level: float = 0.99,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """
    Histogram of the ranks of one component, with the band that uniform ranks stay in.

    Of uniform ranks each bar is in the band with probability ``level`` or a little more (binomial
    quantiles), so that one bar in a hundred may leave it. Bars high at both ends: the guide is too
    narrow; high in the middle: too wide; sloping: biased.

    :param report: what ``simulation_based_calibration`` returns.
    :param site: the site.
    :param index: of the component, ``()`` for a scalar site.
    :param num_bins: bins of the ranks; None takes at most 20 with at least 10 expected counts.
    :param level: probability of the band.
    :param title: title of the axes; None gives site and p-value.
    :param ax: axes to draw on; None makes a figure.
    :return: the axes.
    :raises ValueError: if there is no such component, or ``level`` or ``num_bins`` is out of range.
    :raises ImportError: if matplotlib is missing.
    """
    probability = as_probability(level, "level")
    counts, expected = report.histogram(site, index, num_bins)
    total = int(counts.sum())
    band: Any = stats.binom.interval(probability, total, expected / total)

    axes = _axes(ax, (5.2, 3.2), "plot_sbc")
    edges = np.arange(len(counts) + 1) / len(counts)
    low, high = (np.append(side, side[-1]) for side in band)
    axes.fill_between(edges, low, high, step="post", color=_COLOURS[5], alpha=0.25, lw=0, zorder=1)
    axes.step(edges, np.append(expected, expected[-1]), where="post", color=_COLOURS[5], lw=1)
    axes.bar(edges[:-1], counts, 0.92 / len(counts), align="edge", color=_COLOURS[0], alpha=0.8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("rank of the truth among the guide's draws", color=_INK)
    axes.set_ylabel("simulations", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    name = site + (f"[{', '.join(map(str, index))}]" if index else "")
    default = f"{name}: p = {report.p_values(num_bins)[site][index]:.2g}"
    axes.set_title(default if title is None else title, fontsize=11, color=_INK)
    return axes
