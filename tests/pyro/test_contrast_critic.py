# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The critic of PriorContrastELBO in Pyro: what it sees and learns, and what it cannot leak."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro_contrast import (
    VALUES,
    Known,
    Recorder,
    Told,
    affine,
    assert_equal,
    data,
    guide,
    log_ratio,
    model,
    normal,
    param,
    silent,
    total,
    value_and_grads,
)
from torch import nn
from torch.nn.functional import softplus

from pyro_spread import R1, GaussianNoise, ImplicitDistribution, PriorContrastELBO

pytestmark = pytest.mark.usefixtures("double")

# --- several sites: p(y | z) p(z), both implicit in the guide


def joint_model(x):
    mu = param("mu")
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        y = pyro.sample("y", dist.Normal(z, 0.7))
        pyro.sample("x", dist.Normal(y + z, 0.5), obs=x)


def joint_guide(x, twin=False, order=("z", "y")):
    m, s = param("m"), param("s")
    base, at, wide = dist.Normal(torch.zeros(()), 1.0), m.detach(), s.detach()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", affine(m * x, s, twin))
        if not twin:
            return pyro.sample("y", ImplicitDistribution(lambda e: m * z + s * e, base, ()))
        # What z does to the density of y is part of the path: only params are fixed.
        known = Known(lambda e: m * z + s * e, base, (), lambda y: normal(y, at * z, wide))
        return pyro.sample("y", known)


def ratio_of_z(values, x):
    return log_ratio(values, x)


def ratio_of_y(values, x):
    z, y = values.arguments["z"], values["y"]
    return normal(y, VALUES["m"] * z, VALUES["s"]) - normal(y, z, 0.7)


def ratio_of_both(values, x):
    z, y = values["z"], values["y"]
    assert not {"z", "y"} & set(values.arguments)
    return log_ratio(values, x) + normal(y, VALUES["m"] * z, VALUES["s"]) - normal(y, z, 0.7)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("vectorize", [True, False])
def test_a_hierarchical_prior_equals_the_twin(joint, vectorize):
    critics = {"z": Told(ratio_of_z), "y": Told(ratio_of_y)}
    options = {"num_particles": 2, "vectorize_particles": vectorize}
    critic = Told(ratio_of_both) if joint else critics
    loss = PriorContrastELBO(critic, adaptive=False, **options)
    ours = value_and_grads(loss, joint_model, joint_guide, data())
    twin = functools.partial(joint_guide, twin=True)
    stock = value_and_grads(Trace_ELBO(**options), joint_model, twin, data())
    assert_equal(ours, stock)


def test_contrast_draws_of_a_joint_critic_are_ancestral():
    critic = Recorder()
    loss = PriorContrastELBO(critic, adaptive=False)
    loss.logits(joint_model, joint_guide, 5 + torch.zeros(20_000))
    _, guide_side, contrast_side = (values for values, _, _ in critic.seen)
    z, y = contrast_side["z"], contrast_side["y"]
    found = torch.stack([z.mean(), z.std(), (y - z).mean(), (y - z).std()])
    torch.testing.assert_close(found, torch.tensor([0.3, 1.0, 0.0, 0.7]), atol=0.03, rtol=0)
    assert abs(torch.corrcoef(torch.stack([z, y - z]))[0, 1]) < 0.03
    assert guide_side["z"].mean() > 3  # these are the guide's own pairs
    torch.testing.assert_close(
        (guide_side["y"] - 0.7 * guide_side["z"]).std(), torch.tensor(0.6), atol=0.02, rtol=0
    )


