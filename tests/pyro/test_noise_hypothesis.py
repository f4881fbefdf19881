# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Shapes, types and scales drawn by Hypothesis, against SciPy in float64."""

import numpy as np
import pyro.distributions as dist
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pyro_spread import (
    ChannelNoise,
    GaussianNoise,
    LaplaceNoise,
    LogisticNoise,
    LowRankGaussianNoise,
    StudentTNoise,
    TransformedNoise,
)

settings.register_profile("pyro", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("pyro")

KERNELS = {
    "gaussian": (GaussianNoise, stats.norm.logpdf),
    "laplace": (LaplaceNoise, lambda u: -np.abs(u) - np.log(2)),
    "cauchy": (lambda scale: StudentTNoise(1.0, scale), stats.cauchy.logpdf),
    "student": (lambda scale: StudentTNoise(4.5, scale), lambda u: stats.t.logpdf(u, 4.5)),
    "logistic": (LogisticNoise, stats.logistic.logpdf),
}
DTYPES = st.sampled_from([torch.float32, torch.float64])
SCALES = st.floats(-6, 6).map(lambda power: 10.0**power)
SHAPES = st.lists(st.integers(1, 4), max_size=4).map(tuple)
SEEDS = st.integers(0, 2**20)


def tolerance(dtype, terms):
    """Of a sum whose terms have these sizes: rounding is relative to them, not to the sum."""
    return 64 * torch.finfo(dtype).eps * (np.abs(terms).sum() + terms.size)


@settings(max_examples=250)
@given(st.sampled_from(sorted(KERNELS)), DTYPES, SCALES, SHAPES, st.data(), SEEDS, st.booleans())
def test_elementwise_kernels(name, dtype, scale, shape, data, seed, as_tensor):
    event_dim = data.draw(st.integers(0, len(shape)))
    make, log_pdf = KERNELS[name]
    torch.manual_seed(seed)
    x = torch.randn(shape, dtype=dtype) * data.draw(st.sampled_from([0.0, 1.0, scale]))
    noise = make(torch.tensor(scale, dtype=torch.float64) if as_tensor else scale)
    fn = noise(x, event_dim)
    y = fn.sample()
    assert y.shape == noise.draw(x).shape == shape
    assert y.dtype == noise.draw(x).dtype == dtype
    assert torch.isfinite(y).all()
    # Given the residual as the type of x has it.
    u = (y - x).double().numpy() / scale
    terms = log_pdf(u) - np.log(scale)
    axes = tuple(range(len(shape) - event_dim, len(shape)))
    log_prob = fn.log_prob(y)
    assert log_prob.shape == shape[: len(shape) - event_dim]
    assert log_prob.dtype == dtype
    assert torch.isfinite(log_prob).all()
    parts = np.maximum(np.abs(terms), np.abs(np.log(scale))) + u**2 * (name == "gaussian")
    error = np.abs(log_prob.double().numpy() - terms.sum(axes))
    assert np.all(error <= tolerance(dtype, parts)), (error, terms)
    spread = noise.spread(dist.Delta(x, event_dim=event_dim))
    assert torch.equal(spread.log_prob(y), log_prob)


@settings(max_examples=100)
@given(st.sampled_from(sorted(KERNELS)), DTYPES, SCALES, st.floats(-1e6, 1e6))
def test_far_away_values_keep_a_finite_density(name, dtype, scale, distance):
    noise = KERNELS[name][0](scale)
    x = torch.zeros((), dtype=dtype)
    y = torch.tensor(distance, dtype=dtype)
    log_prob = noise(x).log_prob(y)
    assert torch.isfinite(log_prob)
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(noise(x).log_prob(y), y)
    assert torch.isfinite(gradient)
    expected = KERNELS[name][1](float(y.detach()) / scale) - np.log(scale)
    np.testing.assert_allclose(
        float(log_prob), expected, rtol=500 * torch.finfo(dtype).eps, atol=1e-4
    )


@settings(max_examples=100)
@given(
    DTYPES,
    st.floats(-3, 3).map(lambda power: 10.0**power),
    st.integers(1, 8),
    st.integers(1, 3),
    st.lists(st.integers(1, 3), max_size=2).map(tuple),
    SEEDS,
)
def test_low_rank(dtype, scale, size, rank, batch_shape, seed):
    torch.manual_seed(seed)
    factor = torch.randn(size, rank, dtype=torch.float64)
    noise = LowRankGaussianNoise(scale, factor)
    x = torch.randn((*batch_shape, size), dtype=dtype)
    fn = noise(x, event_dim=1)
    y = fn.sample()
    assert y.shape == noise.draw(x).shape == x.shape
    assert y.dtype == noise.draw(x).dtype == dtype
    log_prob = fn.log_prob(y)
    assert log_prob.dtype == dtype
    # By eigenvectors, which do not cancel: F Fᵀ = U L Uᵀ and the variance along U is s² + L.
    left, singular, _ = np.linalg.svd(factor.to(dtype).double().numpy(), full_matrices=True)
    variance = np.full(size, scale**2)
    variance[: singular.size] += singular**2
    u = ((y.double() - x.double()).numpy() @ left) / np.sqrt(variance)
    expected = stats.norm.logpdf(u).sum(-1) - 0.5 * np.log(variance).sum()
    ratio = 1 + singular.max() / scale
    margin = 200 * torch.finfo(dtype).eps * size * (ratio**2 if dtype == torch.float64 else ratio)
    assert np.all(np.abs(log_prob.double().numpy() - expected) <= margin + 1e-6 * np.abs(expected))


@given(DTYPES, SCALES, SHAPES, SEEDS)
def test_transformed_is_the_kernel_around_the_transform(dtype, scale, shape, seed):
    torch.manual_seed(seed)
    x = torch.randn(shape, dtype=dtype)
    inner = LaplaceNoise(scale)
    noise = TransformedNoise(dist.transforms.ExpTransform(), inner)
    y = noise.draw(x)
    assert y.shape == shape
    assert y.dtype == dtype
    fn = noise.spread(dist.Delta(x))
    assert torch.equal(fn.log_prob(y), inner(x.exp()).log_prob(y))


@given(DTYPES, st.integers(2, 7), st.floats(0, 0.95), SHAPES, SEEDS)
def test_channel(dtype, num_classes, flip, shape, seed):
    torch.manual_seed(seed)
    noise = ChannelNoise(ChannelNoise.symmetric(num_classes, flip).matrix.to(dtype))
    x = torch.randint(num_classes, shape)
    fn = noise(x, event_dim=len(shape))
    y = fn.sample()
    assert y.shape == noise.draw(x).shape == shape
    assert y.dtype == noise.draw(x).dtype == torch.int64
    assert 0 <= int(y.min()) <= int(y.max()) < num_classes
    stay, leave = 1 - flip + flip / num_classes, flip / num_classes
    same = (x == y).numpy()
    expected = np.log(np.where(same, stay, leave)).sum()
    np.testing.assert_allclose(float(fn.log_prob(y)), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(noise.spread(dist.Delta(x)).to_event(len(shape)).log_prob(y), fn.log_prob(y))


@given(DTYPES, SCALES, SCALES, SHAPES, SEEDS)
def test_gaussian_of_normal(dtype, scale, own, shape, seed):
    torch.manual_seed(seed)
    loc = torch.randn(shape, dtype=dtype)
    fn = GaussianNoise(scale).spread(dist.Normal(loc, torch.full(shape, own, dtype=dtype)))
    assert fn.scale.dtype == dtype
    np.testing.assert_allclose(
        fn.scale.double().numpy(), np.hypot(scale, own), rtol=8 * torch.finfo(dtype).eps
    )
