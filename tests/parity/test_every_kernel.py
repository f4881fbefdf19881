# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What makes a kernel a kernel, by quadrature and draws, for every one in both backends."""

import functools

import numpy as np
import pytest
import torch
from every import CONTINUOUS, KERNELS, STATIONARY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.interpolate import CubicSpline
from twins import in_both

NUM_DRAWS = 40_000


@functools.cache
def _at(b, name):
    """A kernel at one value of x, and x."""
    kernel = KERNELS[name]
    x = kernel.x()
    return kernel.build(b.package, b.array)(b.array(x), kernel.event_dim), x


def _log_density(b, name, y):
    return np.asarray(_at(b, name)[0].log_prob(b.array(y)), np.float64)


@functools.cache
def _draws(b, name):
    torch.manual_seed(0)
    return np.asarray(_at(b, name)[0].sample(*b.key, (NUM_DRAWS,)))


def _near_one(values):
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - 1) < 5 * error
    assert error < 0.05  # else this would say nothing


@in_both
@pytest.mark.parametrize("name", KERNELS)
def test_density_integrates_to_one(b, name):
    kernel = KERNELS[name]
    if kernel.discrete:
        labels = np.stack(np.meshgrid(*[range(3)] * max(kernel.size, 1), indexing="ij"), -1)
        labels = labels.reshape(-1, *kernel.event_shape)
        total = np.exp(_log_density(b, name, labels)).sum()
        np.testing.assert_allclose(total, 1.0, rtol=1e-6)
        return
    y = _draws(b, name).reshape(NUM_DRAWS, -1)
    centre, width = np.median(y, 0), np.subtract(*np.percentile(y, [75, 25], 0)) / 1.35
    if kernel.size == 1:
        # Steps that grow with the distance reach as far as the heaviest tails do.
        t = np.linspace(-40, 40, 200_001)
        grid = centre + width * np.sinh(t)
        integrand = np.exp(_log_density(b, name, grid)) * width * np.cosh(t)
        np.testing.assert_allclose(integrate.trapezoid(integrand, t), 1.0, rtol=1e-6)
    # In any number of dimensions: the mean of q / p over draws of p is 1 for every density q
    # whose tails are lighter. Here a normal one around the middle, in the coordinates of the draws.
    if kernel.y_event_shape is None:
        scatter = np.cov(np.clip((y - centre) / width, -3, 3).T).reshape(y.shape[1], -1)
        q = stats.multivariate_normal(np.zeros(y.shape[1]), 0.5 * scatter)
        log_q = q.logpdf((y - centre) / width) - np.log(width).sum()
        _near_one(np.exp(log_q - _log_density(b, name, _draws(b, name))))


@in_both
@pytest.mark.parametrize("name", [n for n in CONTINUOUS if KERNELS[n].size == 1])
def test_draws_follow_the_density(b, name):
    y = _draws(b, name)
    centre, width = np.median(y), np.subtract(*np.percentile(y, [75, 25])) / 1.35
    t = np.linspace(-40, 40, 20_001)
    grid = centre + width * np.sinh(t)
    density = np.exp(_log_density(b, name, grid)) * width * np.cosh(t)
    cdf = integrate.cumulative_trapezoid(density, t, initial=0)
    assert stats.kstest(y, lambda v: np.interp(v, grid, cdf)).pvalue > 1e-4


@in_both
@pytest.mark.parametrize("name", [n for n in KERNELS if KERNELS[n].discrete])
def test_labels_come_as_often_as_they_should(b, name):
    y = _draws(b, name)
    seen, counts = np.unique(y, axis=0, return_counts=True)
    expected = np.exp(_log_density(b, name, seen)) * NUM_DRAWS
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected) + 1)


@in_both
@pytest.mark.parametrize("name", STATIONARY)
def test_characteristic_function_is_that_of_the_density(b, name):
    kernel = KERNELS[name]
    noise = kernel.build(b.package, b.array)
    if kernel.size == 1:
        _compare_with_the_fourier_integral(b, name, noise)
    omega = 0.3 * np.random.default_rng(3).normal(size=(3, *kernel.event_shape))
    # A kernel that couples elements takes them side by side, as its factor has them.
    given = omega.reshape(3, -1) if noise.coupled_dims else omega
    value = np.asarray(noise.characteristic_function(b.array(given)), float)
    assert value.max() > 0.1  # else draws would say nothing
    y = _draws(b, name) - _at(b, name)[1]
    phases = y[:, None] * omega
    if value.shape == omega.shape:  # every element on its own
        seen = np.cos(phases).mean(0)
    else:
        seen = np.cos(phases.reshape(NUM_DRAWS, 3, -1).sum(-1)).mean(0)
    # Var cos <= 1/2.
    np.testing.assert_allclose(seen, value, atol=5 * np.sqrt(0.5 / NUM_DRAWS))


def _compare_with_the_fourier_integral(b, name, noise):
    # The half line by a spline of the log-density, since QUADPACK asks for single points.
    x = float(_at(b, name)[1])
    t = np.linspace(0, 25, 4001)
    u = 0.4 * np.sinh(t)
    right = _log_density(b, name, x + u)
    near = slice(0, 1000)  # further out x + u and x - u round differently
    np.testing.assert_allclose(right[near], _log_density(b, name, x - u)[near], atol=1e-8)
    spline = CubicSpline(t, right)

    def density(v):
        return np.exp(spline(np.arcsinh(v / 0.4)))

    for omega in (0.3, 1.0, 2.5):
        half = integrate.quad(density, 0, np.inf, weight="cos", wvar=omega, limlst=300)[0]
        value = float(noise.characteristic_function(b.array(np.array(omega))))
        np.testing.assert_allclose(value, 2 * half, rtol=2e-6, atol=1e-8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(STATIONARY), st.floats(-4, 4), st.integers(0, 1), st.integers(0, 2**16))
@in_both
def test_units_do_not_matter(b, name, power, which, seed):
    """In other units of x and y the density is the same, up to the change of variables."""
    kernel, dtype, factor = KERNELS[name], (b.np.float32, b.np.float64)[which], 10.0**power
    rng = np.random.default_rng(seed)
    x = rng.normal(size=kernel.event_shape)
    y = x + rng.standard_t(2, size=kernel.event_shape)
    scaled = {n: np.asarray(kernel.params[n]) * factor for n in kernel.scales}
    scaled = {n: b.array(v) if v.ndim else float(v) for n, v in scaled.items()}
    one = kernel.build(b.package, b.array)(b.array(x), kernel.event_dim)
    other = kernel.build(b.package, b.array, **scaled)(
        b.array(x * factor, dtype=dtype), kernel.event_dim
    )
    expected = float(one.log_prob(b.array(y))) - kernel.size * np.log(factor)
    value = other.log_prob(b.array(y * factor, dtype=dtype))
    assert value.dtype == dtype
    digits = 1e-3 if which == 0 else 1e-9
    np.testing.assert_allclose(float(value), expected, rtol=digits, atol=10 * digits)
