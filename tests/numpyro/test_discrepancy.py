# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What MMD, energy distance and sliced Wasserstein compare, with which noise and value."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI
from numpyro_discrepancy import LOSSES, PARAMS, evaluate, guide, injected, model, points, two_sites

from numpyro_spread import (
    MMD,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    LaplaceKernel,
    LaplaceNoise,
    SlicedWasserstein,
)
from spread_analysis import metrics


def many(loss, model, *args, count=400):
    """Values and gradients in w under ``count`` keys, of shape (count, 2)."""

    def value(w, key):
        return loss.loss(key, {"w": w}, model, guide, *args)

    both = jax.vmap(jax.value_and_grad(value), (None, 0))
    keys = jax.random.split(jax.random.key(3), count)
    return np.stack(jax.jit(both)(PARAMS["w"], keys), -1).astype(float)


class Recorder:
    """A kernel that keeps what it was asked; calls come in the order (P, P), (Q, Q), (P, Q)."""

    def __init__(self, kernel=None):
        self.calls, self.kernel = [], kernel or GaussianKernel(1.0)

    def __call__(self, x, y):
        self.calls.append((x, y))
        return self.kernel(x, y)

    @property
    def sides(self):
        return self.calls[2]


def standard_errors(values, target):
    """How many standard errors the mean of ``values`` lies from ``target``."""
    values = np.asarray(values)
    return np.abs(values.mean(0) - target) / (values.std(0, ddof=1) / np.sqrt(len(values)))


# --- what is compared ----------------------------------------------------------------------------


def test_sites_and_arguments_are_laid_side_by_side():
    x, y, eps, c = points(6, 3), points(6, seed=1), points(6, 3, seed=2), np.arange(6)
    kernel = Recorder()
    evaluate(MMD(kernel, given=["c"]), two_sites, x, y, eps, c=c)
    np.testing.assert_allclose(kernel.sides[0], np.column_stack([x, y, c]), rtol=1e-6)
    expected = np.column_stack([0.7 * eps, eps[:, 0] - 0.7, c])
    np.testing.assert_allclose(kernel.sides[1], expected, rtol=1e-5)
    kernel = Recorder()
    evaluate(MMD(kernel, given=["c"]), two_sites, x, y, eps, c)  # by position
    np.testing.assert_allclose(kernel.sides[1], expected, rtol=1e-5)


def test_given_arguments_see_what_the_marginal_hides():
    c = np.tile([1.0, -1.0], 100).astype(np.float32)
    x = c + 0.1 * points(200)

    def model(x, c):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 0.1))
            numpyro.sample("x", dist.Delta(z - c), obs=x)

    for loss in LOSSES.values():
        seen = evaluate(loss(given=["c"]), model, x, c)
        assert seen > 0.3
        assert abs(evaluate(loss(), model, x, c)) < 0.05 * seen


def test_inner_plates_are_part_of_a_datum():
    x, eps = points(4, 5, 2), points(4, 5, 2, seed=1)

    def model(x, eps):
        with numpyro.plate("rows", 4, dim=-2), numpyro.plate("columns", 5, dim=-1):
            numpyro.sample("x", dist.Delta(eps, event_dim=1), obs=x)

    kernel = Recorder()
    evaluate(MMD(kernel, given=["eps"]), model, x, eps)
    laid_out = [x.reshape(4, 10), eps.reshape(4, 10)]
    np.testing.assert_array_equal(kernel.sides[0], np.concatenate(laid_out, -1))


def test_subsampling_takes_the_arguments_along():
    x, c = points(100), np.arange(100.0, dtype=np.float32)

    def model(x, c):
        with numpyro.plate("data", len(x), subsample_size=20) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Delta(z + c[index]), obs=x[index])

    kernel = Recorder()
    evaluate(MMD(kernel, given=["c"]), model, x, c)
    data, draws = map(np.asarray, kernel.sides)
    assert data.shape == draws.shape == (20, 2)
    np.testing.assert_array_equal(data[:, 0], x[data[:, 1].astype(int)])
    assert np.abs(draws[:, 0] - draws[:, 1]).max() < 6


@pytest.mark.parametrize("name", LOSSES)
def test_masked_data_are_left_out(name):
    x, eps = points(9, 1), points(9, 1, seed=1)
    kept = np.arange(9) % 3 > 0
    masked = handlers.mask(injected, mask=kept)
    broken = np.where(kept[:, None], x, np.float32(np.nan))
    loss = LOSSES[name]()
    expected = evaluate(loss, injected, x[kept], eps[kept])
    assert evaluate(loss, masked, broken, eps) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(evaluate(loss, injected, x, eps), rel=1e-3)
    assert np.isfinite(many(loss, masked, broken, eps, count=1)).all()


