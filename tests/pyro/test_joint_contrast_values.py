# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of JointContrastELBO in Pyro, each against a computation by hand.

The critics are told log[q(z | x) p_data(x) / p(x, z)], and the draws are those of the same seed:
first the guide's noise, then the model's latents, then its data.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro_contrast import (
    VALUES,
    Recorder,
    Told,
    affine,
    data,
    guide,
    model,
    normal,
    param,
    value_and_grads,
)
from torch.nn.functional import softplus

from pyro_spread import KL, R1, GaussianNoise, Jeffreys, JointContrastELBO, JSPi, ReverseKL

pytestmark = pytest.mark.usefixtures("double")


def log_q_over_p(x, z, m=0.7, s=0.6, mu=0.3):
    """Of the smallest case, with data from N(0, 2²)."""
    q = normal(z, m * x, s) + normal(x, 0.0, 2.0)
    return q - normal(z, mu, 1.0) - normal(x, z, 0.5)


def analytic(values, *args):
    return log_q_over_p(values["x"], values["z"])


def leaves(*names):
    return [torch.tensor(VALUES[name], requires_grad=True) for name in names]


def by_hand(m, s, mu, seed=0, n=6):
    """Pairs of guide and model as the loss draws them."""
    pyro.set_rng_seed(seed)
    x = data(n)
    pairs = (x, m * x + s * torch.randn(n))
    z = mu + torch.randn(n)
    return pairs, (z + 0.5 * torch.randn(n), z)


DIVERGENCES = {
    "ReverseKL": ReverseKL(),
    "KL": KL(),
    "JSPi(.5)": JSPi(0.5),
    "JSPi(.2)": JSPi(0.2),
    "normalised": JSPi(0.8, normalised=True),
    "Jeffreys": Jeffreys(),
}


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("gain", [1.0, 0.4])
def test_value_and_every_gradient(kind, gain):
    divergence = DIVERGENCES[kind]
    pi = getattr(divergence, "pi", 0.5)
    offset = torch.logit(torch.tensor(1 - pi))  # label one is the guide's

    def told(values, *args):
        return analytic(values) + offset / gain

    critic = Told(told, gain)
    loss = JointContrastELBO(critic, divergence)
    value, grads = value_and_grads(loss, model, guide, data())

    m, s, mu = leaves("m", "s", "mu")
    guide_pairs, model_pairs = by_hand(m, s, mu)
    q, p = (gain * log_q_over_p(*pairs) for pairs in (guide_pairs, model_pairs))  # log Q/P
    if kind == "ReverseKL":
        expected, of_guide, of_model = q.sum(), q.sum(), -6 * p.exp().mean()
    elif kind == "KL":
        expected, of_guide, of_model = -p.mean(), -(-q).exp().mean(), -p.mean()
    else:
        expected = divergence.estimate(-p, -q)
        of_guide = divergence.generator_loss(-q).mean()
        of_model = divergence.reversed.generator_loss(p).mean()
    assert value == pytest.approx(expected.item(), rel=1e-10)
    for leaf, name in ((m, "m"), (s, "s")):
        (wanted,) = torch.autograd.grad(of_guide, leaf, retain_graph=True)
        torch.testing.assert_close(grads[name], wanted)
    (wanted,) = torch.autograd.grad(of_model, mu)
    torch.testing.assert_close(grads["mu"], wanted)

    # The critic learns from the same pairs, as constants.
    weight = torch.tensor(gain, requires_grad=True)
    logits = [weight * (side.detach() / gain + offset / gain) for side in (q, p)]
    ((1 - pi) * softplus(-logits[0]) + pi * softplus(logits[1])).mean().backward()
    torch.testing.assert_close(grads["discriminator$$$gain"], weight.grad)


