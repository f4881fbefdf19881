# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Flows and densities of one's own under an amortised posterior, in both backends."""

import copy
import functools
import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
import pyro
import pyro.distributions
import pytest
import torch

import numpyro_spread
import pyro_spread

BACKENDS = {
    "pyro": (pyro_spread, pyro, pyro.distributions, torch.as_tensor),
    "numpyro": (numpyro_spread, numpyro, numpyro.distributions, jnp.asarray),
}
QUICK = {"progress_bar": False, "num_simulations": 600, "max_steps": 60}
SMALL = {"hidden": (16,), "init_samples": 200, "observed": "x"}


def of(name):
    spread, ppl, dist, array = BACKENDS[name]
    return SimpleNamespace(name=name, spread=spread, ppl=ppl, dist=dist, array=array)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return of(request.param)


def interval(b, low=-1.0, high=2.0):
    def model(x=None):
        z = b.ppl.sample("z", b.dist.Uniform(low, high))
        b.ppl.sample("x", b.dist.Normal(z, 0.3), obs=x)

    return model


def mixed(b):
    """A vector in an interval, a positive number and a coin, each dependent on those before it."""

    def model(x=None):
        z = b.ppl.sample("z", b.dist.Uniform(b.array([-1.0, 0.0]), b.array([1.0, 2.0])).to_event(1))
        w = b.ppl.sample("w", b.dist.LogNormal(0.0, 0.5))
        k = b.ppl.sample("k", b.dist.Bernoulli(0.3))
        b.ppl.sample("x", b.dist.Normal(z.sum(-1) + w * (1 + k), 0.1), obs=x)

    return model


class TorchNormal(torch.nn.Module):
    """Linear in the context, all a density needs to be."""

    def __init__(self, features, context):
        super().__init__()
        self.linear = torch.nn.Linear(context, 2 * features)

    def forward(self, context):
        loc, log_scale = self.linear(context).chunk(2, -1)
        return torch.distributions.Independent(torch.distributions.Normal(loc, log_scale.exp()), 1)


