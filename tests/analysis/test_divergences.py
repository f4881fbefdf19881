# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""KL and JS_pi of Gaussians, what generator losses differentiate, and the optima they lead to."""

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from spread_analysis import reference as ref

PRIORS = (0.1, 0.5, 0.9)
# P = N(0, 1); Q, KL[P||Q], KL[Q||P], JS at .1, .5, .9
TABLE = [
    ((1.0, 2.0), 0.4431471806, 1.3068528194, (0.0406182074, 0.1281749731, 0.0652703233)),
    ((0.0, 1.5), 0.12768733, 0.21953489, (0.0117446758, 0.0366814149, 0.0166711939)),
    ((2.0, 1.0), 2.0, 2.0, (0.1420204064, 0.3368308203, 0.1420204064)),
]


@pytest.mark.parametrize(("q", "kl", "reverse_kl", "js"), TABLE)
def test_divergences_of_the_table(q, kl, reverse_kl, js):
    np.testing.assert_allclose(ref.kl_normals(0.0, 1.0, *q), kl, atol=1e-8)
    np.testing.assert_allclose(ref.kl_normals(*q, 0.0, 1.0), reverse_kl, atol=1e-8)
    got = [ref.js_divergence_normals(0.0, 1.0, *q, pi) for pi in PRIORS]
    np.testing.assert_allclose(got, js, atol=1e-10)


def test_js_agrees_with_the_quadrature_of_two_deltas_under_noise():
    for distance, pi in itertools.product((0.5, 3.0), PRIORS):
        expected = ref.two_deltas_js(distance, 0.7, "gaussian", pi=pi)
        got = ref.js_divergence_normals(0.0, 0.7, distance, 0.7, pi)
        np.testing.assert_allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize("pi", PRIORS)
def test_js_swaps_its_sides_with_the_prior(pi):
    forward = ref.js_divergence_normals(0.3, 0.01, -1.0, 2.0, pi)
    np.testing.assert_allclose(
        ref.js_divergence_normals(-1.0, 2.0, 0.3, 0.01, 1 - pi), forward, rtol=1e-12
    )
    shifted = ref.js_divergence_normals(5.3, 0.01, 4.0, 2.0, pi)
    np.testing.assert_allclose(shifted, forward, rtol=1e-11)


@pytest.mark.parametrize("pi", PRIORS)
def test_js_lies_between_zero_and_the_class_entropy(pi):
    assert abs(ref.js_divergence_normals(1.0, 2.0, 1.0, 2.0, pi)) < 1e-15
    far = ref.js_divergence_normals(0.0, 1.0, 1e6, 1.0, pi)
    np.testing.assert_allclose(far, ref.class_entropy(pi), rtol=1e-13)


def test_class_entropy():
    np.testing.assert_allclose(ref.class_entropy(0.5), np.log(2), rtol=1e-15)
    np.testing.assert_allclose(ref.class_entropy(0.1), 0.3250829733914482, rtol=1e-14)
    assert ref.class_entropy(0.0) == ref.class_entropy(1.0) == 0.0


def test_kl_of_near_equals_is_accurate():
    np.testing.assert_allclose(ref.kl_normals(0.0, 1.0 + 1e-6, 0.0, 1.0), 1e-12, rtol=1e-5)
    assert ref.kl_normals(2.0, 3.0, 2.0, 3.0) == 0.0


@pytest.mark.parametrize("name", ["js", "kl", "reverse_kl"])
@pytest.mark.parametrize("pi", PRIORS)
def test_divergence_gradients_are_those_of_the_values(name, pi):
    values = {
        "js": lambda q: ref.js_divergence_normals(0.5, 0.8, *q, pi),
        "kl": lambda q: ref.kl_normals(0.5, 0.8, *q),
        "reverse_kl": lambda q: ref.kl_normals(*q, 0.5, 0.8),
    }
    expected = optimize.approx_fprime([-0.7, 1.3], values[name], 1e-7)
    got = ref.divergence_gradient_normals(0.5, 0.8, -0.7, 1.3, pi, name)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    assert np.abs(got).min() > 1e-3  # nothing passes by being zero


