# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Particles at once in Pyro: programs that keep them apart, and others, which go one by one."""

import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from whole_programs import KnowingGuide

from pyro_spread import KL, ImplicitDistribution, JointContrastELBO, concat_sites
from pyro_spread.ratio import MLPCritic

BACKEND = SimpleNamespace(array=torch.as_tensor)


def normal(loc, scale=1.0):
    return dist.Normal(loc, scale)


def two(fn):
    """The model of two numbers whose data are ``fn`` of them, without a density."""

    def model(x=None):
        z = pyro.sample("z", normal(torch.zeros(2)).to_event(1))
        pyro.sample("x", dist.Delta(fn(z)), obs=x)

    return model


def sites(b, x, mask=None):
    pyro.sample("z", normal(torch.stack([x, 2 * x], -1)).to_event(1))


GUIDE = KnowingGuide(BACKEND, sites, ())


def loss_of(number=20, vectorize_particles=True):
    return JointContrastELBO(
        divergence=KL(), num_particles=number, vectorize_particles=vectorize_particles
    )


def runs_of(model):
    """The model, and a list with the shape of z in each of its runs."""
    shapes = []

    def counted(x=None):
        with pyro.poutine.trace() as tracer:
            model(x)
        shapes.append(tuple(tracer.trace.nodes["z"]["value"].shape))

    return counted, shapes


def noisy_sum(z):
    return z.sum(-1) + 0.1 * torch.randn(z.shape[:-1])


def test_particles_are_one_run_of_the_model():
    model, shapes = runs_of(two(noisy_sum))
    loss = loss_of()
    first = loss.loss(model, GUIDE)
    assert math.isfinite(first)
    shapes.clear()
    loss.loss(model, GUIDE)
    assert shapes == [(20, 2)]


KEEP_APART = {
    "Poisson": lambda z: torch.poisson(z.exp()).sum(-1),
    "gamma": lambda z: dist.Gamma(z[..., 0].exp(), 1.0).sample() + z[..., 1],
    "binomial": lambda z: dist.Binomial(7, logits=z[..., 0]).sample() + z[..., 1],
    "Dirichlet": lambda z: (dist.Dirichlet(z.exp()).sample() * z).sum(-1),
    "categorical": lambda z: dist.Categorical(logits=z).sample() + z[..., 1],
    "uniform": lambda z: torch.rand(z.shape[:-1]) + torch.rand_like(z).sum(-1) + z.sum(-1),
    "coin": lambda z: torch.bernoulli(z.sigmoid()).sum(-1) + z[..., 0],
    "exponential": lambda z: torch.empty(z.shape[:-1]).exponential_() + z[..., 0],
    "integers": lambda z: torch.randint(3, 5, z.shape[:-1]) * z[..., 0],
    "normal": lambda z: torch.normal(z[..., 0], z[..., 1].exp()),
}


@pytest.mark.parametrize("name", KEEP_APART)
def test_simulators_that_keep_particles_apart(name):
    model, shapes = runs_of(two(KEEP_APART[name]))
    loss_of().loss(model, GUIDE)
    assert shapes[-1] == (20, 2)


MIX = {
    "takes the first": lambda z: z[0] + 0.0 * z.sum(-1),
    "sums over all": lambda z: 0.0 * z.sum(-1) + z.sum() + 0.1 * torch.randn(()),
    "mean of all": lambda z: z.sum(-1) - z.mean(),
    "neighbours": lambda z: z.cumsum(0).sum(-1),
    "its size as a number": lambda z: z.sum(-1) * z.shape[0] + torch.randn(z.shape[:-1]),
    "one branch for all": lambda z: z.sum(-1) if z.mean() > 0 else z[..., 0],
    "batch normalisation": lambda z: torch.nn.BatchNorm1d(1)(z.reshape(-1, 1))[0, 0] + z.sum(-1),
}


@pytest.mark.parametrize("name", MIX)
def test_simulators_that_would_mix_particles_go_one_by_one(name):
    model, shapes = runs_of(two(MIX[name]))
    torch.manual_seed(1)
    with pytest.warns(
        match="one after another, because .*a particle alone|because the program fails"
    ):
        loss_of().loss(model, GUIDE)
    shapes.clear()
    torch.manual_seed(2)
    value = loss_of().loss(model, GUIDE)  # said once
    assert shapes == [(2,)] * 20
    torch.manual_seed(2)
    assert value == loss_of(vectorize_particles=False).loss(model, GUIDE)


