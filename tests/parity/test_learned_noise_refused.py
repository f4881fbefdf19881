# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What learned noise is refused for, in both backends alike."""

import re

import numpy as np
import optax
import pyro
import pytest
import torch
from flax import linen
from torch import nn
from twins import assert_refused_alike, in_both, no_guide

X = np.random.default_rng(3).normal(size=(6, 2))


def kernel(b, scale=(0.3, 0.4)):
    return b.package.GaussianNoise(b.array(np.array(scale)))


def learned(b, constraint="trace", **options):
    return b.package.learned(kernel(b), constraint=constraint, **options)


MADE = {
    "no constraint": (lambda b: b.package.learned(kernel(b)), "without a constraint vanishes"),
    "another constraint": (lambda b: learned(b, "norm"), "one of ['determinant', 'trace']"),
    "no kernel": (lambda b: b.package.learned(0.3, "trace"), "learned: expected a noise kernel"),
    "a number": (
        lambda b: b.package.learned(b.package.GaussianNoise(0.3), "trace"),
        "the single scale of this GaussianNoise is fixed by constraint='trace'",
    ),
    "one element": (
        lambda b: b.package.learned(kernel(b, [0.3]), "determinant"),
        "the single scale of this GaussianNoise is fixed by constraint='determinant'",
    ),
    "another kernel": (
        lambda b: b.package.learned(b.package.StudentTNoise(1.0, 0.3), "trace"),
        "learned() does not take StudentTNoise: use GaussianNoise",
    ),
    "several levels": (
        lambda b: b.package.learned(b.package.MultiLevelNoise(kernel(b), [1.0, 2.0]), "trace"),
        "learned() does not take MultiLevelNoise: use GaussianNoise",
    ),
    "annealed": (
        lambda b: b.package.learned(b.package.annealed(kernel(b), lambda step: 1.0), "trace"),
        "learned() does not take annealed(...): use GaussianNoise",
    ),
    "zero factor": (
        lambda b: b.package.learned(
            b.package.LowRankGaussianNoise(0.3, b.array(np.zeros((2, 1)))), "trace"
        ),
        "a factor of zeros has no gradient",
    ),
    "too unlike": (
        lambda b: b.package.learned(kernel(b, [1e-4, 1.0]), "trace"),
        "every element keeps 1e-06 of the mean variance",
    ),
    "more than all": (lambda b: learned(b, least=1.0), "got 1.0 under constraint='trace'"),
    "least of a determinant": (
        lambda b: learned(b, "determinant", least=0.1),
        "got 0.1 under constraint='determinant'",
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_when_it_is_made(name):
    mistake, words = MADE[name]
    assert_refused_alike(mistake, re.escape(words))


def critic(b):
    return b.package.concat_sites(b.pick(nn.Linear(2, 1), linen.Dense(1)), "x")


ELSEWHERE = {
    "MMD": lambda b, noise: b.package.MMD(b.package.GaussianKernel(1.0), noise=noise),
    "EnergyDistance": lambda b, noise: b.package.EnergyDistance(noise=noise),
    "SlicedWasserstein": lambda b, noise: b.package.SlicedWasserstein(noise=noise),
    "WassersteinCritic": lambda b, noise: b.package.WassersteinCritic(critic(b), noise=noise),
    "PriorContrastELBO": lambda b, noise: b.package.PriorContrastELBO(critic(b), noise=noise),
    "JointContrastELBO": lambda b, noise: b.package.JointContrastELBO(critic(b), noise=noise),
    "SemiImplicitELBO": lambda b, noise: b.package.SemiImplicitELBO(noise, num_mixture=2),
    "spread": lambda b, noise: b.package.spread(lambda x: None, noise),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_where_nobody_plays_it(name):
    assert_refused_alike(
        lambda b: ELSEWHERE[name](b, {"x": learned(b)}),
        "site 'x': noise made by learned.. is played by AdversarialDivergence and SpreadELBO only",
    )


@in_both
def test_made_by_a_callable(b):
    loss = b.package.AdversarialDivergence(critic(b), noise=lambda x: {"x": learned(b)})
    with pytest.raises(NotImplementedError, match="is played by"):
        first_step(b, loss, adam(b))


@in_both
def test_denoising_takes_the_kernel_that_it_is(b):
    with pytest.raises(TypeError, match=r"Of noise of learned.* pass what its method kernel"):
        b.package.denoise(b.array(X), learned(b), log_density=lambda y: y.sum(-1))


@in_both
def test_outside_of_a_dict(b):
    with pytest.raises(TypeError, match="noise must be"):
        b.package.SpreadELBO(learned(b))


@in_both
def test_learned_twice(b):
    with pytest.raises(TypeError, match="learned: expected a noise kernel"):
        b.package.learned(learned(b), "trace")


def test_one_object_at_two_sites():
    def mistake(b):
        noise = learned(b)
        return b.package.SpreadELBO({"x": noise, "y": noise})

    assert_refused_alike(mistake, "sites 'x' and 'y' have the same object of learned")


def test_a_generator_that_lowers_something_else():
    assert_refused_alike(
        lambda b: b.package.AdversarialDivergence(
            critic(b), noise={"x": learned(b)}, generator="non_saturating"
        ),
        "generator='non_saturating' lowers something else",
    )


def test_a_critic_that_looks_ahead():
    assert_refused_alike(
        lambda b: b.package.AdversarialDivergence(critic(b), noise={"x": learned(b)}, unroll=2),
        "with unroll=2 the critic follows the model",
    )


# --- the optimiser


def adam(b):
    return b.pick(pyro.optim.Adam({"lr": 1e-2}), optax.adam(1e-2))


def model(b, observe=lambda x: x, size=6):
    def program(x, *others):
        loc = b.param("loc", np.zeros(2))
        with b.plate("data", size):
            z = b.sample("z", b.dist.Normal(loc, 1.0).to_event(1))
            b.sample("x", b.dist.Delta(z, event_dim=1), obs=observe(x))

    return program


def guide(b):
    def program(x, *others):
        with b.plate("data", len(x)):
            b.sample("z", b.dist.Normal(x, 1.0).to_event(1))

    return program


def first_step(b, loss, optim, guide=no_guide, program=None):
    pyro.clear_param_store()
    program = model(b) if program is None else program
    svi = b.infer.SVI(program, loss.register(program, guide), optim, loss)
    b.pick(lambda: svi.step(torch.as_tensor(X)), lambda: svi.init(*b.key, b.array(X)))()


@in_both
def test_two_player_without_an_optimiser_for_the_noise(b):
    loss = b.package.AdversarialDivergence(critic(b), noise={"x": learned(b)})
    with pytest.raises(ValueError, match=r"has no optimiser.*two_player\(..., noise=optim\)"):
        first_step(b, loss, b.package.two_player(adam(b), adam(b)))


@in_both
def test_two_player_without_noise_to_move(b):
    loss = b.package.AdversarialDivergence(critic(b))
    with pytest.raises(ValueError, match=r"noise=... has nothing to move; the params are"):
        first_step(b, loss, b.package.two_player(adam(b), adam(b), noise=adam(b)))


@in_both
@pytest.mark.parametrize("site", ["params", "state"])
def test_two_player_moves_noise_at_a_site_of_any_name(b, site):
    def program(x):
        with b.plate("data", 6):
            z = b.sample("z", b.dist.Normal(b.param("loc", np.zeros(2)), 1.0).to_event(1))
            b.sample(site, b.dist.Delta(z, event_dim=1), obs=x)

    net = b.pick(nn.Linear(2, 1), linen.Dense(1))
    loss = b.package.AdversarialDivergence(
        b.package.concat_sites(net, site), noise={site: learned(b)}
    )
    optim = b.package.two_player(adam(b), adam(b), noise=adam(b))
    first_step(b, loss, optim, program=program)


def test_two_player_without_an_optimiser_for_the_critic():
    assert_refused_alike(
        lambda b: first_step(
            b,
            b.package.AdversarialDivergence(critic(b), noise={"x": learned(b)}),
            b.package.two_player(adam(b), None, noise=adam(b)),
        ),
        "discriminator is None, but the discriminator 'discriminator' has params",
    )


def test_two_player_of_one():
    assert_refused_alike(
        lambda b: b.package.two_player(adam(b), None), "without a discriminator it needs noise"
    )


@in_both
def test_two_player_moves_noise_under_a_bound(b):
    loss = b.package.SpreadELBO({"x": learned(b)})
    first_step(b, loss, b.package.two_player(adam(b), None, noise=adam(b)), guide(b))


# --- under a bound


def under_a_bound(b, program, guide, *data, others=()):
    loss = b.package.SpreadELBO({"x": learned(b)})
    noise = b.pick(None, loss.noise["x"])
    params = {} if noise is None else {"noise$x$params": noise.init()}
    if noise is None:
        if others:
            pyro.clear_param_store()
            return loss.loss_and_grads(program, guide, *map(torch.tensor, data), *others)
        return b.loss_and_grads(loss, program, guide, *data, params={})
    arrays = map(b.array, data)
    return loss.loss(*b.key, params, program, guide, *arrays, *others)


def two_sites(b):
    def program(x):
        with b.plate("data", 6):
            z = b.sample("z", b.dist.Normal(b.array(np.zeros(2)), 1.0).to_event(1))
            b.sample("x", b.dist.Delta(z, event_dim=1), obs=x)
            b.sample("other", b.dist.Normal(z, 1.0).to_event(1), obs=b.array(X))

    return program


def batch_of_rows(b):
    def program(x):
        with b.plate("data", 6, dim=-2), b.plate("parts", 2, dim=-1):
            z = b.sample("z", b.dist.Normal(b.array(np.zeros((6, 2))), 1.0))
            b.sample("x", b.dist.Delta(z), obs=x)

    return program


def guide_of_rows(b):
    def program(x):
        with b.plate("data", 6, dim=-2), b.plate("parts", 2, dim=-1):
            b.sample("z", b.dist.Normal(x, 1.0))

    return program


def masked(b):
    inner = model(b)

    def program(x):
        with b.handlers.mask(mask=b.array(np.arange(6) != 2)):
            inner(x)

    return program


def weighted(b):
    inner = model(b)

    def program(x):
        with b.handlers.scale(scale=b.array(1.0 + np.arange(6))):
            inner(x)

    return program


UNDER_A_BOUND = {
    "two observed sites": (two_sites, guide, (X,), "the model observes .'other'. too"),
    "parts of data": (batch_of_rows, guide_of_rows, (X,), r"batch shape is \(6, 2\)"),
    "mask": (masked, guide, (X,), "takes neither masks nor a scale for each datum"),
    "weights": (weighted, guide, (X,), "takes neither masks nor a scale for each datum"),
    "one datum": (lambda b: model(b, size=1), guide, (X[:1],), "at least two data"),
    "covariates": (model, guide, (X, np.zeros((6, 3))), r"argument of shape \(6, 3\) goes with"),
}


@pytest.mark.parametrize("name", UNDER_A_BOUND)
def test_data_whose_entropy_is_not_known(name):
    program, guide_of, data, words = UNDER_A_BOUND[name]
    assert_refused_alike(
        lambda b: under_a_bound(b, program(b), guide_of(b), *data), words, lengthened=True
    )


@pytest.mark.parametrize(
    "covariates",
    [
        lambda b: b.array(np.zeros((1, 6))),
        lambda b: [0.0] * 6,
        lambda b: tuple(range(6)),
        lambda b: range(6),
        lambda b: {"labels": [b.array(np.zeros(())) for _ in range(6)]},
    ],
)
def test_covariates_in_any_form(covariates):
    assert_refused_alike(
        lambda b: under_a_bound(b, model(b), guide(b), X, others=[covariates(b)]),
        r"argument of shape \(.*6.*\) goes with",
        lengthened=True,
    )


@in_both
def test_what_does_not_go_with_the_data(b):
    others = [[1.0] * 5, b.array(np.zeros((2, 3))), "sixsix", {"n": 6}, None, (6, 6)]
    under_a_bound(b, model(b), guide(b), X, others=others)


def test_data_in_another_order():
    assert_refused_alike(
        lambda b: under_a_bound(
            b, model(b, observe=lambda x: x[b.array(np.arange(5, -1, -1))]), guide(b), X
        ),
        "must find each noisy datum's own clean value",
        lengthened=True,
    )


@in_both
def test_a_datum_of_several_dims_may_be_reshaped(b):
    flat = X.reshape(6, 2, 1)
    value = under_a_bound(b, model(b, observe=lambda x: x.reshape(6, 2)), _flat_guide(b), flat)
    assert np.isfinite(float(value[0] if isinstance(value, tuple) else value))


def _flat_guide(b):
    return lambda x: guide(b)(x.reshape(6, 2))
