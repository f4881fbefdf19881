# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The numbers of the reference page, through the kernels themselves."""

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate

from pyro_spread import (
    ChannelNoise,
    GaussianNoise,
    LaplaceNoise,
    LogisticNoise,
    LowRankGaussianNoise,
    StudentTNoise,
    TransformedNoise,
)
from spread_analysis import reference

pytestmark = pytest.mark.usefixtures("double")

STATIONARY = {
    "gaussian": (GaussianNoise(0.7), "gaussian"),
    "laplace": (LaplaceNoise(0.7), "laplace"),
    "cauchy": (StudentTNoise(1.0, 0.7), "cauchy"),
    "logistic": (LogisticNoise(0.7), "logistic"),
    "student": (StudentTNoise(3.0, 0.7), None),
    "student-half": (StudentTNoise(0.5, 0.7), None),
    "student-many": (StudentTNoise(60.0, 0.7), None),
}
CLOSED = [name for name, (_, closed) in STATIONARY.items() if closed]
SCALE = 0.7


def density(noise, x=0.0):
    point = torch.tensor(float(x))
    return lambda y: float(noise(point).log_prob(torch.tensor(float(y))).exp())


def integral(fn, points=(0.0,)):
    """Over the real line, split where the integrand has kinks."""
    edges = [-np.inf, *sorted(points), np.inf]
    pieces = itertools.pairwise(edges)
    return sum(integrate.quad(fn, a, b, limit=400, epsabs=1e-11)[0] for a, b in pieces)


def divergence(noise, distance, integrand):
    p, q = density(noise), density(noise, distance)
    return integral(lambda y: integrand(p(y), q(y)), (0.0, distance / 2, distance))


@pytest.mark.parametrize("name", STATIONARY)
def test_density_integrates_to_one(name):
    noise = STATIONARY[name][0]
    assert integral(density(noise, 1.3), (1.3,)) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("name", STATIONARY)
