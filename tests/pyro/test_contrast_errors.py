# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Programs that PriorContrastELBO refuses in Pyro, in which words, with nothing left behind."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro_contrast import Told, affine, data, guide, model, param, sgd, snapshot, total, unchanged
from torch import nn

from pyro_spread import GaussianNoise, ImplicitDistribution, PriorContrastELBO, concat_sites

X = data()
EPS = dist.Normal(torch.zeros(()), 1.0)


def two_sites(how_z="plain", how_y="plain"):
    """Two implicit sites, whose plates, masks and scales may differ."""
    wrap = {
        "plain": lambda: poutine.mask(mask=True),
        "mask": lambda: poutine.mask(mask=X > 0),
        "other mask": lambda: poutine.mask(mask=X < 0),
        "scale": lambda: poutine.scale(scale=2.0),
        "scales": lambda: poutine.scale(scale=torch.arange(1.0, 7.0)),
        "global": lambda: poutine.mask(mask=True),
        "plate": lambda: poutine.mask(mask=True),
    }

    def run(x):
        plates = {name: pyro.plate(name, len(x)) for name in ("data", "other")}
        for name, how in (("z", how_z), ("y", how_y)):
            fn = affine(param("m"), param("s"))
            with wrap[how]():
                if how == "global":
                    pyro.sample(name, fn)
                else:
                    with plates["other" if how == "plate" else "data"]:
                        pyro.sample(name, fn)

    return run


def two_priors(x):
    with pyro.plate("data", len(x)):
        for name in ("z", "y"):
            pyro.sample(name, dist.Normal(param("mu"), 1.0))