def test_contrast_draws_of_single_critics_are_given_the_guides_parents():
    critics = {"z": Recorder(), "y": Recorder()}
    loss = PriorContrastELBO(critics, adaptive=False, num_critic_draws=4000)
    logits = loss.logits(joint_model, joint_guide, data())
    assert logits["y"].q.shape == logits["y"].p.shape == (4000, 6)
    _, guide_side, contrast_side = (values for values, _, _ in critics["y"].seen)
    z = guide_side.arguments["z"]
    assert torch.equal(z, z[:1].expand(4000, 6))
    assert torch.equal(z, contrast_side.arguments["z"])
    for side, slope, sd in ((guide_side, 0.7, 0.6), (contrast_side, 1.0, 0.7)):
        rest = side["y"] - slope * z
        assert (rest.mean(0).abs() < 0.06).all()
        assert ((rest.std(0) - sd).abs() < 0.04).all()
    priors = critics["z"].seen[2][0]["z"]
    assert ((priors.mean(0) - 0.3).abs() < 0.09).all()
    assert ((priors.std(0) - 1).abs() < 0.06).all()


def test_an_implicit_prior_is_contrasted_by_its_draws():
    def implicit_model(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            base = dist.Normal(torch.zeros(()), 1.0)
            z = pyro.sample("z", ImplicitDistribution(lambda e: w + 0.1 * e, base, ()))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def implicit_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("w", dist.Normal(param("m") * x, 0.1))
            pyro.sample("z", affine(param("mu") * x, 1.0))

    critic = Recorder()
    loss = PriorContrastELBO(critic, adaptive=False, num_critic_draws=2000)
    _, grads = value_and_grads(loss, implicit_model, implicit_guide, data())
    assert all(grad.any() for grad in grads.values())
    draws, w = critic.values("z")[2], critic.arguments("w")[2]
    assert (((draws - w).std(0) - 0.1).abs() < 0.01).all()


# --- the critic's own gradient


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.4, -0.2, 0.1]))

    def forward(self, values, *args, **kwargs):
        z = values["z"]
        return self.weight[0] * z + self.weight[1] * z**2 + self.weight[2] * values.arguments["x"]


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("count", [1, 5, None])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_critic_gets_the_gradient_of_the_logistic_loss(adaptive, count, weighted):
    scale = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.1, 1.0]) if weighted else torch.tensor(2.0)
    mask = torch.arange(6) != 3 if weighted else True

    def scaled(program):
        return poutine.mask(poutine.scale(program, scale=scale), mask=mask)

    seen = []

    class Seen(Linear):
        def forward(self, values, *args, **kwargs):
            seen.append((values["z"], values.arguments["x"]))
            return super().forward(values, *args, **kwargs)

    critic = Seen()
    loss = PriorContrastELBO(critic, adaptive=adaptive, num_critic_draws=count)
    _, grads = value_and_grads(loss, scaled(model), scaled(guide), data())
    elbo, *sides = seen
    assert elbo[0].requires_grad
    assert len(sides) == 2
    shape = {1: (6,), 5: (5, 6), None: (21, 6)}[count]
    by_hand = Linear()
    logits = []
    for z, x in sides:
        assert z.shape == shape
        assert not z.requires_grad
        assert torch.equal(x, data().expand(shape))
        from_values = by_hand.weight
        logits.append(from_values[0] * z + from_values[1] * z**2 + from_values[2] * x)
    weights = (scale * mask if weighted else torch.ones(6)).expand(shape)
    weights = weights / weights.sum()
    value = (0.5 * weights * (softplus(-logits[0]) + softplus(logits[1]))).sum()
    value.backward()
    torch.testing.assert_close(grads["discriminator$$$weight"], by_hand.weight.grad)
    assert (count == 1) == bool(torch.equal(sides[0][0], elbo[0]))


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_gradient_is_the_mean_over_particles(vectorize):
    """Of a critic that says the same of all, it is known whatever the draws."""
    critic = Told(lambda values, x: torch.ones(values.batch_shape), 0.4)
    loss = PriorContrastELBO(critic, num_particles=3, vectorize_particles=vectorize)
    grads = value_and_grads(loss, model, guide, data())[1]
    assert grads["discriminator$$$gain"].item() == pytest.approx(math.tanh(0.2) / 2, rel=1e-5)