def test_a_model_without_params_is_a_simulator():
    def fixed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.3, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    loss = JointContrastELBO(Told(analytic))
    value, found = value_and_grads(loss, fixed, guide, data())
    learned, grads = value_and_grads(loss, model, guide, data())
    assert value == pytest.approx(learned, rel=1e-12)
    assert set(found) == {"m", "s", "discriminator$$$gain"}
    assert all(torch.allclose(grad, grads[name]) for name, grad in found.items())


def test_a_huge_gradient_leaves_the_value_alone():
    def far(values, *args):
        return 30 + 0.1 * values["z"]  # its exponential is 1e13

    for kind in ("ReverseKL", "KL"):
        loss = JointContrastELBO(Told(far), DIVERGENCES[kind])
        value, _ = value_and_grads(loss, model, guide, data())
        q, p = (30 + 0.1 * z for _, z in by_hand(*leaves("m", "s", "mu")))
        expected = q.sum() if kind == "ReverseKL" else -p.mean()
        assert value == pytest.approx(expected.item(), rel=1e-12)


def test_particles_are_averaged():
    one = JointContrastELBO(Told(analytic))
    many = JointContrastELBO(Told(analytic), num_particles=3)
    value, grads = value_and_grads(many, model, guide, data())
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    alone = [one.differentiable_loss(model, guide, data()) for _ in range(3)]
    mean = torch.stack(alone).mean()
    mean.backward()
    assert value == pytest.approx(mean.item(), rel=1e-12)
    for name in VALUES:
        torch.testing.assert_close(grads[name], pyro.get_param_store()._params[name].grad)
    assert len({v.item() for v in alone}) == 3


def test_the_penalty_is_on_the_critic_alone():
    critic = Told(lambda values, *args: values["z"] ** 2 / 2)
    plain, penalised = (JointContrastELBO(critic, regularizer=r) for r in (None, R1(1.0)))
    (value, without), (other, grads) = (
        value_and_grads(loss, model, guide, data()) for loss in (plain, penalised)
    )
    assert value == other
    assert all(torch.equal(grads[name], without[name]) for name in VALUES)
    z = by_hand(*leaves("m", "s", "mu"))[0][1].detach()
    key = "discriminator$$$gain"
    torch.testing.assert_close(grads[key] - without[key], (z**2).mean())


# --- scales and masks


@pytest.mark.parametrize("kind", ["ReverseKL", "JSPi(.5)"])
def test_masks_and_tensor_scales_weigh_the_pairs(kind):
    mask = torch.arange(6) != 2
    scale = torch.tensor([1.0, 0.5, 2.0, 3.0, 1.5, 1.0])

    def scaled(program):
        return poutine.mask(poutine.scale(program, scale=scale), mask=mask)

    loss = JointContrastELBO(Told(analytic), DIVERGENCES[kind])
    value, grads = value_and_grads(loss, scaled(model), scaled(guide), data())
    # A masked element is shown as zero.
    m, s, mu = leaves("m", "s", "mu")
    sides = [tuple(v * mask for v in side) for side in by_hand(m, s, mu)]
    q, p = (log_q_over_p(*side) for side in sides)
    weights = scale * mask
    share = weights / weights.sum()
    if kind == "ReverseKL":
        expected, of_guide = ((weights * q).sum(),) * 2
        of_model = -weights.sum() * (share * p.exp()).sum()
    else:
        expected = DIVERGENCES[kind].estimate(-p, -q, weights, weights)
        of_guide = (share * DIVERGENCES[kind].generator_loss(-q)).sum()
        of_model = (share * DIVERGENCES[kind].reversed.generator_loss(p)).sum()
    assert value == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(grads["s"], torch.autograd.grad(of_guide, s, retain_graph=True)[0])
    torch.testing.assert_close(grads["mu"], torch.autograd.grad(of_model, mu)[0])
    weight = torch.tensor(1.0, requires_grad=True)
    logits = softplus(-weight * q.detach()) + softplus(weight * p.detach())
    (0.5 * share * logits).sum().backward()
    torch.testing.assert_close(grads["discriminator$$$gain"], weight.grad)


