# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Importance weights and annealed importance sampling where log p(x) is known."""

import warnings

import numpy as np
import pytest
from scipy import stats

import spread_analysis as sa
from spread_analysis.annealing import Packing, annealing_schedule
from spread_core.evaluation import data_first

SCALE = 0.5


def conjugate(x):
    """z ~ N(0, 1), x | z ~ N(z, SCALE²), one latent per datum."""

    def target(z):
        z = z[..., 0]
        prior, likelihood = stats.norm.logpdf(z), stats.norm.logpdf(x, z, SCALE)
        return sa.Target(prior, likelihood, -z[..., None], ((x - z) / SCALE**2)[..., None])

    return target


def prior_draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_log_mean_exp_by_hand():
    evidence = sa.log_mean_exp([[0.0, -800.0], [0.0, -800.0], [np.log(4.0), -np.inf]])
    np.testing.assert_allclose(evidence.values, [np.log(2.0), np.log(2 / 3) - 800])
    np.testing.assert_allclose(evidence.effective_sample_size, [36 / 18, 2.0])
    # weights 1, 1, 4: their standard deviation is sqrt(3), the error of their mean of 2 is 1
    np.testing.assert_allclose(evidence.standard_error[0], np.sqrt(3.0) / np.sqrt(3) / 2)
    assert evidence.num_samples == 3
    assert np.isnan(sa.log_mean_exp([1.0]).standard_error)
    nothing = sa.log_mean_exp([[-np.inf], [-np.inf]])
    assert nothing.values == -np.inf
    assert np.isnan(nothing.effective_sample_size).all()


def test_the_standard_error_is_that_of_repetitions():
    draws = 0.5 * prior_draws(100, 4000)
    evidence = sa.log_mean_exp(draws)
    np.testing.assert_allclose(evidence.standard_error.mean(), evidence.values.std(), rtol=0.05)


def test_the_report_is_readable():
    evidence = sa.log_mean_exp(np.zeros((5, 2, 3)), np.full((2, 3), 0.7))
    lines = str(evidence).splitlines()
    assert lines[0].split()[:3] == ["mean", "log", "p(x)"]
    assert lines[1].split() == ["data", "6"]
    assert lines[2].split() == ["effective", "samples", "5.0", "of", "5,", "least", "5.0"]
    assert lines[3].split() == ["acceptance", "0.70"]
    assert "acceptance" not in str(sa.log_mean_exp([0.0, 1.0]))


def test_the_schedule_is_the_sigmoid_of_wu():
    schedule = annealing_schedule(1000)
    assert schedule.shape == (1001,)
    assert (schedule[0], schedule[-1]) == (0.0, 1.0)
    steps = np.diff(schedule)
    assert (steps > 0).all()
    assert steps[0] == pytest.approx(steps[-1])
    assert steps[500] > 10 * steps[0]


def test_annealing_finds_the_evidence():
    x = np.array([0.0, 1.0, -3.0])
    exact = sa.reference.conjugate_evidence(SCALE, x)
    evidence = sa.annealed_importance(
        conjugate(x),
        prior_draws(64, 3, 1),
        prior_draws(16, 3, 1, seed=1),
        num_temperatures=200,
        num_leapfrog=5,
    )
    np.testing.assert_allclose(evidence.values, exact, atol=0.05)
    assert (np.abs(evidence.values - exact) < 4 * evidence.standard_error).all()
    assert (evidence.effective_sample_size > 50).all()
    np.testing.assert_allclose(evidence.acceptance, 0.65, atol=0.15)


def test_annealing_beats_importance_sampling_from_the_prior():
    x = np.array([5.0])
    target = conjugate(x)
    start, pilot = prior_draws(64, 1, 1), prior_draws(4, 1, 1, seed=1)
    plain = sa.log_mean_exp(target(start).log_likelihood)
    annealed = sa.annealed_importance(target, start, pilot, num_temperatures=300, num_leapfrog=5)
    exact = float(sa.reference.conjugate_evidence(SCALE, 5.0))
    assert plain.values[0] < exact - 1
    assert annealed.values[0] == pytest.approx(exact, abs=0.3)
    one = sa.annealed_importance(target, start, pilot, num_temperatures=1)
    np.testing.assert_allclose(one.values, plain.values)
    assert np.isnan(one.acceptance).all()