def one_global(x):
    pyro.sample("y", dist.Normal(param("mu"), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def implicit_prior(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", affine(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def learned_implicit_prior(x):
    mu = param("mu")
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", ImplicitDistribution(lambda eps: mu + eps, EPS, ()))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def of_noise(fn, base=EPS, wrap=lambda fn: fn):
    def run(x):
        s = param("s")
        with pyro.plate("data", len(x)):
            pyro.sample("z", wrap(ImplicitDistribution(lambda eps: fn(x, s, eps), base, ())))

    return run


def masked_event(x):
    m = param("m")
    mask = torch.tensor([True, False])
    with pyro.plate("data", len(x)):
        fn = ImplicitDistribution(lambda eps: m * eps, EPS, ()).expand([6, 2])
        pyro.sample("z", fn.mask(mask).to_event(1))


def learned_bernoulli(x):
    base = dist.Bernoulli(param("s"))
    with pyro.plate("data", len(x)):
        pyro.sample("z", ImplicitDistribution(lambda eps: eps * x, base, ()))


def misfit(x):
    with poutine.mask(mask=torch.ones(2, 6, dtype=torch.bool)):
        guide(x)


def renamed(x):
    with pyro.plate("data", len(x)):
        pyro.sample("zz", affine(param("m") * x, param("s")))


def of_head(loc, scale=None):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor(0.1))

        def forward(self, x):
            return loc if scale is None else (self.bias + loc, scale)

    return {"head": Head()}


ONE = torch.ones(())
PROGRAMS = {
    "critic of no site": (
        model,
        guide,
        {"net": {"z": Told(total), "w": Told(total)}},
        ValueError,
        r"critic for the site 'w', which is no ImplicitDistribution.*are \['z'\]",
    ),
    "critic of data": (
        model,
        guide,
        {"net": {"z": Told(total), "x": Told(total)}},
        ValueError,
        "discriminator has a critic for the site 'x'",
    ),
    "missing critic": (
        two_priors,
        two_sites(),
        {"net": {"z": Told(total)}},
        ValueError,
        r"guide site 'y' is an ImplicitDistribution without a critic.*those of \['z'\]",
    ),
    "plates": (
        one_global,
        two_sites("plain", "global"),
        {},
        ValueError,
        r"'z' and 'y' differ in their plates.*discriminator=\{'z': \.\.\., 'y': \.\.\.\}",
    ),
    "other plate of the same size": (
        two_priors,
        two_sites("plain", "plate"),
        {},
        ValueError,
        "'z' and 'y' differ in their plates",
    ),
    "masks": (
        two_priors,
        two_sites("mask", "other mask"),
        {},
        ValueError,
        "'z' and 'y' differ in their masks",
    ),
    "one mask": (two_priors, two_sites("mask"), {}, ValueError, "'z' and 'y' differ in their mask"),
    "scales": (
        two_priors,
        two_sites("plain", "scale"),
        {},
        ValueError,
        "'z' and 'y' differ in their scales",
    ),
    "tensor scales": (
        two_priors,
        two_sites("scales"),
        {},
        ValueError,
        "'z' and 'y' differ in their masks or scales",
    ),
    "masked event": (
        model,
        masked_event,
        {},
        ValueError,
        r"guide site 'z': the mask is inside of to_event.*Put \.mask\(\.\.\.\) outside",
    ),
    "mask misfit": (model, misfit, {}, ValueError, r"site 'z'.* mask or scale of shape \(2, 6\)"),
    "not broadcasting": (
        model,
        of_noise(lambda x, s, eps: torch.cat([s * eps])[[0, 1, 2, 3, 4, 5]]),
        {"num_moment_draws": 5},
        ValueError,
        r"guide site 'z': several draws per datum.*here \(5,\) draws of the batch.*expand\(\*eps",
    ),
    "implicit prior": (
        implicit_prior,
        guide,
        {},
        NotImplementedError,
        "site 'z': the model's prior has no density.*adaptive=False",
    ),
    "learned implicit prior": (
        learned_implicit_prior,
        guide,
        {"adaptive": False},
        NotImplementedError,
        "site 'z': the prior has no density but learned parameters.*Fix them, or give",
    ),
    "no prior": (
        model,
        renamed,
        {"adaptive": False},
        ValueError,
        "guide site 'zz' is implicit but the model has no latent site of that name",
    ),
    "head shape": (
        model,
        guide,
        of_head(torch.ones(5), ONE),
        ValueError,
        r"guide site 'z': head must return \(loc, scale\).*shape \(6,\).*got \[\(5,\), \(\)\]",
    ),
    "head of a negative scale": (
        model,
        guide,
        of_head(ONE, -ONE),
        ValueError,
        "guide site 'z': head must return a positive scale",
    ),
    "head of one": (model, guide, of_head(ONE), ValueError, "'z': head must return .*got Tensor"),
    "head of another site": (
        model,
        guide,
        of_head({"w": (ONE, ONE)}),
        ValueError,
        r"guide site 'z': head must return \(loc, scale\).*got NoneType",
    ),
    "collapsed": (
        model,
        of_noise(lambda x, s, eps: (s * x).expand(eps.shape)),
        {},
        ValueError,
        "guide site 'z': all draws for a datum are the same, or not finite",
    ),
    "collapsed but for rounding": (
        model,
        of_noise(lambda x, s, eps: s * x + 1e-9 * eps),
        {},
        ValueError,
        "guide site 'z': all draws for a datum are the same",
    ),
    "infinite": (
        model,
        of_noise(lambda x, s, eps: s * eps * 1e30),
        {},
        ValueError,
        "guide site 'z': all draws for a datum are the same, or not finite.*Start it near",
    ),
    "discrete noise": (
        model,
        learned_bernoulli,
        {},
        NotImplementedError,
        "latent site 'z': draws of Bernoulli are not reparametrised",
    ),
    "logits": (
        model,
        guide,
        {"net": Told(lambda values, x: values["z"][..., None])},
        ValueError,
        r"returned logits of shape \(6, 1\)",
    ),
    "net on features": (model, guide, {"net": nn.Linear(1, 1)}, TypeError, "takes the dict of"),
    "unknown name": (
        model,
        guide,
        {"net": concat_sites(nn.Linear(1, 1), "label")},
        ValueError,
        "'label' is neither a site that is compared",
    ),
    "noise at no site": (
        model,
        guide,
        {"noise": {"y": GaussianNoise(0.1)}},
        ValueError,
        "'y'",
    ),
}
IN_TRAINING_ONLY = {"no prior", "learned implicit prior"}


@pytest.mark.parametrize("mistake", PROGRAMS)
def test_programs(mistake):
    program, guide, options, error, message = PROGRAMS[mistake]
    options = dict(options)
    loss = PriorContrastELBO(options.pop("net", Told(total)), **options)
    pyro.param("mine", torch.tensor(1.0)).sum().backward()
    before = snapshot()
    evaluation = [] if mistake in IN_TRAINING_ONLY else [loss.loss]
    for method in (SVI(program, guide, sgd(), loss).step, *evaluation):
        args = (X,) if method not in evaluation else (program, guide, X)
        with pytest.raises(error, match=message):
            method(*args)
        assert unchanged(before)
        for module in (loss.discriminator, loss.head):
            if module is not None:
                assert all(p.grad is None for p in module.parameters())
    assert loss.steps_done == 0


def test_noise_that_is_not_learned_may_be_discrete():
    coin = dist.Bernoulli(torch.tensor(0.5))
    for wrap in (lambda fn: fn, lambda fn: fn.to_event(0), lambda fn: fn.mask(X > 0)):
        pyro.clear_param_store()
        free = of_noise(lambda x, s, eps: s * eps + 0.1 * torch.randn(eps.shape), coin, wrap)
        PriorContrastELBO(Told(total)).loss_and_grads(model, free, X)
        assert pyro.param("s").grad is not None


def test_wrapped_noise_that_is_not_learned_may_be_discrete():
    net = nn.Linear(2, 2)  # seen by vars(), as a lambda is not

    def program(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))

    def free(x):
        pyro.module("net", net)
        coins = dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(net, coins, (2,)).expand([6, 1]).to_event(1))

    PriorContrastELBO(Told(total)).loss_and_grads(program, free, X)
    assert net.weight.grad.any()


def test_masked_elements_may_have_collapsed():
    mask = X > 0

    def padded(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=mask):
            s = param("s")
            pyro.sample("z", ImplicitDistribution(lambda eps: s * eps * mask, EPS, ()))

    def padded_model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    critic = Told(lambda values, x: values["z"] ** 3)
    value = PriorContrastELBO(critic).loss_and_grads(padded_model, padded, X)
    grads = pyro.param("s").grad, critic.gain.grad
    assert torch.isfinite(torch.stack([torch.tensor(value), *grads])).all()


def test_a_second_critic_under_the_same_name_is_refused():
    PriorContrastELBO(Told(total)).loss_and_grads(model, guide, X)
    before = snapshot()
    with pytest.raises(ValueError, match="another discriminator under the name 'discriminator'"):
        PriorContrastELBO(Told(total)).loss_and_grads(model, guide, X)
    assert unchanged(before)
    PriorContrastELBO(Told(total), name="second").loss_and_grads(model, guide, X)
