# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What critics see in Pyro: both sides, through plates, masks, weights, noise and latents."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta
from pyro_adversarial import Recorder, X, guide, model, steps
from torch import nn

from pyro_spread import (
    R1,
    AdversarialDivergence,
    GaussianNoise,
    GradientPenalty,
    concat_sites,
)

# --- what the critic sees


def test_without_noise_the_data_are_seen_as_they_are():
    x = X.clone()
    critic, _ = steps(model, x, count=2)
    assert torch.equal(x, X)
    assert torch.equal(critic.data[0]["x"], X)
    assert torch.equal(critic.data[1]["x"], X)
    assert not torch.equal(critic.draws[0]["x"], critic.draws[1]["x"])


@pytest.mark.parametrize("by_call", [False, True])
def test_both_sides_are_spread_afresh(by_call):
    def still(x):
        pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Delta(torch.zeros(1000, 2), event_dim=1), obs=x)

    called = []

    def anneal(x):
        called.append(len(x))
        return {"x": GaussianNoise(0.1 * len(called))}

    x = torch.ones(1000, 2)
    critic = Recorder()
    noise = anneal if by_call else {"x": GaussianNoise(0.1)}
    loss = AdversarialDivergence(critic, noise=noise)
    for _ in range(2):
        loss.loss(still, guide, x)
    noises = [seen["x"] - 1 for seen in critic.data] + [seen["x"] for seen in critic.draws]
    scales = [0.1, 0.2, 0.1, 0.2] if by_call else [0.1] * 4
    for one, scale in zip(noises, scales, strict=True):
        assert one.std().item() == pytest.approx(scale, rel=0.1)
    for i, one in enumerate(noises):
        for other in noises[:i]:
            assert not torch.allclose(one / one.std(), other / other.std(), atol=1e-3)
    assert called == ([1000, 1000] if by_call else [])
    assert torch.equal(x, torch.ones(1000, 2))


def test_arguments_reach_the_critic():
    def conditional(x, label, *, temperature):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w * label, temperature), obs=x)

    critic = Recorder()
    loss = AdversarialDivergence(critic)
    x, label = torch.randn(6), torch.arange(6.0)
    loss.loss(conditional, guide, x, label, temperature=0.5)
    for _, args, kwargs, arguments in critic.seen:
        assert args[0] is x
        assert args[1] is label
        assert kwargs == {"temperature": 0.5}
        assert arguments["label"] is label
        assert arguments["temperature"] == 0.5


def test_several_sites_and_nested_plates():
    def nested(x, y):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", 6, dim=-1):
            pyro.sample("y", dist.Normal(w, 1.0), obs=y)
            with pyro.plate("time", 4, dim=-2):
                pyro.sample("x", dist.Normal(w * torch.ones(3), 1.0).to_event(1), obs=x)

    x, y = torch.randn(4, 6, 3), torch.randn(6)
    critic, _ = steps(nested, x, y)
    for values in (critic.data[0], critic.draws[0]):
        assert values["x"].shape == (6, 4, 3)  # what is shared comes first
        assert values["y"].shape == (6,)
    assert torch.equal(critic.data[0]["x"], x.movedim(0, 1))


def test_sites_without_a_plate_are_one_datum():
    def series(x):
        w = pyro.param("w", torch.tensor(0.5))
        for i in range(3):
            pyro.sample(f"x{i}", dist.Normal(w, 1.0), obs=x[i])

    for regularizer in (None, R1(1.0), GradientPenalty(1.0)):
        pyro.clear_param_store()
        critic, values = steps(series, torch.randn(3), regularizer=regularizer)
        assert critic.data[0]["x0"].shape == ()
        assert 0 <= values[0] <= math.log(2)


@pytest.mark.parametrize("update", ["one_pass", "two_pass"])
@pytest.mark.parametrize("regularizer", [None, R1(1.0), GradientPenalty(1.0)])
def test_a_critic_may_ignore_a_site(update, regularizer):
    def two(x, y):
        w = pyro.param("w", torch.tensor(0.5))
        v = pyro.param("v", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)
            pyro.sample("y", dist.Normal(v, 1.0), obs=y)

    critic = concat_sites(nn.Linear(1, 1), "x")
    options = {"update": update, "regularizer": regularizer}
    steps(two, torch.randn(6), torch.randn(6), critic=critic, **options)
    assert pyro.param("w").item() != 0.5
    assert pyro.param("v").item() == 0.5


