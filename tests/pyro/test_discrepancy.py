# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What MMD, energy distance and sliced Wasserstein compare, with which noise and value."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.gp.kernels import RBF
from pyro.infer import SVI
from pyro_discrepancy import LOSSES, guide, injected, model, points, two_sites

from pyro_spread import (
    MMD,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    LaplaceKernel,
    LaplaceNoise,
    SlicedWasserstein,
)
from spread_analysis import metrics


class Recorder:
    """A kernel that keeps what it was asked; calls come in the order (P, P), (Q, Q), (P, Q)."""

    def __init__(self, kernel=None):
        self.calls, self.kernel = [], kernel or GaussianKernel(1.0)

    def __call__(self, x, y):
        self.calls.append((x.detach(), y.detach()))
        return self.kernel(x, y)

    @property
    def sides(self):
        return self.calls[2]


def standard_errors(values, target):
    """How many standard errors the mean of ``values`` lies from ``target``."""
    values = np.asarray(values)
    return np.abs(values.mean(0) - target) / (values.std(0, ddof=1) / np.sqrt(len(values)))


def value_and_slope(loss, *args):
    """The loss and its gradient in the param w."""
    pyro.clear_param_store()
    with poutine.trace(param_only=True) as capture:
        value = loss.loss_and_grads(injected, guide, *args)
    (site,) = capture.trace.nodes.values() if len(capture.trace) == 1 else (None,)
    return value, float(site["value"].unconstrained().grad)


# --- what is compared ----------------------------------------------------------------------------


def test_sites_and_arguments_are_laid_side_by_side():
    x, y, eps, c = points(6, 3), points(6, seed=1), points(6, 3, seed=2), torch.arange(6)
    kernel = Recorder()
    MMD(kernel, given=["c"]).loss(two_sites, guide, x, y, eps, c=c)
    data, draws = kernel.sides
    torch.testing.assert_close(data, torch.cat([x, y[:, None], c[:, None].float()], -1))
    expected = torch.cat([0.7 * eps, (eps[:, 0] - 0.7)[:, None], c[:, None].float()], -1)
    torch.testing.assert_close(draws, expected)
    kernel = Recorder()
    MMD(kernel, given=["c"]).loss(two_sites, guide, x, y, eps, c)  # by position
    torch.testing.assert_close(kernel.sides[1], expected)


def test_given_arguments_see_what_the_marginal_hides():
    c = torch.tensor([1.0, -1.0]).repeat(100)
    x = c + 0.1 * points(200)

    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.1))
            pyro.sample("x", dist.Delta(z - c), obs=x)

    for loss in LOSSES.values():
        pyro.set_rng_seed(0)
        hidden = loss().loss(model, guide, x, c)
        seen = loss(given=["c"]).loss(model, guide, x, c)
        assert seen > 0.3
        assert abs(hidden) < 0.05 * seen


def test_inner_plates_are_part_of_a_datum():
    x, eps = points(4, 5, 2), points(4, 5, 2, seed=1)

    def model(x, eps):
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 5, dim=-1):
            pyro.sample("x", dist.Delta(eps, event_dim=1), obs=x)

    kernel = Recorder()
    MMD(kernel, given=["eps"]).loss(model, guide, x, eps)
    assert torch.equal(kernel.sides[0], torch.cat([x.reshape(4, 10), eps.reshape(4, 10)], -1))


def test_subsampling_takes_the_arguments_along():
    x, c = points(100), torch.arange(100.0)

    def model(x, c):
        with pyro.plate("data", len(x), subsample_size=20) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(z + c[index]), obs=x[index])

    kernel = Recorder()
    MMD(kernel, given=["c"]).loss(model, guide, x, c)
    data, draws = kernel.sides
    assert data.shape == draws.shape == (20, 2)
    assert torch.equal(data[:, 0], x[data[:, 1].long()])
    assert (draws[:, 0] - draws[:, 1]).abs().max() < 6


@pytest.mark.parametrize("name", LOSSES)
def test_masked_data_are_left_out(name):
    x, eps = points(9, 1), points(9, 1, seed=1)
    kept = torch.arange(9) % 3 > 0

    def masked(x, eps):
        with poutine.mask(mask=kept):
            injected(x, eps)

    broken = torch.where(kept[:, None], x, torch.tensor(float("nan")))
    loss = LOSSES[name]()
    expected = loss.loss(injected, guide, x[kept], eps[kept])
    assert loss.loss(masked, guide, broken, eps) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(loss.loss(injected, guide, x, eps), rel=1e-3)


