# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulation-based calibration: the ranks of true latents among draws of a guide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from spread_analysis.log_evidence import data_first
from spread_analysis.plots import COLOURS, INK, axes_for
from spread_core.messages import simulations
from spread_core.validation import FloatArray, as_count, as_float, as_probability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Ranks = NDArray[np.int64]

# A chi-square statistic is one only if every bin expects several counts.
_COUNTS_PER_BIN = 10
_MOST_BINS = 20
# Single precision lets a row come up twice by chance, but not often and not again and again.
_CHANCE_REPEATS, _CHANCE_SHARE = 2, 0.01
# Failed simulations for each good one, after which the run is stopped.
_MOST_FAILURES = 100


def simulation_ranks(
    truth: ArrayLike, draws: ArrayLike, seed: int = 0, kept: ArrayLike | None = None
) -> Ranks:
    """
    How many draws lie below the truth; ties, as discrete latents have them, are broken at random.

    :param truth: the latents that made the data, any shape.
    :param draws: draws given the data, of shape (num_draws,) + that of ``truth``.
    :param seed: of the ties.
    :param kept: elements that count, of the shape of ``truth``; None is all. Others have rank 0.
    :return: ranks in 0, ..., num_draws, of the shape of ``truth``.
    :raises ValueError: if shapes do not fit or an entry that counts is NaN.

        >>> simulation_ranks([0.5, 9.0], [[0.0, 1.0], [1.0, 2.0], [0.2, 3.0]])
        array([2, 3])
    """
    values, samples = as_float(truth, "truth"), as_float(draws, "draws")
    if samples.ndim == 0 or samples.shape[1:] != values.shape or len(samples) == 0:
        raise ValueError(
            f"`draws` must have shape (num_draws, {', '.join(map(str, values.shape))}), got "
            f"{samples.shape}."
        )
    if kept is not None:
        counts = np.broadcast_to(np.asarray(kept, bool), values.shape)
        values, samples = np.where(counts, values, -1.0), np.where(counts, samples, 0.0)
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
                name = site + (f"[{', '.join(map(str, index))}]" if index else "")
                ranks = _component(self.ranks[site], index)
                mean = ranks.mean() / self.num_draws if len(ranks) else float("nan")
                fewer = f"  of {len(ranks)}" if len(ranks) < most else ""
                rows.append(f"{name:<20} p = {values[index]:<9.3g} mean rank {mean:.3f}{fewer}")
        all_there_are = ", all that the model has recorded" if self.recorded else ""
        rows.append(f"{'all':<20} p = {self.p_value():<9.3g} {most} simulations{all_there_are}")
        return "\n".join(rows)


def _component(ranks: Ranks, index: tuple[int, ...]) -> Ranks:
    """The ranks of one component that count."""
    chosen: Any = (slice(None), *index)
    found: Ranks = np.ma.compressed(ranks[chosen])
    return found


class Ranked(NamedTuple):
    """
    One latent site of one run of the model.

    :param truth: what the model drew, of shape batch + event.
    :param draws: the guide's, of shape (num_draws,) + that of ``truth``.
    :param kept: elements that neither model nor guide masks out, of the shape of ``truth``.
    :param axes: axes of ``truth`` along which simulations lie, negative.
    """

    truth: ArrayLike
    draws: ArrayLike
    kept: ArrayLike
    axes: Sequence[int]