@pytest.mark.parametrize("adaptive", [True, False])
def test_nothing_leaks_between_the_players(adaptive):
    found = {}
    for gain in (0.0, 1.0):

        def critic(values, *args, gain=gain):
            return gain * torch.tanh(values["z"])

        loss = PriorContrastELBO(Told(critic), adaptive=adaptive, num_moment_draws=8)
        found[gain] = value_and_grads(loss, model, guide, data())[1]
    # The logit's gradient reaches the guide, which the critic's loss does not: d tanh at the draw.
    key = "discriminator$$$gain"
    assert found[0.0][key] == 0
    assert found[1.0][key] != 0
    pyro.set_rng_seed(0)
    eps = torch.randn(6)
    m, s = (torch.tensor(VALUES[name], requires_grad=True) for name in "ms")
    z = m * data() + s * eps
    if adaptive:
        draws = 0.7 * data() + 0.6 * torch.randn(8, 6)
        z = (z - draws.mean(0)) / draws.std(0)
    torch.tanh(z).sum().backward()
    for name, value in (("m", m), ("s", s)):
        torch.testing.assert_close(found[1.0][name] - found[0.0][name], value.grad)
    torch.testing.assert_close(found[1.0]["mu"], found[0.0]["mu"])


def test_the_penalty_is_on_the_critic_alone():
    critic = Told(lambda values, x: values["z"] ** 2 / 2)
    plain = PriorContrastELBO(critic, adaptive=False, num_critic_draws=1)
    penalised = PriorContrastELBO(critic, adaptive=False, num_critic_draws=1, regularizer=R1(1.0))
    (value, without), (other, grads) = (
        value_and_grads(loss, model, guide, data()) for loss in (plain, penalised)
    )
    assert value == other
    for name in VALUES:
        assert torch.equal(grads[name], without[name])
    pyro.set_rng_seed(0)
    z = 0.7 * data() + 0.6 * torch.randn(6)
    # R1 is half the mean square of the slope, gain times z.
    key = "discriminator$$$gain"
    torch.testing.assert_close(grads[key] - without[key], (z**2).mean())


def test_the_critic_sees_the_guide_standardised():
    critic = Recorder()
    loss = PriorContrastELBO(critic, num_moment_draws=1000, num_critic_draws=3000)
    loss.logits(model, guide, 1000 * data())
    for z in critic.values("z")[1:]:
        assert (z.mean(0).abs() < 0.13).all()
        assert ((z.std(0) - 1).abs() < 0.1).all()
    few = PriorContrastELBO(Recorder(), num_moment_draws=4, num_critic_draws=200_000)
    few.logits(model, guide, data()[:1])
    sides = torch.stack(few.discriminator.values("z")[1:]).squeeze(-1)
    # Against moments of four draws, the contrast has the tails of t with three degrees of freedom.
    assert (sides[1].abs() > 5).double().mean() == pytest.approx(0.0208, abs=0.0012)


@pytest.mark.parametrize(("batch", "moments", "draws"), [(6, 682, 21), (200, 32, 1), (2, 1024, 64)])
def test_the_default_number_of_draws_follows_the_batch(batch, moments, draws):
    shapes = []

    def watched(x):
        def fn(eps):
            shapes.append(tuple(eps.shape))
            return 0.7 * x + eps

        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(fn, dist.Normal(torch.zeros(()), 1.0), ()))

    loss = PriorContrastELBO(Told(total))
    loss.loss_and_grads(model, watched, torch.zeros(batch))
    shapes = shapes[1:]  # a look for deltas
    wanted = [(batch,), (moments, batch)] + ([(draws, batch)] if draws > 1 else [])
    assert shapes == wanted


# --- what the critic may look up


def lookup_model(x, label, *, temperature=1.0):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        h = pyro.sample("h", dist.Normal(w.sum(-1), 1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + h + label[rows, 0], temperature), obs=x[rows])


