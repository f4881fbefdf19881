# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Critics whose samples move each other's logits get two passes, and all gradients are exact."""

import random
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from every import TRAINED, instances
from torch import nn
from torch.nn import functional

import pyro_spread
from pyro_spread import (
    KL,
    R1,
    AdversarialDivergence,
    GradientPenalty,
    ImplicitDistribution,
    JointContrastELBO,
    PriorContrastELBO,
    ReverseKL,
    WassersteinCritic,
    concat_sites,
)
from pyro_spread.ratio import ConvCritic, MLPCritic, SiteValues
from pyro_spread.ratio._samplewise import is_samplewise, is_samplewise_here, with_slopes

pytestmark = pytest.mark.usefixtures("double")
COUNT = 7
# What a node of autograd was computed from, by shape, is told since torch 2.5. Without, only
# critics of known layers take one pass.
graph_is_told = pytest.mark.skipif(
    not hasattr(torch.ones(1, requires_grad=True).exp().grad_fn, "_input_metadata"),
    reason="this torch does not tell the shapes in its graph: such critics take two passes",
)


@pytest.fixture(autouse=True)
def seeded():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()


class Layer(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


def spread_of_batch(x):
    return torch.cat([x[:, :-1], x.std(0).mean().expand(len(x), 1)], -1)


class Gated(nn.Module):
    """Attention over the batch, whose gate starts at zero."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.gate * torch.softmax(x @ x.T, -1) @ x


def moody(x):
    """Couples where the batch lies far out."""
    return x - x.mean(0) if float(x.mean()) > 100 else x


def sometimes(x):
    return x - x.mean(0) if random.random() < 2 else x


def net(*layers, last=None):
    return concat_sites(
        nn.Sequential(nn.Linear(2, 8), *layers, nn.Tanh(), last or nn.Linear(8, 1)), "x"
    )


COUPLED = {
    "std of the batch": lambda: net(Layer(spread_of_batch)),
    "mean": lambda: net(Layer(lambda x: x - x.mean(0))),
    "broadcast": lambda: net(Layer(lambda x: x.unsqueeze(0).mul(x.unsqueeze(1)).mean(1))),
    "transposed": lambda: net(Layer(lambda x: functional.softmax(x.T, -1).T)),
    "sorted": lambda: net(Layer(lambda x: x.sort(0).values)),
    "batch norm": lambda: net(nn.BatchNorm1d(8)),
    "layer norm over the batch": lambda: net(nn.LayerNorm((COUNT, 8))),
    "softmax over the batch": lambda: net(nn.Softmax(0)),
    "attention": lambda: net(nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0)),
    "attention behind a gate": lambda: net(Gated()),
    "function of features": lambda: concat_sites(lambda x: (x * x.mean(0)).sum(-1), "x"),
    "activation": lambda: concat_sites(MLPCritic((8,), lambda x: x - x.mean(0), input_dim=2), "x"),
    "by chance": lambda: net(Layer(sometimes)),
}
APART = {
    "perceptron": lambda: concat_sites(MLPCritic((8,), input_dim=2), "x"),
    "spectral norm": lambda: concat_sites(MLPCritic((8,), spectral_norm=True, input_dim=2), "x"),
    "own": lambda: net(Layer(lambda x: torch.sin(x) / (1 + x.square().sum(-1, keepdim=True)))),
    "layer norm": lambda: net(nn.LayerNorm(8)),
    "group norm": lambda: net(nn.GroupNorm(2, 8)),
    "batch norm of averages": lambda: net(nn.BatchNorm1d(8).eval()),
    "softmax": lambda: net(nn.Softmax(-1)),
    "moody, but not today": lambda: net(Layer(moody)),
    "function of features": lambda: concat_sites(lambda x: x.square().sum(-1), "x"),
    "slices": lambda: net(Layer(lambda x: torch.cat([x[:, :4], x[:, 1:2] * x[:, 4:]], 1))),
}


def model(x, shift=0.0):
    w = pyro.param("w", torch.tensor([0.5, 1.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Delta(shift + w * z + w.roll(1), event_dim=1), obs=x)


def no_guide(x):
    pass


def gradients(loss, model=model, guide=no_guide):
    x = torch.linspace(-1, 2, 2 * COUNT).reshape(COUNT, 2)
    pyro.set_rng_seed(1)
    for param in pyro.get_param_store()._params.values():
        param.grad = None
    loss.loss_and_grads(model, guide, x)
    return {n: p.grad for n, p in pyro.get_param_store()._params.items() if p.grad is not None}


def same(first, second):
    assert first.keys() == second.keys()
    for name, grad in first.items():
        torch.testing.assert_close(grad, second[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", COUPLED)
def test_default_is_exact_for_every_divergence(kind):
    critic = COUPLED[kind]()
    for divergence in instances(pyro_spread, TRAINED):
        losses = [AdversarialDivergence(critic, divergence, update=u) for u in (None, "two_pass")]
        same(*map(gradients, losses))


@pytest.mark.parametrize("kind", [k for k in COUPLED if "gate" not in k])
def test_one_pass_is_refused(kind):
    loss = AdversarialDivergence(COUPLED[kind](), ReverseKL(), update="one_pass")
    with pytest.raises(ValueError, match="needs a critic that treats samples one by one"):
        gradients(loss)
    with pytest.raises(ValueError, match="Use update='two_pass'"):
        gradients(WassersteinCritic(COUPLED[kind](), 0.0, update="one_pass", name="other"))


def test_two_passes_are_what_differences_say():
    critic, step = COUPLED["std of the batch"](), 1e-5
    x = torch.linspace(-1, 2, 2 * COUNT).reshape(COUNT, 2)
    loss = AdversarialDivergence(critic, ReverseKL())
    slope = gradients(loss)["w"]

    def value(w):
        pyro.set_rng_seed(1)
        z = torch.randn(COUNT, 2)
        logits = critic({"x": w * z + w.roll(1)})
        return loss.divergence.generator_loss(logits).mean().item()

    assert len(x) == COUNT
    w = pyro.param("w").detach()
    for i in range(2):
        move = step * torch.eye(2)[i]
        difference = (value(w + move) - value(w - move)) / (2 * step)
        assert slope[i].item() == pytest.approx(difference, rel=1e-6)


@graph_is_told
@pytest.mark.parametrize("kind", APART)
def test_samples_apart_are_proven_so_without_a_call(kind):
    critic, x = APART[kind](), torch.randn(COUNT, 2)
    values = with_slopes(SiteValues({"x": x}, (COUNT,)))
    logits = critic(values)
    before, state = list(critic.named_buffers()), torch.get_rng_state()
    assert is_samplewise_here(critic, logits, values)
    assert torch.equal(state, torch.get_rng_state())
    assert all(a is b for (_, a), (_, b) in zip(before, critic.named_buffers(), strict=True))
    losses = [AdversarialDivergence(critic, KL(), update=u) for u in ("one_pass", "two_pass")]
    if kind != "spectral norm":  # which moves its estimate at every call
        same(*map(gradients, losses))


def test_layers_alone_prove_it():
    assert is_samplewise(concat_sites(ConvCritic((8, 8), spectral_norm=True), "x"))
    assert is_samplewise(net(nn.Dropout(0.5), nn.LayerNorm(8)))
    assert not is_samplewise(net(nn.LayerNorm((COUNT, 8))))
    assert not is_samplewise(net(nn.Conv1d(COUNT, COUNT, 1)))
    hooked = net()
    hooked.net[0].register_forward_hook(lambda layer, given, got: got - got.mean(0))
    patched = net()
    patched.net[0].forward = lambda x: x - x.mean(0)
    assert not is_samplewise(hooked)
    assert not is_samplewise(patched)


@graph_is_told
@pytest.mark.parametrize("shape", [(2, 3), (6,), (1, 6)])
def test_batch_dims_are_told_from_features(shape):
    x = torch.randn(*shape, 6)
    values = with_slopes(SiteValues({"x": x}, shape))
    dense = nn.Linear(6, 6)
    assert is_samplewise_here(nn.Module(), dense(values["x"]).sum(-1), values)
    turned = dense(values["x"].transpose(-1, -2) if shape == (6,) else values["x"].flip(0))
    assert not is_samplewise_here(nn.Module(), turned.sum(-1), values)
    flat = torch.tanh(dense(values["x"].reshape(6, 6))).reshape(*shape, 6).amax(-1)
    assert is_samplewise_here(nn.Module(), flat, values)


def test_the_mode_is_asked_for_at_every_step():
    critic = net(nn.BatchNorm1d(8))
    loss = AdversarialDivergence(critic, ReverseKL(), update="one_pass")
    critic.eval()
    gradients(loss)
    critic.train()
    with pytest.raises(ValueError, match="treats samples one by one"):
        gradients(loss)


def implicit(x):
    w = pyro.param("s", torch.tensor(0.7))
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", ImplicitDistribution(lambda e: x + w * e, base, event_shape=(2,)))


def test_a_datum_meets_its_batch_only_in_the_contrast():
    batches = []

    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, values, *args):
            batches.append(tuple(values.batch_shape))
            z = values["z"]
            return (self.weight * (z - z.mean(0))).square().sum(-1)

    gradients(PriorContrastELBO(Seen(), num_critic_draws=4), scored, implicit)
    assert set(batches) == {(COUNT,)}


def scored(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


PENALISED = {
    "adversarial": lambda critic, penalty: AdversarialDivergence(critic, regularizer=penalty),
    "wasserstein": lambda critic, penalty: WassersteinCritic(critic),
    "joint": lambda critic, penalty: JointContrastELBO(critic, regularizer=penalty),
    "prior": lambda critic, penalty: PriorContrastELBO(critic, regularizer=penalty),
}


@pytest.mark.parametrize("kind", PENALISED)
@pytest.mark.parametrize("penalty", [R1(1.0), GradientPenalty(1.0)])
def test_a_penalty_on_a_coupled_critic_warns_once(kind, penalty):
    make = PENALISED[kind]
    sites = ("z",) if kind == "prior" else ("x",)
    programs = {"prior": (scored, implicit), "joint": (model, implicit)}.get(
        kind, (model, no_guide)
    )
    layers = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)
    loss = make(concat_sites(nn.Sequential(*layers), *sites), penalty)
    with pytest.warns(UserWarning, match="gradient penalty meets a critic") as caught:
        gradients(loss, *programs)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(loss, *programs)
        apart = nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
        pyro.clear_param_store()
        gradients(make(concat_sites(apart, *sites), penalty), *programs)
