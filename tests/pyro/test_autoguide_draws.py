# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit's draws: noise, gradients, subsampling, Predictive, quantiles, and training."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive
from pyro.infer.autoguide import AutoNormal
from pyro_many_sites import SHAPES, X, disturb, local_model, many_sites, set_up, shapes, traced
from scipy import stats
from torch import nn

from pyro_spread import AutoImplicit, PriorContrastELBO, concat_sites

# --- draws and gradients -------------------------------------------------------------------------


def test_every_draw_has_noise_of_its_own():
    guide = set_up(AutoImplicit(many_sites, init_samples=4))
    with pyro.plate("particles", 5, dim=-3):
        nodes = traced(guide).nodes
    assert tuple(nodes["mu"]["value"].shape) == (5, 1, 3)
    assert tuple(nodes["c"]["value"].shape) == (5, 2, 6)
    for name in ("mu", "c", "tau", "a"):
        assert len(nodes[name]["value"].flatten(1).unique(dim=0)) == 5
    implicit = nodes["_auto_inner"]["fn"]
    draws = implicit.sample((7,))
    assert tuple(draws.shape) == (7, 5, 1, 6, 3)
    assert len(draws.unique()) == draws.numel()


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_gradient_reaches_all_params(hidden):
    guide = set_up(AutoImplicit(many_sites, 2, hidden, init_samples=4))
    disturb(guide)
    sum(value.square().sum() for value in guide().values()).backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_noise_dim():
    def noise_size(**options):
        pyro.clear_param_store()
        guide = AutoImplicit(many_sites, init_samples=2, **options)
        fns = [traced(guide).nodes[site]["fn"] for site in ("_auto_latent", "_auto_inner")]
        return [fn.base_dist.event_shape[0] for fn in fns]

    assert noise_size() == [4 + 8, 3 + 8]
    assert noise_size(noise_dim=0) == [4, 3]
    assert noise_size(noise_dim=2) == [6, 5]


def test_subsampled_params_of_the_data():
    guide = set_up(AutoImplicit(local_model, init_samples=4), X, size=2)
    sampler = guide.samplers.auto_data
    assert sampler.loc.shape == (6, 1)
    assert sampler.embedding.shape == (6, 8)
    disturb(guide)
    nodes = traced(guide, X, size=2).nodes
    index = nodes["data"]["value"]
    assert nodes["_auto_data"]["value"].shape == (2, 1)
    nodes["z"]["value"].sum().backward()
    chosen = torch.zeros(6, dtype=torch.bool)
    chosen[index] = True
    for parameter in (sampler.loc_unconstrained, sampler.embedding_unconstrained):
        assert ((parameter.grad != 0).any(-1) == chosen).all()
    assert nodes["z"]["scale"] == 3


def test_plates_from_outside():
    def create_plates(x, size=None):
        return pyro.plate("data", len(x), subsample=torch.tensor([4, 1]))

    guide = AutoImplicit(local_model, create_plates=create_plates, init_samples=4)
    nodes = traced(guide, X, size=2).nodes
    assert nodes["z"]["value"].shape == (2,)
    guide.samplers.auto_data.loc_unconstrained.data[:] = 1000 * torch.arange(6.0)[:, None]
    np.testing.assert_allclose(guide(X, size=2)["z"].detach(), [4000, 1000], atol=10)


def test_predictive():
    guide = AutoImplicit(many_sites, init_samples=4)
    draws = Predictive(many_sites, guide=guide, num_samples=3)()
    stock = Predictive(many_sites, guide=AutoNormal(many_sites), num_samples=3)()
    assert {name: draws[name].shape for name in stock} == shapes(stock)
    assert draws["c"].shape == (3, 2, 6)
    assert len(draws["mu"].unique()) == 9


@pytest.mark.parametrize("sample_shape", [(), (5,), (2, 3)])
def test_sample_posterior(sample_shape):
    guide = AutoImplicit(many_sites, init_samples=4)
    draws = guide.sample_posterior(sample_shape=sample_shape)
    assert shapes(draws) == {name: (*sample_shape, *shape) for name, shape in SHAPES.items()}
    assert not any(value.requires_grad for value in draws.values())
    assert len(draws["mu"].unique()) == draws["mu"].numel()
    torch.testing.assert_close(draws["a"].sum(-1), torch.ones(*sample_shape, 2, 1))


def test_sample_posterior_gives_all_data_and_params_of_the_store():
    guide = set_up(AutoImplicit(local_model, init_samples=4), X, size=2)
    assert guide.sample_posterior(X, size=2, sample_shape=(3,))["z"].shape == (3, 6)
    store = pyro.get_param_store()
    state = store.get_state()
    name = "AutoImplicit.samplers.auto_data.loc"
    state["params"][name] = torch.full((6, 1), 1000.0).requires_grad_()
    store.set_state(state)
    assert (guide.sample_posterior(X)["z"] > 900).all()


def test_median_and_quantiles():
    def model():
        pyro.sample("z", dist.Normal(3.0, 2.0))
        pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        pyro.sample("p", dist.Dirichlet(torch.ones(3)))

    guide = set_up(AutoImplicit(model, init_samples=4))
    sampler = guide.samplers.auto_latent
    loc, scale = sampler.loc.detach(), sampler.scale.detach()
    probabilities = [0.1, 0.5, 0.9]
    found = guide.quantiles(probabilities)
    expected = loc[:2] + scale[:2] * torch.tensor(stats.norm.ppf(probabilities))[:, None]
    error = 5 * scale[:2].max() * 1.8 / math.sqrt(1000)
    got = torch.stack([found["z"], found["tau"].log()], -1)
    np.testing.assert_allclose(got, expected, atol=error)
    median = guide.median()
    assert shapes(median) == {"z": (), "tau": (), "p": (3,)}
    np.testing.assert_allclose(median["z"], loc[0], atol=error)
    torch.testing.assert_close(median["p"].sum(), torch.tensor(1.0))


# --- training ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trains_to_a_correlated_posterior():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("sum", dist.Normal(z.sum(), 0.5), obs=torch.tensor(3.0))

    guide = AutoImplicit(model, hidden=(16,))
    net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))
    loss = PriorContrastELBO(concat_sites(net, "_auto_latent"))
    optimiser = pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.995})
    svi = SVI(model, loss.register(model, guide), optimiser, loss)
    for _ in range(500):
        svi.step()
    draws = guide.sample_posterior(sample_shape=(20000,))["z"]
    total, difference = draws.sum(-1), draws[:, 0] - draws[:, 1]
    # Exactly N(8/3, 2/9) and N(0, 2); at the prior both have variance 2, as any Gaussian guide
    # without correlations has equal variances.
    assert float(total.mean()) == pytest.approx(8 / 3, abs=0.2)
    assert float(difference.mean()) == pytest.approx(0, abs=0.4)
    assert float(total.var()) == pytest.approx(2 / 9, abs=0.1)
    assert float(difference.var()) == pytest.approx(2.0, abs=0.6)
