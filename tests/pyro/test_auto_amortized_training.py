# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoAmortized under SVI, and what is kept of it: params, copies, checkpoints."""

import copy
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from amortised_models import SHAPES, conjugate, hierarchy, interval_and_scale, many_supports
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO
from pyro_amortised import Array, B, host, ready

from pyro_spread import (
    KL,
    AutoAmortized,
    CheckpointError,
    JointContrastELBO,
    load_checkpoint,
    save_checkpoint,
)

RNG = np.random.default_rng(0)
X = Array(0.7)
GROUPS = Array(RNG.normal(size=5).astype("float32"))
TABLE = Array(RNG.normal(size=(2, 4, 2)).astype("float32"))


def top_level(x=None):
    """Without a function around it, so that it can be pickled."""
    theta = pyro.sample("theta", dist.Uniform(-1.0, 2.0))
    pyro.sample("x", dist.Normal(theta, 0.3), obs=x)


def train(guide, loss, steps, x, rate=1e-2):
    pyro.set_rng_seed(1)
    svi = SVI(guide.model, guide, pyro.optim.ClippedAdam({"lr": rate, "lrd": 0.995}), loss)
    for _ in range(steps):
        svi.step(x)


def is_the_posterior(guide, x, atol):
    """Whether means and standard deviations are those of :func:`conjugate`."""
    draws = guide.sample_posterior(x, sample_shape=(2000,))["z"]
    np.testing.assert_allclose(draws.mean(0), 0.8 * x, atol=atol)
    np.testing.assert_allclose(draws.std(0), np.full(len(x), np.sqrt(0.2)), atol=atol)


# --- training


def test_trace_elbo():
    x = Array(np.linspace(-1.5, 1.5, 6, dtype="float32"))
    guide = ready(conjugate(B), x, disturbed=0.0).guide
    train(guide, Trace_ELBO(num_particles=8, vectorize_particles=True), 250, x)
    is_the_posterior(guide, x, 0.12)


def test_joint_contrast_elbo():
    x = torch.linspace(-2, 2, 64)
    guide = ready(conjugate(B), x, disturbed=0.0).guide
    train(guide, JointContrastELBO(divergence=KL()), 250, x)
    is_the_posterior(guide, Array(np.linspace(-1.5, 1.5, 6, dtype="float32")), 0.12)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_compiled_it_sees_new_data():
    guide = ready(hierarchy(B), GROUPS, observed="x").guide
    values = guide.sample_posterior(GROUPS)
    guide.requires_grad_(False)  # torch takes them for constants here

    def log_prob(x):
        return guide.log_prob(values, x)

    compiled = torch.jit.trace(log_prob, GROUPS, check_trace=False)
    for x in (GROUPS, GROUPS + 0.5):
        torch.testing.assert_close(compiled(x), log_prob(x))
    guide.requires_grad_(True)
    SVI(guide.model, guide, pyro.optim.Adam({"lr": 0.1}), JitTrace_ELBO()).step(GROUPS)


def test_loss_as_a_module():
    guide = ready(hierarchy(B), GROUPS, observed="x").guide
    elbo = Trace_ELBO()(guide.model, guide)
    elbo(GROUPS).backward()
    grads = [parameter.grad for parameter in elbo.parameters()]
    assert grads
    assert all(grad is not None for grad in grads)