def test_scales_are_weights():
    x, eps = points(5, 2), points(5, 2, seed=1)
    scale = torch.tensor([1.0, 2.0, 4.0, 1.0, 3.0])

    def scaled(x, eps):
        with poutine.scale(scale=scale):
            injected(x, eps)

    def mean(a, b, same):
        distances = np.linalg.norm(a[:, None] - b, axis=-1)
        pairs = np.outer(scale, scale) * (1 - same * np.eye(5))
        return (pairs * distances).sum() / pairs.sum()

    data, draws = x.numpy(), 0.7 * eps.numpy()
    expected = 2 * mean(data, draws, 0) - mean(data, data, 1) - mean(draws, draws, 1)
    assert EnergyDistance().loss(scaled, guide, x, eps) == pytest.approx(expected, rel=1e-5)
    copies = scale.long()
    line, noise = x[:, :1], eps[:, :1]
    value = SlicedWasserstein().loss(scaled, guide, line, noise)
    repeated = SlicedWasserstein().loss(
        injected, guide, line.repeat_interleave(copies, 0), noise.repeat_interleave(copies, 0)
    )
    assert value == pytest.approx(repeated, rel=1e-5)
    plain = EnergyDistance().loss(injected, guide, x, eps)
    with poutine.scale(scale=7.0):  # the same for all
        assert EnergyDistance().loss(injected, guide, x, eps) == pytest.approx(plain, rel=1e-6)


def test_particles_are_averaged():
    kernel = Recorder()
    x = points(20)
    loss = MMD(kernel, num_particles=3)
    value = loss.loss(model, guide, x)
    draws = [kernel.calls[i][1] for i in (2, 5, 8)]
    assert len(kernel.calls) == 9
    assert not torch.equal(draws[0], draws[1])
    singles = [metrics.mmd2(x[:, None].numpy(), y.numpy(), 1.0) for y in draws]
    assert value == pytest.approx(np.mean(singles), rel=1e-4, abs=1e-6)


# --- noise ---------------------------------------------------------------------------------------


def test_both_sides_get_their_own_noise():
    x = eps = torch.zeros(1000, 1)
    kernel = Recorder(lambda a, b: a @ b.T)
    MMD(kernel, {"x": LaplaceNoise(0.5)}).loss(injected, guide, x, eps)
    for side in kernel.sides:
        assert side.abs().mean().item() == pytest.approx(0.5, abs=0.06)
    assert abs(np.corrcoef(kernel.sides[0][:, 0], kernel.sides[1][:, 0])[0, 1]) < 0.15


@pytest.mark.parametrize("name", LOSSES)
def test_noise_may_depend_on_arguments(name):
    x = eps = points(50, 1)
    loss = LOSSES[name](noise=lambda x, eps: {"x": LaplaceNoise(float(eps.max()) * 10)})
    assert loss.loss(injected, guide, x, eps) != LOSSES[name]().loss(injected, guide, x, eps)


SCALES = {"number": 0.6, "features": torch.tensor([0.3, 0.9])}


@pytest.mark.parametrize("name", SCALES)
def test_closed_form_is_the_mean_over_noise(name):
    x, eps = points(25, 2) + 0.5, points(25, 2, seed=1)
    kernel, noise = GaussianKernel([0.7, 1.5]), {"x": GaussianNoise(SCALES[name])}
    closed = value_and_slope(MMD(kernel, noise), x, eps)
    assert closed == value_and_slope(MMD(kernel, noise), x, eps)  # nothing is drawn
    sampled = MMD(lambda a, b: kernel(a, b), noise)
    values = [value_and_slope(sampled, x, eps) for _ in range(400)]
    assert (standard_errors(values, closed) < 4).all()
    # The noise is worth noticing.
    assert (standard_errors(values, value_and_slope(MMD(kernel), x, eps)) > 10).all()


def test_closed_form_of_several_sites():
    x, y, eps = points(25, 2), 1 + points(25, seed=1), points(25, 2, seed=2)
    kernel, c = GaussianKernel(1.0), 0.5 * points(25, seed=3)
    noise = {"y": GaussianNoise(0.8), "x": GaussianNoise(torch.tensor([0.1, 0.5]))}
    args = two_sites, guide, x, y, eps, c
    closed = MMD(kernel, noise, given=["c"]).loss(*args)
    values = [MMD(lambda a, b: kernel(a, b), noise, given=["c"]).loss(*args) for _ in range(400)]
    assert standard_errors(values, closed) < 4
    partial = {"x": noise["x"]}  # the other site is compared as it is
    closed = MMD(kernel, partial).loss(*args)
    values = [MMD(lambda a, b: kernel(a, b), partial).loss(*args) for _ in range(400)]
    assert standard_errors(values, closed) < 4


def _masked(x, eps):
    with poutine.mask(mask=torch.arange(len(x)) > 3):
        injected(x, eps)


