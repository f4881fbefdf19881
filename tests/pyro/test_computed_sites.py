# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What a reparametriser leaves at a latent's site looks observed, and is no data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from every import COMPARES, LOSSES
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro_every import AS_IT_IS, eager_and_compiled

import pyro_spread
from pyro_spread import (
    KL,
    EnergyDistance,
    JointContrastELBO,
    concat_sites,
    importance_weighted_bound,
    simulation_based_calibration,
)
from pyro_spread.ratio import MLPCritic

N = 12
X = torch.linspace(-1.0, 2.0, N)


@pytest.fixture(autouse=True)
def seeded():
    pyro.clear_param_store()


def no_guide(x):
    pass


def centred(x):
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(loc, 2.0))
        pyro.sample("x", dist.Delta(z), obs=x)


def decentred(x):
    loc = pyro.param("loc", torch.tensor(0.5))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Delta(loc + 2.0 * z), obs=x)


def logarithmic(x):
    with pyro.plate("data", N):
        base = dist.Normal(pyro.param("loc", torch.tensor(0.5)), 2.0)
        z = pyro.sample("z", dist.TransformedDistribution(base, dist.transforms.ExpTransform()))
        pyro.sample("x", dist.Delta(z.log()), obs=x)


def evaluate(name, model, how=AS_IT_IS):
    pyro.clear_param_store()
    torch.manual_seed(0)
    loss = LOSSES[name].make(
        pyro_spread, lambda *sites: concat_sites(MLPCritic([4], input_dim=1), *sites)
    )
    loss = how.made(loss)
    for _ in range(1 + how.before):
        for _, param in pyro.get_param_store().named_parameters():
            param.grad = None
        pyro.set_rng_seed(1)
        value = loss.loss_and_grads(model, no_guide, X)
    return value, pyro.get_param_store()._params["loc"].grad.clone()


@eager_and_compiled(COMPARES, kind=["transform", "loc-scale"])
def test_reparametrised_latents_are_no_data(name, how, kind):
    reparam = {"loc-scale": LocScaleReparam(0.0), "transform": TransformReparam()}[kind]
    model = {"loc-scale": centred, "transform": logarithmic}[kind]
    value, grad = evaluate(name, poutine.reparam(model, {"z": reparam}), how)
    expected, expected_grad = evaluate(name, decentred)
    assert value == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("divergence", [None, KL()])
def test_pairs_of_reparametrised_latents(divergence):
    def model(x):
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", N):
            loc = pyro.param("loc", torch.tensor(0.5))
            pyro.sample("z_decentered", dist.Normal(loc * x, 1.0))

    def contrast():
        critic = concat_sites(MLPCritic([4], input_dim=2), "z_decentered", "x")
        options = {} if divergence is None else {"divergence": divergence}
        return JointContrastELBO(critic, **options)

    model = poutine.reparam(model, {"z": LocScaleReparam(0.0)})
    torch.manual_seed(0)
    loss = contrast()
    assert torch.isfinite(torch.tensor(loss.loss_and_grads(model, guide, X)))
    assert pyro.get_param_store()._params["loc"].grad.abs() > 0


def conjugate(x):
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def posterior(x):
    with pyro.plate("data", N):
        pyro.sample("z_decentered", dist.Normal(x / 2, 0.5**0.5))


def test_calibration_of_reparametrised_latents():
    model = poutine.reparam(conjugate, {"z": LocScaleReparam(0.0)})
    ranks = simulation_based_calibration(model, posterior, X, num_simulations=24, num_draws=5)
    assert set(ranks.ranks) == {"z_decentered"}


def test_evidence_of_reparametrised_latents():
    model = poutine.reparam(conjugate, {"z": LocScaleReparam(0.0)})
    found = importance_weighted_bound(model, posterior, X, num_samples=2)
    expected = dist.Normal(0.0, 2**0.5).log_prob(X).double().numpy()
    assert found.values == pytest.approx(expected, rel=1e-4)

    def unobserved(x):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    model = poutine.reparam(unobserved, {"z": LocScaleReparam(0.0)})
    with pytest.raises(ValueError, match="observe"):
        importance_weighted_bound(model, no_guide, X, num_samples=2)


def test_a_masked_point_elsewhere_is_data_still():
    def model(x):
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))
            pyro.sample("x", dist.Delta(z).mask(False), obs=x)

    with pytest.raises(ValueError, match="mask"):
        EnergyDistance().loss(model, no_guide, X)


def test_a_param_that_begins_at_the_data_is_no_data():
    def model(x):
        with pyro.plate("data", N):
            scale = pyro.param("loc", torch.tensor(0.5))
            pyro.sample("x", dist.Normal(0.0, scale), obs=pyro.param("shown", x))

    with pytest.raises(ValueError, match="site 'x': what it observes depends on params"):
        EnergyDistance().loss(model, no_guide, X.clone())
