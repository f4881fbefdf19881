# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What JointContrastELBO refuses in Pyro, in which words, and that nothing is left behind."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.nn import PyroModule
from pyro_contrast import Told, affine, guide, model, param, sgd, snapshot, total, unchanged
from pyro_joint_contrast import X, density_guide, hierarchical, mlp
from torch import nn

from pyro_spread import (
    KL,
    Divergence,
    GaussianNoise,
    JointContrastELBO,
    JSPi,
    TotalVariation,
    concat_sites,
)


class OneWay(Divergence):
    def data_term(self, log_ratio):
        return log_ratio

    def model_term(self, log_ratio):
        return -log_ratio

    def generator_loss(self, log_ratio_q):
        return -log_ratio_q


ARGUMENTS = {
    "critic": ({"discriminator": lambda v: v["z"]}, TypeError, "discriminator must be a torch.nn"),
    "dict": ({"discriminator": {"z": Told(total)}}, TypeError, "discriminator must be a torch.nn"),
    "pyro module": ({"discriminator": PyroModule()}, TypeError, "is a PyroModule"),
    "no critic": (
        {"discriminator": None},
        ValueError,
        r"JointContrastELBO with ReverseKL needs a discriminator: only KL\(\)",
    ),
    "no critic for JSPi": (
        {"discriminator": None, "divergence": JSPi(0.5)},
        ValueError,
        "JointContrastELBO with JSPi needs a discriminator",
    ),
    "divergence": ({"divergence": 0.5}, TypeError, r"divergence must be a Divergence .* got 0\.5"),
    "divergence class": ({"divergence": KL}, TypeError, "divergence must be a Divergence such as"),
    "no gradient": ({"divergence": TotalVariation()}, NotImplementedError, "TotalVariation"),
    "particles": ({"num_particles": 0}, ValueError, "num_particles must be a positive integer"),
    "half": ({"num_particles": 1.0}, ValueError, "num_particles must be a positive integer"),
    "regularizer": ({"regularizer": 1.0}, TypeError, "regularizer must be a Regularizer such as"),
    "bare kernel": ({"noise": GaussianNoise(0.1)}, TypeError, "noise"),
}


@pytest.mark.parametrize("mistake", ARGUMENTS)
def test_arguments(mistake):
    wrong, error, message = ARGUMENTS[mistake]
    with pytest.raises(error, match=message):
        JointContrastELBO(**{"discriminator": Told(total), **wrong})


# --- models and guides


def with_global(x, fn=None):
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0) if fn is None else fn())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(beta, 1.0) if fn is None else affine(x, param("s")))
        if fn is None:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def in_plate(fn):
    def run(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn(x))

    return run


def no_data(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(param("mu"), 1.0))


def learned_coin(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(param("mu")))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def two_sites(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(z, 1.0), obs=x)
        pyro.sample("b", dist.Normal(z, 1.0), obs=x)


