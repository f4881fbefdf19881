# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Kernels and statistics of the two-sample losses: what they estimate, and how little they hold."""

import gc
import math

import numpy as np
import pytest
import torch
from every import ANY_WIDTH, MMD_KERNELS

import pyro_spread
from pyro_spread import GaussianKernel
from pyro_spread.infer._two_sample import energy_distance, mmd2_unbiased, sliced_wasserstein
from spread_core.math import two_sample

KERNELS = {name: MMD_KERNELS[name][0](pyro_spread) for name in ANY_WIDTH}


def _randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("variance", [0.3, [0.1, 0.3, 0.8]])
def test_convolved_is_the_mean_over_noise(variance):
    kernel = GaussianKernel([0.5, 1.5])
    x, y = _randn(1, 3, seed=1), _randn(1, 3, seed=2)
    scale = torch.tensor(variance).sqrt()
    noisy_x = x + scale * _randn(200_000, 3, seed=3)
    noisy_y = y + scale * _randn(200_000, 3, seed=4)
    # k depends on the difference alone, so that pairs need no matrix.
    draws = kernel(noisy_x - noisy_y, torch.zeros(1, 3))[:, 0]
    error = float(draws.std() / math.sqrt(len(draws)))
    assert float(kernel.convolved(variance)(x, y)) == pytest.approx(
        float(draws.mean()), abs=4 * error
    )


def test_convolved_adds_variances():
    x, y = _randn(4, 3, seed=1), _randn(5, 3, seed=2)
    kernel = GaussianKernel(0.8)
    twice = kernel.convolved(0.1).convolved([0.2, 0.0, 0.4])(x, y)
    torch.testing.assert_close(twice, kernel.convolved([0.3, 0.1, 0.5])(x, y))
    torch.testing.assert_close(kernel.convolved(0.0)(x, y), kernel(x, y))
    for one, more in (([0.2, 0.0, 0.4], torch.tensor(0.1)), (torch.full((3,), 0.1), [0.2, 0, 0.4])):
        torch.testing.assert_close(kernel.convolved(one).convolved(more)(x, y), twice)


@pytest.mark.parametrize("noise", [0.4, 1.0])
def test_l2_distance_of_two_spread_deltas(noise):
    """The integral of (p~ - q~)² is the MMD² of the kernel N(x - x'; 0, 2 s²)."""
    a, b = 0.3, 1.7
    grid = np.linspace(-12, 14, 200_001)

    def density(at):
        return np.exp(-0.5 * ((grid - at) / noise) ** 2) / (noise * math.sqrt(2 * math.pi))

    integral = np.trapezoid((density(a) - density(b)) ** 2, grid)
    # Many copies of one point are a delta: the U-statistic leaves only copies with themselves out.
    x, y = (torch.full((2, 1), at, dtype=torch.float64) for at in (a, b))
    width = math.sqrt(2) * noise
    mmd2 = mmd2_unbiased(GaussianKernel(width), x, y) / (width * math.sqrt(2 * math.pi))
    assert float(mmd2) == pytest.approx(integral, rel=1e-10)
    # The same as the limit of a narrow kernel, normalised, after noise on both sides.
    narrow = 1e-6
    convolved = mmd2_unbiased(GaussianKernel(narrow).convolved(noise**2), x, y)
    assert float(convolved) / (narrow * math.sqrt(2 * math.pi)) == pytest.approx(integral, rel=1e-9)


STATISTICS = {
    "mmd2": lambda x, y: mmd2_unbiased(GaussianKernel(1.0), x, y),
    "mmd2-weighted": lambda x, y: mmd2_unbiased(
        GaussianKernel(1.0), x, y, torch.linspace(0.2, 2, len(x)), torch.linspace(2, 0.1, len(y))
    ),
    "mmd2-blocks": lambda x, y: mmd2_unbiased(GaussianKernel(1.0), x, y, block_size=3),
    "energy": energy_distance,
}


@pytest.mark.parametrize("name", STATISTICS)
def test_unbiased(name):
    x, y = _randn(800, 6, 2, seed=1), _randn(800, 9, 2, seed=2)
    values = torch.stack([STATISTICS[name](a, b) for a, b in zip(x, y, strict=True)])
    error = float(values.std() / math.sqrt(len(values)))
    assert abs(float(values.mean())) < 4 * error
    # With its diagonals the statistic would be far off zero at this precision.
    assert 4 * error < 0.5 * (1 / 6 + 1 / 9) * 0.5


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("width", [2, 12])
def test_blocks_in_single_precision(name, width):
    kernel = KERNELS[name]
    x, y = 1000 + _randn(70, width, seed=1), 1000.2 + _randn(50, width, seed=2)
    results = []
    for block_size in (None, 16):
        z = y.clone().requires_grad_()
        value = mmd2_unbiased(kernel, x, z, block_size=block_size)
        (gradient,) = torch.autograd.grad(value, z)
        results.append((value.detach(), gradient))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)
    # Nothing is lost by the distance to the origin.
    exact = kernel(x.double(), y.double()).float()
    torch.testing.assert_close(kernel(x, y), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*KERNELS, "energy"])
@pytest.mark.parametrize("width", [3, 40])
def test_coincident_points(name, width):
    """Distances are never negative, and their gradients finite."""
    x = 1000 + _randn(30, width)
    y = x.clone().requires_grad_()
    if name == "energy":
        value = energy_distance(x, y)
    else:
        diagonal = KERNELS[name](x, y).diagonal()
        assert (diagonal <= 1).all()
        value = mmd2_unbiased(KERNELS[name], x, y)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(y.grad).all()


def test_data_need_no_gradient():
    x, y = _randn(5, 2, seed=1), _randn(5, 2, seed=2).requires_grad_()
    calls = []

    def kernel(a, b):
        matrix = GaussianKernel(1.0)(a, b)
        calls.append(matrix.requires_grad)
        return matrix

    mmd2_unbiased(kernel, x, y)
    assert calls == [False, True, True]


def test_small_matrices_are_dense_and_large_ones_are_not_kept():
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    def largest(count):
        saved.clear()
        gc.collect()
        y = _randn(count, 2, seed=2).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            mmd2_unbiased(GaussianKernel(1.0), _randn(count, 2), y)
        return max(saved)

    assert largest(1000) >= 1000**2
    assert largest(1100) <= 1100 * 2
    assert two_sample.MAX_ENTRIES >= 1000**2


def test_one_step_of_mass():
    """Three samples against two: the middle one is split."""
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[10.0], [20.0]])
    direction = torch.ones(1, 1)
    moved = (10 / 3 + 9 / 6 + 19 / 6 + 18 / 3, (100 / 3 + 81 / 6 + 361 / 6 + 324 / 3))
    for p, expected in zip((1, 2), moved, strict=True):
        assert float(sliced_wasserstein(x, y, direction, p)) == pytest.approx(expected, rel=1e-6)


def test_type_follows_the_samples():
    x, y = _randn(4, 3, dtype=torch.float64), _randn(5, 3, dtype=torch.float64)
    learned = torch.tensor([0.5, 1.0], requires_grad=True)
    for kernel in [*KERNELS.values(), GaussianKernel(learned).convolved([0.1, 0.2, 0.3])]:
        assert mmd2_unbiased(kernel, x, y).dtype == torch.float64
        assert mmd2_unbiased(kernel, x.float(), y.float()).dtype == torch.float32
