# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The ranks of true latents among draws of a guide, gathered over runs of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spread_analysis.calibration import CalibrationReport
from spread_analysis.ranks import Ranks, simulation_ranks
from spread_core.evaluation import data_first
from spread_core.messages import calibration
from spread_core.validation import as_count

# Single precision lets a row come up twice by chance, but not often and not again and again.
_CHANCE_REPEATS, _CHANCE_SHARE = 2, 0.01
# Failed simulations for each good one, after which the run is stopped.
_MOST_FAILURES = 100


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
        number: int | None = None,
    ) -> None:
        """
        Add one run.

        :param sites: latent sites to rank.
        :param data: what else tells simulations apart, each with the axes along which they lie.
        :param seed: of the ties.
        :param number: how many of the simulations are some, the first ones; None is all.
        """
        run, latents = {}, {}
        for name, site in sites.items():
            truth = np.asarray(site.truth)
            kept = np.asarray(site.kept, bool)
            ranks = simulation_ranks(truth, site.draws, seed, kept)
            here = (data_first(values, site.axes)[:number] for values in (ranks, kept, truth))
            ranks, kept, latents[name] = here
            run[name] = ranks, kept
        if not self._runs:
            self._first, self._unmoved = latents, set(latents)
        equal = {n for n, v in latents.items() if np.array_equal(v, self._first[n], equal_nan=True)}
        self._unmoved &= equal
        self._runs.append(run)
        rows = [*latents.values(), *(data_first(np.asarray(v), axes)[:number] for v, axes in data)]
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
            raise ValueError(
                f"{self._failed} of {self._made} simulations are NaN or inf: too few are left to "
                "rank. Narrow the prior to where the simulator succeeds."
            )

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
        return not self.has_enough

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

    @property
    def has_enough(self) -> bool:
        """Whether there are as many simulations as asked for, repeats left out."""
        return self._total - self._is_round * self._repeats >= self._wanted

    def report(self, recorded: bool = False) -> CalibrationReport:
        """
        Ranks of all simulations, without repeats and masked elements.

        :param recorded: whether there are no more simulations, whatever the runs look like.
        :raises ValueError: if all of a site is masked.
        """
        repeats = self._is_recording or self._is_round
        runs, new = self._runs, self._new
        if self._is_recording:
            runs, new = runs[:1], new[:1]
        once = np.concatenate(new) | (not repeats)
        found: dict[str, Ranks] = {}
        for name in self._first:
            ranks, kept = (np.concatenate([run[name][i] for run in runs]) for i in (0, 1))
            rows = once & kept.reshape(len(kept), -1).any(1)
            if not rows.any():
                raise ValueError(calibration.nothing_to_rank(name, len(kept)))
            ranks, kept = ranks[rows], kept[rows]
            found[name] = ranks if kept.all() else np.ma.MaskedArray(ranks, ~kept)
        return CalibrationReport(found, self.num_draws, recorded or repeats)


def _is_integer(values: NDArray) -> bool:
    with np.errstate(invalid="ignore"):
        return bool((np.asarray(values) % 1 == 0).all())
