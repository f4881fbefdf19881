# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit: shapes, where it starts, densities of the change of variables, errors."""

import math
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuideList
from pyro_many_sites import SHAPES, X, disturb, local_model, many_sites, set_up, shapes, traced
from scipy import stats

from pyro_spread import AutoImplicit, ImplicitDistribution

# name -> prior of a global latent, with the number of its unconstrained values
PRIORS = {
    "real": (lambda: dist.Normal(1.0, 2.0), 1),
    "positive": (lambda: dist.HalfCauchy(5.0), 1),
    "interval": (lambda: dist.Uniform(2.0, 5.0), 1),
    "simplex": (lambda: dist.Dirichlet(torch.ones(4)), 3),
    "corr-cholesky": (lambda: dist.LKJCholesky(3), 3),
    "vector": (lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), 2),
    "event": (lambda: dist.LogNormal(torch.zeros(2, 3), 1.0).to_event(2), 6),
    "batch": (lambda: dist.Gamma(torch.ones(3), 1.0), 3),
    "batch-and-event": (lambda: dist.Dirichlet(torch.ones(2, 3)), 4),
}
VECTORS = {
    "_auto_latent": (4,),
    "_auto_outer": (2, 1, 2),
    "_auto_inner": (6, 3),
    "_auto_outer_inner": (2, 6, 1),
}


# --- sites ---------------------------------------------------------------------------------------


def test_groups_and_shapes():
    guide = AutoImplicit(many_sites, init_samples=4)
    nodes = traced(guide).nodes
    assert guide.implicit_sites[0] == "_auto_latent"
    assert set(guide.implicit_sites) == set(VECTORS)
    for name, shape in VECTORS.items():
        assert isinstance(nodes[name]["fn"], ImplicitDistribution)
        assert tuple(nodes[name]["value"].shape) == shape
        assert nodes[name]["infer"]["is_auxiliary"]
    model_nodes = traced(many_sites).nodes
    for name, shape in SHAPES.items():
        assert tuple(nodes[name]["value"].shape) == shape
        plates, wanted = (
            {frame.name for frame in n[name]["cond_indep_stack"]} for n in (nodes, model_nodes)
        )
        assert plates == wanted
    covered = {site: nodes[site]["infer"]["_covers"] for site in VECTORS}
    assert covered == {
        "_auto_latent": ["mu", "tau"],
        "_auto_outer": ["a"],
        "_auto_inner": ["z", "w"],
        "_auto_outer_inner": ["c"],
    }


@pytest.mark.parametrize("name", PRIORS)
def test_changes_of_variables_are_those_of_auto_continuous(name):
    prior, size = PRIORS[name]

    def model():
        pyro.sample("other", dist.HalfNormal(1.0))
        pyro.sample("z", prior())

    guide = AutoImplicit(model, init_samples=4)
    guide()
    disturb(guide)
    nodes = traced(guide).nodes
    vector = nodes["_auto_latent"]["value"]
    assert vector.shape == (1 + size,)
    stock = AutoDiagonalNormal(model)
    stock()
    replayed = traced(poutine.condition(stock, {"_AutoDiagonalNormal_latent": vector})).nodes
    for site in ("other", "z"):
        fn, value = nodes[site]["fn"], nodes[site]["value"]
        torch.testing.assert_close(value, replayed[site]["value"])
        assert fn.log_density.abs().sum() > 0 or name in ("real", "vector")
        expected = replayed[site]["fn"].log_prob(value)
        torch.testing.assert_close(fn.log_prob(value), expected)
    assert prior().support.check(nodes["z"]["value"]).all()


def test_density_of_an_affine_guide_is_that_of_its_pushforward():
    guide = AutoImplicit(lambda: pyro.sample("tau", dist.HalfCauchy(5.0)), init_samples=50)
    nodes = traced(guide).nodes
    sampler = guide.samplers.auto_latent
    u, tau = nodes["_auto_latent"]["value"], nodes["tau"]["value"]
    got = dist.Normal(sampler.loc, sampler.scale).log_prob(u).sum() + nodes["tau"]["fn"].log_density
    torch.testing.assert_close(got, dist.LogNormal(sampler.loc, sampler.scale).log_prob(tau)[0])


