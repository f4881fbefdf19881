# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""MMD, energy distance and sliced Wasserstein in unmodified SVI, and what they refuse."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive
from pyro_discrepancy import LOSSES, guide, injected, model, points, two_sites
from torch import nn

from pyro_spread import (
    MMD,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    SlicedWasserstein,
)

# --- unmodified SVI ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_svi_finds_location_and_scale(name):
    x = 2 + 0.5 * points(64)
    before = x.clone()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), LOSSES[name]())
    first = svi.evaluate_loss(x)
    for _ in range(120):
        svi.step(x)
    assert abs(pyro.param("loc").item() - x.mean().item()) < 0.15
    assert abs(pyro.param("scale").item() - x.std().item()) < 0.15
    assert svi.evaluate_loss(x) < 0.1 * first
    assert torch.equal(x, before)
    draws = Predictive(model, num_samples=50)(torch.zeros(100))["x"]
    assert draws.shape == (50, 100)
    # Observed sites of Predictive keep their value; the model's own draws need none.
    draws = Predictive(poutine.uncondition(model), num_samples=50)(torch.zeros(100))["x"]
    assert abs(draws.mean().item() - 2) < 0.15


@pytest.mark.parametrize("name", LOSSES)
def test_evaluating_trains_nothing(name):
    loss, x = LOSSES[name](), points(30)
    svi = SVI(model, loss.register(model, guide), pyro.optim.SGD({"lr": 0.1}), loss)
    assert svi.guide is guide
    svi.evaluate_loss(x)
    before = {n: p.detach().clone() for n, p in pyro.get_param_store().items()}
    svi.evaluate_loss(x)
    assert all(torch.equal(before[n], p) for n, p in pyro.get_param_store().items())
    svi.step(x)
    assert not any(torch.equal(before[n], p) for n, p in pyro.get_param_store().items())


@pytest.mark.parametrize("name", LOSSES)
def test_seeds_repeat(name):
    values = []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        values.append(LOSSES[name]().loss(model, guide, points(30)))
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("name", LOSSES)
def test_module_form(name):
    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 0.5))
                pyro.sample("x", dist.Delta(self.loc + z), obs=x)

    class Empty(pyro.nn.PyroModule):
        def forward(self, x):
            pass

    net = Model()
    module = LOSSES[name]()(net, Empty())
    assert list(module.parameters()) == [net.loc]
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    x = 1 + 0.5 * points(60)
    for _ in range(60):
        optimiser.zero_grad()
        module(x).backward()
        optimiser.step()
    assert abs(net.loc.item() - x.mean().item()) < 0.15


def test_global_latents_come_from_the_guide():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(mean + z), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Delta(pyro.param("mean_loc", torch.tensor(0.0))))

    x = 1.5 + points(60)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), EnergyDistance())
    for _ in range(100):
        svi.step(x)
    assert abs(pyro.param("mean_loc").item() - x.mean().item()) < 0.3


# --- refusals ------------------------------------------------------------------------------------

MISTAKES = [
    (lambda: MMD("rbf"), TypeError, "MMD: kernel must be callable, got 'rbf'"),
    (lambda: MMD(GaussianKernel(1.0), num_particles=0), ValueError, "num_particles must be a pos"),
    (lambda: EnergyDistance(num_particles=1.5), ValueError, "num_particles must be a positive"),
    (lambda: EnergyDistance(2.0), ValueError, "beta must lie strictly between 0 and 2, got 2.0"),
    (lambda: EnergyDistance(given="c"), TypeError, "given must be a sequence of argument names"),
    (lambda: EnergyDistance(given=[0]), TypeError, "given must be a sequence of argument names"),
    (lambda: EnergyDistance(noise=[0.3]), TypeError, "noise must be a dict"),
    (lambda: SlicedWasserstein(0), ValueError, "num_projections must be a positive integer"),
    (lambda: SlicedWasserstein(2.5), ValueError, "num_projections must be a positive integer"),
    (lambda: SlicedWasserstein(p=0.5), ValueError, "p must be a finite number of at least 1"),
    (lambda: SlicedWasserstein(p=float("inf")), ValueError, "p must be a finite number of at"),
    (lambda: SlicedWasserstein(p=float("nan")), ValueError, "p must be a finite number of at"),
]


@pytest.mark.parametrize(("mistake", "kind", "match"), MISTAKES)
def test_refused_when_made(mistake, kind, match):
    with pytest.raises(kind, match=match):
        mistake()


USES = [
    (EnergyDistance(given=["nope"]), ValueError, "'nope' is neither a site that is compared"),
    (EnergyDistance(noise={"y": GaussianNoise(1.0)}), ValueError, "noise names the site 'y'"),
    (
        MMD(GaussianKernel(1.0), {"x": GaussianNoise(torch.ones(3))}),
        ValueError,
        r"site 'x': GaussianNoise: a scale of shape \(3,\)",
    ),
    (MMD(GaussianKernel(1.0), block_size=0), ValueError, "block_size must be a positive integer"),
]


@pytest.mark.parametrize(("loss", "kind", "match"), USES)
def test_refused_when_used(loss, kind, match):
    with pytest.raises(kind, match=match):
        loss.loss_and_grads(injected, guide, points(5, 2), points(5, 2))
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize("name", LOSSES)
def test_one_datum_is_too_few(name):
    with pytest.raises(ValueError, match=r"holds 1 sample\(s\).* Use a larger batch"):
        LOSSES[name]().loss(injected, guide, points(1, 2), points(1, 2))


@pytest.mark.parametrize("name", LOSSES)
def test_arguments_must_have_the_batch_shape(name):
    with pytest.raises(ValueError, match=r"value 'c' of shape \(3,\) does not begin with"):
        LOSSES[name](given=["c"]).loss(
            two_sites, guide, points(5, 2), points(5), points(5, 2), c=torch.zeros(3)
        )
