# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Kernels and statistics of the two-sample losses: what they estimate, and how little they hold."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every import ANY_WIDTH, MMD_KERNELS

import numpyro_spread
from numpyro_spread import GaussianKernel
from numpyro_spread.infer._two_sample import energy_distance, mmd2_unbiased, sliced_wasserstein

KERNELS = {name: MMD_KERNELS[name][0](numpyro_spread) for name in ANY_WIDTH}


def _normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("variance", [0.3, [0.1, 0.3, 0.8]])
def test_convolved_is_the_mean_over_noise(variance):
    kernel = GaussianKernel([0.5, 1.5])
    x, y = _normal(1, 3, seed=1), _normal(1, 3, seed=2)
    scale = jnp.sqrt(jnp.array(variance))
    noisy_x = x + scale * _normal(200_000, 3, seed=3)
    noisy_y = y + scale * _normal(200_000, 3, seed=4)
    # k depends on the difference alone, so that pairs need no matrix.
    draws = np.asarray(kernel(noisy_x - noisy_y, jnp.zeros((1, 3)))[:, 0])
    error = float(draws.std() / math.sqrt(len(draws)))
    exact = kernel.convolved(variance)(x, y).item()
    assert exact == pytest.approx(float(draws.mean()), abs=4 * error)


@pytest.mark.parametrize("name", ["mmd2", "energy"])
def test_unbiased(name):
    x, y = _normal(800, 6, 2, seed=1), _normal(800, 9, 2, seed=2)
    weights = jnp.linspace(0.2, 2, 6), jnp.linspace(2, 0.1, 9)
    if name == "mmd2":
        values = jax.vmap(lambda a, b: mmd2_unbiased(GaussianKernel(1.0), a, b, *weights))(x, y)
    else:
        values = jax.vmap(lambda a, b: energy_distance(a, b, *weights))(x, y)
    error = float(values.std() / math.sqrt(len(values)))
    assert abs(float(values.mean())) < 4 * error
    # With its diagonals the statistic would be far off zero at this precision.
    assert 4 * error < 0.5 * (1 / 6 + 1 / 9) * 0.5


@pytest.mark.parametrize(
    ("name", "width"), [("gaussian", 2), ("convolved", 12), ("rational", 12), ("laplace", 2)]
)
def test_blocks_in_single_precision(name, width):
    kernel = KERNELS[name]
    x, y = 1000 + _normal(70, width, seed=1), 1000.2 + _normal(50, width, seed=2)
    dense, blocked = (
        jax.jit(
            jax.value_and_grad(lambda y, size=size: mmd2_unbiased(kernel, x, y, block_size=size))
        )(y)
        for size in (None, 16)
    )
    np.testing.assert_allclose(blocked[0], dense[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(blocked[1], dense[1], rtol=0, atol=1e-6)
    # Nothing is lost by the distance to the origin: the centre is exact there.
    np.testing.assert_allclose(kernel(x, y), kernel(x - 1000, y - 1000), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "width"),
    [("gaussian", 3), ("gaussian", 40), ("laplace", 3), ("energy", 3), ("energy", 40)],
)
def test_coincident_points(name, width):
    """Distances are never negative, and their gradients finite."""
    x = 1000 + _normal(30, width)
    if name == "energy":
        statistic = energy_distance
    else:
        statistic = functools.partial(mmd2_unbiased, KERNELS[name])
        assert (jnp.diagonal(KERNELS[name](x, x)) <= 1).all()
    value, gradient = jax.jit(jax.value_and_grad(statistic, argnums=1))(x, x)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_blocks_bound_the_memory(name):
    """XLA's own account of what a compiled gradient holds."""
    x, y = (
        jax.ShapeDtypeStruct((3000, 20), jnp.float32),
        jax.ShapeDtypeStruct((3000, 20), "float32"),
    )

    def held(block_size):
        def value(x, y):
            return mmd2_unbiased(KERNELS[name], x, y, block_size=block_size)

        compiled = jax.jit(jax.grad(value, argnums=1)).lower(x, y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    matrix = 4 * 3000**2
    dense, blocked, default = held(3000), held(50), held(None)
    assert dense >= matrix
    assert blocked < matrix / 10
    assert default < matrix


def test_kernels_are_pytrees():
    """They cross jit as arguments, and their parameters have gradients."""
    x, y = _normal(6, 3, seed=1), _normal(5, 3, seed=2)
    value_and_grad = jax.jit(jax.value_and_grad(lambda kernel: mmd2_unbiased(kernel, x, y)))
    for kernel in [*KERNELS.values(), GaussianKernel(0.7).convolved([0.1, 0.2, 0.3])]:
        value, gradient = value_and_grad(kernel)
        np.testing.assert_allclose(value, mmd2_unbiased(kernel, x, y), rtol=1e-4, atol=1e-6)
        assert type(gradient) is type(kernel)
        assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(gradient))

    @jax.jit
    def learned(width):
        return mmd2_unbiased(GaussianKernel(width).convolved(width), x, y)

    assert jnp.isfinite(jax.grad(learned)(0.5))


def test_weights_under_jit():
    """Their values cannot be checked there: too few are NaN, not a number that looks right."""
    x, y = _normal(4, 2, seed=1), _normal(3, 2, seed=2)

    @jax.jit
    def value(weights):
        return energy_distance(x, y, weights)

    np.testing.assert_allclose(
        value(jnp.array([1, 0, 1, 1])), energy_distance(x[jnp.array([0, 2, 3])], y), rtol=1e-5
    )
    assert jnp.isnan(value(jnp.array([0, 0, 1, 0])))
    assert jnp.isnan(value(jnp.zeros(4)))


def test_one_step_of_mass():
    """Three samples against two: the middle one is split."""
    x, y = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[10.0], [20.0]])
    moved = (10 / 3 + 9 / 6 + 19 / 6 + 18 / 3, (100 / 3 + 81 / 6 + 361 / 6 + 324 / 3))
    for p, expected in zip((1, 2), moved, strict=True):
        value = jax.jit(lambda x, y, p=p: sliced_wasserstein(x, y, jnp.ones((1, 1)), p))(x, y)
        assert float(value) == pytest.approx(expected, rel=1e-6)