def test_masked_guide_has_no_log_density():
    guide = AutoImplicit(lambda: pyro.sample("tau", dist.HalfCauchy(5.0)), init_samples=4)
    assert traced(poutine.mask(guide, mask=False)).nodes["tau"]["fn"].log_density == 0
    assert traced(guide).nodes["tau"]["fn"].log_density != 0


@pytest.mark.parametrize("particles", [False, True])
def test_values_of_covered_sites_go_back_to_the_vector(particles):
    guide = set_up(AutoImplicit(many_sites, init_samples=4))
    with pyro.plate("particles", 5, dim=-3) if particles else nullcontext():
        nodes = traced(guide).nodes
    for site, shape in VECTORS.items():
        if particles:
            shape = (5, *[1] * (3 - len(shape)), *shape)
        vector, infer = nodes[site]["value"], nodes[site]["infer"]
        values = {name: nodes[name]["value"] for name in infer["_covers"]}
        back = infer["_unconstrain"](values)
        assert tuple(back.shape) == tuple(vector.shape) == shape
        torch.testing.assert_close(back, vector, rtol=1e-3, atol=1e-5)


def test_batch_dimensions_without_a_plate_belong_to_the_vector():
    def model():
        with pyro.plate("data", 6, dim=-1):
            pyro.sample("b", dist.Normal(torch.zeros(2, 1), 1.0))

    nodes = traced(AutoImplicit(model, init_samples=2)).nodes
    vector, value = nodes["_auto_data"]["value"], nodes["b"]["value"]
    assert vector.shape == (6, 2)
    torch.testing.assert_close(value, vector.T)
    torch.testing.assert_close(nodes["_auto_data"]["infer"]["_unconstrain"]({"b": value}), vector)


def test_prefix_keeps_two_guides_apart():
    guide = AutoGuideList(many_sites)
    hidden = ["mu", "tau"]
    guide.append(AutoImplicit(poutine.block(many_sites, hide=hidden), init_samples=4))
    rest = poutine.block(many_sites, expose=hidden)
    guide.append(AutoImplicit(rest, init_samples=4, prefix="top"))
    nodes = traced(guide).nodes
    assert tuple(nodes["_top_latent"]["value"].shape) == (4,)
    assert shapes(guide()) == SHAPES
    assert shapes(guide.median()) == SHAPES


# --- where it starts -----------------------------------------------------------------------------


def test_starts_as_a_gaussian_with_location_and_scale_of_the_prior():
    def model():
        pyro.sample("z", dist.Normal(torch.tensor([3.0, -1.0]), 2.0).to_event(1))
        pyro.sample("tau", dist.HalfCauchy(5.0))

    guide = set_up(AutoImplicit(model, init_samples=2000))
    sampler = guide.samplers.auto_latent
    quantiles = np.log(stats.halfcauchy(scale=5.0).ppf(stats.norm.cdf([-1, 1])))
    loc, scale = [3.0, -1.0, math.log(5.0)], [2.0, 2.0, (quantiles[1] - quantiles[0]) / 2]
    # Standard errors of these quantiles are 1.25 and 1.2 scales / sqrt(n) or less.
    error = 5 * 2 * 1.25 / math.sqrt(2000)
    np.testing.assert_allclose(sampler.loc.detach(), loc, atol=error)
    np.testing.assert_allclose(sampler.scale.detach(), scale, atol=error)
    fn = traced(guide).nodes["_auto_latent"]["fn"].fn
    noise = torch.randn(7, 3 + 8)
    torch.testing.assert_close(fn(noise), sampler.loc + sampler.scale * noise[:, :3])