@pytest.mark.parametrize("pi", PRIORS)
@pytest.mark.parametrize("q", [row[0] for row in TABLE] + [(-0.7, 0.3)])
def test_what_each_generator_loss_differentiates(pi, q):
    def loss(name):
        return np.asarray(ref.generator_gradient_normals(0.0, 1.0, *q, pi, name))

    def divergence(name):
        return np.asarray(ref.divergence_gradient_normals(0.0, 1.0, *q, pi, name))

    def check(got, expected):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-13)

    check(loss("saturating"), divergence("js"))
    check(loss("non_saturating"), divergence("reverse_kl") - divergence("js") / (1 - pi))
    check(loss("reverse_kl"), divergence("reverse_kl"))
    check(loss("kl"), divergence("kl"))


def test_the_generator_gradient_is_the_mean_over_samples():
    # The losses written out, differentiated along x = loc + scale eps by finite differences.
    rng, pi, q = np.random.default_rng(0), 0.3, (1.0, 1.2)
    eps = rng.standard_normal(200_000)

    def losses(loc, scale):
        x = loc + scale * eps
        log_ratio = stats.norm.logpdf(x) - stats.norm.logpdf(x, *q)  # frozen at q
        logit = log_ratio + np.log(pi / (1 - pi))
        return {
            "saturating": -(1 - pi) * np.logaddexp(0, logit),
            "non_saturating": np.logaddexp(0, -logit),
            "reverse_kl": -log_ratio,
            "kl": -np.exp(log_ratio),
        }

    for index, step in enumerate(((1e-5, 0.0), (0.0, 1e-5))):
        above = losses(q[0] + step[0], q[1] + step[1])
        below = losses(q[0] - step[0], q[1] - step[1])
        for name, values in above.items():
            slopes = (values - below[name]) / 2e-5
            exact = ref.generator_gradient_normals(0.0, 1.0, *q, pi, name)[index]
            error = slopes.std() / np.sqrt(len(slopes))
            assert abs(slopes.mean() - exact) < 4 * error + 1e-8, (name, index)
            assert error < 0.02


@pytest.mark.parametrize(
    ("pi", "variance"),
    [(0.0, 1.0), (0.1, 0.78092), (0.5, 0.43589), (0.9, 0.24330), (1.0, 0.19)],
)
def test_isotropic_optimum_interpolates(pi, variance):
    got = ref.isotropic_js_optimum([0.1, 1.9], pi)
    np.testing.assert_allclose(got, variance, atol=1e-5)
    assert ref.isotropic_js_optimum([1.9, 0.1], pi) == pytest.approx(got, rel=1e-9)


@pytest.mark.parametrize("eigenvalues", [(0.1, 1.9), (1e-3, 1.0), (2.0, 2.1)])
@pytest.mark.parametrize("pi", [1e-9, 0.03, 0.3, 0.5])
def test_isotropic_optima_of_opposite_priors_multiply_to_the_determinant(eigenvalues, pi):
    product = ref.isotropic_js_optimum(eigenvalues, pi)
    product *= ref.isotropic_js_optimum(eigenvalues, 1 - pi)
    np.testing.assert_allclose(product, np.prod(eigenvalues), rtol=1e-8)


def test_isotropic_optimum_scales_and_has_its_limits():
    one, ten = (ref.isotropic_js_optimum(np.array([0.1, 1.9]) * c, 0.2) for c in (1, 10))
    np.testing.assert_allclose(ten, 10 * one, rtol=1e-9)
    assert ref.isotropic_js_optimum([3.0, 3.0], 0.4) == 3.0
    np.testing.assert_allclose(ref.isotropic_js_optimum([0.1, 1.9], 1e-9), 1.0, atol=1e-6)
    np.testing.assert_allclose(ref.isotropic_js_optimum([0.1, 1.9], 1 - 1e-9), 0.19, atol=1e-6)


