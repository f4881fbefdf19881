# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Diagnoses and reports of NumPyro runs: what they say, and that nothing is moved by them."""

import math
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO
from page_reader import read_page

from numpyro_spread import (
    KL,
    MMD,
    AdversarialDivergence,
    GaussianKernel,
    GaussianNoise,
    History,
    ImplicitDistribution,
    JointContrastELBO,
    PriorContrastELBO,
    RelativisticCritic,
    SpreadELBO,
    WassersteinCritic,
    concat_sites,
    critic_report,
    diagnose,
    finite_guard,
    report,
    two_player,
)
from spread_analysis import frechet_distance, mmd2

NUM = 60
# Everything is compiled: the whole file takes half a minute.
slow = pytest.mark.slow
NOISE = {"x": GaussianNoise(0.3)}


def no_guide(x):
    pass


def critic(*sites):
    return concat_sites(nn.Dense(1), *(sites or ("x",)))


def make(name, num_steps=3):
    """A small SVI of every kind, and its run of three steps."""
    eps = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    deterministic = name in ("spread", "gan", "wasserstein", "relativistic", "mmd")

    def model(x):
        net = flax_module("net", nn.Dense(1), input_shape=(1,))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
            fn = dist.Delta(net(z), event_dim=1)
            if not deterministic:
                fn = dist.Normal(net(z), 0.5).to_event(1)
            numpyro.sample("x", fn, obs=x)

    def gaussian(x):
        scale = numpyro.param("scale", 0.5)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(0.5 * x, scale).to_event(1))

    def implicit(x):
        encoder = flax_module("encoder", nn.Dense(1), input_shape=(3,))

        def fn(e):
            return encoder(jnp.concatenate([e, jnp.broadcast_to(x, (*e.shape[:-1], 1))], -1))

        with numpyro.plate("data", len(x)):
            numpyro.sample("z", ImplicitDistribution(fn, eps, event_shape=(1,)))

    guide, loss = {
        "spread": lambda: (gaussian, SpreadELBO(NOISE)),
        "gan": lambda: (no_guide, AdversarialDivergence(critic(), noise=NOISE)),
        "wasserstein": lambda: (no_guide, WassersteinCritic(critic())),
        "relativistic": lambda: (no_guide, RelativisticCritic(critic())),
        "mmd": lambda: (no_guide, MMD(GaussianKernel(1.0))),
        "contrast": lambda: (implicit, PriorContrastELBO({"z": critic("x", "z")})),
        "joint": lambda: (implicit, JointContrastELBO(critic("x", "z"))),
        "npe": lambda: (gaussian, JointContrastELBO(divergence=KL())),
        "stock": lambda: (gaussian, Trace_ELBO()),
    }[name]()
    optim = optax.adam(1e-2)
    if getattr(loss, "discriminator", None) is not None:
        optim = two_player(optim, optim)
    guide = loss.register(model, guide) if hasattr(loss, "register") else guide
    svi = SVI(model, guide, optim, loss)
    x = random.normal(random.key(7), (NUM, 1))
    return svi, x, svi.run(random.key(0), num_steps, x, progress_bar=False)


def copied(state):
    return jax.tree.map(
        lambda leaf: np.array(
            random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        ),
        state,
    )


def assert_same(before, after):
    jax.tree.map(np.testing.assert_array_equal, before, after)


def monitor(svi):
    found = getattr(svi.loss, "_monitor", None)
    return None if found is None else dict(vars(found))


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr("spread_analysis.report.figures._DPI", 30)


@pytest.mark.parametrize(
    "name", [pytest.param("gan", marks=slow), pytest.param("spread", marks=slow), "mmd"]
)
def test_page(name, tmp_path):
    svi, x, result = make(name)
    history = History()
    history.add(3, diagnose(svi, result, x))
    before = copied(result.state)
    found = report(
        tmp_path / "run.html",
        svi,
        result,
        x,
        history=history,
        num_samples=40,
        seed=3,
        settings={"optimiser": "adam, 0.01"},
    )
    assert_same(before, copied(result.state))
    page = read_page(found.path)
    assert page.title == f"{type(svi.loss).__name__}: training report"
    np.testing.assert_array_equal(found.losses, result.losses)
    assert page.pictures["curves"]
    assert page.pictures["samples"]
    rows = {row.name: row for row in found.metrics}
    data, samples = found.data["x"], found.samples["x"]
    assert data.shape == samples.shape == (40, 1)
    number = len(data) // 2
    assert rows["MMD²"].model == mmd2(data[:number], samples[:number])
    assert rows["Fréchet distance"].model == frechet_distance(data[:number], samples[:number])
    assert f"{rows['Fréchet distance'].model:.4g}" in page.sections["metrics"]
    for told in ("jax", "numpyro", "numpy", "adam, 0.01"):
        assert told in page.sections["settings"]
    has_critic = name == "gan"
    assert bool(page.pictures["calibration"]) == bool(page.pictures["overlap"]) == has_critic
    assert bool(page.pictures["posterior"]) == (name == "spread")
    if not has_critic:
        assert "has no critic" in page.sections["calibration"]
    if name != "spread":
        assert "draws no latent" in page.sections["posterior"]
    else:
        assert "x: GaussianNoise" in page.sections["settings"]
        assert found.latents["z"].shape[1:] == (1,)