def test_the_mean_weight_is_unbiased():
    # E w = p(x) for every number of temperatures. With steps that follow the chain's own acceptance
    # the mean over data would be .05 nats too high.
    rng = np.random.default_rng(0)
    factor, x = rng.normal(size=(6, 2)), rng.normal(size=(5, 6))

    def target(z):
        rest = x - z @ factor.T
        prior = stats.norm.logpdf(z).sum(-1)
        return sa.Target(prior, stats.norm.logpdf(rest, 0, 0.5).sum(-1), -z, rest @ factor / 0.25)

    evidence = sa.annealed_importance(
        target,
        prior_draws(1000, 5, 2),
        prior_draws(8, 5, 2, seed=1),
        num_temperatures=200,
        num_leapfrog=5,
    )
    difference = evidence.values - sa.reference.linear_marginal_log_prob(x, factor, 0.5)
    error = np.sqrt(np.square(evidence.standard_error).sum()) / 5
    assert error < 0.008
    assert abs(difference.mean()) < 4 * error


def test_step_sizes_follow_acceptance():
    start = prior_draws(8, 2, 1)
    pilot = prior_draws(4, 2, 1, seed=1)
    for step_size in (1e-3, 50.0):
        evidence = sa.annealed_importance(
            conjugate(np.array([0.5, 1.0])),
            start,
            pilot,
            num_temperatures=400,
            num_leapfrog=3,
            step_size=step_size,
        )
        assert (np.abs(evidence.acceptance - 0.65) < 0.2).all()


def test_starts_outside_of_the_support_have_weight_zero():
    # p(x|z) = 1 for z > 0, else nothing: p(x) = 1/2.
    def target(z):
        inside = z[..., 0] > 0
        zero = np.zeros_like(z)
        return sa.Target(
            stats.norm.logpdf(z[..., 0]),
            np.where(inside, 0.0, np.nan),
            -z,
            np.where(inside[..., None], zero, np.nan),
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evidence = sa.annealed_importance(
            target, prior_draws(4000, 1, 1), prior_draws(4, 1, 1, seed=1), num_temperatures=5
        )
    assert evidence.values[0] == pytest.approx(np.log(0.5), abs=0.05)


def test_packing_and_unpacking_are_inverse():
    values = {"a": prior_draws(4, 3, 5, 2), "b": prior_draws(4, 3, 1, 5)}
    packing = Packing({"a": (3, 5, 2), "b": (3, 1, 5)}, {"a": [-3, -2], "b": [-3, -1]})
    vectors = packing.pack(values)
    assert packing.data_shape == (3, 5)
    assert vectors.shape == (4, 15, 3)
    np.testing.assert_array_equal(vectors[:, 7, :2], values["a"][:, 1, 2])
    np.testing.assert_array_equal(vectors[:, 7, 2], values["b"][:, 1, 0, 2])
    for name, value in packing.unpack(vectors).items():
        np.testing.assert_array_equal(value, values[name])
    alone = Packing({"a": (3, 5, 2)}, {"a": []})
    assert alone.pack({"a": values["a"]}).shape == (4, 1, 30)
    np.testing.assert_array_equal(data_first(values["a"], [-2])[1], values["a"][:, :, 1])
    assert data_first(values["a"], []).shape == (1, 4, 3, 5, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sa.log_mean_exp(1.0), r"`log_weights` must have shape \(num_samples, \.\.\.\)"),
        (lambda: sa.log_mean_exp([np.nan]), "must not hold NaN"),
        (lambda: annealing_schedule(0), "`num_temperatures` must be an integer of at least 1"),
        (
            lambda: sa.annealed_importance(
                conjugate(np.zeros(1)), prior_draws(2, 1, 1), prior_draws(2, 1, 1), num_leapfrog=0
            ),
            "`num_leapfrog` must be an integer",
        ),
        (
            lambda: sa.annealed_importance(
                conjugate(np.zeros(1)), prior_draws(2, 1, 1), prior_draws(2, 1, 1), step_size=0.0
            ),
            "`step_size` must be positive",
        ),
        (
            lambda: sa.annealed_importance(
                conjugate(np.array([0.0, np.inf])), prior_draws(2, 2, 1), prior_draws(2, 2, 1)
            ),
            r"-inf or NaN at every prior draw for 1 of 2 data.*spread\(model",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
