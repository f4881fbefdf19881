# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoAmortized under SVI, and what is kept of it: params, copies, checkpoints."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from amortised_models import conjugate, hierarchy
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro_amortised import Array, B, host, ready

from numpyro_spread import (
    KL,
    AutoAmortized,
    CheckpointError,
    JointContrastELBO,
    load_checkpoint,
    save_checkpoint,
)
from spread_core.amortized.density import Conditional

RNG = np.random.default_rng(0)
X = Array(0.7)
GROUPS = Array(RNG.normal(size=5).astype("float32"))


def top_level(x=None):
    """Without a function around it, so that it can be pickled."""
    theta = numpyro.sample("theta", dist.Uniform(-1.0, 2.0))
    numpyro.sample("x", dist.Normal(theta, 0.3), obs=x)


def train(guide, loss, steps, x, rate=1e-2):
    rates = optax.exponential_decay(rate, 1, 0.995)
    svi = SVI(guide.model, guide, optax.chain(optax.clip(10.0), optax.adam(rates)), loss)
    return svi.run(jax.random.key(1), steps, x, progress_bar=False).params


def is_the_posterior(guide, params, x, atol):
    """Whether means and standard deviations are those of :func:`conjugate`."""
    draws = guide.sample_posterior(jax.random.key(2), params, x, sample_shape=(2000,))["z"]
    np.testing.assert_allclose(draws.mean(0), 0.8 * x, atol=atol)
    np.testing.assert_allclose(draws.std(0), np.full(len(x), np.sqrt(0.2)), atol=atol)


# --- training


def test_trace_elbo():
    x = jnp.linspace(-1.5, 1.5, 6)
    guide = AutoAmortized(conjugate(B), hidden=(8,), num_components=3, init_samples=60)
    params = train(guide, Trace_ELBO(num_particles=8), 250, x)
    is_the_posterior(guide, params, x, 0.12)


def test_joint_contrast_elbo():
    x = jnp.linspace(-2, 2, 64)
    guide = AutoAmortized(conjugate(B), hidden=(8,), num_components=3, init_samples=60)
    params = train(guide, JointContrastELBO(divergence=KL()), 250, x)
    is_the_posterior(guide, params, jnp.linspace(-1.5, 1.5, 6), 0.12)


def test_a_subsample_of_the_data_is_that_of_the_latents():
    table = jnp.arange(10.0)

    def model(x=table):
        with numpyro.plate("data", 10, subsample_size=4) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 10.0))
            numpyro.sample("x", dist.Normal(z, 0.1), obs=x[index])

    guide = ready(model, observed="x")
    seen, walk = [], guide.guide.walk

    def watched(params, values, *rest):
        seen.append(values["x"])
        walk(params, values, *rest)

    guide.guide.walk = watched
    program = handlers.substitute(guide.guide, data=guide.params)
    trace = handlers.trace(handlers.seed(program, 0)).get_trace()
    replayed = handlers.trace(handlers.seed(handlers.replay(model, trace), 1)).get_trace()
    index = trace["data"]["value"]
    assert index.tolist() == seen[0].tolist()
    assert replayed["x"]["value"].tolist() == index.tolist()
    assert trace["z"]["scale"] == 2.5


def test_plates_that_the_user_creates_choose_the_data():
    table = jnp.arange(10.0)

    def model(x=table):
        with numpyro.plate("data", 10, subsample_size=4, dim=-1) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 10.0))
            numpyro.sample("x", dist.Normal(z, 0.1), obs=x[index])

    own = jnp.array([7, 0, 3, 2])

    def create_plates(x=table):
        with handlers.substitute(data={"data": own}):
            return numpyro.plate("data", 10, subsample_size=4, dim=-1)

    guide = ready(model, observed="x", create_plates=create_plates)
    seen, walk = [], guide.guide.walk

    def watched(params, values, *rest):
        seen.append(values["x"])
        walk(params, values, *rest)

    guide.guide.walk = watched
    program = handlers.substitute(guide.guide, data=guide.params)
    trace = handlers.trace(handlers.seed(program, 0)).get_trace()
    assert trace["data"]["value"].tolist() == own.tolist() == seen[0].tolist()
    assert trace["z"]["value"].shape == (4,)


def test_outside_of_jit_sites_are_compiled_once(monkeypatch):
    guide = ready(hierarchy(B), GROUPS, observed="x")
    guide.sites(GROUPS)
    calls, draw = [], Conditional.draw

    def counted(self, *rest):
        calls.append(self.variable.name)
        return draw(self, *rest)

    monkeypatch.setattr(Conditional, "draw", counted)
    first, other = guide.sites(GROUPS, seed=1), guide.sites(GROUPS, seed=2)
    fixed = guide.guide.standardisation_name
    guide.params = {
        name: own if name == fixed else jax.tree.map(lambda x: x + 0.5, own)
        for name, own in guide.params.items()
    }
    moved = guide.sites(GROUPS, seed=1)
    assert not calls
    for name, site in first.items():
        assert (site["value"] != other[name]["value"]).all()
        assert (site["value"] != moved[name]["value"]).all()


# --- other data than those at the arguments