class RankTally:
    """
    Ranks from several runs of a model, where every simulation counts once.

    A model that reads its latents from a table, or goes round a list of batches, comes back to
    the same simulations. Ranks of the same simulation are not independent, and counted as if they
    were they reject the exact posterior. Runs end when nothing new comes.

    :param num_simulations: simulations, at least.
    :param num_draws: draws of the guide for each.
    """

    def __init__(self, num_simulations: int, num_draws: int) -> None:
        self._wanted = as_count(num_simulations, "num_simulations")
        #: Draws of the guide for each simulation.
        self.num_draws = as_count(num_draws, "num_draws")
        self._runs: list[dict[str, tuple[Ranks, NDArray[np.bool_]]]] = []
        self._new: list[NDArray[np.bool_]] = []
        self._seen: set[bytes] = set()
        self._first: dict[str, NDArray] = {}
        self._unmoved: set[str] = set()
        self._total = self._repeats = self._failed = self._made = 0

    def add(
        self,
        sites: Mapping[str, Ranked],
        data: Iterable[tuple[ArrayLike, Sequence[int]]],
        seed: int = 0,
    ) -> None:
        """
        Add one run.

        :param sites: latent sites to rank.
        :param data: what else tells simulations apart, each with the axes along which they lie.
        :param seed: of the ties.
        """
        run, latents = {}, {}
        for name, site in sites.items():
            truth = np.asarray(site.truth)
            kept = np.asarray(site.kept, bool)
            ranks = simulation_ranks(truth, site.draws, seed, kept)
            run[name] = data_first(ranks, site.axes), data_first(kept, site.axes)
            latents[name] = data_first(truth, site.axes)
        if not self._runs:
            self._first, self._unmoved = latents, set(latents)
        equal = {n for n, v in latents.items() if np.array_equal(v, self._first[n], equal_nan=True)}
        self._unmoved &= equal
        self._runs.append(run)
        rows = [*latents.values(), *(data_first(np.asarray(v), axes) for v, axes in data)]
        new = np.array([self._is_new(row) for row in zip(*rows, strict=True)])
        self._new.append(new)
        self._total += len(new)
        self._repeats += int((~new).sum())

    def leave_out(self, failed: int, total: int) -> None:
        """
        Count simulations of a run that have failed and have to be replaced.

        :param failed: their number.
        :param total: number of simulations in the run.
        :raises ValueError: if hardly any succeed.
        """
        self._failed += failed
        self._made += total
        self._wanted += failed if failed < total else 0
        if self._failed > _MOST_FAILURES * (1 + self._made - self._failed):
            raise ValueError(simulations.mostly_failed(self._failed, self._made))

    def _is_new(self, row: Iterable[NDArray]) -> bool:
        parts = [np.asarray(part, np.float64) for part in row]
        if all(_is_integer(part) for part in parts):
            return True  # so do independent draws of discrete sites come up again
        digest = hashlib.blake2b(b"".join(part.tobytes() for part in parts), digest_size=16)
        before = len(self._seen)
        self._seen.add(digest.digest())
        return len(self._seen) > before

    @property
    def wants_more(self) -> bool:
        """Whether another run may bring simulations that are missing."""
        if not self._runs:
            return True
        if self._is_round and not self._new[-1].any():
            return False
        if self._is_recording and not all(map(_is_integer, self._first.values())):
            return False
        return self._total - self._is_round * self._repeats < self._wanted

    @property
    def _is_recording(self) -> bool:
        """Whether latents are the same in every run."""
        if len(self._runs) < 2 or not self._unmoved:
            return False
        # A site may be constant by the model; a recording has different rows.
        rows = [self._first[name] for name in self._unmoved]
        return len(rows) == len(self._first) or any((row != row[:1]).any() for row in rows)

    @property
    def _is_round(self) -> bool:
        """Whether simulations have come up again, more often than by chance."""
        return self._repeats > max(_CHANCE_REPEATS, _CHANCE_SHARE * self._total)

    def report(self) -> CalibrationReport:
        """
        Ranks of all simulations, without repeats and masked elements.

        :raises ValueError: if all of a site is masked.
        """
        recorded = self._is_recording or self._is_round
        runs, new = self._runs, self._new
        if self._is_recording:
            runs, new = runs[:1], new[:1]
        once = np.concatenate(new) | (not recorded)
        found: dict[str, Ranks] = {}
        for name in self._first:
            ranks, kept = (np.concatenate([run[name][i] for run in runs]) for i in (0, 1))
            rows = once & kept.reshape(len(kept), -1).any(1)
            if not rows.any():
                raise ValueError(
                    f"site '{name}' is masked in all {len(kept)} simulations, so that there is "
                    "nothing to rank. Leave it out with sites=..., or the mask."
                )
            ranks, kept = ranks[rows], kept[rows]
            found[name] = ranks if kept.all() else np.ma.MaskedArray(ranks, ~kept)
        return CalibrationReport(found, self.num_draws, recorded)


def _is_integer(values: NDArray) -> bool:
    with np.errstate(invalid="ignore"):
        return bool((np.asarray(values) % 1 == 0).all())


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
    axes.set_xlabel("rank of the truth among the guide's draws", color=INK)
    axes.set_ylabel("simulations", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    name = site + (f"[{', '.join(map(str, index))}]" if index else "")
    default = f"{name}: p = {report.p_values(num_bins)[site][index]:.2g}"
    axes.set_title(default if title is None else title, fontsize=11, color=INK)
    return axes
