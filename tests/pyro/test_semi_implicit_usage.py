# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The semi-implicit bound in use: learned scales, Predictive, modules, and what it refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro_semi_implicit import DATA, EPS, NOISE, guide, implicit, model

from pyro_spread import GaussianNoise, LowRankGaussianNoise, SemiImplicitELBO

pytestmark = pytest.mark.usefixtures("double")
MANY = {"num_particles": 20, "vectorize_particles": True}


# --- scales that are learned ---------------------------------------------------------------------


def test_a_learned_scale_moves_to_the_optimum():
    # q = N(slope x, 0.16 + sigma²), the posterior N(x / 2, 1/2): sigma² = .34.
    def noise(x):
        return {"z": GaussianNoise(pyro.param("sigma", torch.tensor(0.2), constraints.positive))}

    loss = SemiImplicitELBO(noise, 50, Trace_ELBO(**MANY))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), loss)
    for _ in range(200):
        svi.step(DATA)
    assert pyro.param("sigma").item() == pytest.approx(math.sqrt(0.34), abs=0.06)


def test_a_scale_is_trained_where_nothing_else_is():
    def noise(x):
        return {"z": GaussianNoise(pyro.param("sigma", torch.tensor(0.2), constraints.positive))}

    def fixed(x):
        with pyro.plate("data", 5):
            implicit()

    SVI(model, fixed, pyro.optim.Adam({"lr": 0.1}), SemiImplicitELBO(noise)).step(DATA)
    assert pyro.param("sigma").item() != 0.2


def test_an_amortised_scale_gets_gradients():
    net = torch.nn.Linear(1, 1).double()

    def noise(x):
        pyro.module("net", net)
        return {"z": GaussianNoise(net(x[:, None])[:, 0].exp())}

    loss = SemiImplicitELBO(noise, elbo=Trace_ELBO(**MANY))
    loss.loss_and_grads(model, guide, DATA)
    assert all(bool((p.grad != 0).all()) for p in net.parameters())


def test_the_module_holds_a_kernels_parameter():
    scale = torch.nn.Parameter(torch.tensor(0.3))
    loss = SemiImplicitELBO({"z": GaussianNoise(scale)})
    net = torch.nn.Linear(1, 1).double()

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            with pyro.plate("data", 5):
                implicit(fn=lambda e: self.net(e[..., None])[..., 0])

    class Model(torch.nn.Module):
        def forward(self, x):
            model(x)

    module = loss(Model(), Guide())
    assert any(p is scale for p in module.parameters())
    assert any(p is net.weight for p in module.parameters())
    module(DATA).backward()
    assert float(scale.grad) != 0
    assert float(net.weight.grad) != 0


def test_a_kernel_that_couples_elements():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    def guide():
        implicit(base=EPS.expand([3]).to_event(1), event_shape=(3,))

    kernel = LowRankGaussianNoise(0.3, torch.ones(3, 1))
    assert math.isfinite(SemiImplicitELBO({"z": kernel}).loss(model, guide))


def test_noise_of_the_guide_may_be_discrete_if_it_is_fixed():
    # A mixture of two points, smoothed: the gradient in the points is exact.
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)

    def guide(x):
        points = pyro.param("points", ends)
        coin = dist.Bernoulli(torch.tensor(0.5)).expand([5])
        with pyro.plate("data", 5):
            implicit(fn=lambda e: points[e.long()], base=coin)

    SemiImplicitELBO(NOISE).loss_and_grads(model, guide, DATA)
    assert bool((pyro.param("points").grad != 0).all())


# --- draws ---------------------------------------------------------------------------------------


def test_the_guide_itself_has_no_noise_and_the_spread_guide_has():
    loss = SemiImplicitELBO({"z": GaussianNoise(0.3)})

    def exact(x=DATA):
        with pyro.plate("data", 5):
            implicit(fn=lambda e: DATA + 0 * e)

    clean = Predictive(exact, num_samples=20)(DATA)["z"]
    assert torch.equal(clean, DATA.expand(20, 5))
    for parallel in (False, True):
        spread = loss.spread_guide(model, exact)
        noisy = Predictive(spread, num_samples=400, parallel=parallel)(DATA)["z"]
        residual = noisy.reshape(400, 5) - DATA
        assert float(residual.std()) == pytest.approx(0.3, rel=0.1)
        assert len(torch.unique(residual)) == 2000


def test_predictive_of_the_model_through_the_spread_guide():
    loss = SemiImplicitELBO(NOISE)
    spread = loss.spread_guide(model, guide)
    draws = Predictive(model, guide=spread, num_samples=7)(None)
    assert draws["x"].shape == (7, 5)


def test_the_spread_guide_respects_the_support():
    def model():
        pyro.sample("z", dist.HalfNormal(1.0))

    def guide():
        implicit(fn=lambda e: e.exp())

    spread = SemiImplicitELBO({"z": GaussianNoise(2.0)}).spread_guide(model, guide)
    draws = torch.stack([poutine.trace(spread).get_trace().nodes["z"]["value"] for _ in range(50)])
    assert bool((draws > 0).all())
    assert float(draws.log().std()) > 1.5  # sqrt(1 + 4) with the noise, 1 without


def test_register_returns_the_guide():
    assert SemiImplicitELBO(NOISE).register(model, guide) is guide


def test_the_look_at_the_model_leaves_the_random_state():
    loss = SemiImplicitELBO(NOISE)
    values = []

    def fresh(x):  # a model that no other test has shown
        model(x)

    for _ in range(2):
        pyro.set_rng_seed(1)
        values.append(loss.loss(fresh, guide, DATA))
    assert values[0] == values[1]
