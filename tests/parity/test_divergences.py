# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Every divergence computes the same in torch, JAX and NumPy, and is the f-divergence that it claims.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from every import BOUNDED, DIVERGENCES, TRAINED
from twins import BACKENDS, Pyro, assert_refused_alike, assert_twins, compare_gradients

import numpyro_spread
import pyro_spread
from numpyro_spread.divergences import non_saturating_loss as numpyro_non_saturating_loss
from pyro_spread.divergences import non_saturating_loss as pyro_non_saturating_loss

RNG = np.random.default_rng(0)
# The continued exponential begins at 80 and, in the chi-squared loss, at 40.
LOG_RATIOS = np.array(
    [0.0, 1e-9, 0.3, 1.0, 3.0, 20.5, 40.0, 41.0, 79.0, 80.0, 81.0, 160.0, 200.0, np.inf]
)
LOG_RATIOS = np.concatenate([-LOG_RATIOS[:0:-1], LOG_RATIOS])


def both(name):
    make = DIVERGENCES[name][0]
    return make(pyro_spread), make(numpyro_spread)


def assert_in_numpy(function, x):
    """NumPy in, NumPy out, and the values that tensors give."""
    value = function(x)
    assert isinstance(value, np.ndarray | np.generic)
    assert_twins(value, function(torch.tensor(x)))


@pytest.mark.parametrize(
    ("method", "name"),
    [(method, name) for method in ("data_term", "model_term") for name in DIVERGENCES]
    + [("generator_loss", name) for name in TRAINED],
)
def test_terms_and_their_gradients(method, name):
    make = DIVERGENCES[name][0]
    compare_gradients(lambda b, x: getattr(make(b.package), method)(x), LOG_RATIOS)
    assert_in_numpy(getattr(make(pyro_spread), method), LOG_RATIOS)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("weighted", [False, True])
def test_estimate_and_its_gradients(name, weighted):
    make = DIVERGENCES[name][0]
    p, q = RNG.normal(1.0, 2.0, size=(4, 3)), RNG.normal(-1.0, 2.0, size=5)
    weights = (RNG.random((4, 3)), np.array([1.0, 0.0, 2.0, 0.5, 3.0])) if weighted else ()

    def estimate(b, p, q):
        return make(b.package).estimate(p, q, *map(b.array, weights))

    value, _ = compare_gradients(estimate, p, q)
    in_numpy = make(pyro_spread).estimate(p, q, *weights)
    assert isinstance(in_numpy, np.ndarray | np.generic)
    assert_twins(in_numpy, value)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_attributes(name):
    ours, theirs = both(name)
    assert (ours.pi, ours.upper, repr(ours)) == (theirs.pi, theirs.upper, repr(theirs))
    assert eval(repr(ours), vars(pyro_spread)) == ours
    assert np.isfinite(ours.upper) == (name in BOUNDED)


def test_one_class_for_both_backends():
    assert pyro_spread.JSPi is numpyro_spread.JSPi

    class LeCam(pyro_spread.Divergence):
        def data_term(self, log_ratio):
            return array_namespace(log_ratio).tanh(log_ratio / 2)

        def model_term(self, log_ratio):
            return -self.data_term(log_ratio)

        def generator_loss(self, log_ratio):
            return -((1 + self.data_term(log_ratio)) ** 2)

    p, q = RNG.normal(size=7), RNG.normal(size=5)
    expected = np.tanh(p / 2).mean() - np.tanh(q / 2).mean()
    for array in (np.array, torch.tensor, jnp.array):
        np.testing.assert_allclose(LeCam().estimate(array(p), array(q)), expected, rtol=1e-10)


def test_non_saturating_loss():
    compare_gradients(
        lambda b, x: b.pick(pyro_non_saturating_loss, numpyro_non_saturating_loss)(x), LOG_RATIOS
    )
    assert_in_numpy(pyro_non_saturating_loss, LOG_RATIOS)


# --- that they are what they claim to be, in one backend: the other has just been compared -------


