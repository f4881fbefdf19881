# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Who is told the level of the noise, what number that is, and who is refused."""

import functools
from contextlib import ExitStack

import numpy as np
import numpyro.distributions
import pytest
import torch
from flax import linen
from twins import BACKENDS, assert_refused_alike, in_both, no_guide

LEVELS, FACTOR = np.array([0.5, 2.0]), 0.25
STATE = {"x$annealed": 0}  # of the kernel in NumPyro
X = np.random.default_rng(0).normal(size=(6, 4, 3))


def gaussian(b):
    return b.package.GaussianNoise(1.0)


def levels(b):
    return b.package.MultiLevelNoise(gaussian(b), LEVELS)


def annealed(b, kernel):
    return b.package.annealed(kernel, lambda step: FACTOR)


def transformed(b, kernel):
    transforms = b.pick(torch.distributions.transforms, numpyro.distributions.transforms)
    return b.package.TransformedNoise(transforms.AffineTransform(0.0, 2.0), kernel)


def value_of(b, noise, model, guide, *args, loss="SpreadELBO", **options):
    made = getattr(b.package, loss)(noise=noise, **options)
    return b.loss(made, model, *args, guide=guide, params=STATE)


def centred(b, x, ndim):
    """A model whose site has ``ndim`` event dims, with a plate for each of the others."""
    with ExitStack() as plates:
        for number, size in enumerate(x.shape[:-ndim]):
            plates.enter_context(b.plate(f"plate {number}", size, dim=number - 3 + ndim))
        b.sample("x", b.dist.Delta(b.np.zeros(x.shape), event_dim=ndim), obs=x)


@in_both
@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("kind", ["levels", "annealed"])
@pytest.mark.parametrize("asks", ["guide", "model"])
def test_an_encoder_that_concatenates_sees_the_batch_of_the_site_only(b, ndim, kind, asks):
    seen = []
    noise = levels(b) if kind == "levels" else annealed(b, gaussian(b))

    def encoder(x, x_level):
        seen.append(np.shape(x_level))
        for _ in range(ndim):
            x_level = x_level[..., None]
        shape = (*x.shape[:-1], 1)
        both = b.np.broadcast_to(x_level, shape), x
        return (b.np.concatenate if hasattr(b.np, "concatenate") else b.np.cat)(both, -1)

    def model(x):
        centred(b, x, ndim)

    def asking(x, x_level):
        encoder(x, x_level)
        centred(b, x, ndim)

    sides = (model, lambda x, x_level: encoder(x, x_level) is None)
    if asks == "model":
        sides = (asking, no_guide)
    value_of(b, {"x": noise}, *sides, X)
    assert seen[-1] == X.shape[: 3 - ndim]
    if asks == "guide":
        assert set(seen) == {X.shape[: 3 - ndim]}


@in_both
def test_reshaped_data_get_one_multiplier_for_each_event_of_the_site(b):
    seen = []

    def model(x):
        with b.plate("data", 24):
            b.sample("x", b.dist.Delta(b.np.zeros((24, 3)), event_dim=1), obs=x.reshape(24, 3))

    def guide(x, x_level):
        seen.append(np.shape(x_level))

    value_of(b, {"x": annealed(b, gaussian(b))}, model, guide, X.reshape(-1))
    assert seen[-1] == (24,)


@in_both
def test_the_number_is_the_level_times_the_multiplier(b):
    seen = {}

    def model(x):
        centred(b, x, 1)

    for name, noise in {"one": gaussian(b), "several": levels(b)}.items():

        def guide(x, x_level, name=name):
            seen[name] = np.asarray(x_level), np.asarray(x)

        value_of(b, {"x": annealed(b, noise)}, model, guide, np.repeat(X, 20, 0))
    assert set(np.unique(seen["one"][0])) == {FACTOR}
    level, y = seen["several"]
    assert set(np.unique(level)) == set(FACTOR * LEVELS)
    scaled = (y - np.repeat(X, 20, 0)) / level[..., None]
    assert (scaled**2).mean() == pytest.approx(1, abs=4 * np.sqrt(2 / scaled.size))