def test_subsampling_plates_take_the_rows_of_arguments_too():
    def subsampled(x, label, size):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", len(x), subsample_size=size) as rows:
            pyro.sample("x", dist.Normal(w * label[rows], 1.0), obs=x[rows])

    x = torch.arange(50.0)
    critic = Recorder()
    loss = AdversarialDivergence(critic)
    loss.loss(subsampled, guide, x, 10 * x, 8)
    for values, _, _, arguments in critic.seen:
        assert torch.equal(arguments["label"], 10 * arguments["x"])
        assert len(values["x"]) == 8
    assert torch.equal(critic.seen[0][0]["x"], critic.seen[0][3]["x"])
    joint = concat_sites(nn.Linear(2, 1), "x", "label")
    assert math.isfinite(
        AdversarialDivergence(joint, name="joint").loss(subsampled, guide, x, 10 * x, 8)
    )


def test_the_scale_of_a_plate_cancels():
    def scaled(x, size):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", size, subsample=torch.arange(6)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    found = []
    for size in (6, 600):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        critic, values = steps(scaled, X[:, 0], size)
        found.append((values[0], pyro.param("w").item(), critic.weight.item()))
    assert found[0] == found[1]


def test_weights_of_the_data_count():
    def weighted(x, scale):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", len(x)), poutine.scale(scale=scale):
            pyro.sample("x", dist.Delta(w + torch.arange(float(len(x)))), obs=x)

    x = torch.tensor([3.0, -1.0])
    steps(weighted, x, torch.tensor([3.0, 1.0]))
    one = pyro.param("w").item(), pyro.param("discriminator$$$weight").item()
    pyro.clear_param_store()

    def repeated(x):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Delta(w + torch.tensor([0.0, 0.0, 0.0, 1.0])), obs=x)

    steps(repeated, x[[0, 0, 0, 1]])
    other = pyro.param("w").item(), pyro.param("discriminator$$$weight").item()
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("noise", [None, {"x": GaussianNoise(0.1)}])
def test_masked_elements_are_hidden_and_may_be_nan(noise):
    def masked(x, mask):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w * torch.ones(2), 1.0).mask(mask).to_event(1), obs=x)

    x, mask = X.clone(), torch.ones(6, 2, dtype=torch.bool)
    mask[0], mask[1, 0] = False, False
    x[~mask] = math.nan
    critic, values = steps(masked, x, mask, noise=noise)
    for side in (critic.data[0]["x"], critic.draws[0]["x"]):
        assert (side[~mask] == 0).all()
        assert (side[mask] != 0).all()
    assert math.isfinite(values[0])
    assert math.isfinite(pyro.param("w").item())
    # A datum of which nothing is left does not count.
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    x[0] = 1e6
    critic, _ = steps(masked, x, mask, noise=noise)
    outlier = critic.weight.item()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    x[0] = -3.0
    assert steps(masked, x, mask, noise=noise)[0].weight.item() == outlier


def test_a_site_may_be_masked_by_a_handler_altogether():
    def half(x):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=False):
                pyro.sample("hidden", dist.Normal(w, 1.0), obs=x * math.nan)
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    critic, _ = steps(half, X[:, 0])
    assert not critic.data[0]["hidden"].any()
    assert not critic.draws[0]["hidden"].any()


def test_unequal_numbers_of_data_and_draws():
    def larger(x):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("draws", 40):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    critic, values = steps(larger, X[:, 0], regularizer=R1(1.0))
    assert len(critic.data[0]["x"]) == 6
    assert len(critic.draws[0]["x"]) == 40
    assert 0 <= values[0] <= math.log(2)


# --- latents


def test_global_latents_come_from_the_guide():
    def hierarchical(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.01))
            pyro.sample("x", dist.Delta(m + z), obs=x)

    point = AutoDelta(
        poutine.block(hierarchical, hide=["z", "x"]), init_loc_fn=lambda site: torch.tensor(7.0)
    )
    critic, _ = steps(hierarchical, X[:, 0], guide=point)
    assert critic.draws[0]["x"].mean().item() == pytest.approx(7.0, abs=0.1)
    assert pyro.param("AutoDelta.m").item() != 7.0


def test_discrete_latents_with_fixed_params_are_allowed():
    def mixture(x):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(w * c, 1.0), obs=x)

    steps(mixture, X[:, 0])
    assert pyro.param("w").item() != 0.5