FALLBACKS = {
    "laplace-noise": (GaussianKernel(1.0), LaplaceNoise(0.5), injected),
    "laplace-kernel": (LaplaceKernel(1.0), GaussianNoise(0.5), injected),
    "masked": (GaussianKernel(1.0), GaussianNoise(0.5), _masked),
    "scale-per-datum": (GaussianKernel(1.0), GaussianNoise(torch.full((25, 1), 0.5)), injected),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_noise_without_closed_form_is_drawn(name):
    kernel, noise, model = FALLBACKS[name]
    x, eps = points(25, 2) + 1, points(25, 2, seed=1)
    values = [MMD(kernel, {"x": noise}).loss(model, guide, x, eps) for _ in range(200)]
    assert len(set(values)) == 200
    reference = MMD(lambda a, b: kernel(a, b), {"x": noise})
    expected = [reference.loss(model, guide, x, eps) for _ in range(200)]
    error = np.hypot(np.std(values), np.std(expected)) / np.sqrt(200)
    assert abs(np.mean(values) - np.mean(expected)) < 4 * error


@pytest.mark.parametrize("kernel", [GaussianKernel(1.0), LaplaceKernel(1.0)])
def test_learned_noise_is_refused(kernel):
    def noise(x, eps):
        return {"x": GaussianNoise(pyro.param("s", torch.tensor(0.3)))}

    loss = MMD(kernel, noise)
    with pytest.raises(ValueError, match="site 'x': the noise kernel has learnable parameters"):
        loss.loss_and_grads(injected, guide, points(5, 1), points(5, 1))
    assert not list(pyro.get_param_store())


# --- values --------------------------------------------------------------------------------------


def test_mmd_is_unbiased():
    kernel = GaussianKernel([0.5, 1.0])
    draw = torch.Generator().manual_seed(5)
    results = []
    for _ in range(600):
        x, eps = torch.randn(2, 12, 1, generator=draw)
        results.append(value_and_slope(MMD(kernel), x, eps / 0.7))
    assert (standard_errors(results, [0.0, 0.0]) < 4).all()
    # Including the diagonal adds (2 - E k(x, x') - E k(y, y')) / n > 0.05 here.
    assert np.std([value for value, _ in results]) / np.sqrt(600) < 0.05 / 10


def test_any_function_is_a_kernel():
    x, eps = points(8, 2), points(8, 2, seed=1)
    value = MMD(lambda a, b: torch.exp(-torch.cdist(a, b).square() / 2)).loss(
        injected, guide, x, eps
    )
    assert value == pytest.approx(metrics.mmd2(x.numpy(), 0.7 * eps.numpy(), 1.0), rel=1e-4)


@pytest.mark.parametrize("block_size", [None, 3])
def test_kernels_of_pyro_stay_as_they_are(block_size):
    """Trained with the model, the kernel's variance would go to zero and its width to infinity."""
    kernel = RBF(2, variance=torch.tensor(2.0), lengthscale=torch.tensor(1.5))
    x, eps = points(8, 2), points(8, 2, seed=1)
    loss = MMD(kernel, block_size=block_size)
    expected = 2 * metrics.mmd2(x.numpy(), 0.7 * eps.numpy(), 1.5)
    assert loss.loss(injected, guide, x, eps) == pytest.approx(expected, rel=1e-4)
    svi = SVI(injected, guide, pyro.optim.Adam({"lr": 0.1}), loss)
    for _ in range(3):
        svi.step(x, eps)
    assert kernel.variance.item() == 2.0
    assert kernel.lengthscale.item() == 1.5
    assert pyro.param("w").item() != pytest.approx(0.7)


def test_blocks_change_nothing():
    x, eps = points(50, 2), points(50, 2, seed=1)
    for make in (lambda **o: MMD(GaussianKernel(1.0), **o), EnergyDistance):
        dense = value_and_slope(make(), x, eps)
        assert value_and_slope(make(block_size=7), x, eps) == pytest.approx(dense, rel=1e-4)


@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_energy_distance_by_hand(beta):
    x, y, eps = points(6, 2), points(6, seed=1), points(6, 2, seed=2)
    data = np.column_stack([x, y])
    draws = np.column_stack([0.7 * eps, eps[:, 0] - 0.7])

    def mean(a, b, same):
        powers = np.linalg.norm(a[:, None] - b, axis=-1) ** beta
        return powers.sum() / (len(a) * (len(b) - same))

    expected = 2 * mean(data, draws, 0) - mean(data, data, 1) - mean(draws, draws, 1)
    value = EnergyDistance(beta).loss(two_sites, guide, x, y, eps)
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_sliced_wasserstein_on_a_line_is_exact(p):
    x, eps = points(40, 1), points(40, 1, seed=1)
    value = SlicedWasserstein(3, p=p).loss(injected, guide, x, eps)
    expected = (x.sort(0).values - 0.7 * eps.sort(0).values).abs().pow(p).mean().item()
    assert value == pytest.approx(expected, rel=1e-5)
    if p < 3:
        reference = metrics.sliced_wasserstein(x.numpy(), 0.7 * eps.numpy(), 3, int(p)) ** p
        assert value == pytest.approx(reference, rel=1e-4)


def test_sliced_wasserstein_directions_are_uniform_and_fresh():
    """A pure shift by s costs (theta.s)² in direction theta: |s|²/d on average."""
    eps, shift = points(10, 3), torch.tensor([0.0, 3.0, 4.0])
    x = 0.7 * eps + shift
    loss = SlicedWasserstein(5)
    values = [loss.loss(injected, guide, x, eps) for _ in range(400)]
    assert len(set(values)) == 400
    assert standard_errors(values, 25 / 3) < 4