@pytest.mark.parametrize("name", [name for name in TRAINED if DIVERGENCES[name][3]])
def test_conjugate_is_the_supremum(name):
    """The table itself: f* at slopes of f against the largest u t - f(u) of a fine grid."""
    _, f, f_prime, conjugate = DIVERGENCES[name]
    grid = np.exp(np.linspace(-8, 8, 200_001))
    for u in (0.1, 0.7, 1.0, 2.5, 9.0):
        t = f_prime(u)
        np.testing.assert_allclose(conjugate(t), np.max(grid * t - f(grid)), atol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_generator_loss_is_minus_the_conjugate_at_the_slope(name):
    make, f, f_prime, conjugate = DIVERGENCES[name]
    u = np.exp(np.linspace(-4, 4, 41))
    loss = make(pyro_spread).generator_loss(torch.tensor(np.log(u))).numpy()
    expected = -(u * f_prime(u) - f(u)) if conjugate is None else -conjugate(f_prime(u))
    difference = loss - expected
    np.testing.assert_allclose(difference, difference[0], atol=1e-9 * np.abs(expected).max())


GRID = np.linspace(-16.0, 18.0, 20_001)
STEP = GRID[1] - GRID[0]


def normal(loc, scale):
    return np.exp(-0.5 * ((GRID - loc) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))


def log_ratio(loc, scale, x=GRID):
    """log N(x; 0, 1) - log N(x; loc, scale²) and its slope in x."""
    z = (x - loc) / scale
    return 0.5 * z**2 - 0.5 * x**2 + np.log(scale), z / scale - x


def divergence_of_normals(divergence, loc, scale):
    ell = torch.tensor(log_ratio(loc, scale)[0])
    weights = (torch.tensor(normal(0.0, 1.0)), torch.tensor(normal(loc, scale)))
    return float(divergence.estimate(ell, ell, *weights))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_expectations_are_the_f_divergence(name):
    make, f, *_ = DIVERGENCES[name]
    ell, q = log_ratio(0.5, 1.2)[0], normal(0.5, 1.2)
    inside = np.abs(ell) < 40  # f would overflow; the density there is below exp(-40)
    expected = np.sum(q[inside] * f(np.exp(ell[inside]))) * STEP
    np.testing.assert_allclose(
        divergence_of_normals(make(pyro_spread), 0.5, 1.2),
        expected,
        rtol=1e-4 if "total" in name else 1e-9,
    )


# (loc, scale) of Q -> KL[P||Q], KL[Q||P], JS .1, JS .5, JS .9, for P = N(0, 1); the KLs are
# (log s² + (1 + m²)/s² - 1)/2 and its reverse.
PUBLISHED = {
    (1.0, 2.0): (0.4431471806, 1.3068528194, 0.0406182074, 0.1281749731, 0.0652703233),
    (0.0, 1.5): (0.12768733, 0.21953489, 0.0117446758, 0.0366814149, 0.0166711939),
    (2.0, 1.0): (2.0, 2.0, 0.1420204064, 0.3368308203, 0.1420204064),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_known_numbers(model):
    divergences = [both(name)[0] for name in ("kl", "reverse kl", "js .1", "js .5", "js .9")]
    values = [divergence_of_normals(divergence, *model) for divergence in divergences]
    np.testing.assert_allclose(values, PUBLISHED[model], atol=6e-9)


def test_limits_of_the_normalised_divergence():
    low, high = (pyro_spread.JSPi(pi, normalised=True) for pi in (1e-6, 1 - 1e-6))
    kl, reverse = (
        divergence_of_normals(d, 0.5, 1.2) for d in (both("kl")[0], both("reverse kl")[0])
    )
    np.testing.assert_allclose(divergence_of_normals(low, 0.5, 1.2), kl, rtol=1e-5)
    np.testing.assert_allclose(divergence_of_normals(high, 0.5, 1.2), reverse, rtol=1e-5)


def pathwise_gradient(loss, loc, scale):
    """d/d(loc, scale) of E_Q[loss(log-ratio)] with x = loc + scale eps and the log-ratio frozen."""
    ell, slope = log_ratio(loc, scale)
    per_sample = Pyro.value_and_gradients(loss, ell)[1][0] * slope * normal(loc, scale) * STEP
    return np.sum(per_sample), np.sum(per_sample * (GRID - loc) / scale)


def gradient_of_divergence(divergence, loc, scale, h=1e-4):
    def centred(*step):
        up = divergence_of_normals(divergence, loc + step[0], scale + step[1])
        down = divergence_of_normals(divergence, loc - step[0], scale - step[1])
        return (up - down) / (2 * h)

    return np.array([centred(h, 0.0), centred(0.0, h)])


@pytest.mark.parametrize("name", TRAINED)
def test_generator_gradient_is_that_of_the_divergence(name):
    divergence = both(name)[0]
    np.testing.assert_allclose(
        pathwise_gradient(divergence.generator_loss, 0.5, 1.2),
        gradient_of_divergence(divergence, 0.5, 1.2),
        rtol=1e-6,
    )


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
def test_gradient_of_the_non_saturating_loss(pi):
    offset = np.log(pi / (1 - pi))
    ours = pathwise_gradient(lambda ell: pyro_non_saturating_loss(ell + offset), 0.5, 1.2)
    reverse, js = (
        gradient_of_divergence(d, 0.5, 1.2) for d in (pyro_spread.ReverseKL(), pyro_spread.JSPi(pi))
    )
    np.testing.assert_allclose(ours, reverse - js / (1 - pi), rtol=1e-6)


def test_the_same_mistake_gives_the_same_message():
    mistakes = [
        lambda b: b.package.JSPi(0.0),
        lambda b: b.package.JSPi(float("nan")),
        lambda b: b.package.JSPi("half"),
        lambda b: b.package.TotalVariation().generator_loss(b.np.zeros((3,))),
        lambda b: b.package.KL().estimate(b.np.zeros(3), b.np.zeros(3), b.np.zeros(2)),
    ]
    for mistake in mistakes:
        assert_refused_alike(mistake)


@pytest.mark.parametrize("name", TRAINED)
def test_reversed_exchanges_the_sides(name):
    make, _, f_prime, _ = DIVERGENCES[name]
    ell_p, ell_q = RNG.normal(size=7), RNG.normal(size=5)
    for b in BACKENDS:
        divergence = make(b.package)
        there = divergence.estimate(b.array(ell_p), b.array(ell_q))
        back = divergence.reversed.estimate(b.array(-ell_q), b.array(-ell_p))
        np.testing.assert_allclose(np.asarray(back), np.asarray(there), rtol=1e-6)
        # What pulls on the samples of P is f'(P/Q).
        pull = np.asarray(divergence.reversed.generator_loss(b.array(-ell_p)))
        expected = f_prime(np.exp(ell_p))
        np.testing.assert_allclose(pull - pull[0], expected - expected[0], rtol=1e-5, atol=1e-6)


def test_a_divergence_that_does_not_say_its_reverse():
    assert_refused_alike(
        lambda b: b.package.TotalVariation().reversed,
        r"TotalVariation does not say .* `reversed`",
        NotImplementedError,
    )