def flat(b, x):
    with b.plate("data", 2):
        b.sample("x", b.dist.Normal(b.np.zeros(2), 1.0), obs=x)


def call(b, loss, noise, model, guide, *args, **kwargs):
    """A loss at arguments by position and by keyword."""
    made = getattr(b.package, loss)
    made = made(noise) if loss == "SpreadELBO" else made(noise=noise)
    fn = made.loss if b is BACKENDS[0] else functools.partial(made.loss, *b.key, STATE)
    return fn(model, guide, *map(b.array, args), **{k: b.array(v) for k, v in kwargs.items()})


def test_who_asks_for_what_nobody_tells_is_refused():
    x = np.zeros(2)

    def asking(x, x_level=None):
        return None

    def covariate(b):
        return lambda x, x_level: flat(b, x)

    def spread(b, noise, guide=asking, *args, **kwargs):
        call(b, "SpreadELBO", noise, functools.partial(flat, b), guide, x, *args, **kwargs)

    def shared(b):
        def model(x):
            for name in "xt":
                b.sample(name, b.dist.Normal(b.np.zeros(2), 1.0).to_event(1), obs=x)

        kernel = levels(b)
        noise = {"x": kernel, "t": kernel}
        loss = b.package.SpreadELBO(noise, data={"x": "x", "t": "x"})
        b.loss(loss, model, x, guide=lambda x, x_level=None, t_level=None: None)

    def pattern(b):
        loss = b.package.SpreadELBO({"x*": levels(b)}, data={"x*": "x"})
        b.loss(loss, functools.partial(flat, b), x, guide=asking)

    def contrast(b):
        def guide(x, x_level=None):
            b.sample("z", b.dist.Normal(x_level[:, None], 1.0))  # never called without its level

        critic = b.pick(lambda: torch.nn.Linear(1, 1), lambda: linen.Dense(1))()
        loss = b.package.PriorContrastELBO(b.package.concat_sites(critic, "z"), {"x": levels(b)})
        b.loss(loss, functools.partial(flat, b), x, guide=guide)

    mistakes = {
        "site 'x': .* this loss does not tell model or guide the level of": contrast,
        "site 'x': model or guide ask for 'x_level', but TransformedNoise has no level": (
            lambda b: spread(b, {"x": transformed(b, levels(b))})
        ),
        "site 'x': .*, but TransformedNoise has": lambda b: spread(
            b, {"x": annealed(b, transformed(b, levels(b)))}
        ),
        "site 'x': .*, but GaussianNoise has no level": lambda b: spread(b, {"x": gaussian(b)}),
        r"site 'x': .* by the pattern 'x\*'": pattern,
        "site 't': .* are those of site 'x'.*Ask for 'x_level'": shared,
        "site 'x': 'x_level' is the level of the noise": lambda b: call(
            b, "SpreadELBO", {"x": levels(b)}, covariate(b), lambda x, x_level: None, x, x
        ),
        "site 'x': 'x_level' is the level": lambda b: call(
            b,
            "EnergyDistance",
            {"x": annealed(b, gaussian(b))},
            covariate(b),
            both,
            x,
            x,
        ),
        "'x_level' is the level of": lambda b: call(
            b,
            "EnergyDistance",
            {"x": levels(b)},
            covariate(b),
            both,
            x,
            x_level=x,
        ),
        "site 'x': .* this loss does not tell model or guide the level": lambda b: call(
            b, "EnergyDistance", {"x": levels(b)}, asking_model(b), no_guide, x
        ),
    }
    for match, mistake in mistakes.items():
        assert_refused_alike(mistake, match=match)


def both(x, x_level):
    """The guide of a model without latents, which has a covariate."""


def asking_model(b):
    return lambda x, x_level=None: flat(b, x)


@in_both
def test_a_covariate_of_that_name_is_the_users_own_where_noise_has_no_level(b):
    x = np.zeros(2)
    model = functools.partial(lambda b, x, x_level: flat(b, x + 0 * x_level), b)
    assert np.isfinite(call(b, "EnergyDistance", {"x": gaussian(b)}, model, both, x, x))
