# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""All checks of a posterior on simulations that it was not trained on, in one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from spread_analysis.calibration import CalibrationReport, component_name, plot_sbc
from spread_analysis.classifier_test import c2st_prior, joint_c2st
from spread_analysis.coverage import CoverageReport, expected_coverage, plot_coverage, tarp
from spread_analysis.misspecification import data_columns
from spread_core.caller_warning import warn_user
from spread_core.messages import calibration
from spread_core.optional import import_extra
from spread_core.validation import FloatArray, as_float, as_probability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORDS = {
    "sbc": "ranks of each latent (SBC)",
    "coverage": "expected coverage",
    "tarp": "balls round points (TARP)",
    "joint": "classifier, given the data",
}
# Share of draws told from the prior below which a posterior that fails has ignored the data.
_LEARNT_NOTHING = 0.55


class CalibrationWarning(UserWarning):
    """A posterior has failed its check on held-out simulations."""


@dataclass(frozen=True, eq=False)
class PosteriorCheck:
    """
    What held-out simulations say of a posterior; made by :func:`check_posterior`.

    Print it for a table, :meth:`plot` shows it. An exact posterior passes with probability
    ``1 - level`` at least. A posterior that passes may still be wrong in a way that so many
    simulations do not show: the shares in the table say how large an error may be.

    :param calibration: ranks of every component of every latent, on its own.
    :param coverage: of regions of highest density; None without log densities.
    :param tarp: of balls round points that follow the data, if there are any.
    :param joint: of what a classifier takes for the truth, given the data; None without data.
    :param told_from_prior: share of pairs in which a classifier tells a draw of the posterior from
        one of the prior, given the data: near one half nothing was learnt, or there is nothing to
        learn. It is no test of the posterior. None without data.
    :param num_simulations: how many there are.
    :param level: share of exact posteriors that fail, at most.
    """

    calibration: CalibrationReport
    coverage: CoverageReport | None
    tarp: CoverageReport
    joint: CoverageReport | None
    told_from_prior: float | None
    num_simulations: int
    level: float = 0.01

    def p_values(self) -> dict[str, float]:
        """P-value of each test, before they are paid for: "sbc", "coverage", "tarp", "joint"."""
        found = {"sbc": self.calibration.p_value()}
        for name in ("coverage", "tarp", "joint"):
            report = getattr(self, name)
            if report is not None:
                found[name] = report.p_value()
        return found

    def p_value(self) -> float:
        """
        One p-value for all tests: the least, times their number (Bonferroni).

        It holds whatever the dependence between tests.
        """
        values = self.p_values().values()
        return min(1.0, len(values) * min(values))

    @property
    def passed(self) -> bool:
        """Whether no test has found the draws to differ from the posterior."""
        return self.p_value() >= self.level

    def failures(self) -> list[str]:
        """
        Names of the tests that fail when all are paid for (Holm 1979), the clearest first.

        An exact posterior has one or more with probability ``level`` at most.
        """
        values = sorted(self.p_values().items(), key=lambda item: item[1])
        found = []
        for done, (name, value) in enumerate(values):
            if value * (len(values) - done) >= self.level:
                break
            found.append(name)
        return found

    def warn(self) -> None:
        """Warn, if it has failed, saying which tests and what to do."""
        if not self.passed:
            warn_user(self.advice(), CalibrationWarning)

    def advice(self) -> str:
        """What has failed, and what to do about it; a sentence to the contrary if nothing has."""
        if self.passed:
            return calibration.check_passed(self.p_value(), self.num_simulations)
        seen = [f"{_WORDS[name]}: {self._seen(name)}" for name in self.failures()]
        told = self.told_from_prior
        ignores = told is not None and told < _LEARNT_NOTHING and "joint" in self.failures()
        return calibration.check_failed(self.p_value(), self.num_simulations, seen, ignores)

    def _seen(self, name: str) -> str:
        """What a test has seen, as a size that does not grow with the number of simulations."""
        if name == "sbc":
            values = self.calibration.p_values()
            site, index = min(
                ((s, i) for s, p in values.items() for i in np.ndindex(p.shape)),
                key=lambda place: np.nan_to_num(values[place[0]][place[1]], nan=np.inf),
            )
            mean, deviation = self.calibration.moments(site, index)
            shape = calibration.shape_of_ranks(mean, deviation)
            return f"least uniform {component_name(site, index)}, {shape}"
        report: CoverageReport = getattr(self, name)
        if name == "joint":
            return f"tells the truth from a draw in {100 * report.accuracy:.0f} % of pairs"
        return report.words()

    def __str__(self) -> str:
        values = self.p_values()
        draws = self.calibration.num_draws
        rows = [f"{self.num_simulations} simulations, {draws} draws of the posterior for each"]
        for name, value in values.items():
            rows.append(f"{_WORDS[name]:<28} p = {value:<9.3g} {self._seen(name)}")
        verdict = "passed" if self.passed else f"failed: {', '.join(self.failures())}"
        rows.append(f"{'all':<28} p = {self.p_value():<9.3g} {verdict} at level {self.level:g}")
        if self.told_from_prior is not None:
            rows.append(
                f"{'draws told from the prior':<28} in {100 * self.told_from_prior:.0f} % of pairs "
                "(50 %: nothing was learnt)"
            )
        return "\n".join(rows)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.3g}" for name, value in self.p_values().items())
        return f"PosteriorCheck({values}; p_value={self.p_value():.3g}, passed={self.passed})"

    def plot(self, level: float = 0.99) -> Figure:
        """
        Show the ranks of the least uniform components, and every curve of coverage, with bands.

        :param level: probability of each band.
        :return: the figure.
        :raises ValueError: if ``level`` is out of range.
        :raises ImportError: if matplotlib is missing.
        """
        probability = as_probability(level, "level")
        values = self.calibration.p_values()
        places = [(s, i) for s, p in values.items() for i in np.ndindex(p.shape)]
        places = [(s, i) for s, i in places if not np.isnan(values[s][i])]
        places.sort(key=lambda place: values[place[0]][place[1]])
        curves = [r for r in (self.coverage, self.tarp, self.joint) if r is not None]
        shown = places[: len(curves)]
        figure_class = import_extra("matplotlib.figure", "PosteriorCheck.plot").Figure
        figure: Figure = figure_class(
            figsize=(3.8 * max(len(curves), len(shown)), 6.4), layout="constrained"
        )
        columns = max(len(curves), len(shown))
        for k, (site, index) in enumerate(shown):
            axes = figure.add_subplot(2, columns, k + 1)
            plot_sbc(self.calibration, site, index, level=probability, ax=axes)
        for k, report in enumerate(curves):
            axes = figure.add_subplot(2, columns, columns + k + 1)
            plot_coverage(report, level=probability, ax=axes)
        return figure