def test_scales_are_weights():
    x, eps = points(5, 2), points(5, 2, seed=1)
    scale = np.array([1.0, 2.0, 4.0, 1.0, 3.0], np.float32)
    scaled = handlers.scale(injected, scale=scale)

    def mean(a, b, same):
        distances = np.linalg.norm(a[:, None] - b, axis=-1)
        pairs = np.outer(scale, scale) * (1 - same * np.eye(5))
        return (pairs * distances).sum() / pairs.sum()

    draws = 0.7 * eps
    expected = 2 * mean(x, draws, 0) - mean(x, x, 1) - mean(draws, draws, 1)
    assert evaluate(EnergyDistance(), scaled, x, eps) == pytest.approx(expected, rel=1e-5)
    line, noise, copies = x[:, :1], eps[:, :1], scale.astype(int)
    value = evaluate(SlicedWasserstein(), scaled, line, noise)
    repeated = evaluate(
        SlicedWasserstein(), injected, np.repeat(line, copies, 0), np.repeat(noise, copies, 0)
    )
    assert value == pytest.approx(repeated, rel=1e-5)
    constant = handlers.scale(injected, scale=7.0)  # the same for all
    plain = evaluate(EnergyDistance(), injected, x, eps)
    assert evaluate(EnergyDistance(), constant, x, eps) == pytest.approx(plain, rel=1e-6)


def test_particles_are_averaged():
    kernel, x = Recorder(), points(20)
    value = evaluate(MMD(kernel, num_particles=3), model, x)
    draws = [np.asarray(kernel.calls[i][1]) for i in (2, 5, 8)]
    assert len(kernel.calls) == 9
    assert not np.array_equal(draws[0], draws[1])
    singles = [metrics.mmd2(x[:, None], y, 1.0) for y in draws]
    assert value == pytest.approx(np.mean(singles), rel=1e-4, abs=1e-6)


# --- noise ---------------------------------------------------------------------------------------


def test_both_sides_get_their_own_noise():
    x = eps = np.zeros((1000, 1), np.float32)
    kernel = Recorder(lambda a, b: a @ b.T)
    evaluate(MMD(kernel, {"x": LaplaceNoise(0.5)}), injected, x, eps)
    for side in kernel.sides:
        assert float(jnp.abs(side).mean()) == pytest.approx(0.5, abs=0.08)
    assert abs(np.corrcoef(kernel.sides[0][:, 0], kernel.sides[1][:, 0])[0, 1]) < 0.15


def test_noise_may_be_annealed():
    x, eps = points(50, 2), points(50, 2, seed=1)
    loss = MMD(GaussianKernel(1.0), lambda x, eps, scale: {"x": GaussianNoise(scale)})

    def annealed(x, eps, scale):
        injected(x, eps)

    svi = SVI(annealed, guide, optax.sgd(0.0), loss)
    state = svi.init(jax.random.key(0), x, eps, 1.0)
    values = [float(jax.jit(svi.update)(state, x, eps, scale)[1]) for scale in (0.1, 1.0)]
    for value, scale in zip(values, (0.1, 1.0), strict=True):
        fixed = MMD(GaussianKernel(1.0), {"x": GaussianNoise(scale)})
        assert value == pytest.approx(evaluate(fixed, injected, x, eps), rel=1e-4, abs=1e-6)


SCALES = {"number": 0.6, "features": jnp.array([0.3, 0.9])}


@pytest.mark.parametrize("name", SCALES)
def test_closed_form_is_the_mean_over_noise(name):
    x, eps = points(25, 2) + 0.5, points(25, 2, seed=1)
    kernel, noise = GaussianKernel([0.7, 1.5]), {"x": GaussianNoise(SCALES[name])}
    closed = many(MMD(kernel, noise), injected, x, eps, count=2)
    np.testing.assert_array_equal(closed[0], closed[1])  # nothing is drawn
    values = many(MMD(lambda a, b: kernel(a, b), noise), injected, x, eps)
    assert (standard_errors(values, closed[0]) < 4).all()
    # The noise is worth noticing.
    clean = many(MMD(kernel), injected, x, eps, count=1)[0]
    assert (standard_errors(values, clean) > 10).all()


def test_closed_form_of_several_sites():
    x, y, eps = points(25, 2), 1 + points(25, seed=1), points(25, 2, seed=2)
    kernel, args = GaussianKernel(1.0), (x, y, eps, 0.5 * points(25, seed=3))
    noise = {"y": GaussianNoise(0.8), "x": GaussianNoise(jnp.array([0.1, 0.5]))}
    for some in (noise, {"x": noise["x"]}):  # the other site is compared as it is
        closed = many(MMD(kernel, some, given=["c"]), two_sites, *args, count=1)[0]
        sampled = MMD(lambda a, b: kernel(a, b), some, given=["c"])
        assert (standard_errors(many(sampled, two_sites, *args), closed) < 4).all()


def _masked(x, eps):
    with handlers.mask(mask=np.arange(len(x)) > 3):
        injected(x, eps)