def test_a_subsample_of_the_data_is_that_of_the_latents():
    table = torch.arange(10.0)

    def model(x=table):
        with pyro.plate("data", 10, subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(0.0, 10.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x[index])

    guide = ready(model, observed="x").guide
    seen = []
    walk = guide.walk
    guide.walk = lambda params, values, *rest: (
        seen.append(values["x"]),
        walk(params, values, *rest),
    )
    trace = poutine.trace(guide).get_trace()
    replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace()
    index = trace.nodes["data"]["value"]
    assert index.tolist() == seen[0].tolist()
    assert replayed.nodes["x"]["value"].tolist() == index.tolist()
    assert trace.nodes["z"]["scale"] == 2.5
    pyro.clear_param_store()
    created = AutoAmortized(
        model,
        observed="x",
        init_samples=5,
        create_plates=lambda: pyro.plate("data", 10, subsample_size=3),
    )
    with pytest.raises(ValueError, match="subsample_size"):  # as in the parent's guides
        created()


def test_gradients_reach_all_params():
    # In NumPyro they are the same.
    guide = ready(hierarchy(B), GROUPS, observed="x", disturbed=0.1).guide
    sum(value.square().sum() for value in guide(GROUPS).values()).backward()
    for name, parameter in guide.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        if name != "nets.auto_group.from_latents":  # one number, which sees none before it
            assert parameter.grad.abs().sum() > 0, name


# --- particles, other data than those at the arguments


def test_vectorised_particles():
    guide = ready(many_supports(B), TABLE, observed="x", disturbed=0.05)

    def particles(*args):
        with pyro.plate("particles", 5, dim=-3):
            return guide.guide(*args)

    sites = guide.sites(TABLE, program=particles)
    values = {name: host(site["value"]) for name, site in sites.items()}
    assert {name: value.shape[0] for name, value in values.items()} == dict.fromkeys(SHAPES, 5)
    assert values["k"].shape == (5, 1, 1)
    assert values["u"].shape == (5, 1, 1, 2)
    assert values["v"].shape == (5, 1, 4)
    assert values["w"].shape == (5, 2, 1, 3)
    assert len(np.unique(values["u"])) == 10
    total = 0
    for site in sites.values():
        log_prob = site["fn"].log_prob(site["value"])
        assert log_prob.shape == site["fn"].batch_shape
        total = total + host(log_prob).reshape(5, -1).sum(1)
    alone = {name: value.reshape(5, *SHAPES[name]) for name, value in values.items()}
    np.testing.assert_allclose(guide.log_prob(alone, TABLE), total, rtol=1e-4)


@pytest.mark.parametrize("nesting", [1, 2])
def test_given_with_particles(nesting):
    guide = ready(hierarchy(B), GROUPS, observed="x")
    x = Array(RNG.normal(size=(3, 5)).astype("float32"))
    given = guide.guide.given({"x": x.reshape(3, *[1] * (nesting - 1), 5)})

    def particles():
        with pyro.plate("particles", 3, dim=-1 - nesting):
            return given()

    sites = guide.sites(program=particles)
    assert sites["mu"]["value"].shape == (3, *[1] * nesting)
    values = {name: host(site["value"]) for name, site in sites.items()}
    for row in range(3):
        own = {
            name: value[row].reshape((5,) if name == "z" else ()) for name, value in values.items()
        }
        expected = guide.log_prob(own, x[row])
        each = (host(site["fn"].log_prob(site["value"]))[row].sum() for site in sites.values())
        assert sum(each) == pytest.approx(expected, rel=1e-4)


def test_the_model_leaves_no_trace():
    def model(x=None):
        pyro.param("own", torch.tensor(1.0))
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(theta, 1.0), obs=x)

    guide = ready(model, X, observed="x").guide
    nodes = poutine.trace(guide).get_trace(X).nodes
    assert [n for n, s in nodes.items() if s["type"] == "sample"] == ["theta"]
    assert "own" not in nodes


# --- what is kept


def test_params_are_those_of_the_store():
    guide = ready(hierarchy(B), GROUPS, observed="x").guide
    before = dict(guide.named_parameters())
    names = {f"AutoAmortized.{name}" for name in before}
    assert set(pyro.get_param_store().keys()) == names
    guide(GROUPS)
    guide.sample_posterior(GROUPS)
    assert all(value is before[name] for name, value in guide.named_parameters())
    assert set(pyro.get_param_store().keys()) == names


def test_params_of_another_guide():
    first = ready(hierarchy(B), GROUPS, observed="x")
    values, other = first.draw(GROUPS), AutoAmortized(hierarchy(B), observed="x", num_components=3)
    other.data_sites(GROUPS)
    other.set_params(first.guide.params())
    expected = first.log_prob(values, GROUPS)
    data = {name: torch.as_tensor(value) for name, value in values.items()}
    pyro.clear_param_store()
    assert host(other.log_prob(data, GROUPS)) == pytest.approx(expected, rel=1e-6)


def test_copies():
    guide = ready(top_level, X, observed="x")
    values = {"theta": torch.tensor(0.4)}
    expected = host(guide.guide.log_prob(values, X))
    copies = [copy.deepcopy(guide.guide), pickle.loads(pickle.dumps(guide.guide))]
    fresh = ready(top_level, X, observed="x", disturbed=0.0).guide
    assert host(fresh.log_prob(values, X)) != pytest.approx(expected, rel=1e-3)
    pyro.clear_param_store()
    fresh.load_state_dict(guide.guide.state_dict())
    for other in (*copies, fresh, guide.guide):
        pyro.clear_param_store()
        assert other.model is top_level
        assert host(other.log_prob(values, X)) == pytest.approx(expected, rel=1e-6)
        assert other(X)["theta"].shape == ()