def test_each_datum_starts_at_its_own_prior():
    def model(x, size=None):
        with pyro.plate("data", len(x), subsample_size=size) as index:
            pyro.sample("z", dist.Normal(100 * x[index], 1.0))

    guide = set_up(AutoImplicit(model), X)
    np.testing.assert_allclose(guide.samplers.auto_data.loc[:, 0].detach(), 100 * X, atol=0.6)
    pyro.clear_param_store()
    pooled = set_up(AutoImplicit(model, init_samples=500), X, size=2)
    loc, scale = (getattr(pooled.samplers.auto_data, name).detach() for name in ("loc", "scale"))
    assert loc.shape == (6, 1)
    assert (loc == loc[0]).all()
    assert abs(loc[0]) < 30
    assert scale[0] > 30


def test_priors_without_draws_or_width_start_at_something_finite():
    def model():
        pyro.sample("flat", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
        pyro.sample("fixed", dist.Normal(1.0, 0.0, validate_args=False))
        with poutine.mask(mask=False):
            pyro.sample("ends", dist.Beta(1e-3, 1e-3))

    guide = set_up(AutoImplicit(model, init_samples=20))
    sampler = guide.samplers.auto_latent
    assert sampler.loc.isfinite().all()
    assert sampler.scale.isfinite().all()
    assert (sampler.scale > 1e-3).all()
    assert sampler.loc[2] == 1
    assert sampler.scale[2] == 1


def test_seed_repeats_the_start():
    starts = []
    for _ in range(2):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        guide = set_up(AutoImplicit(many_sites, init_samples=5))
        starts.append([p.detach().clone() for p in guide.parameters()])
    for first, second in zip(*starts, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


# --- errors --------------------------------------------------------------------------------------


def test_discrete_latents_are_refused():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("k", dist.Categorical(torch.ones(3)))
        pyro.sample("b", dist.Bernoulli(0.5))

    guide = AutoImplicit(model)
    for _ in range(2):  # the second call is no different from the first
        with pytest.raises(ValueError, match=r"\['k', 'b'\] are discrete.*poutine.block.*hide="):
            guide()
    hidden = AutoImplicit(poutine.block(model, hide=["k", "b"]), init_samples=2)
    assert set(hidden()) == {"z"}


def test_other_latents_are_refused():
    with pytest.raises(ValueError, match=r"no latent site.*empty guide"):
        AutoImplicit(lambda: None)()

    def sphere():
        pyro.sample("z", dist.ProjectedNormal(torch.ones(3)))

    with pytest.raises(ValueError, match="spherical sample site 'z'"):
        AutoImplicit(sphere)()

    def sequential():
        for i in pyro.plate("data", 2):
            pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))

    with pytest.raises(NotImplementedError, match="sequential"):
        AutoImplicit(sequential)()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_dim": -1}, "noise_dim must be an integer of at least 0, got -1"),
        ({"noise_dim": 2.0}, "noise_dim must be an integer"),
        ({"hidden": (64, 0)}, "hidden must be a sequence of layer sizes"),
        ({"hidden": 64}, "hidden must be a sequence of layer sizes, got 64"),
        ({"init_samples": 1}, "init_samples must be an integer of at least 2"),
        ({"init_samples": True}, "init_samples must be an integer"),
    ],
)
def test_sizes_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        AutoImplicit(local_model, **options)


def test_what_an_implicit_guide_cannot_do():
    guide = AutoImplicit(local_model, init_samples=2)
    with pytest.raises(RuntimeError, match="Call guide"):
        _ = guide.implicit_sites
    with pytest.raises(NotImplementedError, match=r"no density.*sample_posterior"):
        guide.get_posterior(X)
    nodes = traced(guide, X)
    with pytest.raises(NotImplementedError, match="PriorContrastELBO"):
        nodes.nodes["_auto_data"]["fn"].log_prob(nodes.nodes["_auto_data"]["value"])
