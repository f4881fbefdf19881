# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A classifier that looks for the truth among draws, given the data: tests on held-out rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from spread_analysis.coverage import (
    CoverageReport,
    as_rows,
    predict,
    split_rows,
    standardisation,
)
from spread_analysis.ranks import Ranks, as_truth_and_draws, simulation_ranks
from spread_core.messages import calibration
from spread_core.validation import FloatArray, as_float

# Draws beside the truth that the classifier learns from; all are ranked.
_LEARNT_FROM = 9
# Strength of the ridge penalty: the most that an exact posterior leaves to learn is noise.
_RIDGE = 10.0
# Where the steps lie that follow the shape of each latent, in standard deviations of a row.
_STEPS = (-1.5, 0.0, 1.5)
# More latents are multiplied with each other along this number of directions only.
_MOST_PRODUCTS = 10
_PRIOR_DRAWS = 19
_TRAIN_SHARE, _LEAST_TRAIN, _MOST_TRAIN = 0.5, 20, 5000


def joint_c2st(
    truths: ArrayLike,
    draws: ArrayLike,
    data: ArrayLike,
    *,
    log_prob_truth: ArrayLike | None = None,
    log_prob_draws: ArrayLike | None = None,
    seed: int = 0,
) -> CoverageReport:
    """
    Classifier test of pairs of latents and data: is the truth to be told from draws, given x?

    It sees what ranks of single latents do not: wrong dependence between latents, errors that
    differ from x to x, a posterior that ignores x. A classifier learns on half of the rows which of
    truth and draws is the truth; on the other half the truth is ranked among the draws by the
    classifier's score. If the draws come from the posterior, the ranks are uniform, whatever the
    classifier has learnt: the test is exact (Yao and Domke 2023, arXiv:2305.14593; ranks of a
    quantity that depends on the data: Modrak et al. 2023, arXiv:2211.02383).

    The classifier is a logistic regression on each latent in units of its row, its steps and
    squares, products of latents, and products with a regression on the data; a convex problem, so
    that the result does not depend on a start.

    :param truths: of shape (num_simulations, dim), all latents side by side.
    :param draws: of shape (num_draws, num_simulations, dim).
    :param data: of shape (num_simulations, any).
    :param log_prob_truth: log densities of the truths under their posteriors, of shape
        (num_simulations,), which the classifier may use as well.
    :param log_prob_draws: those of the draws, of shape (num_draws, num_simulations).
    :param seed: of the split, ties and places within ranks.
    :return: ranks of the held-out rows; ``accuracy`` is the share of pairs of a truth and a draw
        that the classifier tells apart.
    :raises ValueError: if shapes do not fit, an entry is not finite, or there are too few rows.

        >>> rng = np.random.default_rng(0)
        >>> truths, x = rng.standard_normal((2, 500, 1))
        >>> report = joint_c2st(truths, rng.standard_normal((49, 500, 1)), x)
        >>> report.p_value() > 0.01, 0.4 < report.accuracy < 0.6
        (True, True)
    """
    truth, drawn = as_truth_and_draws(truths, draws, "truths", "draws")
    if truth.ndim != 2 or truth.shape[1] == 0:
        raise ValueError(calibration.rows_of("truths", "dim", truth.shape))
    # The candidates of a row, the truth first. They are exchangeable if the posterior is exact, and
    # whatever is computed from all of them alike leaves them so.
    candidates = np.concatenate([truth[None], drawn])
    for name, values in (("truths", truth), ("draws", drawn)):
        if not np.isfinite(values).all():
            raise ValueError(calibration.not_finite(name, int((~np.isfinite(values)).sum())))
    rows = as_rows(data, "data", len(truth))
    if len(drawn) < _LEARNT_FROM:
        raise ValueError(calibration.few_draws(len(drawn), _LEARNT_FROM))
    densities = _densities(log_prob_truth, log_prob_draws, candidates.shape[:2])
    rng = np.random.default_rng([seed, 3])
    share = min(_TRAIN_SHARE, _MOST_TRAIN / len(truth))
    train, test = split_rows(rng, len(truth), share, _LEAST_TRAIN)

    middle, width = candidates.mean(0), candidates.std(0)
    width = np.where(width > 0, width, 1.0)
    predicted = predict(rows[train], truth[train], rows)
    centre, scale = standardisation(predicted[train])
    predicted = np.clip((predicted - centre) / scale, -5.0, 5.0)

    def latents(chosen: Ranks, number: int) -> FloatArray:
        return (candidates[:number, chosen] - middle[chosen]) / width[chosen]

    directions = _directions(latents(train, 1 + _LEARNT_FROM)[1:])

    def features(chosen: Ranks, number: int) -> FloatArray:
        own = latents(chosen, number)
        parts = [_features(own, predicted[chosen], directions)]
        if densities is not None:
            parts.append(densities[:number, chosen, None])
        joined = np.concatenate(parts, -1)
        return joined - joined.mean(0)

    weights = _fit(features(train, 1 + _LEARNT_FROM))
    # Row by row, since the features of all candidates of all rows may not fit into memory.
    blocks = np.array_split(test, max(1, len(candidates) * len(test) // 20_000))
    scores = np.concatenate([features(block, len(candidates)) @ weights for block in blocks], 1)
    # Equal candidates, as discrete latents have them, are ties: rounding errors must not rank them.
    scores = np.round(scores / max(np.abs(scores).max(), 1e-300), 10)
    ranks = simulation_ranks(-scores[0], -scores[1:], seed)
    return CoverageReport(ranks, len(drawn), "regions of a classifier", seed)


def c2st_prior(truths: ArrayLike, draws: ArrayLike, data: ArrayLike, seed: int = 0) -> float:
    """
    How well draws of the posterior are told from draws of the prior, given the data, in [0, 1].

    Near one half nothing was learnt, or the data have nothing to say: a posterior that is always
    the prior passes simulation-based calibration and every test of coverage by itself. It is a
    classifier two-sample test as in :func:`joint_c2st`. The truths of one half of the rows are the
    sample of the prior; draws are those of the other half.

    :param truths: of shape (num_simulations, dim), all latents side by side.
    :param draws: of shape (num_draws, num_simulations, dim).
    :param data: of shape (num_simulations, any).
    :param seed: of the halves.
    :return: the share of held-out pairs that are told apart.
    :raises ValueError: as :func:`joint_c2st`.

        >>> rng = np.random.default_rng(0)
        >>> truths = rng.standard_normal((800, 1))
        >>> x = truths + 0.1 * rng.standard_normal((800, 1))
        >>> learnt = c2st_prior(truths, x + 0.1 * rng.standard_normal((9, 800, 1)), x)
        >>> ignores = c2st_prior(truths, rng.standard_normal((9, 800, 1)), x)
        >>> learnt > 0.8, 0.4 < ignores < 0.6
        (True, True)
    """
    truth, drawn = as_truth_and_draws(truths, draws, "truths", "draws")
    rng = np.random.default_rng([seed, 4])
    rows = as_rows(data, "data", len(truth))
    first, second = split_rows(rng, len(truth), 0.5, 2 * _LEAST_TRAIN)
    # In the place of the truth stands a draw, in that of the draws the prior, which ignores x.
    prior = truth[rng.choice(first, (_PRIOR_DRAWS, len(second)))]
    return joint_c2st(drawn[0, second], prior, rows[second], seed=seed).accuracy


def _densities(
    truth: ArrayLike | None, draws: ArrayLike | None, shape: tuple[int, ...]
) -> FloatArray | None:
    """How high the density of each candidate is among those of its row, in (0, 1]."""
    if truth is None and draws is None:
        return None
    if truth is None or draws is None:
        raise ValueError(calibration.both_densities())
    both = as_float(truth, "log_prob_truth"), as_float(draws, "log_prob_draws")
    if both[0].shape != shape[1:]:
        raise ValueError(calibration.one_per_simulation("log_prob_truth", both[0].shape))
    if both[1].shape != (shape[0] - 1, shape[1]):
        raise ValueError(calibration.draws_shape("log_prob_draws", shape[1:], both[1].shape))
    for name, values in zip(("log_prob_truth", "log_prob_draws"), both, strict=True):
        if np.isnan(values).any():
            raise ValueError(calibration.not_a_number(name, int(np.isnan(values).sum())))
    # As ranks within the row: of numbers, one candidate outside of the support would hide the rest.
    ranks: FloatArray = stats.rankdata(np.concatenate([both[0][None], both[1]]), axis=0)
    return ranks / len(ranks)


def _directions(draws: FloatArray) -> FloatArray:
    """Along what latents are multiplied: themselves, or their principal directions."""
    dim = draws.shape[-1]
    if dim <= _MOST_PRODUCTS:
        return np.eye(dim)
    flat = draws.reshape(-1, dim)
    return np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:_MOST_PRODUCTS].T


def _features(latents: FloatArray, predicted: FloatArray, directions: FloatArray) -> FloatArray:
    """Of latents of shape (num_candidates, num_rows, dim): what the score is linear in."""
    along, given = latents @ directions, predicted @ directions
    i, j = np.triu_indices(directions.shape[1])
    parts = [latents, *(np.tanh(latents - step) for step in _STEPS), along[..., i] * along[..., j]]
    if directions.shape[1] < latents.shape[-1]:
        parts += [np.square(latents), latents * predicted]
    crossed = along[..., :, None] * given[:, None, :]
    parts.append(crossed.reshape(*along.shape[:-1], -1))
    return np.concatenate(parts, -1)


def _fit(features: FloatArray) -> FloatArray:
    """
    Weights of a conditional logistic regression: which candidate of a row is the truth.

    :param features: of shape (num_candidates, num_rows, num_features), the truth first.
    """
    scale = np.sqrt(np.square(features).mean((0, 1)))
    scale = np.where(scale > 0, scale, 1.0)
    z = features / scale

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        scores = z @ weights
        total = special.logsumexp(scores, axis=0)
        gradient = np.einsum("cn,cnf->f", np.exp(scores - total), z) - z[0].sum(0)
        value = (total - scores[0]).sum() + 0.5 * _RIDGE * weights @ weights
        return float(value), gradient + _RIDGE * weights

    start = np.zeros(z.shape[-1])
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    weights: FloatArray = found.x / scale
    return weights