@pytest.fixture
def quick(monkeypatch):
    """Without the page: what it would show is looked at."""
    monkeypatch.setattr("spread_analysis.report.gather.write_report", lambda found: found)


@slow
@pytest.mark.parametrize(
    "name", ["wasserstein", "relativistic", "contrast", "joint", "npe", "stock"]
)
def test_other_losses(name, tmp_path, quick):
    svi, x, result = make(name)
    jax.block_until_ready(result)
    before, seen = copied(result.state), monitor(svi)
    found = report(tmp_path / "run.html", svi, result.state, x, num_samples=40)
    numbers = diagnose(svi, result.state, x)
    assert_same(before, copied(result.state))
    assert monitor(svi) == seen
    assert found.losses is None
    assert found.data["x"].shape == (40, 1)
    assert math.isfinite(found.value)
    assert not found.warnings
    assert set(found.latents) == (set() if name in ("wasserstein", "relativistic") else {"z"})
    critics = {"contrast": ["z"], "npe": [], "stock": []}
    assert list(found.logits) == critics.get(name, [""])
    cautious = name in ("contrast", "joint")
    assert (found.words.caution == "estimate, not a bound") == cautious
    assert ("divergence" in numbers) == (name in ("wasserstein", "relativistic", "joint"))
    assert ("not what the model minimises" in found.words.label) == (name == "relativistic")
    assert [n for n in numbers if n.startswith("critic_accuracy")] == {
        "contrast": ["critic_accuracy/z"],
        "joint": ["critic_accuracy"],
    }.get(name, [])
    if name == "npe":
        assert "no critic is needed" in found.reasons["critic"]


def test_diagnosis_is_that_of_the_loss():
    svi, x, result = make("gan")
    numbers = diagnose(svi, result.params, x)
    key = random.fold_in(random.key(0), 0x5EED0006)
    logits = svi.loss.logits(key, result.params, svi.model, svi.guide, x)
    checked = critic_report(logits.data, logits.model)
    assert numbers["critic_accuracy"] == checked.accuracy
    assert numbers["critic_divergence"] == checked.divergence
    assert numbers["divergence"] == pytest.approx(float(svi.loss._value(logits)))
    gap = float(logits.data.mean() - logits.model.mean())
    assert numbers["log_ratio_gap"] == pytest.approx(gap, abs=1e-6)
    assert diagnose(svi, result.params, x) == numbers
    # A guard is looked through.
    assert diagnose(finite_guard(svi), result.params, x) == numbers


@slow
def test_the_state_draws_afresh_and_same_seed_same_samples(tmp_path, quick):
    svi, x, result = make("gan")
    state, _ = svi.update(result.state, x)
    moved = svi.optim.get_params(state.optim_state)
    kept = result.state._replace(rng_key=state.rng_key)
    assert moved.keys() == result.params.keys()
    assert diagnose(svi, kept, x) != diagnose(svi, result.state, x)
    first, again, other = (report(tmp_path / "a", svi, result, x, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.samples["x"], again.samples["x"])
    assert (first.samples["x"] != other.samples["x"]).any()


@slow
def test_global_latents_come_from_the_guide(tmp_path, quick):
    def model(x):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(w, 0.1), obs=x)

    def guide(x):
        numpyro.sample("w", dist.Normal(numpyro.param("at", 30.0), 0.1))

    svi = SVI(model, guide, optax.adam(1e-3), Trace_ELBO())
    x = jnp.zeros(10)
    found = report(tmp_path / "a", svi, svi.init(random.key(0), x), x, num_samples=50)
    assert found.samples["x"].shape == (50,)
    assert abs(found.samples["x"].mean() - 30) < 1
    assert found.latents["w"].shape == (50,)
    assert found.latents_of == "50 draws of what all data share"