def lookup_guide(x, label, *, temperature=1.0):
    pyro.sample("w", dist.Normal(param("m") * torch.ones(3), 1.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        pyro.sample("h", dist.Normal(param("s") * x[rows], 1.0))
        pyro.sample("z", affine(x[rows], 0.1))
        pyro.sample("late", dist.Normal(torch.zeros(()), 1.0), infer={"is_auxiliary": True})


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("vectorize", [True, False])
def test_arguments_and_other_sites_are_looked_up_in_the_batch_shape(adaptive, vectorize):
    x, label = torch.arange(10.0), torch.arange(30.0).reshape(10, 3)
    critic = Recorder()
    options = {"num_particles": 2, "vectorize_particles": True} if vectorize else {}
    loss = PriorContrastELBO(
        critic, adaptive=adaptive, num_critic_draws=5, max_plate_nesting=1, **options
    )
    loss.loss_and_grads(lookup_model, lookup_guide, x, label, temperature=2.0)
    batch = (2, 4) if vectorize else (4,)
    assert len(critic.seen) == 3
    for i, (values, args, kwargs) in enumerate(critic.seen):
        shape = batch if i == 0 else (5, *batch)
        found = values.arguments
        assert set(found) == {"x", "label", "temperature", "w", "h"}
        assert values.batch_shape == values["z"].shape == shape
        assert found["x"].shape == found["h"].shape == shape
        assert found["w"].shape == found["label"].shape == (*shape, 3)
        assert torch.equal(found["label"][..., 0], 3 * found["x"])  # the same rows
        assert found["temperature"] == kwargs["temperature"] == 2.0
        assert [a.shape for a in args] == [(10,), (10, 3)]  # all of it, as the model got it
        assert found["w"].requires_grad == found["h"].requires_grad == (i == 0)
    first, guide_side, contrast_side = critic.arguments("h")
    assert torch.equal(guide_side, first.detach().expand(5, *batch))
    assert torch.equal(contrast_side, guide_side)
    if not adaptive:
        assert (critic.values("z")[0] - critic.arguments("x")[0]).abs().max() < 0.6
        assert (critic.values("z")[1] - critic.arguments("x")[1]).abs().max() < 0.6


@pytest.mark.parametrize("adaptive", [True, False])
def test_vectorised_particles_are_independent_draws(adaptive):
    critic = Recorder()
    options = {"num_particles": 500, "vectorize_particles": True, "max_plate_nesting": 1}
    loss = PriorContrastELBO(critic, adaptive=adaptive, num_moment_draws=50, **options)
    loss.loss_and_grads(model, guide, data())
    first, guide_side, contrast_side = critic.values("z")
    for z in (first, guide_side, contrast_side):
        assert z.shape == (500, 6)
        assert len(z.unique()) == 3000
        correlation = torch.corrcoef(z.T) - torch.eye(6)
        assert correlation.abs().max() < 0.2
    assert torch.equal(first, guide_side)
    wanted = torch.ones(6) if adaptive else torch.tensor(VALUES["s"]).expand(6)
    torch.testing.assert_close(first.std(0), wanted, rtol=0.15, atol=0)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_noisy_data_are_looked_up(adaptive):
    def spread_model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(z), obs=x)

    critic, x = Recorder(), data()
    noise = {"x": GaussianNoise(0.3)}
    loss = PriorContrastELBO(critic, noise, adaptive, num_particles=3, num_critic_draws=2)
    loss.loss_and_grads(spread_model, guide, x)
    seen = critic.arguments("x")
    assert len(seen) == 9
    assert len({float(y.flatten()[0]) for y in seen}) == 3
    for values, args, _ in critic.seen:
        assert torch.equal(values.arguments["x"], args[0])
        assert 0.02 < (args[0] - x).std() < 1


def test_logits_are_fresh_and_in_pairs_with_the_critic_report():
    loss = PriorContrastELBO({"z": Told(log_ratio)}, adaptive=False, num_critic_draws=4)
    first, second = (loss.logits(model, guide, data())["z"] for _ in range(2))
    assert first.data.shape == first.model.shape == (4, 6)
    assert not torch.equal(first.data, second.data)
    assert first.weights_p is None
    assert not first.data.requires_grad
    one = PriorContrastELBO(Told(silent)).logits(model, guide, data())
    assert not one.data.any()