def test_characteristic_function_is_the_fourier_integral(name, omega):
    noise = STATIONARY[name][0]
    p = density(noise)
    if omega == 0:
        expected = 1.0
    else:  # QUADPACK's rule for Fourier integrals of slowly decaying functions
        half = integrate.quad(p, 0, np.inf, weight="cos", wvar=omega, limlst=300)[0]
        expected = 2 * half
    value = noise.characteristic_function(torch.tensor([omega, -omega]))
    assert value.dtype == torch.float64
    np.testing.assert_allclose(value, [expected, expected], rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("name", STATIONARY)
def test_characteristic_function_of_draws(name):
    noise, omega = STATIONARY[name][0], torch.tensor([0.2, 1.0, 3.0])
    y = noise.draw(torch.zeros(40_000))
    seen = torch.cos(y[:, None] * omega).mean(0)
    # Var cos(w y) <= 1/2.
    assert (seen - noise.characteristic_function(omega)).abs().max() < 5 * (0.5 / 40_000) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", STATIONARY)
def test_characteristic_function_far_out(name, dtype):
    omega = torch.tensor([0.0, 1e-30, 1e-3, 5.0, 50.0, 1e5], dtype=dtype)
    value = STATIONARY[name][0].characteristic_function(omega)
    assert value.dtype == dtype
    assert torch.isfinite(value).all()
    assert (value[:4] > 0).all()
    assert (value >= 0).all()
    assert value[0] == 1
    assert (value.diff() <= 0).all()


def test_low_rank_characteristic_function():
    factor, omega = torch.randn(3, 2), torch.randn(5, 3) * 0.7
    noise = LowRankGaussianNoise(torch.tensor([0.3, 0.5, 0.7]), factor)
    covariance = torch.diag(torch.tensor([0.3, 0.5, 0.7]) ** 2) + factor @ factor.mT
    expected = torch.exp(-0.5 * torch.einsum("ni,ij,nj->n", omega, covariance, omega))
    torch.testing.assert_close(noise.characteristic_function(omega), expected)


@pytest.mark.parametrize(
    "noise",
    [
        ChannelNoise.symmetric(3, 0.1),
        TransformedNoise(dist.transforms.ExpTransform(), GaussianNoise(0.1)),
    ],
)
def test_no_characteristic_function(noise):
    with pytest.raises(NotImplementedError, match=f"{type(noise).__name__} is not stationary"):
        noise.characteristic_function(torch.tensor(1.0))


@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_and_transformed_normalise(rank):
    # In two dimensions: a Riemann sum over a box that holds all the mass.
    axis = torch.linspace(-8, 8, 401)
    grid = torch.cartesian_prod(axis, axis)
    cell = (axis[1] - axis[0]) ** 2
    low_rank = LowRankGaussianNoise(0.5, 0.6 * torch.randn(2, rank))
    x = torch.tensor([0.3, -0.4])
    for noise in (low_rank, TransformedNoise(dist.transforms.TanhTransform(), low_rank)):
        assert noise(x, event_dim=1).log_prob(grid).exp().sum() * cell == pytest.approx(
            1.0, abs=1e-6
        )


@pytest.mark.parametrize("distance", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("name", CLOSED)
def test_two_deltas_by_quadrature(name, distance):
    noise, closed = STATIONARY[name]
    expected = {
        "kl": float(reference.two_deltas_kl(distance, SCALE, closed)),
        "tv": float(reference.two_deltas_total_variation(distance, SCALE, closed)),
        "bc": float(reference.two_deltas_bhattacharyya(distance, SCALE, closed)),
        "js": float(reference.two_deltas_js(distance, SCALE, closed)),
    }

    def js(p, q):
        m = (p + q) / 2
        return 0.5 * sum(v * math.log(v / m) for v in (p, q) if v > 0)

    assert divergence(noise, distance, lambda p, q: p * math.log(p / q) if p > 0 < q else 0.0) == (
        pytest.approx(expected["kl"], rel=1e-6)
    )
    assert divergence(noise, distance, lambda p, q: abs(p - q) / 2) == (
        pytest.approx(expected["tv"], rel=1e-6)
    )
    assert divergence(noise, distance, lambda p, q: math.sqrt(p * q)) == (
        pytest.approx(expected["bc"], rel=1e-6)
    )
    assert divergence(noise, distance, js) == pytest.approx(expected["js"], rel=1e-6)


# (d, Gaussian JS, Laplace JS) at pi = 1/2, as the reference page has them.
JS = [(0.5, 0.0303113, 0.0263670), (1, 0.1114215, 0.0885196), (2, 0.3368308, 0.2477204),
      (4, 0.6327202, 0.4988231)]  # fmt: skip


@pytest.mark.parametrize(("ratio", "gaussian", "laplace"), JS)
def test_numbers_of_the_reference_page(ratio, gaussian, laplace):
    def js(p, q):
        m = (p + q) / 2
        return 0.5 * sum(v * math.log(v / m) for v in (p, q) if v > 0)

    def kl(p, q):
        return p * math.log(p / q) if p > 0 < q else 0.0

    d = SCALE * ratio
    assert divergence(GaussianNoise(SCALE), d, js) == pytest.approx(gaussian, abs=1e-7)
    assert divergence(LaplaceNoise(SCALE), d, js) == pytest.approx(laplace, abs=1e-7)
    assert divergence(GaussianNoise(SCALE), d, kl) == pytest.approx(ratio**2 / 2, rel=1e-7)
    laplace_kl = ratio + math.exp(-ratio) - 1
    assert divergence(LaplaceNoise(SCALE), d, kl) == pytest.approx(laplace_kl, rel=1e-7)
    cauchy_kl = math.log1p(ratio**2 / 4)
    assert divergence(StudentTNoise(1.0, SCALE), d, kl) == pytest.approx(cauchy_kl, rel=1e-7)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 4.0])
