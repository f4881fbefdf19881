# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What is asked of a critic in Pyro: keyword data, held-out logits, evaluation, clear refusals."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro_adversarial import Recorder, X, guide, model, optim, steps
from torch import nn

from pyro_spread import (
    MMD,
    R1,
    AdversarialDivergence,
    GaussianKernel,
    GaussianNoise,
    SupportMismatchWarning,
    WassersteinCritic,
    concat_sites,
    critic_report,
)
from pyro_spread.ratio import ConvCritic, MLPCritic, QuadraticCritic


class Keep(nn.Module):
    """A net on features that keeps them."""

    def __init__(self, width):
        super().__init__()
        self.linear, self.got = nn.Linear(width, 1), []

    def forward(self, features):
        self.got.append(features.detach())
        return self.linear(features)


def subsampled(x, label=None):
    w = pyro.param("w", torch.tensor(0.5))
    with pyro.plate("data", len(x), subsample_size=4) as indices:
        eps = pyro.sample("eps", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Delta(w * eps), obs=x[indices])


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("as_array", [np.asarray, torch.as_tensor])
def test_arguments_are_subsampled_however_they_come(by_keyword, as_array):
    x = torch.arange(20.0)
    label = as_array(10 * np.arange(20.0))
    net = Keep(2)
    loss = AdversarialDivergence(concat_sites(net, "x", "label"))
    svi = SVI(subsampled, guide, optim(), loss)
    svi.step(x, label=label) if by_keyword else svi.step(x, label)
    data = net.got[0]
    assert data.shape == (4, 2)
    assert torch.equal(10 * data[:, 0], data[:, 1])
    discrepancy = MMD(GaussianKernel(1.0), given=["label"])
    svi = SVI(subsampled, guide, pyro.optim.Adam({"lr": 0.1}), discrepancy)
    svi.step(x, label=label) if by_keyword else svi.step(x, label)


def test_arguments_follow_a_permutation():
    order = torch.tensor([4, 0, 3, 2, 5, 1])

    def permuted(x, label):
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", 6, subsample=order) as indices:
            eps = pyro.sample("eps", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(w * eps), obs=x[indices])

    net = Keep(2)
    loss = AdversarialDivergence(concat_sites(net, "x", "label"))
    SVI(permuted, guide, optim(), loss).step(torch.arange(6.0), torch.arange(6.0))
    assert torch.equal(net.got[0][:, 0], order.float())
    assert torch.equal(net.got[0][:, 0], net.got[0][:, 1])


def penalised(critic):
    return AdversarialDivergence(critic, regularizer=R1())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("make", [AdversarialDivergence, WassersteinCritic, penalised])
def test_modules_can_be_evaluated_without_gradients(make, mode):
    class Model(nn.Module):
        def forward(self, x):
            model(x)

    class Guide(nn.Module):
        def forward(self, x):
            pass

    module = make(concat_sites(MLPCritic((4,)), "x"))(Model(), Guide())
    module(X).backward()
    with mode():
        value = module(X)
    assert not value.requires_grad
    assert torch.isfinite(value)


def test_evaluation_leaves_running_averages_alone():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    loss = AdversarialDivergence(concat_sites(net, "x"))
    svi = SVI(model, guide, optim(), loss)
    before = net[1].running_mean.clone()
    svi.evaluate_loss(X)
    loss.logits(model, guide, X)
    assert torch.equal(net[1].running_mean, before)
    svi.step(X)
    assert not torch.equal(net[1].running_mean, before)


def test_logits_of_held_out_data_make_a_report():
    noise = {"x": GaussianNoise(0.1)}
    critic, _ = steps(model, X, critic=Recorder(), noise=noise)
    loss = AdversarialDivergence(critic, noise=noise)
    weight = critic.weight.item()
    logits = loss.logits(model, guide, X + 1)
    values = critic.data[-1]["x"]
    assert not torch.equal(values, X + 1)
    assert torch.allclose(values, X + 1, atol=0.7)
    assert torch.allclose(logits.p, weight * values.sum(-1))
    assert logits.q.shape == (6,)
    assert not logits.p.requires_grad
    assert critic.weight.item() == weight
    report = critic_report(logits.p, logits.q, 0.5, weights_p=logits.weights_p)
    assert 0 <= report.accuracy <= 1


class Sure(nn.Module):
    """A critic that is right about all there is, and sure of it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, values, *args):
        return self.scale * 100 * (values["x"].reshape(*values.batch_shape, -1).sum(-1) - 50)


def apart(x):
    w = pyro.param("w", torch.tensor(0.1))
    mask = torch.arange(len(x)) % 2 == 0
    with pyro.plate("data", len(x)), poutine.mask(mask=mask):
        eps = pyro.sample("eps", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Delta(w * eps), obs=x)


def test_masked_data_do_not_hide_a_mismatch():
    x = torch.where(torch.arange(8) % 2 == 0, 100.0, float("nan"))
    svi = SVI(apart, guide, optim(0.0, 0.0), AdversarialDivergence(Sure()))

    def train():
        for _ in range(30):
            svi.step(x)

    with pytest.warns(SupportMismatchWarning, match=r"noise="):
        train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train()


@pytest.mark.parametrize("net", [MLPCritic(), QuadraticCritic(), ConvCritic((8, 8))])
def test_nets_on_features_are_refused_when_the_loss_is_made(net):
    with pytest.raises(TypeError, match=r"adapted by concat_sites\(net, 'x'\)"):
        AdversarialDivergence(net)


def test_other_nets_on_features_are_refused_when_they_are_called():
    svi = SVI(model, guide, optim(), AdversarialDivergence(nn.Linear(2, 1)))
    with pytest.raises(TypeError, match=r"takes the dict of sites and the arguments of the model"):
        svi.step(X)
    assert not pyro.get_param_store().keys()


def test_a_mistake_inside_a_critic_is_shown_as_it_is():
    class Mistaken(Recorder):
        def forward(self, values, *args, **kwargs):
            return len(3)

    svi = SVI(model, guide, optim(), AdversarialDivergence(Mistaken()))
    with pytest.raises(TypeError, match="has no len"):
        svi.step(X)


def test_mmd_runs_a_masked_model_once():
    calls = []

    def counted(x):
        calls.append(1)
        w = pyro.param("w", torch.tensor(0.5))
        with pyro.plate("data", len(x)), poutine.mask(mask=torch.arange(len(x)) > 1):
            eps = pyro.sample("eps", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(w * eps, event_dim=1), obs=x)

    loss = MMD(GaussianKernel(1.0), noise={"x": GaussianNoise(0.3)})
    SVI(counted, guide, pyro.optim.Adam({"lr": 0.1}), loss).step(X)
    assert len(calls) == 1