@slow
def test_masked_data_are_left_out(tmp_path, quick):
    mask = jnp.arange(NUM) < 30

    def model(x):
        w = numpyro.param("w", 0.0)
        with numpyro.plate("data", len(x)), numpyro.handlers.mask(mask=mask):
            numpyro.sample("x", dist.Normal(w, 1.0), obs=x)

    svi = SVI(model, no_guide, optax.adam(1e-3), MMD(GaussianKernel(1.0)))
    x = jnp.where(mask, 0.0, 99.0)
    found = report(tmp_path / "a", svi, svi.init(random.key(0), x), x, num_samples=1000)
    assert found.data["x"].shape == (30,)
    assert found.samples["x"].max() < 20


@slow
def test_mutable_state_comes_with_the_state(tmp_path, quick):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(nn.Dense(1)(x))

    def model(x):
        net = flax_module("net", Net(), apply_rng=[], mutable=["batch_stats"], input_shape=(1, 1))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
            numpyro.sample("x", dist.Delta(net(z), event_dim=1), obs=x)

    svi = SVI(model, no_guide, optax.adam(1e-3), MMD(GaussianKernel(1.0)))
    x = jnp.zeros((NUM, 1))
    state, _ = svi.update(svi.init(random.key(0), x), x)
    before = copied(state)
    assert report(tmp_path / "a", svi, state, x, num_samples=10).samples["x"].shape == (10, 1)
    assert_same(before, copied(state))
    with pytest.raises(ValueError, match=r"no values for the params \['net\$state'\]"):
        report(tmp_path / "a", svi, svi.get_params(state), x)


def test_errors_name_the_way_out_and_leave_nothing(tmp_path):
    page = tmp_path / "run.html"
    svi, x, result = make("mmd")
    with pytest.raises(ValueError, match=r"image_shape=\(2, 2\) fits none .*{'x': 1}"):
        report(page, svi, result, x, num_samples=10, image_shape=(2, 2))
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        report(tmp_path / "no" / "run.html", svi, result, x)
    with pytest.raises(ValueError, match=r"params \['net\$params'\].* Pass the state of this SVI"):
        report(page, svi, {}, x)
    with pytest.raises(TypeError, match="svi_state must be an SVIState, what"):
        report(page, svi, x, x)
    with pytest.raises(ValueError, match=r"params \['net\$params'\]"):
        diagnose(svi, {}, x)

    def unconditioned(x):
        with numpyro.plate("data", 5):
            numpyro.sample("x", dist.Normal(numpyro.param("w", 0.0), 1.0), obs=x)

    svi = SVI(unconditioned, no_guide, optax.adam(1e-3), MMD(GaussianKernel(1.0)))
    state = svi.init(random.key(0), jnp.zeros(5))
    with pytest.raises(ValueError, match="observes nothing with these arguments"):
        report(page, svi, state, None)
    other = SVI(unconditioned, no_guide, optax.adam(1e-3), Trace_ELBO())
    other.loss = print
    with pytest.raises(ValueError, match="which is no loss object"):
        diagnose(other, state, jnp.zeros(5))
    assert not page.exists()


def test_a_loss_that_cannot_be_asked_is_told_on_the_page(tmp_path, quick):
    svi, x, result = make("mmd")
    svi.loss.block_size = -1
    found = report(tmp_path / "a", svi, result, x, num_samples=10, warnings=["seen in training"])
    assert math.isnan(found.value)
    assert found.warnings[0] == "seen in training"
    assert found.warnings[1].startswith("the loss could not be asked: ")


@slow
def test_warnings_on_the_way_are_on_the_page_and_heard(tmp_path, quick):
    def model(x):
        warnings.warn("odd model", UserWarning, stacklevel=2)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(numpyro.param("w", 0.0), 1.0), obs=x)

    svi = SVI(model, no_guide, optax.adam(1e-3), MMD(GaussianKernel(1.0)))
    with pytest.warns(UserWarning, match="odd model"):
        state = svi.init(random.key(0), jnp.zeros(5))
    with pytest.warns(UserWarning, match="odd model"):
        found = report(tmp_path / "a", svi, state, jnp.zeros(5), num_samples=10)
    assert found.warnings == ["UserWarning: odd model"]