@jax.tree_util.register_pytree_with_keys_class
class JaxNormal:
    """The same as a pytree of arrays, without flowjax."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    def tree_flatten_with_keys(self):
        keys = map(jax.tree_util.GetAttrKey, ("weight", "bias"))
        return tuple(zip(keys, (self.weight, self.bias), strict=True)), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)

    def _normal(self, condition):
        loc, log_scale = jnp.split(condition @ self.weight + self.bias, 2, -1)
        return numpyro.distributions.Normal(loc, jnp.exp(log_scale)).to_event(1)

    def log_prob(self, x, condition):
        return self._normal(condition).log_prob(x)

    def sample(self, key, sample_shape, condition):
        return self._normal(condition).sample(key, sample_shape)


def jax_normal(key, features, context):
    weight = 0.1 * jax.random.normal(key, (context, 2 * features))
    return JaxNormal(weight, jnp.zeros(2 * features))


OWN = {"pyro": TorchNormal, "numpyro": jax_normal}


def trained(b, model, density="own", ensemble=1, **options):
    density = OWN[b.name] if density == "own" else density
    guide = b.spread.AutoAmortized(model, density=density, ensemble=ensemble, **SMALL)
    return b.spread.amortize(model, observed="x", guide=guide, **QUICK | options)


@pytest.mark.parametrize("density", ["nsf", "maf"])
def test_it_is_normalised_on_an_interval(backend, density):
    posterior = trained(backend, interval(backend), density, ensemble=2, max_steps=600)
    x = backend.array(1.8)
    grid = np.linspace(-1, 2, 6001, dtype=np.float32)[1:-1]
    density = np.exp(np.asarray(posterior.log_prob({"z": backend.array(grid)}, x)))
    assert abs(np.trapezoid(density, grid) - 1) < 5e-3
    draws = np.asarray(posterior.sample(x, num_samples=2000)["z"])
    assert -1 < draws.min() < draws.max() < 2
    assert abs(draws.mean() - np.trapezoid(density * grid, grid)) < 4 * draws.std() / 2000**0.5
    assert draws.mean() > 1.0  # the prior's is .5
    outside = posterior.log_prob({"z": backend.array([-1.5, 2.5])}, x)
    np.testing.assert_array_equal(np.asarray(outside), -np.inf)
    record = posterior.record
    assert record["held_out"] < record["first"] - 0.3


def test_ends_of_an_interval(backend):
    posterior = trained(backend, interval(backend))
    at_ends = posterior.log_prob({"z": backend.array([-1.0, 2.0])}, backend.array(0.0))
    assert np.isfinite(np.asarray(at_ends)).all()


def test_sites_of_all_kinds(backend):
    posterior = trained(backend, mixed(backend), ensemble=2)
    x = backend.array(2.0)
    draws = posterior.sample(x, num_samples=500)
    z, w, k = (np.asarray(draws[name]) for name in "zwk")
    assert z.shape == (500, 2)
    assert (z > [-1, 0]).all()
    assert (z < [1, 2]).all()
    assert (w > 0).all()
    assert set(np.unique(k)) == {0, 1}
    assert np.isfinite(np.asarray(posterior.log_prob(draws, x))).all()
    # Members differ, and each draws by itself.
    own = posterior.guide.params() if backend.name == "pyro" else posterior.params
    leaf = next(v for n, v in own["auto_global"].items() if n.startswith("z:"))
    leaf = leaf.detach() if backend.name == "pyro" else leaf
    assert leaf.shape[0] == 2
    assert not np.allclose(leaf[0], leaf[1])


def conjugate(b):
    def model(x=None):
        mean = b.ppl.sample("mean", b.dist.Normal(b.array([0.0, 0.0]), 1.0).to_event(1))
        b.ppl.sample("x", b.dist.Normal(mean.sum(-1), 0.5), obs=x)

    return model


def test_a_known_posterior(backend):
    """Of a sum: correlated latents, which a flow has to learn."""
    posterior = trained(backend, conjugate(backend), "maf", num_simulations=3000, max_steps=600)
    draws = np.asarray(posterior.sample(backend.array(1.0), num_samples=4000)["mean"])
    exact = np.eye(2) - np.ones((2, 2)) / 2.25
    np.testing.assert_allclose(draws.mean(0), [1 / 2.25] * 2, atol=0.1)
    np.testing.assert_allclose(np.cov(draws.T), exact, atol=0.1)


def plated(b, count=6):
    def model(x=None, count=count):
        mean = b.ppl.sample("mean", b.dist.Normal(0.0, 1.0))
        with b.ppl.plate("groups", count):
            z = b.ppl.sample("z", b.dist.Normal(mean, 1.0))
            b.ppl.sample("x", b.dist.Normal(z, 0.5), obs=x)

    return model


def test_plates(backend):
    posterior = trained(backend, plated(backend), max_steps=300, num_simulations=2000)
    x = np.float32([2.0, 1.0, 1.5, -1.0, 0.5, 1.0])
    draws = {n: np.asarray(v) for n, v in posterior.sample(backend.array(x)).items()}
    assert draws["z"].shape == (1000, 6)
    assert np.corrcoef(draws["z"].mean(0), x)[0, 1] > 0.95
    both = posterior.log_prob({n: backend.array(v) for n, v in draws.items()}, backend.array(x))
    assert both.shape == (1000,)


def pyro_trace(guide, x):
    trace = pyro.poutine.trace(guide).get_trace(x)
    return {n: trace.nodes[n]["value"] for n in guide.supports}, trace.log_prob_sum().detach()


def numpyro_trace(posterior, x):
    seeded = numpyro.handlers.seed(
        numpyro.handlers.substitute(posterior.guide, data=posterior.params), jax.random.key(3)
    )
    trace = numpyro.handlers.trace(seeded).get_trace(x)
    values = {n: trace[n]["value"] for n in posterior.guide.supports}
    return values, sum(trace[n]["fn"].log_prob(trace[n]["value"]).sum() for n in values)


def test_the_density_of_a_trace(backend):
    posterior, x = trained(backend, mixed(backend), ensemble=2), backend.array(2.0)
    if backend.name == "pyro":
        values, total = pyro_trace(posterior.guide, x)
    else:
        values, total = numpyro_trace(posterior, x)
    one = {name: value[None] for name, value in values.items()}
    found = posterior.log_prob(one, x)[0]
    np.testing.assert_allclose(np.asarray(found), float(total), rtol=1e-4)


def test_it_is_kept(backend, tmp_path):
    model, x = interval(backend), backend.array(0.3)
    posterior = trained(backend, model, "maf", ensemble=2)
    posterior.save(tmp_path)
    loaded = backend.spread.AmortizedPosterior.load(tmp_path, model)
    grid = {"z": backend.array(np.linspace(-0.9, 1.9, 5, dtype=np.float32))}
    np.testing.assert_array_equal(
        *(np.asarray(each.log_prob(grid, x)) for each in (posterior, loaded))
    )


def test_a_function_is_given_again(backend, tmp_path):
    model, x = interval(backend), backend.array(0.3)
    posterior = trained(backend, model)
    posterior.save(tmp_path)
    load = backend.spread.AmortizedPosterior.load
    with pytest.raises(ValueError, match=r"Pass what it was made with again: .*density=\.\.\."):
        load(tmp_path, model)
    loaded = load(tmp_path, model, density=OWN[backend.name])
    grid = {"z": backend.array(np.linspace(-0.9, 1.9, 5, dtype=np.float32))}
    np.testing.assert_array_equal(
        *(np.asarray(each.log_prob(grid, x)) for each in (posterior, loaded))
    )


def test_unknown_name(backend):
    with pytest.raises(ValueError, match="density must be 'mixture', 'nsf', 'maf' or a function"):
        backend.spread.AutoAmortized(interval(backend), density="maff")


def test_what_is_made_already(backend):
    made = {"pyro": lambda: TorchNormal(1, 2), "numpyro": lambda: Wide(3)}[backend.name]()
    with pytest.raises(ValueError, match=r"got one that is made: \w+\. Pass its class"):
        backend.spread.AutoAmortized(interval(backend), density=made)


def test_missing_library(backend, monkeypatch):
    library = {"pyro": "zuko.flows", "numpyro": "flowjax.flows"}[backend.name]
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ImportError, match=r"density='nsf' needs the extra 'flows'.*\[flows\]"):
        backend.spread.AutoAmortized(interval(backend), density="nsf")


def test_nets_of_unlike_layers():
    b = of("numpyro")
    with pytest.raises(ValueError, match=r"layers of one size, but hidden is \(16, 8\)"):
        numpyro_spread.AutoAmortized(interval(b), density="maf", hidden=(16, 8))


def wrong_densities(name):
    if name == "pyro":
        return {
            r"batch and event shapes \(\(2,\), \(2,\)\)": lambda f, c: TorchNormal(f + 1, c),
            r"it gave 3, no torch.nn.Module": lambda f, c: 3,
            "RuntimeError": lambda f, c: TorchNormal(f, c + 1),
        }
    return {
        r"shapes \(\(2,\), \(2, 3\)\)": lambda k, f, c: Wide(jnp.ones(3)),
        "AttributeError": lambda k, f, c: 3,
        "TypeError": lambda k, f, c: jax_normal(k, f, c + 1),
    }


@jax.tree_util.register_pytree_node_class
class Wide(JaxNormal):
    def __init__(self, three):
        self.three = three

    def tree_flatten(self):
        return (self.three,), None

    def log_prob(self, x, condition):
        return x.sum(-1)

    def sample(self, key, sample_shape, condition):
        return jnp.ones((*sample_shape, *condition.shape[:-1], 3))


@pytest.mark.parametrize("number", range(3))
def test_a_function_that_makes_something_else(backend, number):
    message, density = list(wrong_densities(backend.name).items())[number]
    guide = backend.spread.AutoAmortized(interval(backend), density=density, **SMALL)
    with pytest.raises(ValueError, match=message) as raised:
        backend.spread.amortize(interval(backend), observed="x", guide=guide, **QUICK)
    assert "a distribution of vectors of shape (1,) for site 'z'" in str(raised.value)


@pytest.mark.parametrize("loss", ["joint", "elbo"])
def test_under_svi_in_pyro(loss):
    b = of("pyro")
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, x = conjugate(b), torch.tensor(1.0)
    guide = pyro_spread.AutoAmortized(model, density="maf", ensemble=2, **SMALL)
    losses = {
        "joint": lambda: pyro_spread.JointContrastELBO(
            divergence=pyro_spread.KL(), num_particles=64, vectorize_particles=True
        ),
        "elbo": lambda: pyro.infer.Trace_ELBO(num_particles=64, vectorize_particles=True),
    }
    optim = pyro.optim.Adam({"lr": 5e-3})
    svi = pyro.infer.SVI(model, guide, optim, losses[loss]())
    for _ in range(150):
        svi.step(x)
    draws = guide.sample_posterior(x, sample_shape=(2000,))["mean"]
    np.testing.assert_allclose(draws.mean(0), [1 / 2.25] * 2, atol=0.2)
    assert set(guide.median(x)) == {"mean"}
    assert any(":" in name for name in pyro.get_param_store())
    copied = copy.deepcopy(guide)
    values = {"mean": draws[:5]}
    np.testing.assert_array_equal(*(each.log_prob(values, x).detach() for each in (guide, copied)))


@pytest.mark.parametrize("loss", ["joint", "elbo"])
def test_under_svi_in_numpyro(loss):
    b = of("numpyro")
    model, x = conjugate(b), jnp.asarray(1.0)
    guide = numpyro_spread.AutoAmortized(model, density=jax_normal, ensemble=2, **SMALL)
    losses = {
        "joint": lambda: numpyro_spread.JointContrastELBO(
            divergence=numpyro_spread.KL(), num_particles=64, vectorize_particles=True
        ),
        "elbo": lambda: numpyro.infer.Trace_ELBO(num_particles=64),
    }
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(1e-2), losses[loss]())
    found = svi.run(jax.random.key(0), 300, x, progress_bar=False)
    draws = guide.sample_posterior(jax.random.key(1), found.params, x, sample_shape=(2000,))
    np.testing.assert_allclose(draws["mean"].mean(0), [1 / 2.25] * 2, atol=0.2)
    assert set(guide.quantiles(found.params, [0.1, 0.9], x)) == {"mean"}


def test_a_pickled_guide_of_numpyro():
    b = of("numpyro")
    guide = numpyro_spread.AutoAmortized(interval(b), density="maf", **SMALL)
    state = guide.__getstate__()
    guide._flows["z"] = object()
    assert guide.__getstate__()["_flows"] == {} == state["_flows"]
    assert pickle.dumps(guide._build)


def test_gradients_pass_the_condition_in_numpyro():
    """In flowjax's own bridge they do not, so that a net before the flow would never train."""
    from flowjax.experimental.numpyro import distribution_to_numpyro

    from numpyro_spread.autoguide._flows import PytreeFlow, named

    flow = PytreeFlow(named("maf", (8,)), "z", 1, 2, 1)
    params = flow.initial(jax.random.key(0))
    t, context = jnp.ones((1, 4, 1)), jnp.ones((1, 4, 2))
    ours = jax.grad(lambda c: flow.log_prob(params, t, c).sum())(context)
    drawn = jax.grad(lambda c: flow.draw(params, c, jnp.zeros(4), jax.random.key(1)).sum())
    assert (jnp.abs(ours) > 0).all()
    assert (jnp.abs(drawn(context)) > 0).all()
    made = named("maf", (8,))(jax.random.key(0), 1, 2)
    bridge = jax.grad(lambda c: distribution_to_numpyro(made, c).log_prob(t[0]).sum())
    np.testing.assert_array_equal(bridge(context[0]), 0)


