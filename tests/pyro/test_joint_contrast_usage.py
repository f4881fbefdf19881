# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""JointContrastELBO in Pyro as it is used: SVI, modules, files, one call after another."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro_contrast import Told, affine, data, guide, model, param, sgd, total
from pyro_joint_contrast import X, hierarchical, mlp
from torch import nn

from pyro_spread import KL, R1, ImplicitDistribution, JointContrastELBO, JSPi, concat_sites
from spread_analysis import FalseEvidenceWarning


@pytest.mark.parametrize("divergence", [None, JSPi(0.5), KL()])
def test_two_players_and_evaluation(divergence):
    # Without what bends, the logits' sum and a shift of all pairs would be lost on the norm.
    norm = nn.BatchNorm1d(3)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), norm, nn.Tanh(), nn.Linear(3, 1))
    loss = JointContrastELBO(concat_sites(net, "x", "z"), divergence, regularizer=R1(0.1))
    svi = SVI(model, loss.register(model, guide), sgd(steps=2), loss)
    svi.evaluate_loss(X)
    for i in (1, 2):
        before = {name: p.detach().clone() for name, p in pyro.get_param_store().items()}
        mean = norm.running_mean.clone()
        svi.evaluate_loss(X)
        loss.logits(model, guide, X)
        assert all(torch.equal(p, before[name]) for name, p in pyro.get_param_store().items())
        assert torch.equal(norm.running_mean, mean)
        svi.step(X)
        moved = {n for n, p in pyro.get_param_store().items() if not torch.equal(p, before[n])}
        assert {n for n in moved if "$$$" not in n} == (set() if i == 1 else {"m", "s", "mu"})
        assert any("$$$" in n for n in moved)
        assert not torch.equal(norm.running_mean, mean)
    assert torch.equal(X, data())


@pytest.mark.parametrize("lazy", [False, True])
def test_params_survive_a_file(tmp_path, lazy):
    def steps(critic, count):
        loss = JointContrastELBO(critic)
        loss.loss(model, guide, X)
        pyro.set_rng_seed(1)
        svi = SVI(model, guide, sgd(), loss)
        return [svi.step(X) for _ in range(count)]

    first, second = (concat_sites(nn.LazyLinear(1) if lazy else mlp(), "x", "z") for _ in range(2))
    steps(first, 2)
    pyro.get_param_store().save(tmp_path / "params")
    wanted = steps(first, 2)
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "params")
    assert steps(second, 2) == pytest.approx(wanted, rel=1e-5)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(1, 1)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(self.decoder(z[:, None])[:, 0]), obs=x)


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 1)

    def forward(self, x):
        def fn(eps):
            return self.encoder(torch.stack([x, eps], -1))[..., 0]

        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(fn, dist.Normal(torch.zeros(()), 1.0), ()))


def test_the_module_holds_every_param():
    module = JointContrastELBO(concat_sites(mlp(), "x", "z"), JSPi(0.5))(Model(), Guide())
    names = {name for name, _ in module.named_parameters()}
    assert {"model.decoder.weight", "guide.encoder.bias", "discriminator.net.0.weight"} < names
    module(X).backward()
    assert all(p.grad is not None for p in module.parameters())
    with torch.no_grad():
        assert not module(X).requires_grad
    assert not list(pyro.get_param_store())


def test_a_critic_that_sees_no_overlap_warns():
    def far(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", affine(param("m") + 50, 0.1))

    def steps(guide, critic):
        pyro.clear_param_store()
        svi = SVI(model, guide, sgd(0.0, 0.0), JointContrastELBO(Told(critic)))
        for _ in range(60):
            svi.step(X)

    with pytest.warns(FalseEvidenceWarning):
        steps(far, lambda values, *args: values["z"] - 25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(guide, total)


# --- what one call says of the next


def over_both(x=None):
    mu = pyro.sample("mu", dist.Normal(param("m"), 1.0))
    with pyro.plate("data", len(X)):
        pyro.sample("z", affine(mu * torch.ones(len(X)), param("s")))


def test_a_call_without_data_is_forgotten():
    loss = JointContrastELBO(concat_sites(mlp(3), "x", "z", "mu"))
    with pytest.raises(ValueError, match="observes no site"):
        loss.loss(hierarchical, over_both)
    loss.loss(hierarchical, over_both, X)


# --- guide sites that are no latents of the model


def test_auxiliary_sites_of_the_guide_may_be_none_of_the_model():
    def through_noise(x):
        with pyro.plate("data", len(x)):
            eps = pyro.sample("eps", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(param("m") * x + param("s") * eps))

    pyro.set_rng_seed(0)
    assert JointContrastELBO(concat_sites(mlp(), "x", "z")).loss(model, through_noise, X) != 0
