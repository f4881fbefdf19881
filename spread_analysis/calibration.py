# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulation-based calibration: the test of uniform ranks, and its plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from spread_analysis.plots import COLOURS, axes_for, style_axes
from spread_analysis.ranks import Ranks, simulation_ranks
from spread_core.messages import calibration
from spread_core.validation import FloatArray, as_count, as_probability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A chi-square statistic is one only if every bin expects several counts.
_COUNTS_PER_BIN = 10
_MOST_BINS = 20


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """
    Ranks of simulation-based calibration; uniform if the guide is the model's posterior.

    A guide that is too narrow piles ranks up at both ends, one that is too wide in the middle, a
    biased one at one end. Uniform ranks are necessary, not sufficient: a guide that ignores the
    data and draws from the prior has them too.

    :param ranks: dict from site to ranks in 0, ..., ``num_draws``, of shape (num_simulations, ...);
        what follows the simulations are the components of the site, each ranked on its own. A
        masked array where some components of a simulation do not count.
    :param num_draws: draws of the guide for each simulation.
    :param recorded: whether the model repeats itself, so that there are no more simulations.
    """

    ranks: Mapping[str, Ranks]
    num_draws: int
    recorded: bool = False

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

    @classmethod
    def from_draws(
        cls,
        truths: Mapping[str, ArrayLike],
        draws: Mapping[str, ArrayLike],
        kept: Mapping[str, ArrayLike] | None = None,
        seed: int = 0,
    ) -> CalibrationReport:
        """
        Rank truths among draws, of any posterior and any backend, as arrays.

        :param truths: dict from site to the latents that made the data, of shape
            (num_simulations, ...).
        :param draws: dict from site to draws given these data, of shape
            (num_draws, num_simulations, ...).
        :param kept: dict from site to the elements that count, of the shape of its truths; of a
            site that is left out all do.
        :param seed: of the ties, which are broken at random.
        :return: the ranks; a masked array where some elements do not count.
        :raises ValueError: if sites or shapes do not fit, the numbers of draws differ, an entry
            that counts is NaN, or nothing of a site counts; the message names the site.

            >>> rng = np.random.default_rng(0)
            >>> z = rng.standard_normal(500)
            >>> mean = (z + rng.standard_normal(500)) / 2
            >>> draws = mean + 0.5 * rng.standard_normal((99, 500))  # right is 0.5**0.5
            >>> CalibrationReport.from_draws({"z": z}, {"z": draws}).p_value() < 1e-6
            True
        """
        if set(truths) != set(draws) or not truths:
            raise ValueError(calibration.sites_differ(truths, draws))
        ranks: dict[str, Ranks] = {}
        numbers = set()
        for index, (site, truth) in enumerate(truths.items()):
            counts = np.ones(np.shape(truth), bool)
            if kept is not None and site in kept:
                counts = np.broadcast_to(np.asarray(kept[site], bool), counts.shape)
            if not counts.any():
                raise ValueError(calibration.nothing_to_rank(site, len(counts)))
            try:
                found = simulation_ranks(truth, draws[site], seed + index, counts)
            except ValueError as error:
                raise ValueError(calibration.at(site, error)) from error
            ranks[site] = found if counts.all() else np.ma.MaskedArray(found, ~counts)
            numbers.add(len(np.asarray(draws[site])))
        if len(numbers) > 1:
            raise ValueError(calibration.numbers_of_draws(sorted(numbers)))
        return cls(ranks, numbers.pop())

    def p_values(self, num_bins: int | None = None) -> dict[str, FloatArray]:
        """
        P-values of the chi-square test of uniform ranks, one per component of a site.

        :param num_bins: bins of the ranks; None takes at most 20 with at least 10 expected counts.
        :return: dict from site to p-values of the shape of its components; () for a scalar site.
            NaN for a component that is masked in every simulation.
        :raises ValueError: if there are fewer than 2 bins or more than ranks.
        """
        result = {}
        for site, ranks in self.ranks.items():
            shape = ranks.shape[1:]
            values = [self._p_value(_component(ranks, i), num_bins) for i in np.ndindex(shape)]
            result[site] = np.array(values).reshape(shape)
        return result

    def p_value(self, num_bins: int | None = None) -> float:
        """
        One p-value for all sites and components: the least, times their number (Bonferroni).

        It holds whatever the dependence between components. Near one there is nothing to see;
        below one in a hundred the guide is not the posterior.

        :param num_bins: as in :meth:`p_values`.
        """
        values = np.concatenate([p.ravel() for p in self.p_values(num_bins).values()])
        values = values[~np.isnan(values)]
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
        return self._histogram(_component(ranks, index), num_bins)

    def moments(self, site: str, index: tuple[int, ...] = ()) -> tuple[float, float]:
        """
        Mean and standard deviation of the ranks of one component, as shares of ``num_draws``.

        Of uniform ranks they are 1/2 and ((1 + 2 / num_draws) / 12)**0.5; the deviation comes in
        units of that. Above one: draws are too narrow; below one: too wide.

        :param site: the site.
        :param index: of the component, ``()`` for a scalar site.
        """
        ranks = _component(self.ranks[site], index)
        if not len(ranks):
            return float("nan"), float("nan")
        uniform = np.sqrt(self.num_draws * (self.num_draws + 2) / 12)
        return float(ranks.mean()) / self.num_draws, float(ranks.std() / uniform)

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
        if not len(ranks):
            return float("nan")
        return float(stats.chisquare(counts, expected).pvalue)

    def __str__(self) -> str:
        rows = []
        most = max(map(len, self.ranks.values()))
        for site, values in self.p_values().items():
            for index in np.ndindex(values.shape):
                name = component_name(site, index)
                ranks = _component(self.ranks[site], index)
                mean = ranks.mean() / self.num_draws if len(ranks) else float("nan")
                fewer = f"  of {len(ranks)}" if len(ranks) < most else ""
                rows.append(f"{name:<20} p = {values[index]:<9.3g} mean rank {mean:.3f}{fewer}")
        all_there_are = ", all that the model has recorded" if self.recorded else ""
        rows.append(f"{'all':<20} p = {self.p_value():<9.3g} {most} simulations{all_there_are}")
        return "\n".join(rows)


def component_name(site: str, index: tuple[int, ...]) -> str:
    """A component of a site as it is printed, ``z[0, 1]``."""
    return site + (f"[{', '.join(map(str, index))}]" if index else "")


def _component(ranks: Ranks, index: tuple[int, ...]) -> Ranks:
    """The ranks of one component that count."""
    chosen: Any = (slice(None), *index)
    found: Ranks = np.ma.compressed(ranks[chosen])
    return found


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

    axes = axes_for(ax, (5.2, 3.2), "plot_sbc")
    edges = np.arange(len(counts) + 1) / len(counts)
    low, high = (np.append(side, side[-1]) for side in band)
    axes.fill_between(edges, low, high, step="post", color=COLOURS[5], alpha=0.25, lw=0, zorder=1)
    axes.step(edges, np.append(expected, expected[-1]), where="post", color=COLOURS[5], lw=1)
    axes.bar(edges[:-1], counts, 0.92 / len(counts), align="edge", color=COLOURS[0], alpha=0.8)
    axes.set_xlim(0, 1)
    if title is None:
        name = component_name(site, index)
        title = f"{name}: p = {report.p_values(num_bins)[site][index]:.2g}"
    return style_axes(axes, "rank of the truth among the guide's draws", "simulations", title)