LEARNED = torch.tensor(0.3, requires_grad=True)
NPE = {"net": None, "divergence": KL()}
PROGRAMS = {
    "no latent": (
        model,
        lambda x: None,
        {},
        ValueError,
        r"the guide has no latent site of the model in the plates.*sites are \[\].*AdversarialDiv",
    ),
    "no latent but globals": (
        with_global,
        lambda x: pyro.sample("beta", dist.Normal(param("m"), 1.0)),
        {},
        ValueError,
        r"no latent site of the model .*its sites are \['beta'\]",
    ),
    "no latent in npe": (
        model,
        lambda x: pyro.sample("w", dist.Normal(param("m"), 1.0)),
        NPE,
        ValueError,
        r"no latent site of the model .*its sites are \['w'\]",
    ),
    "implicit global": (
        with_global,
        lambda x: with_global(x, lambda: affine(param("m"), 1.0)),
        {},
        ValueError,
        "guide site 'beta' is implicit but stands outside of the plates.*PriorContrastELBO",
    ),
    "discrete global": (
        with_global,
        lambda x: with_global(x, lambda: dist.Bernoulli(param("m"))),
        {},
        NotImplementedError,
        "latent site 'beta': draws of Bernoulli are not reparametrised",
    ),
    "globals beside JSPi": (
        with_global,
        lambda x: with_global(x, lambda: dist.Normal(param("m"), 1.0)),
        {"divergence": JSPi(0.5)},
        ValueError,
        r"guide site 'beta' stands outside .* only ReverseKL\(\) can add.*not JSPi",
    ),
    "implicit npe": (model, guide, NPE, ValueError, r"site 'z' has no density, so KL\(\) needs a"),
    "subsampled npe": (
        subsampled,
        density_guide,
        NPE,
        ValueError,
        r"site 'x': the model simulates values of shape \(4,\), but its data have \(6,\)",
    ),
    "one argument for two": (
        two_sites,
        density_guide,
        NPE,
        ValueError,
        "sites 'a' and 'b' would both take their data from the model argument 'x'",
    ),
    "data": (
        model,
        density_guide,
        {**NPE, "data": {"x": "y"}},
        ValueError,
        "site 'x': data= says that the model argument 'y' carries it",
    ),
    "no data": (no_data, guide, {}, ValueError, "observes no site, so there are no data"),
    "no data for npe": (no_data, density_guide, NPE, ValueError, "observes no site"),
    "learned coin": (
        learned_coin,
        guide,
        {},
        NotImplementedError,
        "latent site 'z': draws of Bernoulli .* parameters are being learned",
    ),
    "learned coin in the guide": (
        model,
        in_plate(lambda x: dist.Bernoulli(param("m").expand(len(x)))),
        {},
        NotImplementedError,
        "latent site 'z': draws of Bernoulli .* parameters are being learned",
    ),
    "masked": (
        poutine.mask(model, mask=torch.zeros(6, dtype=torch.bool)),
        guide,
        {},
        ValueError,
        "every datum is masked out",
    ),
    "noise at a latent": (
        model,
        guide,
        {"noise": {"z": GaussianNoise(0.1)}},
        ValueError,
        "'z'.*'x'",
    ),
    "learned noise": (
        model,
        guide,
        {"noise": {"x": GaussianNoise(LEARNED)}},
        ValueError,
        "site 'x': the noise kernel has learnable parameters",
    ),
    "one way": (
        model,
        guide,
        {"divergence": OneWay()},
        NotImplementedError,
        "OneWay does not say which divergence it is with its arguments exchanged.*`reversed`",
    ),
    "unknown name": (
        model,
        guide,
        {"net": concat_sites(nn.Linear(1, 1), "label")},
        ValueError,
        "'label' is neither a site",
    ),
    "logits": (
        model,
        guide,
        {"net": Told(lambda values, x: values["z"][:, None])},
        ValueError,
        r"returned logits of shape \(6, 1\)",
    ),
}


@pytest.mark.parametrize("mistake", PROGRAMS)
def test_programs(mistake):
    program, guide, options, error, message = PROGRAMS[mistake]
    options = dict(options)
    loss = JointContrastELBO(options.pop("net", Told(total)), **options)
    pyro.param("mine", torch.tensor(1.0)).sum().backward()
    before = snapshot()
    for method in (SVI(program, guide, sgd(), loss).step, loss.loss):
        args = (X,) if method != loss.loss else (program, guide, X)
        if mistake == "one way" and method == loss.loss:
            continue  # nothing is reversed where nothing is learned
        with pytest.raises(error, match=message):
            method(*args)
        assert unchanged(before)
        if loss.discriminator is not None:
            assert all(p.grad is None for p in loss.discriminator.parameters())


def test_there_are_no_logits_without_a_critic():
    with pytest.raises(ValueError, match=r"logits\(\) needs a discriminator"):
        JointContrastELBO(divergence=KL()).logits(model, density_guide, X)


def test_a_second_critic_under_the_same_name_is_refused():
    JointContrastELBO(Told(total)).loss_and_grads(model, guide, X)
    before = snapshot()
    with pytest.raises(ValueError, match="another discriminator under the name 'discriminator'"):
        JointContrastELBO(Told(total)).loss_and_grads(model, guide, X)
    assert unchanged(before)


def test_a_global_delta_of_noise_is_refused():
    def tempting(x):
        eps = pyro.sample("eps", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        mu = pyro.sample("mu", dist.Delta(param("m") + param("s") * eps))
        with pyro.plate("data", len(X)):
            pyro.sample("z", affine(mu * torch.ones(len(X)), 1.0))

    loss = JointContrastELBO(concat_sites(mlp(3), "x", "z", "mu"))
    with pytest.raises(ValueError, match="'mu' is a Delta at a function of random noise"):
        loss.loss(hierarchical, tempting, X)