def test_a_density_that_would_mix_particles():
    def model(x=None):
        z = pyro.sample("z", normal(torch.zeros(2)).to_event(1))
        pyro.sample("x", normal(z[0] + 0.0 * z.sum(-1)), obs=x)

    with pytest.warns(match="at site 'x' of the model a particle alone is different"):
        loss_of(2).loss(model, GUIDE)


def test_an_implicit_site_that_would_mix_particles():
    def model(x=None):
        z = pyro.sample("z", normal(torch.zeros(2)).to_event(1))
        fn = ImplicitDistribution(lambda eps: eps + z.mean(), normal(torch.zeros(())), ())
        pyro.sample("x", fn, obs=x)

    with pytest.warns(match="at site 'x' of the model a particle alone is different"):
        loss_of().loss(model, GUIDE)


def test_a_guide_that_would_mix_particles():
    def mixing(b, x, mask):
        pyro.sample("z", normal(x.mean() * torch.ones(2)).to_event(1))

    with pytest.warns(match="at site 'z' of the guide a particle alone is different"):
        loss_of().loss(two(noisy_sum), KnowingGuide(BACKEND, mixing, ()))


def test_a_program_that_cannot_have_one_dim_more():
    def model(x=None):
        z = pyro.sample("z", normal(torch.zeros(2)).to_event(1))
        first = float(z[0]) if z.dim() == 1 else float(z[:, 0])
        pyro.sample("x", normal(z[..., 1] + first), obs=x)

    with pytest.warns(match="because the program fails with a dimension for them"):
        assert math.isfinite(loss_of().loss(model, GUIDE))


def test_random_numbers_that_torch_does_not_draw():
    import numpy as np

    def own(z):
        noise = np.random.default_rng().normal(size=tuple(z.shape[:-1]))
        return z.sum(-1) + torch.as_tensor(noise, dtype=z.dtype)

    with pytest.warns(match="at site 'x' of the model"):
        assert math.isfinite(loss_of().loss(two(own), GUIDE))


def test_guides_that_read_their_arguments():
    """From the right they take particles; those that count the first axis go one by one."""

    def model(x):
        with pyro.plate("data", 4):
            z = pyro.sample("z", normal(0.0))
            pyro.sample("x", normal(z), obs=x)

    def guide(size):
        def guide(x):
            with pyro.plate("data", size(x)):
                pyro.sample("z", normal(0.7 * x))

        return guide

    x = torch.zeros(4)
    from_right, from_left = guide(lambda x: x.shape[-1]), guide(len)
    at_once = loss_of(300).loss(model, from_right, x)
    with pytest.warns(match="one after another"):
        in_turn = loss_of(300).loss(model, from_left, x)
    assert at_once == pytest.approx(in_turn, abs=0.1)


def test_other_sizes_are_looked_at_anew():
    def model(x=None, size=1):
        z = pyro.sample("z", normal(torch.zeros(2)).to_event(1))
        value = z.sum(-1) if size == 1 else z.sum()
        pyro.sample("x", normal(value), obs=x)

    loss = loss_of()
    loss.loss(model, GUIDE)
    with pytest.warns(match="one after another"):
        loss.loss(model, GUIDE, None, 2)


def test_training_at_once_learns_the_posterior():
    def model(x=None):
        z = pyro.sample("z", normal(0.0))
        pyro.sample("x", dist.Delta(z + 0.5 * torch.randn(z.shape)), obs=x)

    def sites(b, x, mask):
        scale = pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("z", normal(pyro.param("m", torch.tensor(0.0)) * x, scale))

    pyro.set_rng_seed(0)
    svi = SVI(model, KnowingGuide(BACKEND, sites, ()), pyro.optim.Adam({"lr": 0.02}), loss_of(500))
    for _ in range(150):
        svi.step()
    assert pyro.param("m").item() == pytest.approx(0.8, abs=0.04)
    assert pyro.param("s").item() == pytest.approx(0.447, abs=0.03)


def test_looking_takes_no_random_numbers():
    model, values = two(noisy_sum), []
    for _ in range(2):  # the first is looked at before
        torch.manual_seed(3)
        values.append(loss_of().loss(model, GUIDE))
    assert values[0] == values[1]


def test_a_critic_takes_particles_one_by_one():
    critic = concat_sites(MLPCritic((2,)), "z", "x")
    with pytest.raises(ValueError, match="vectorize_particles=True needs KL"):
        JointContrastELBO(critic, vectorize_particles=True)
    with pytest.raises(TypeError, match="vectorize_particles must be True or False"):
        loss_of(vectorize_particles=torch.vmap)