def test_given_under_vmap():
    guide = ready(hierarchy(B), GROUPS, observed="x")
    x = Array(RNG.normal(size=(3, 5)).astype("float32"))

    def particle(key, x):
        program = handlers.substitute(guide.guide.given({"x": x}), data=guide.params)
        nodes = handlers.trace(handlers.seed(program, key)).get_trace()
        values = {name: nodes[name]["value"] for name in guide.guide.supports}
        return values, sum(nodes[n]["fn"].log_prob(value).sum() for n, value in values.items())

    values, total = jax.jit(jax.vmap(particle))(jax.random.split(jax.random.key(0), 3), x)
    for row in range(3):
        own = {name: value[row] for name, value in values.items()}
        assert total[row] == pytest.approx(guide.log_prob(own, x[row]), rel=1e-4)


def test_the_model_leaves_no_trace():
    def model(x=None):
        numpyro.param("own", jnp.array(1.0))
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(theta, 1.0), obs=x)

    guide = ready(model, X, observed="x").guide
    nodes = handlers.trace(handlers.seed(guide, 0)).get_trace(X)
    assert [n for n, s in nodes.items() if s["type"] == "sample"] == ["theta"]
    assert "own" not in nodes


# --- what is kept


def test_params_of_nobody():
    guide = AutoAmortized(hierarchy(B), observed="x", init_samples=20)
    with pytest.raises(KeyError, match="params hold none of AutoAmortized's at 'auto_"):
        guide.sample_posterior(jax.random.key(0), {}, GROUPS)


def test_params():
    guide = ready(hierarchy(B), GROUPS, observed="x")
    assert set(guide.params) == {"auto_standardisation", "auto_global", "auto_group"}


def test_copies():
    guide = ready(top_level, X, observed="x")
    values = {"theta": jnp.array(0.4)}
    expected = guide.log_prob(values, X)
    copies = [copy.deepcopy(guide.guide), pickle.loads(pickle.dumps(guide.guide))]
    for other in (*copies, guide.guide):
        found = host(other.log_prob(guide.params, values, X))
        assert found == pytest.approx(expected, rel=1e-6)
        assert handlers.seed(other, 0)(X)["theta"].shape == ()


@pytest.mark.parametrize("density", ["mixture", "maf"])
def test_checkpoint(tmp_path, density):
    def start():
        options = {"hidden": (8,), "init_samples": 20, "density": density}
        guide = AutoAmortized(top_level, observed="x", **options)
        svi = SVI(guide.model, guide, optax.adam(1e-2), Trace_ELBO())
        return svi, svi.init(jax.random.key(0), X)

    svi, state = start()
    update, before = jax.jit(svi.update), svi.get_params(state)
    state, _ = update(state, X)
    save_checkpoint(tmp_path, svi, state, step=1)
    expected = svi.get_params(update(state, X)[0])
    svi, state = start()
    state, _ = load_checkpoint(tmp_path, svi, state)
    found = svi.get_params(jax.jit(svi.update)(state, X)[0])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # Training leaves the standardisation as it is.
    jax.tree.map(
        np.testing.assert_array_equal,
        found["auto_standardisation"],
        before["auto_standardisation"],
    )
    moved = jax.tree.map(lambda a, b: (a != b).any(), found["auto_global"], before["auto_global"])
    assert any(jax.tree.leaves(moved))
    options = {"guide": svi.guide, "params": found, "return_sites": ["theta"]}
    drawn = Predictive(top_level, num_samples=6, **options)
    theta = drawn(jax.random.key(1), X)["theta"]
    assert len(np.unique(theta)) == 6
    assert ((theta > -1) & (theta < 2)).all()


def test_a_checkpoint_of_plates_that_were_told_apart_is_no_other_guides(tmp_path):
    def model(x=None):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("items", 2, dim=-1):
            numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = jnp.array([0.3, 0.5])

    def start(exchangeable):
        guide = AutoAmortized(model, observed="x", init_samples=20, exchangeable=exchangeable)
        svi = SVI(model, guide, optax.adam(1e-2), Trace_ELBO())
        return svi, svi.init(jax.random.key(0), x)

    svi, state = start(False)
    save_checkpoint(tmp_path, svi, state, step=1)
    params = svi.get_params(state)
    svi, state = start(True)
    with pytest.raises(CheckpointError, match=r"ordered.*items"):
        load_checkpoint(tmp_path, svi, state)
    load_checkpoint(tmp_path, *start(False))
    with pytest.raises(
        ValueError, match=r"tells apart .* plates \['items'\], but this one .* \[\]"
    ):
        svi.guide.log_prob(params, {"mu": x[:1]}, x)


@jax.enable_x64(True)
def test_type_of_the_data():
    x = jnp.array(0.7)

    def model(x=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        k = numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
        numpyro.sample("x", dist.Normal(theta + k, 1.0), obs=x)

    guide = ready(model, x, observed="x")
    drawn = guide.draw(x)
    assert drawn["theta"].dtype == guide.log_prob(drawn, x).dtype == jnp.float64
    assert np.issubdtype(drawn["k"].dtype, np.integer)


@jax.enable_x64(True)
def test_data_that_are_far_from_zero_and_close_together():
    def model(x=None):
        theta = numpyro.sample("theta", dist.Normal(1e9, 1e-1))
        numpyro.sample("x", dist.Normal(theta, 1e-2), obs=x)

    x = jnp.array(1e9)
    guide = ready(model, x, observed="x", init_samples=200)
    one, other = (guide.log_prob({"theta": x}, x + by) for by in (-0.2, 0.2))
    assert abs(one - other) > 1e-3