def test_gradients_reach_params_and_condition_in_pyro():
    """Every member's own: a flow reads its params late, when it is asked for a density."""
    from pyro_spread.autoguide._flows import ModuleFlow, named

    flow = ModuleFlow(named("nsf", (8,)), "z", 2, 3, 2, torch.empty(0))
    params = {name: leaf.requires_grad_() for name, leaf in flow.initial().items()}
    context = torch.ones((1, 4, 3), requires_grad=True)
    found = flow.log_prob(params, torch.ones((1, 4, 2)), context)
    assert not torch.allclose(found[0], found[1])
    for numbers in (found, flow.draw(params, context, torch.tensor([0.1, 0.2, 0.7, 0.9]), None)):
        gradients = torch.autograd.grad(numbers.sum(), [context, *params.values()])
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_a_partial_of_zuko():
    import zuko

    from pyro_spread.autoguide._flows import ModuleFlow

    build = functools.partial(zuko.flows.NSF, transforms=1, randperm=True)
    one, other = (ModuleFlow(build, "z", 4, 1, 1, torch.empty(0)) for _ in range(2))
    params, t = one.initial(), torch.randn(1, 3, 4)
    context = torch.zeros(1, 3, 1)
    torch.testing.assert_close(*(f.log_prob(params, t, context) for f in (one, other)))