def mixture_divergence(a, scale, q, pi):
    x = np.linspace(-15, 15, 6001)
    log_p = np.logaddexp(stats.norm.logpdf(x, -a, scale), stats.norm.logpdf(x, a, scale))
    log_p -= np.log(2)
    log_q = stats.norm.logpdf(x, *q)
    if pi == 1:
        integrand = np.exp(log_q) * (log_q - log_p)
    else:
        log_m = np.logaddexp(np.log(pi) + log_p, np.log1p(-pi) + log_q)
        integrand = pi * np.exp(log_p) * (log_p - log_m)
        integrand += (1 - pi) * np.exp(log_q) * (log_q - log_m)
    return integrand.sum() * (x[1] - x[0])


@pytest.mark.parametrize("pi", [0.05, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("a", "scale"), [(2.0, 0.7), (1.2, 1.0), (3.0, 0.5)])
def test_mixture_optimum_is_global(a, scale, pi):
    found = ref.mixture_js_optimum(a, scale, pi)
    assert found.loc >= 0
    value = mixture_divergence(a, scale, found, pi)
    grid = itertools.product(np.linspace(0, 1.3 * a, 14), np.geomspace(scale / 2, 2 * a, 14))
    assert value <= min(mixture_divergence(a, scale, q, pi) for q in grid)
    # A minimum by its neighbours too, closer than the grid.
    for step in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)):
        assert value < mixture_divergence(a, scale, np.add(found, step), pi)


def test_mixture_optimum_covers_then_seeks():
    assert ref.mixture_js_optimum(3.0, 0.5, 0.0) == (0.0, np.sqrt(9.25))
    covering = ref.mixture_js_optimum(3.0, 0.5, 0.1)
    assert covering.loc == 0.0
    assert 2.9 < covering.scale < 3.1
    seeking = ref.mixture_js_optimum(-3.0, 0.5, 0.9)
    np.testing.assert_allclose(seeking, (3.0, 0.5), atol=1e-3)
    one = ref.mixture_js_optimum(0.0, 0.5, 0.5)
    np.testing.assert_allclose(one, (0.0, 0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ref.class_entropy(1.1), r"`pi` must lie in \[0, 1\], got 1.1"),
        (lambda: ref.kl_normals(0, 1, 0, 0), "`scale_q` must be positive, got 0.0"),
        (lambda: ref.kl_normals(0, -1, 0, 1), "`scale_p` must be positive"),
        (lambda: ref.kl_normals(np.nan, 1, 0, 1), "`loc_p` must be finite"),
        (lambda: ref.kl_normals(0, 1, [0, 1], 1), r"`loc_q` must be a number, got shape \(2,\)"),
        (lambda: ref.js_divergence_normals(0, 1, 0, 1, 0.0), "`pi` must lie strictly between"),
        (
            lambda: ref.divergence_gradient_normals(0, 1, 0, 1, divergence="tv"),
            "`divergence` must be one of .*'js'.* got 'tv'",
        ),
        (
            lambda: ref.generator_gradient_normals(0, 1, 0, 1, loss="js"),
            "`loss` must be one of .*'saturating'.* got 'js'",
        ),
        (lambda: ref.isotropic_js_optimum([1.0], 0.5), r"must hold two numbers, got shape \(1,\)"),
        (lambda: ref.isotropic_js_optimum([1.0, 0.0], 0.5), "`eigenvalues` must be positive"),
        (lambda: ref.isotropic_js_optimum([1.0, 2.0], 2), r"`pi` must lie in \[0, 1\]"),
        (lambda: ref.mixture_js_optimum(1.0, 0.0, 0.5), "`scale` must be positive"),
        (lambda: ref.mixture_js_optimum(1.0, 1.0, -0.1), r"`pi` must lie in \[0, 1\]"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