def test_log_ratio_of_gaussian_spread_deltas(ratio):
    # One draw has mean d²/2 and variance d².
    noise, n = GaussianNoise(0.3), 20_000
    p, q = (noise.spread(dist.Delta(torch.tensor(v))) for v in (1.0, 1.0 + 0.3 * ratio))
    y = p.sample((n,))
    log_ratio = p.log_prob(y) - q.log_prob(y)
    assert abs(log_ratio.mean() - ratio**2 / 2) < 5 * ratio / math.sqrt(n)
    # The variance of a Gaussian sample has relative standard deviation sqrt(2/n).
    assert log_ratio.var() == pytest.approx(ratio**2, rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("name", CLOSED)
def test_log_ratio_by_monte_carlo(name):
    noise, closed = STATIONARY[name]
    moments = reference.two_deltas_log_ratio_moments(1.5, SCALE, closed)
    n = 20_000
    y = noise.draw(torch.zeros(n))
    log_ratio = noise(torch.tensor(0.0)).log_prob(y) - noise(torch.tensor(1.5)).log_prob(y)
    assert abs(float(log_ratio.mean()) - moments.mean) < 5 * math.sqrt(moments.variance / n)


@pytest.mark.parametrize("name", ["gaussian", "low-rank"])
def test_log_ratio_in_many_dimensions(name):
    factor = torch.randn(6, 2)
    noise = GaussianNoise(0.5) if name == "gaussian" else LowRankGaussianNoise(0.5, factor)
    x = torch.randn(2, 6)
    covariance = 0.25 * torch.eye(6) + (factor @ factor.mT if name == "low-rank" else 0)
    delta = x[0] - x[1]
    d = math.sqrt(delta @ torch.linalg.solve(covariance, delta))
    n = 20_000
    p, q = noise(x[0], event_dim=1), noise(x[1], event_dim=1)
    y = p.sample((n,))
    assert abs((p.log_prob(y) - q.log_prob(y)).mean() - d**2 / 2) < 5 * d / math.sqrt(n)


def test_channel_numbers():
    def kl(noise, i, j):
        p, q = (noise.spread(dist.Delta(torch.tensor(v))).probs for v in (i, j))
        return float((p * (p / q).log()).sum())

    assert kl(ChannelNoise.symmetric(5, 0.3), 0, 3) == pytest.approx(1.7772817, abs=5e-7)
    assert kl(ChannelNoise.symmetric(2, 0.2), 0, 1) == pytest.approx(1.7577797, abs=5e-7)
    noise = ChannelNoise.symmetric(5, 0.3)
    np.testing.assert_allclose(noise.matrix, reference.symmetric_channel(5, 0.3), rtol=1e-6)
    clean = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0.2, 0.3, 0.5]], dtype=torch.float64)
    p, q = noise.spread(dist.Categorical(clean)).probs
    assert (p - q).abs().sum() / 2 == pytest.approx(0.7, rel=1e-6)
    m = (p + q) / 2
    js = 0.5 * ((p * (p / m).log()).sum() + (q * (q / m).log()).sum())
    assert float(js) == pytest.approx(reference.channel_js(*clean, noise.matrix.double()), rel=1e-6)


def test_channel_frequencies():
    matrix, n = torch.tensor([[0.7, 0.1], [0.3, 0.9]]), 20_000
    for label in range(2):
        y = ChannelNoise(matrix).draw(torch.full((n,), label))
        share = y.double().mean()
        assert abs(share - matrix[1, label]) < 5 * math.sqrt(0.25 / n)


def test_supports_of_different_dimension():
    # A point, a line and an orthogonal line in the plane: KL is finite and exact after noise.
    point, line, other = (
        torch.zeros(2, 2),
        torch.diag(torch.tensor([1.0, 0.0])),
        torch.diag(torch.tensor([0.0, 1.0])),
    )
    noise = GaussianNoise(0.5)

    def spread(covariance):
        # The prior variance that the noise completes: S + s² I through the kernel's own rule.
        tiny = covariance + 1e-13 * torch.eye(2)
        return noise.spread(dist.MultivariateNormal(torch.zeros(2), tiny))

    kl = torch.distributions.kl_divergence
    assert kl(spread(point), spread(line)) == pytest.approx(0.4047190, abs=1e-6)
    assert kl(spread(line), spread(point)) == pytest.approx(1.1952810, abs=1e-6)
    assert kl(spread(line), spread(other)) == pytest.approx(1.6, abs=1e-6)


def test_low_rank_stays_accurate_in_single_precision():
    # Woodbury's subtraction would be off by nats here.
    torch.manual_seed(0)
    factor = torch.randn(784, 5, dtype=torch.float32)
    noise = LowRankGaussianNoise(0.01, factor)
    y = noise.draw(torch.zeros(784, dtype=torch.float32))
    exact = LowRankGaussianNoise(0.01, factor.double())(torch.zeros(784), 1).log_prob(y.double())
    single = noise(torch.zeros(784, dtype=torch.float32), 1).log_prob(y)
    assert single.dtype == torch.float32
    assert abs(single - exact) < 0.01


def test_low_rank_never_makes_a_square_matrix():
    # 10^5 dimensions: a D x D matrix would need 80 GB.
    noise = LowRankGaussianNoise(0.1, torch.randn(100_000, 2))
    x = torch.zeros(1, 100_000, requires_grad=True)
    y = noise.draw(x.detach())
    noise(x, event_dim=1).log_prob(y).sum().backward()
    assert torch.isfinite(x.grad).all()
