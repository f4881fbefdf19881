# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Where the conditionals start: regressions of each latent on features of the data, with SciPy.

Each is a truncated Gaussian whose location and log scale are linear in the features. Of four nested
forms (location linear or curved, scale fixed or not) that is taken which fits best to rows that are
held out: in a hundred features a scale that varies fits every row that it has seen, and fails by
thousands of nats at others.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

from spread_core.amortized.mixture import FAR

_SQRT_2PI = np.sqrt(2 * np.pi)

# With so many rows one tenth of them tells the forms apart; of fewer, five tenths in turn.
_FEW_ROWS = 5000


def start(
    t: np.ndarray,
    features: np.ndarray,
    latent_features: np.ndarray,
    is_linear: np.ndarray,
    ends: np.ndarray,
    ridge: float = 3.0,
    most_rows: int = 20_000,
    most_in_all: int = 100_000,
) -> np.ndarray:
    """
    Coefficients of location and log scale of every dimension.

    The form is chosen by some of the rows; where there are more, its coefficients are fitted to
    those too.

    :param t: standardised latents, of shape (n, D).
    :param features: of the data, of shape (n, N).
    :param latent_features: of all latents of the group, of shape (n, 2 D); a dimension is regressed
        on those of the dimensions before it.
    :param is_linear: which of the features are no powers, of shape (N,).
    :param ends: of the intervals, of shape (2, D).
    :param ridge: penalty on coefficients of the standardised features, in nats for all data.
    :param most_rows: by which the form is chosen, at most.
    :param most_in_all: more rows than these are not looked at.
    :return: of shape (D, N + 2 D + 1, 2); the last row is the intercept.
    """
    step = max(1, len(t) // most_in_all)
    t, features, latent_features = t[::step], features[::step], latent_features[::step]
    some = slice(None, None, max(1, len(t) // most_rows))
    dims, count = t.shape[1], features.shape[1]
    everything = np.concatenate([features, latent_features], 1).astype(float)
    linear = np.concatenate([is_linear, np.arange(2 * dims) < dims])
    found = np.zeros((dims, everything.shape[1] + 1, 2))
    for dim in range(dims):
        seen = np.concatenate([np.ones(count, bool), np.arange(2 * dims) % dims < dim])
        seen &= everything[some].std(0) > 1e-6
        low, high = ends[:, dim]
        found[dim] = _best(
            t[:, dim].astype(float), everything, some, seen, linear, low, high, ridge
        )
    return found.astype(np.float32)


def _best(
    t: np.ndarray,
    features: np.ndarray,
    some: slice,
    seen: np.ndarray,
    linear: np.ndarray,
    low: float,
    high: float,
    ridge: float,
) -> np.ndarray:
    none = np.zeros_like(seen)
    forms = [(seen & linear, none), (seen, none), (seen, seen), (seen & linear, seen)]
    bases: dict[bytes, _Basis] = {}
    best, weights, least = [], np.zeros(0), np.inf
    own, rows = t[some], np.arange(len(t[some])) % 10
    for chosen in forms:
        for columns in chosen:
            if columns.tobytes() not in bases:
                bases[columns.tobytes()] = _Basis(features[some], columns)
        basis = [bases[columns.tobytes()] for columns in chosen]
        loss = 0.0
        for part in range(1 if len(own) > _FEW_ROWS else 5):
            kept, held = rows != part, rows == part
            loc, scale = (b.values for b in basis)
            found = _fit(own[kept], loc[kept], scale[kept], low, high, ridge)
            loss += _losses(own[held], loc[held], scale[held], low, high, found)[0].sum()
        if loss < least:
            least, best, weights = loss, basis, found
    loc, scale = (basis.of(features) for basis in best)
    weights = _fit(t, loc, scale, low, high, ridge, weights)
    parts = np.split(weights, [loc.shape[1]])
    return np.stack([b.back(w) for b, w in zip(best, parts, strict=True)], -1)


class _Basis:
    """
    Some features, decorrelated, and a column of ones.

    :param features: of shape (n, all).
    :param columns: which.
    """

    def __init__(self, features: np.ndarray, columns: np.ndarray) -> None:
        self.columns, self.centre = columns, features[:, columns].mean(0)
        self.rotation = np.zeros((0, 0))
        if columns.any():
            centred = features[:, columns] - self.centre
            variances, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
            self.rotation = vectors / np.sqrt(np.maximum(variances, 1e-4)) @ vectors.T
        self.values = self.of(features)

    def of(self, features: np.ndarray) -> np.ndarray:
        """These features of other rows, of shape (n, 1 + features)."""
        centred = features[:, self.columns] - self.centre
        return np.concatenate([np.ones((len(features), 1)), centred @ self.rotation], 1)

    def back(self, weights: np.ndarray) -> np.ndarray:
        """Weights of all features and the intercept."""
        own = self.rotation @ weights[1:]
        found = np.zeros(len(self.columns) + 1)
        found[:-1][self.columns] = own
        found[-1] = weights[0] - self.centre @ own
        return found


def _fit(
    t: np.ndarray,
    for_loc: np.ndarray,
    for_scale: np.ndarray,
    low: float,
    high: float,
    ridge: float,
    first: np.ndarray | None = None,
) -> np.ndarray:
    """Weights of location and then of scale."""
    n, split = for_loc.shape
    penalty = ridge / n

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, by_loc, by_scale = _losses(t, for_loc, for_scale, low, high, weights)
        gradient = np.concatenate([for_loc.T @ by_loc, for_scale.T @ by_scale]) / n
        size = np.concatenate([weights[:split], weights[split:] * 2**0.5])
        size[[0, split]] = 0.0
        gradient[:split] += penalty * size[:split]
        gradient[split:] += penalty * size[split:] * 2**0.5
        return value.mean() + 0.5 * penalty * (size @ size), gradient

    if first is None:
        first = np.zeros(split + for_scale.shape[1])
        first[:split] = for_loc.T @ t / n
        first[split] = np.log(max((t - for_loc @ first[:split]).std(), 1e-3))
    options = {"maxiter": 150, "ftol": 1e-8}
    return optimize.minimize(objective, first, jac=True, method="L-BFGS-B", options=options).x


def _losses(
    t: np.ndarray,
    for_loc: np.ndarray,
    for_scale: np.ndarray,
    low: float,
    high: float,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Negative log densities up to a constant, and their slopes by location and log scale."""
    split = for_loc.shape[1]
    raw = for_scale @ weights[split:]
    log_scale = raw.clip(-5, 3)
    inverse = np.exp(-log_scale)
    loc = for_loc @ weights[:split]
    e = (t - loc) * inverse
    value = 0.5 * e * e + log_scale
    by_loc, by_scale = -e * inverse, 1 - e * e
    if low > -FAR / 2 or high < FAR / 2:
        a, b = (low - loc) * inverse, (high - loc) * inverse
        right = a > 0
        lower, upper = np.where(right, -b, a), np.where(right, -a, b)
        mass = np.maximum(special.ndtr(upper) - special.ndtr(lower), 1e-30)
        value += np.log(mass)
        at_a, at_b = (np.exp(-0.5 * np.minimum(x * x, 1e3)) / _SQRT_2PI / mass for x in (a, b))
        by_loc += (at_a - at_b) * inverse
        by_scale += at_a * a.clip(-40, 40) - at_b * b.clip(-40, 40)
    return value, by_loc, np.where((raw > -5) & (raw < 3), by_scale, 0.0)