# --- global latents with densities


def hierarchical(x, full=12):
    mu, pm = param("mu"), param("pm", -0.2)
    beta = pyro.sample("beta", dist.Normal(pm, 1.0))
    with pyro.plate("data", full, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(beta + mu, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def hierarchical_guide(x, full=12):
    m, s, bm, bs = (param(n, v) for n, v in (("m", 0.7), ("s", 0.6), ("bm", 0.4), ("bs", 0.3)))
    beta = pyro.sample("beta", dist.Normal(bm, bs))
    with pyro.plate("data", full, subsample=torch.arange(len(x))):
        pyro.sample("z", affine(m * x + 0.2 * beta, s))


def log_r(x, z, beta):
    q = normal(z, 0.7 * x + 0.2 * beta, 0.6) + normal(x, 0.0, 2.0)
    return q - normal(z, beta + 0.3, 1.0) - normal(x, z, 0.5)


def test_global_latents_keep_their_densities():
    def critic(values, x, full=12):
        assert values.arguments["beta"].shape == (6,)
        return log_r(values["x"], values["z"], values.arguments["beta"])

    loss = JointContrastELBO(Told(critic))
    value, grads = value_and_grads(loss, hierarchical, hierarchical_guide, data())
    names = ("m", "s", "bm", "bs", "mu", "pm")
    start = dict(zip(names, (0.7, 0.6, 0.4, 0.3, 0.3, -0.2), strict=True))
    p = {name: torch.tensor(v, requires_grad=True) for name, v in start.items()}
    pyro.set_rng_seed(0)
    x = data()
    beta = p["bm"] + p["bs"] * torch.randn(())
    z = p["m"] * x + 0.2 * beta + p["s"] * torch.randn(6)
    prior, q = normal(beta, p["pm"], 1.0), normal(beta, p["bm"], p["bs"])
    expected = 2 * log_r(x, z, beta).sum() + q - prior
    assert value == pytest.approx(expected.item(), rel=1e-10)
    for name in ("m", "s", "bm", "bs", "pm"):
        (wanted,) = torch.autograd.grad(expected, p[name], retain_graph=True)
        torch.testing.assert_close(grads[name], wanted, msg=name)
    # The model's pairs, given the guide's beta as a constant.
    at = beta.detach()
    z = at + p["mu"] + torch.randn(6)
    x = z + 0.5 * torch.randn(6)
    (-12 * log_r(x, z, at).exp().mean()).backward()
    torch.testing.assert_close(grads["mu"], p["mu"].grad)


def test_simulated_data_come_with_the_latents_that_made_them():
    critic = Recorder()
    x = 10 * torch.ones(20_000)
    JointContrastELBO(critic).logits(
        lambda x: hierarchical(x, 40_000), lambda x: hierarchical_guide(x, 40_000), x
    )
    guide_side, model_side = (values for values, _, _ in critic.seen)
    beta = model_side.arguments["beta"]
    assert torch.equal(beta, guide_side.arguments["beta"])
    assert torch.equal(guide_side["x"], x)
    rests = torch.stack([model_side["x"] - model_side["z"], model_side["z"] - beta - 0.3])
    wanted = torch.tensor([0.5, 1.0])
    torch.testing.assert_close(rests.std(1), wanted, atol=0.02, rtol=0)
    torch.testing.assert_close(rests.mean(1), torch.zeros(2), atol=0.02, rtol=0)
    assert abs(torch.corrcoef(rests)[0, 1]) < 0.03
    rest = guide_side["z"] - 0.7 * x - 0.2 * beta
    assert abs(float(rest.std()) - 0.6) < 0.01


# --- noise


@pytest.mark.parametrize("by_call", [False, True])
def test_noise_is_on_both_sides(by_call):
    def still(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Delta(z), obs=x)

    handed = []

    def watching(x):
        handed.append(x)
        guide(x)

    noise = {"x": GaussianNoise(0.1)}
    x = torch.linspace(-1, 1, 5000)
    critic = Recorder()
    loss = JointContrastELBO(critic, noise=(lambda x: noise) if by_call else noise)
    value_and_grads(loss, still, watching, x)
    assert len(handed) == 1
    assert torch.equal(x, torch.linspace(-1, 1, 5000))
    for i, (values, args, _) in enumerate(critic.seen):
        # The guide, the critic's x and what it looks up are all the same noisy data.
        assert torch.equal(args[0], handed[0])
        assert torch.equal(values.arguments["x"], handed[0])
        clean = x if i % 2 == 0 else values["z"]
        rest = values["x"] - clean
        assert 0.095 < rest.std() < 0.105
        assert abs(rest.mean()) < 0.01
    assert torch.equal(critic.seen[0][0]["x"], handed[0])
    logits = loss.logits(still, watching, x)
    assert logits.p.shape == logits.q.shape == (5000,)
    assert not torch.equal(handed[0], handed[1])


# --- neural posterior estimation


def density_guide(x):
    m, s = param("m"), param("s")
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(m * x, s))


@pytest.mark.parametrize("particles", [1, 3])
def test_npe_is_minus_the_mean_log_density_at_the_models_pairs(particles):
    x = 100 + data()  # whose values do not matter
    loss = JointContrastELBO(divergence=KL(), num_particles=particles)
    value, grads = value_and_grads(loss, model, density_guide, x)
    m, s = leaves("m", "s")
    pyro.set_rng_seed(0)
    expected = 0
    for _ in range(particles):
        z = 0.3 + torch.randn(6)
        simulated = z + 0.5 * torch.randn(6)
        expected = expected - normal(z, m * simulated, s).mean() / particles
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(grads["m"], m.grad)
    torch.testing.assert_close(grads["s"], s.grad)
    assert grads["mu"] is None  # the model is a simulator: it is not learned
    assert set(grads) == set(VALUES)


@pytest.mark.parametrize("number", [True, False])
def test_npe_weighs_by_scale_and_mask(number):
    scale = torch.tensor(5.0) if number else torch.tensor([1.0, 0.5, 2.0, 3.0, 1.5, 1.0])
    mask = torch.arange(6) != 2

    def scaled(program):
        return poutine.mask(poutine.scale(program, scale=scale), mask=mask)

    loss = JointContrastELBO(divergence=KL())
    value, grads = value_and_grads(loss, scaled(model), scaled(density_guide), data())
    s = torch.tensor(0.6, requires_grad=True)
    pyro.set_rng_seed(0)
    z = 0.3 + torch.randn(6)
    simulated = z + 0.5 * torch.randn(6)
    weights = scale * mask / (scale * mask).sum()
    expected = -(weights * normal(z, 0.7 * simulated, s)).sum()
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(grads["s"], s.grad)


def test_npe_of_several_sites_sums_their_log_densities_and_noise_is_drawn():
    def several(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(w.sum(-1), 1.0))
            pyro.sample("x", dist.Delta(z), obs=x)

    def of_several(x):
        seen.append(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(param("m") * x, 1.0))
            pyro.sample("w", dist.Normal(x[:, None] * torch.ones(2), 0.6).to_event(1))

    for noise in (None, {"x": GaussianNoise(0.3)}):
        seen = []
        loss = JointContrastELBO(divergence=KL(), noise=noise)
        pyro.set_rng_seed(0)
        value = loss.loss(several, of_several, torch.ones(4000))
        pyro.set_rng_seed(0)
        w = torch.randn(4000, 2)
        z = w.sum(-1) + torch.randn(4000)
        x = seen[0]
        expected = -normal(z, 0.7 * x, 1.0) - normal(w, x[:, None], 0.6).sum(-1)
        assert value == pytest.approx(expected.mean().item(), rel=1e-10)
        assert (x - z).std() == pytest.approx(0.3 if noise else 0.0, abs=0.02)