FALLBACKS = {
    "laplace-noise": (GaussianKernel(1.0), LaplaceNoise(0.5), injected),
    "laplace-kernel": (LaplaceKernel(1.0), GaussianNoise(0.5), injected),
    "masked": (GaussianKernel(1.0), GaussianNoise(0.5), _masked),
    "scale-per-datum": (GaussianKernel(1.0), GaussianNoise(jnp.full((25, 1), 0.5)), injected),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith("laplace") else ())
        for name in FALLBACKS
    ],
)
def test_noise_without_closed_form_is_drawn(name):
    kernel, noise, model = FALLBACKS[name]
    x, eps = points(25, 2) + 1, points(25, 2, seed=1)
    values = many(MMD(kernel, {"x": noise}), model, x, eps)
    assert values.std(0).min() > 1e-3
    # The same keys give the same noise.
    expected = many(MMD(lambda a, b: kernel(a, b), {"x": noise}), model, x, eps)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [GaussianKernel(1.0), LaplaceKernel(1.0)])
def test_learned_noise_is_refused(kernel):
    def value(scale):
        loss = MMD(kernel, {"x": GaussianNoise(scale)})
        return loss.loss(jax.random.key(0), PARAMS, injected, guide, points(5, 1), points(5, 1))

    assert np.isfinite(jax.jit(value)(0.3))
    with pytest.raises(ValueError, match="site 'x': the noise kernel has learnable parameters"):
        jax.grad(value)(0.3)


# --- values --------------------------------------------------------------------------------------


def test_mmd_is_unbiased():
    loss = MMD(GaussianKernel([0.5, 1.0]))

    def value(w, x, eps):
        return loss.loss(jax.random.key(0), {"w": w}, injected, guide, x, eps)

    x, eps = points(2, 2000, 12, 1, seed=5)
    both = jax.jit(jax.vmap(jax.value_and_grad(value), (None, 0, 0)))
    results = np.stack(both(PARAMS["w"], x, eps / 0.7), -1)
    assert (standard_errors(results, [0.0, 0.0]) < 4).all()
    # Including the diagonal adds (2 - E k(x, x') - E k(y, y')) / n > 0.05 here.
    assert results[:, 0].std() / np.sqrt(2000) < 0.05 / 10


@pytest.mark.parametrize("block_size", [None, 3])
def test_any_function_is_a_kernel(block_size):
    def kernel(a, b):
        return jnp.exp(-jnp.square(a[:, None] - b).sum(-1) / 2)

    x, eps = points(8, 2), points(8, 2, seed=1)
    value = evaluate(MMD(kernel, block_size=block_size), injected, x, eps)
    assert value == pytest.approx(metrics.mmd2(x, 0.7 * eps, 1.0), rel=1e-4)


def test_blocks_change_nothing():
    x, eps = points(50, 2), points(50, 2, seed=1)
    for make in (lambda **o: MMD(GaussianKernel(1.0), **o), EnergyDistance):
        dense = many(make(), injected, x, eps, count=1)
        blocked = many(make(block_size=7), injected, x, eps, count=1)
        np.testing.assert_allclose(blocked, dense, rtol=1e-4)


@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_energy_distance_by_hand(beta):
    x, y, eps = points(6, 2), points(6, seed=1), points(6, 2, seed=2)
    data = np.column_stack([x, y])
    draws = np.column_stack([0.7 * eps, eps[:, 0] - 0.7])

    def mean(a, b, same):
        powers = np.linalg.norm(a[:, None] - b, axis=-1) ** beta
        return powers.sum() / (len(a) * (len(b) - same))

    expected = 2 * mean(data, draws, 0) - mean(data, data, 1) - mean(draws, draws, 1)
    value = evaluate(EnergyDistance(beta), two_sites, x, y, eps)
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_sliced_wasserstein_on_a_line_is_exact(p):
    x, eps = points(40, 1), points(40, 1, seed=1)
    value = evaluate(SlicedWasserstein(3, p=p), injected, x, eps)
    expected = (np.abs(np.sort(x, 0) - 0.7 * np.sort(eps, 0)) ** p).mean()
    assert value == pytest.approx(expected, rel=1e-5)
    if p < 3:
        reference = metrics.sliced_wasserstein(x, 0.7 * eps, 3, int(p)) ** p
        assert value == pytest.approx(reference, rel=1e-4)


def test_sliced_wasserstein_directions_are_uniform_and_fresh():
    """A pure shift by s costs (theta.s)² in direction theta: |s|²/d on average."""
    eps = points(10, 3)
    x = 0.7 * eps + np.array([0.0, 3.0, 4.0], np.float32)
    values = many(SlicedWasserstein(5), injected, x, eps)[:, 0]
    assert len(set(values)) > 390
    assert standard_errors(values, 25 / 3) < 4
