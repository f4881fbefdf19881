# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Does an observation lie outside of what was simulated? Then its posterior means little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from spread_analysis.coverage import as_rows, split_rows
from spread_core.caller_warning import warn_user
from spread_core.messages import calibration
from spread_core.validation import FloatArray, as_float, as_probability

# Half of the simulations say what is usual, the other half how unusual a simulation may be.
_FIT_SHARE, _LEAST = 0.5, 20
# Principal directions, at most, that are looked at one by one.
_MOST_DIRECTIONS = 100
# Rows of simulations that one direction needs.
_ROWS_PER_DIRECTION = 5
# Variance of a direction below which it is a rounding error, in those of the columns.
_ROUNDING = 1e-10
# Quantiles of a column that are stored.
_KNOTS = 200


class MisspecificationWarning(UserWarning):
    """An observation lies outside of what the model simulates, so its posterior means little."""


@dataclass(frozen=True, eq=False)
class SimulatedRange:
    """
    What simulations look like, to ask of an observation whether it could be one of them.

    Made by :meth:`fit`. The fields are arrays, to be stored with what was learnt from the
    simulations; ``SimulatedRange(**arrays)`` restores it.

    A column is turned into normal scores by its quantiles, and goes on linearly beyond them, so
    that units and heavy tails do not matter. The score of an observation is the larger of two
    surprises: its Mahalanobis distance, which sees a wrong dependence between columns, and its
    largest column. The p-value is the rank of this score among those of simulations that were held
    out: of another simulation it is at most alpha with probability alpha (conformal p-values;
    Vovk, Gammerman and Shafer 2005, proposition 2.4).

    :param knots: quantiles of each column, of shape (num_knots, num_columns).
    :param units: of each column, beyond its quantiles, of shape (num_columns,).
    :param constant: columns that have one value, bool of shape (num_columns,).
    :param whole: columns of whole numbers, bool of shape (num_columns,).
    :param mean: of the normal scores, of shape (num_columns,).
    :param directions: principal directions, of shape (num_columns, num_directions).
    :param deviations: along them, of shape (num_directions,).
    :param rest: standard deviation in all other directions, of shape (); 0 if there are none.
    :param scores: of the simulations that were held out, in order, of shape (num_held_out,).
    """

    knots: FloatArray
    units: FloatArray
    constant: NDArray[np.bool_]
    whole: NDArray[np.bool_]
    mean: FloatArray
    directions: FloatArray
    deviations: FloatArray
    rest: FloatArray
    scores: FloatArray

    @classmethod
    def fit(cls, simulated: ArrayLike, seed: int = 0) -> SimulatedRange:
        """
        Look at simulations.

        :param simulated: data of shape (num_simulations, ...), or summaries of them; without those
            that have failed.
        :param seed: of the halves.
        :raises ValueError: if an entry is not finite or there are fewer than 40 simulations.

            >>> rng = np.random.default_rng(0)
            >>> usual = SimulatedRange.fit(rng.standard_normal((2000, 3)))
            >>> usual.p_value([0.5, -1.0, 0.1]) > 0.05, usual.p_value([0.5, -1.0, 9.0]) < 0.01
            (True, True)
        """
        number = np.atleast_1d(as_float(simulated, "simulated")).shape[0]
        rows = as_rows(simulated, "simulated", number)
        first, second = split_rows(np.random.default_rng([seed, 5]), number, _FIT_SHARE, _LEAST)
        usual = rows[first]
        constant = np.ptp(usual, axis=0) == 0
        knots = np.quantile(usual, np.linspace(0, 1, min(_KNOTS, len(usual))), axis=0)
        units = np.ptp(np.quantile(usual, [0.25, 0.75], axis=0), axis=0) / 1.349
        # More than half of a column may be one number.
        units = np.where(units > 0, units, np.where(constant, 1.0, usual.std(0)))
        unknown = np.zeros(0)
        whole = (usual % 1 == 0).all(0)
        found = cls(knots, units, constant, whole, unknown, unknown, unknown, unknown, unknown)
        z = found._normal_scores(usual)
        mean = z.mean(0)
        _, s, vt = np.linalg.svd((z - mean) / np.sqrt(len(z)), full_matrices=False)
        most = max(1, min(_MOST_DIRECTIONS, len(usual) // _ROWS_PER_DIRECTION))
        kept = np.flatnonzero(np.square(s) > _ROUNDING)[:most]
        left = len(s) - len(kept)
        # Directions in which simulations do not move at all: any move in them is outside.
        rest = np.sqrt(max(np.square(s[len(kept) :]).sum() / max(left, 1), _ROUNDING))
        found = replace(
            found, mean=mean, directions=vt[kept].T, deviations=s[kept], rest=np.asarray(rest)
        )
        return replace(found, scores=np.sort(found.score(rows[second])))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The fields, to be stored."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _normal_scores(self, rows: FloatArray) -> FloatArray:
        number = len(self.knots)
        levels = stats.norm.ppf((np.arange(number) + 0.5) / number)
        scores = np.empty(rows.shape)
        for j, knots in enumerate(self.knots.T):
            # Ties get the mean of their levels from both sides, as ranks do.
            low = np.searchsorted(knots, rows[:, j], "left")
            high = np.searchsorted(knots, rows[:, j], "right")
            tied = high > low
            between = np.interp(rows[:, j], knots, levels)
            middle = (levels[np.minimum(low, number - 1)] + levels[np.maximum(high - 1, 0)]) / 2
            scores[:, j] = np.where(tied, middle, between)
        beyond = np.maximum(rows - self.knots[-1], 0) - np.maximum(self.knots[0] - rows, 0)
        return np.where(self.constant, 0.0, scores + beyond / self.units)

    def score(self, rows: ArrayLike) -> FloatArray:
        """
        How surprising data are; larger is more, inf is what no simulation could be.

        :param rows: of shape (number, ...).
        :return: of shape (number,).
        """
        flat = np.asarray(rows, np.float64).reshape(len(np.asarray(rows)), -1)
        z = self._normal_scores(flat)
        along = (z - self.mean) @ self.directions
        squares = np.square(along / self.deviations).sum(1)
        others = max(flat.shape[1] - int(self.constant.sum()) - len(self.deviations), 0)
        off = np.maximum(np.square(z - self.mean).sum(1) - np.square(along).sum(1), 0.0)
        if others:
            squares = squares + off / np.square(self.rest)
        moving = max(flat.shape[1] - int(self.constant.sum()), 1)
        # Both as tail probabilities of independent normals: no calibration, only one common scale.
        distance = _surprise(squares, moving)
        column = _surprise(np.square(z).max(1, initial=0.0), 1) - np.log(moving)
        result: FloatArray = np.maximum(distance, column)
        return np.where(self._impossible(flat).any(1), np.inf, result)

    def _impossible(self, flat: FloatArray) -> NDArray[np.bool_]:
        """Values that a column cannot have, by all that was simulated."""
        other = self.constant & (flat != self.knots[0])
        return other | (self.whole & (flat % 1 != 0))

    def p_value(self, observed: ArrayLike) -> float:
        """
        Share of held-out simulations at least as surprising, the observation itself among them.

        :param observed: one observation, of the shape of one simulation.
        :raises ValueError: if its size is another or an entry is not finite.
        """
        score = self.score(self._one(observed))[0]
        above = len(self.scores) - np.searchsorted(self.scores, score, "left")
        return float(1 + above) / (1 + len(self.scores))

    def outside(self, observed: ArrayLike) -> dict[int, str]:
        """
        Columns of an observation that no simulation has shown, with what is wrong.

        With many columns a simulation, too, has one beyond its range; ``p_value`` allows for that.

        :param observed: one observation, of the shape of one simulation.
        :return: dict from the place in the flattened observation to a text.
        :raises ValueError: if its size is another or an entry is not finite.
        """
        row = self._one(observed)[0]
        found = {}
        for j, value in enumerate(row):
            low, high = self.knots[0, j], self.knots[-1, j]
            if self.constant[j]:
                if value != low:
                    found[j] = calibration.not_the_constant(value, low)
            elif self.whole[j] and value % 1:
                found[j] = calibration.not_whole(value)
            else:
                if not low <= value <= high:
                    found[j] = calibration.beyond(value, low, high)
        return found

    def warn(
        self, observed: ArrayLike, level: float = 0.01, names: Sequence[str] | None = None
    ) -> float:
        """
        Warn if an observation lies outside of what was simulated.

        :param observed: one observation, of the shape of one simulation.
        :param level: p-values below it are warned of: the share of false alarms.
        :param names: of the columns, for the message; None counts them.
        :return: the p-value.
        :raises ValueError: if the size is another, an entry is not finite, or ``level`` out of
            range or below what so few simulations can reach.
        """
        limit = as_probability(level, "level")
        least = 1 / (1 + len(self.scores))
        if limit < least:
            raise ValueError(calibration.level_out_of_reach(limit, len(self.scores)))
        value = self.p_value(observed)
        if value <= limit:
            columns = {
                names[j] if names is not None else f"column {j}": text
                for j, text in self.outside(observed).items()
            }
            text = calibration.misspecified(value, len(self.scores), columns)
            warn_user(text, MisspecificationWarning)
        return value

    def _one(self, observed: ArrayLike) -> FloatArray:
        value = as_float(observed, "observed").reshape(1, -1)
        if value.shape[1] != len(self.mean):
            raise ValueError(calibration.observation_size(value.shape[1], len(self.mean)))
        return as_rows(value, "observed", 1)


def _surprise(squares: FloatArray, dims: int) -> FloatArray:
    """Minus log of chi-squared's tail, also where that is too small for a number: no ties there."""
    half, shape = np.maximum(squares / 2, 1.0), dims / 2
    share = np.minimum((shape - 1) / half, 0.9)
    far = half - (shape - 1) * np.log(half) + special.gammaln(shape) + np.log1p(-share)
    with np.errstate(divide="ignore"):
        near = -stats.chi2.logsf(squares, dims)
    found: FloatArray = np.where(near < 700, near, far)
    return found


def data_columns(data: Mapping[str, ArrayLike]) -> tuple[FloatArray, list[str]]:
    """
    Data of several sites side by side, as one matrix.

    :param data: dict from site to values of shape (num_simulations, ...).
    :return: matrix of shape (num_simulations, num_columns), and the names of its columns.
    :raises ValueError: if a site has another number of rows, or there are no sites.
    """
    if not data:
        raise ValueError(calibration.no_data())
    number = len(np.asarray(next(iter(data.values()))))
    parts, names = [], []
    for site, values in data.items():
        array = as_float(values, site)
        if array.ndim == 0 or len(array) != number:
            raise ValueError(calibration.number_of_rows(site, number, array.shape))
        parts.append(array.reshape(number, -1))
        for index in np.ndindex(array.shape[1:]):
            names.append(site + (f"[{', '.join(map(str, index))}]" if index else ""))
    return np.concatenate(parts, 1), names
