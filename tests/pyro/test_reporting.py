# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Diagnoses and reports of Pyro runs: what they say, and that nothing is moved by them."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from page_reader import read_page
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_spread import (
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
NOISE = {"x": GaussianNoise(0.3)}


def adam():
    return pyro.optim.Adam({"lr": 1e-2})


def no_guide(x):
    pass


def make(name):
    """A small SVI of every kind, which has made three steps."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    encoder = nn.Linear(3, 1)
    eps = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    likelihood = (
        dist.Delta if name in ("spread", "gan", "wasserstein", "relativistic", "mmd") else None
    )

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            mean = net(z.reshape(-1, 1))
            if likelihood is None:
                pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)
            else:
                pyro.sample("x", dist.Delta(mean, event_dim=1), obs=x)

    def gaussian(x):
        scale = pyro.param("scale", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, scale).to_event(1))

    def implicit(x):
        pyro.module("encoder", encoder)

        def fn(e):
            return encoder(torch.cat([e, x.expand(*e.shape[:-1], 1)], -1))

        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(fn, eps, event_shape=(1,)))

    guide, loss = {
        "spread": lambda: (gaussian, SpreadELBO(NOISE)),
        "gan": lambda: (no_guide, AdversarialDivergence(critic(1), noise=NOISE)),
        "wasserstein": lambda: (no_guide, WassersteinCritic(critic(1))),
        "relativistic": lambda: (no_guide, RelativisticCritic(critic(1))),
        "mmd": lambda: (no_guide, MMD(GaussianKernel(1.0))),
        "contrast": lambda: (implicit, PriorContrastELBO({"z": critic(2, "x", "z")})),
        "joint": lambda: (implicit, JointContrastELBO(critic(2, "x", "z"))),
        "npe": lambda: (gaussian, JointContrastELBO(divergence=KL())),
        "stock": lambda: (gaussian, Trace_ELBO()),
    }[name]()
    has_critic = getattr(loss, "discriminator", None) is not None
    optim = two_player(adam(), adam()) if has_critic else adam()
    svi = SVI(model, guide, optim, loss)
    x = torch.randn(NUM, 1)
    losses = [svi.step(x) for _ in range(3)]
    return svi, x, losses, net


def critic(size, *sites):
    return concat_sites(nn.Linear(size, 1), *(sites or ("x",)))


def state(svi, net):
    """All that a look could move."""
    store = pyro.get_param_store()
    optims = [svi.optim]
    if hasattr(svi.optim, "generator"):
        optims = [svi.optim.generator, svi.optim.discriminator]
    kept = {f"param {name}": store._params[name].detach().clone() for name in store.keys()}  # noqa: SIM118
    kept |= {f"buffer {name}": b.clone() for name, b in net.named_buffers()}
    for index, optim in enumerate(optims):
        for name, inner in optim.get_state().items():
            for key, values in inner["state"].items():
                for part, value in values.items():
                    kept[f"optim {index} {name} {key} {part}"] = torch.as_tensor(value).clone()
    kept["torch"] = torch.get_rng_state()
    kept["numpy"] = torch.tensor(np.random.get_state()[1].astype(np.int64))
    kept["training"] = torch.tensor(net.training)
    return kept


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr("spread_analysis.report.figures._DPI", 30)


@pytest.mark.parametrize("name", ["gan", "spread", "mmd"])
def test_page(name, tmp_path):
    svi, x, losses, net = make(name)
    history = History()
    history.add(3, diagnose(svi, x))
    before = state(svi, net)
    found = report(
        tmp_path / "run.html", svi, x, losses=losses, history=history, num_samples=40, seed=3
    )
    assert_same(before, state(svi, net))
    page = read_page(found.path)
    assert page.title == f"{type(svi.loss.__self__).__name__}: training report"
    assert page.pictures["curves"]
    assert page.pictures["samples"]
    rows = {row.name: row for row in found.metrics}
    data, samples = found.data["x"], found.samples["x"]
    assert data.shape == samples.shape == (40, 1)
    number = len(data) // 2
    assert rows["MMD²"].model == mmd2(data[:number], samples[:number])
    assert rows["Fréchet distance"].model == frechet_distance(data[:number], samples[:number])
    assert f"{rows['Fréchet distance'].model:.4g}" in page.sections["metrics"]
    for package in ("torch", "pyro-ppl", "numpy"):
        assert package in page.sections["settings"]
    assert "lr=0.01" in page.sections["settings"]
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


@pytest.mark.parametrize(
    "name", ["wasserstein", "relativistic", "contrast", "joint", "npe", "stock"]
)
def test_other_losses(name, tmp_path, quick):
    svi, x, _, net = make(name)
    before = state(svi, net)
    found = report(tmp_path / "run.html", svi, x, num_samples=40)
    numbers = diagnose(svi, x)
    assert_same(before, state(svi, net))
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
    svi, x, *_ = make("gan")
    loss = svi.loss.__self__
    state = torch.get_rng_state()
    numbers = diagnose(svi, x)
    torch.set_rng_state(state)
    logits = loss.logits(svi.model, svi.guide, x)
    checked = critic_report(logits.data, logits.model)
    assert numbers["critic_accuracy"] == checked.accuracy
    assert numbers["critic_divergence"] == checked.divergence
    assert numbers["divergence"] == pytest.approx(float(loss._value(logits)))
    gap = float(logits.data.mean() - logits.model.mean())
    assert numbers["log_ratio_gap"] == pytest.approx(gap, abs=1e-6)
    # A guard is looked through.
    torch.set_rng_state(state)
    assert diagnose(finite_guard(svi), x) == numbers


def test_a_run_that_is_looked_at_ends_as_one_that_is_not():
    ends = []
    for looked_at in (False, True):
        svi, x, _, net = make("gan")
        for _ in range(3):
            svi.step(x)
            if looked_at:
                diagnose(svi, x)
        ends.append(state(svi, net))
    assert_same(*ends)


def test_same_seed_same_samples(tmp_path, quick):
    svi, x, *_ = make("gan")
    torch.rand(1)
    first, again, other = (report(tmp_path / "a", svi, x, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.samples["x"], again.samples["x"])
    assert (first.samples["x"] != other.samples["x"]).any()


def test_global_latents_come_from_the_guide(tmp_path, quick):
    pyro.clear_param_store()

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 0.1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(pyro.param("at", torch.tensor(30.0)), 0.1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    x = torch.zeros(10)
    svi.step(x)
    found = report(tmp_path / "a", svi, x, num_samples=50)
    assert found.samples["x"].shape == (50,)
    assert abs(found.samples["x"].mean() - 30) < 1
    assert found.latents["w"].shape == (50,)
    assert found.latents_of == "50 draws of what all data share"


def test_masked_data_are_left_out(tmp_path, quick):
    pyro.clear_param_store()
    mask = torch.arange(NUM) < 30

    def model(x):
        w = pyro.param("w", torch.tensor(0.0))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    svi = SVI(model, no_guide, adam(), MMD(GaussianKernel(1.0)))
    x = torch.where(mask, 0.0, 99.0)
    svi.step(x)
    found = report(tmp_path / "a", svi, x, num_samples=1000)
    assert found.data["x"].shape == (30,)
    assert found.samples["x"].max() < 20


def test_errors_name_the_way_out_and_leave_nothing(tmp_path):
    page = tmp_path / "run.html"
    svi, x, _, net = make("mmd")
    before = state(svi, net)
    with pytest.raises(ValueError, match=r"image_shape=\(2, 2\) fits none .*{'x': 1}"):
        report(page, svi, x, num_samples=10, image_shape=(2, 2))
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        report(tmp_path / "no" / "run.html", svi, x)
    with pytest.raises(TypeError, match="len"):
        report(page, svi, None)
    assert_same(before, state(svi, net))

    def unconditioned(x):
        pyro.param("w", torch.tensor(0.0))
        with pyro.plate("data", 5):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    pyro.clear_param_store()
    svi = SVI(unconditioned, no_guide, adam(), MMD(GaussianKernel(1.0)))
    with pytest.raises(ValueError, match=r"params \['w'\] of model and guide. Train first"):
        diagnose(svi, torch.zeros(5))
    assert not list(pyro.get_param_store())
    svi.step(torch.zeros(5))
    with pytest.raises(ValueError, match="observes nothing with these arguments"):
        report(page, svi, None)
    with pytest.raises(ValueError, match="which is no loss object"):
        diagnose(SVI(unconditioned, no_guide, adam(), lambda *_: 0.0), torch.zeros(5))
    assert not page.exists()


def test_a_loss_that_cannot_be_asked_is_told_on_the_page(tmp_path, quick):
    svi, x, *_ = make("mmd")
    svi.loss.__self__.block_size = -1
    found = report(tmp_path / "a", svi, x, num_samples=10, warnings=["seen in training"])
    assert math.isnan(found.value)
    assert found.warnings[0] == "seen in training"
    assert found.warnings[1].startswith("the loss could not be asked: ")


def test_warnings_on_the_way_are_on_the_page_and_heard(tmp_path, quick):
    pyro.clear_param_store()

    def model(x):
        warnings.warn("odd model", UserWarning, stacklevel=2)
        w = pyro.param("w", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    svi = SVI(model, no_guide, adam(), MMD(GaussianKernel(1.0)))
    with pytest.warns(UserWarning, match="odd model"):
        svi.step(torch.zeros(5))
    with pytest.warns(UserWarning, match="odd model"):
        found = report(tmp_path / "a", svi, torch.zeros(5), num_samples=10)
    assert found.warnings == ["UserWarning: odd model"]
