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
from pyro.infer import SVI, Predictive
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuideList, AutoNormal
from scipy import stats
from torch import nn

from pyro_spread import AutoImplicit, ImplicitDistribution, PriorContrastELBO, concat_sites

X = torch.linspace(-1.0, 1.0, 6)

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


def many_sites(x=X):
    """Global, local and nested latents, scalar and vector, real and constrained."""
    pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    outer = pyro.plate("outer", 2, dim=-2)
    inner = pyro.plate("inner", 6, dim=-1)
    with outer:
        pyro.sample("a", dist.Dirichlet(torch.ones(3)))
    with inner:
        z = pyro.sample("z", dist.Normal(0.0, tau))
        pyro.sample("w", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    with outer, inner:
        pyro.sample("c", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


SHAPES = {"mu": (3,), "tau": (), "a": (2, 1, 3), "z": (6,), "w": (6, 2), "c": (2, 6)}
VECTORS = {
    "_auto_latent": (4,),
    "_auto_outer": (2, 1, 2),
    "_auto_inner": (6, 3),
    "_auto_outer_inner": (2, 6, 1),
}


def local_model(x=X, size=None):
    with pyro.plate("data", len(x), subsample_size=size) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def shapes(values):
    return {name: tuple(value.shape) for name, value in values.items()}


def traced(guide, *args, **kwargs):
    return poutine.trace(guide).get_trace(*args, **kwargs)


def set_up(guide, *args, **kwargs):
    guide(*args, **kwargs)
    return guide


def disturb(guide):
    """Params away from where the net is zero."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


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


# --- amortised -----------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 4)

    def forward(self, x, size=None):
        return self.linear(x[:, None]).tanh()


def test_encoder_is_trained_with_the_guide():
    guide = set_up(AutoImplicit(local_model, encoder=Encoder(), init_samples=2000), X)
    values = guide.sample_posterior(X, sample_shape=(4000,))["z"]
    np.testing.assert_allclose(values.mean(0), np.zeros(6), atol=0.25)
    np.testing.assert_allclose(values.std(0), np.ones(6), atol=0.2)
    disturb(guide)
    guide(X)["z"].square().sum().backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    names = set(pyro.get_param_store())
    assert "AutoImplicit.encoder$$$linear.weight" in names
    assert not any("embedding" in name for name in names)
    median = guide.median(X)["z"]
    assert median.shape == (6,)
    assert len(median.unique()) == 6


def test_amortised_plates_are_as_large_as_the_features():
    guide = set_up(AutoImplicit(local_model, encoder=Encoder(), init_samples=4), X)
    for count in (6, 3, 9):
        assert guide(torch.zeros(count))["z"].shape == (count,)
        draws = guide.sample_posterior(torch.zeros(count), sample_shape=(2,))
        assert draws["z"].shape == (2, count)


def test_features_of_all_data_are_subsampled():
    guide = set_up(AutoImplicit(local_model, encoder=Encoder(), init_samples=4), X, size=2)
    sampler = guide.samplers.auto_data
    with torch.no_grad():
        guide.encoder.linear.weight.fill_(1.0)
        guide.encoder.linear.bias.zero_()
        sampler.loc.weight.fill_(1000.0)
    nodes = traced(guide, X, size=2).nodes
    index = nodes["data"]["value"]
    expected = 4000 * X[index].tanh()
    np.testing.assert_allclose(nodes["z"]["value"].detach(), expected, atol=10)
    assert guide.sample_posterior(X)["z"].shape == (6,)


def test_batches_of_a_larger_data_set():
    def model(x):
        with pyro.plate("data", 100, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = set_up(AutoImplicit(model, encoder=Encoder(), init_samples=4), X)
    for count in (6, 5):
        nodes = traced(guide, torch.zeros(count)).nodes
        assert nodes["z"]["value"].shape == (count,)
        assert nodes["z"]["scale"] == pytest.approx(100 / count)


def test_encoder_may_be_lazy_or_a_function_or_give_features_by_plates():
    lazy = AutoImplicit(local_model, encoder=LazyEncoder(), init_samples=2)
    assert lazy(X)["z"].shape == (6,)
    pyro.clear_param_store()
    plain = AutoImplicit(local_model, encoder=lambda x: x[:, None] ** 2, init_samples=2)
    assert plain(X)["z"].shape == (6,)
    pyro.clear_param_store()
    features = {
        "outer": torch.ones(2, 1, 3),
        "inner": torch.ones(6, 2),
        "outer_inner": torch.ones(2, 6, 4),
    }
    guide = AutoImplicit(many_sites, encoder=lambda: features, init_samples=2)
    assert shapes(guide()) == SHAPES


class LazyEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(3)

    def forward(self, x):
        return self.linear(x[:, None])


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


def test_encoder_errors():
    with pytest.raises(TypeError, match=r"encoder must be a torch.nn.Module or a function.*got 3"):
        AutoImplicit(local_model, encoder=3)

    def refused(error, message, output, model=local_model):
        with pytest.raises(error, match=message):
            AutoImplicit(model, encoder=lambda *args: output, init_samples=2)(X)

    refused(TypeError, "plates 'data' it returned 'text'", "text")
    refused(TypeError, "plates 'data' it returned None", {"wrong": torch.ones(6, 1)})
    message = r"shape \(6,\) for the latents in the plates 'data', expected \(6, number of features"
    refused(ValueError, message, torch.ones(6))
    refused(ValueError, r"'outer', expected \(2, 1, .*return a dict", torch.ones(6, 1), many_sites)
    refused(ValueError, r"'data', expected \(6, number of features\)\.$", {"data": torch.ones(6)})

    def global_only(x):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    refused(ValueError, r"no latent.*in a plate: \['mu'\].*Leave encoder out", None, global_only)


def test_features_must_fit_plates_from_outside():
    guide = AutoImplicit(
        local_model,
        encoder=lambda x: torch.ones(4, 2),
        create_plates=lambda x: pyro.plate("data", 6),
        init_samples=2,
    )
    with pytest.raises(ValueError, match=r"shape \(4, 2\).*'data', expected \(6, number"):
        guide(X)


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