def check_posterior(
    truths: Mapping[str, ArrayLike],
    draws: Mapping[str, ArrayLike],
    data: ArrayLike | Mapping[str, ArrayLike] | None = None,
    *,
    log_prob_truth: ArrayLike | None = None,
    log_prob_draws: ArrayLike | None = None,
    kept: Mapping[str, ArrayLike] | None = None,
    level: float = 0.01,
    seed: int = 0,
) -> PosteriorCheck:
    """
    Check draws of a posterior, of any library, on simulations that it was not trained on.

    Four tests that see different errors: ranks of every latent on its own, the density of all
    latents, distances of all latents, and a classifier of latents and data together, the only one
    that sees a posterior which ignores the data. All but the first are exact for a finite number
    of simulations. A :class:`CalibrationWarning` says if it fails, and what to do.

    :param truths: dict from site to the latents that made the data, of shape
        (num_simulations, ...).
    :param draws: dict from site to draws given these data, of shape
        (num_draws, num_simulations, ...); 99 are enough for a thousand simulations.
    :param data: of shape (num_simulations, ...), or dict from site to such arrays. Without them a
        posterior that ignores the data passes.
    :param log_prob_truth: log densities of the truths under the posteriors given their data, of
        shape (num_simulations,); for expected coverage.
    :param log_prob_draws: those of the draws, of shape (num_draws, num_simulations).
    :param kept: dict from site to the elements that count, of the shape of its truths; a site that
        is left out counts in full.
    :param level: share of exact posteriors that fail, at most.
    :param seed: of everything that is random here: the result is the same for the same seed.
    :raises ValueError: if sites, shapes or numbers do not fit, an entry that counts is not finite,
        there are fewer than 9 draws or too few simulations, or ``level`` is out of range.

        >>> rng = np.random.default_rng(0)
        >>> z = rng.standard_normal(1000)
        >>> x = z + rng.standard_normal(1000)
        >>> draws = x / 2 + 0.5**0.5 * rng.standard_normal((99, 1000))
        >>> check_posterior({"z": z}, {"z": draws}, x).passed
        True
    """
    probability = as_probability(level, "level")
    report = CalibrationReport.from_draws(truths, draws, kept, seed)
    truth, drawn = side_by_side(truths, draws, kept)
    number = len(truth)
    columns = None
    if data is not None:
        columns = data_columns(data if isinstance(data, Mapping) else {"data": data})[0]
    coverage = joint = told = None
    if (log_prob_truth is None) != (log_prob_draws is None):
        raise ValueError(calibration.both_densities())
    if log_prob_truth is not None and log_prob_draws is not None:
        coverage = expected_coverage(log_prob_truth, log_prob_draws, seed)
        if len(coverage.ranks) != number:
            raise ValueError(
                calibration.number_of_rows("log_prob_truth", number, coverage.ranks.shape)
            )
    if columns is not None:
        joint = joint_c2st(
            truth,
            drawn,
            columns,
            log_prob_truth=log_prob_truth,
            log_prob_draws=log_prob_draws,
            seed=seed,
        )
        told = c2st_prior(truth, drawn, columns, seed)
    balls = tarp(truth, drawn, data=columns, seed=seed)
    check = PosteriorCheck(report, coverage, balls, joint, told, number, probability)
    check.warn()
    return check


def side_by_side(
    truths: Mapping[str, ArrayLike],
    draws: Mapping[str, ArrayLike],
    kept: Mapping[str, ArrayLike] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """
    All latents as columns; what does not count is 0 in truths and draws alike.

    :return: truths of shape (num_simulations, dim), draws of shape (num_draws, ..., dim).
    :raises ValueError: if the numbers of simulations differ.
    """
    numbers = {len(np.asarray(values)) for values in truths.values()}
    if len(numbers) > 1:
        raise ValueError(calibration.numbers_of_simulations(sorted(numbers)))
    number = numbers.pop()
    columns, drawn = [], []
    for site, values in truths.items():
        truth, own = as_float(values, site), as_float(draws[site], site)
        if kept is not None and site in kept:
            counts = np.broadcast_to(np.asarray(kept[site], bool), truth.shape)
            truth, own = np.where(counts, truth, 0.0), np.where(counts, own, 0.0)
        columns.append(truth.reshape(number, -1))
        drawn.append(own.reshape(len(own), number, -1))
    return np.concatenate(columns, 1), np.concatenate(drawn, 2)