@pytest.mark.parametrize("density", ["mixture", "nsf"])
def test_checkpoint(tmp_path, density):
    def start():
        pyro.clear_param_store()
        pyro.set_rng_seed(len(losses))
        options = {"hidden": (8,), "init_samples": 20, "density": density}
        guide = AutoAmortized(hierarchy(B), observed="x", **options)
        return SVI(guide.model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())

    losses = []
    svi = start()
    svi.step(GROUPS)
    save_checkpoint(tmp_path, svi, step=1)
    losses = [svi.step(GROUPS) for _ in range(3)]
    buffers = dict(svi.guide.named_buffers())
    svi = start()
    load_checkpoint(tmp_path, svi, GROUPS)
    assert [svi.step(GROUPS) for _ in range(3)] == losses
    for name, value in svi.guide.named_buffers():
        assert torch.equal(value, buffers[name]), name
    for parallel in (False, True):
        drawn = Predictive(svi.guide.model, guide=svi.guide, num_samples=4, parallel=parallel)
        z = drawn(GROUPS)["z"]
        assert z.reshape(4, 5).unique().numel() == 20


def test_a_checkpoint_of_plates_that_were_told_apart_is_no_other_guides(tmp_path):
    def model(x=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("items", 2, dim=-1):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def start(exchangeable):
        pyro.clear_param_store()
        guide = AutoAmortized(model, observed="x", init_samples=20, exchangeable=exchangeable)
        return SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())

    x = torch.tensor([0.3, 0.5])
    svi = start(False)
    svi.step(x)
    save_checkpoint(tmp_path, svi, step=1)
    params = svi.guide.params()
    with pytest.raises(CheckpointError, match=r"ordered\.items"):
        load_checkpoint(tmp_path, start(True), x)
    load_checkpoint(tmp_path, start(False), x)
    other = start(True).guide
    other.data_sites(x)
    other.set_params(params)
    with pytest.raises(
        ValueError, match=r"tells apart .* plates \['items'\], but this one .* \[\]"
    ):
        other.log_prob({"mu": x[:1]}, x)


def test_plates_are_looked_at_by_the_same_runs_every_time(monkeypatch):
    looked = []

    def note(self, latents, data, masks):
        looked.append(data["x"])

    monkeypatch.setattr(AutoAmortized, "decide", note)
    for seed in (1, 2):
        pyro.set_rng_seed(seed)
        guide = AutoAmortized(hierarchy(B), observed="x", init_samples=5)
        guide.sample_posterior(GROUPS)
    assert torch.equal(looked[0], looked[-1])


def test_names_of_plates_that_no_module_may_have():
    def model(x=None):
        with pyro.plate("train", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("net.data", 2, dim=-2):
            pyro.sample("y", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)

    guide = ready(model, X, observed="x")
    assert guide.draw(X)["y"].shape == (2, 1)
    assert copy.deepcopy(guide.guide).train(False)(X)["z"].shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_of_the_data(dtype):
    def model(x=None):
        theta = pyro.sample("theta", dist.Normal(torch.zeros((), dtype=dtype), 1.0))
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(theta + k, 1.0), obs=x)

    guide = ready(model, X.to(dtype), observed="x").guide
    assert {parameter.dtype for parameter in guide.parameters()} == {dtype}
    assert {buffer.dtype for buffer in guide.buffers()} == {dtype}
    draws = guide.sample_posterior(X.to(dtype), sample_shape=(3,))
    assert (draws["theta"].dtype, draws["k"].dtype) == (dtype, torch.int64)
    assert guide.log_prob(draws, X.to(dtype)).dtype == dtype
    for x in (np.float64(0.7), np.array(0.7), 0.7):
        assert guide(x)["theta"].dtype == dtype


def test_data_that_are_far_from_zero_and_close_together(double):
    def model(x=None):
        theta = pyro.sample("theta", dist.Normal(1e9, 1e-1))
        pyro.sample("x", dist.Normal(theta, 1e-2), obs=x)

    x = torch.tensor(1e9)
    guide = ready(model, x, observed="x", init_samples=200)
    one, other = (guide.log_prob({"theta": x}, x + by) for by in (-0.2, 0.2))
    assert abs(one - other) > 1e-3


def test_interval_of_the_guide_is_that_of_the_model():
    guide = ready(interval_and_scale(B), X, observed="x").guide
    theta = poutine.trace(guide).get_trace(X).nodes["theta"]["fn"]
    assert (theta.support.lower_bound, theta.support.upper_bound) == (-1, 2)


def test_params_of_another_guide_are_refused():
    pyro.clear_param_store()
    model = interval_and_scale(B)
    loss = JointContrastELBO(divergence=KL(), num_particles=2)
    first, second, third = (
        SVI(
            model,
            AutoAmortized(model, observed="x", init_samples=50, prefix=prefix),
            pyro.optim.Adam({"lr": 1e-3}),
            loss,
        )
        for prefix in ("auto", "auto", "own")
    )
    first.step()
    with pytest.raises(ValueError, match=r"holds 'AutoAmortized.*' of another AutoAmortized"):
        second.step()
    third.step()
    first.step()
