# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise at several levels: one level for each datum, told to those who ask, in both backends."""

import functools

import numpy as np
import pytest
import torch
from flax import linen
from scipy import stats
from twins import BACKENDS, assert_refused_alike, compare, in_both, no_guide

LEVELS, WEIGHTS = np.array([0.5, 1.0, 4.0]), np.array([0.2, 0.3, 0.5])
RNG = np.random.default_rng(0)
X, CENTRE = RNG.normal(size=(400, 3)), np.array([0.3, -0.2, 0.1])
SCALE = 0.7


def levels(b, **options):
    return b.package.MultiLevelNoise(b.package.GaussianNoise(SCALE), LEVELS, WEIGHTS, **options)


def log_normal(difference, scale):
    return stats.norm.logpdf(difference, scale=np.asarray(scale)[..., None]).sum(-1)


def log_mixture(difference, widening=0.0):
    scales = np.sqrt((SCALE * LEVELS) ** 2 + widening**2)
    each = [np.log(w) + log_normal(difference, s) for w, s in zip(WEIGHTS, scales, strict=True)]
    return np.logaddexp.reduce(each, 0)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_density_of_whole_events_and_spreads_are_mixtures():
    y = X + 0.3

    def densities(b):
        noise, x, mask = levels(b), b.array(X), b.array(np.array([True, False, True]))
        normal = b.dist.Normal(x, b.array(np.full(3, 0.4)))
        return {
            "of y given x": noise(x, 1).log_prob(b.array(y)),
            "per element": noise(x).log_prob(b.array(y)),
            "of a delta": noise.spread(b.dist.Delta(x, event_dim=1)).log_prob(b.array(y)),
            "normal": noise.spread(normal.to_event(1)).log_prob(b.array(y)),
            "masked": noise.spread(
                b.dist.Normal(b.np.zeros(3), 0.4).mask(mask).to_event(1)
            ).log_prob(b.array(y)),
        }

    found = compare(densities)
    np.testing.assert_allclose(found["of y given x"], log_mixture(y - X), rtol=1e-10)
    np.testing.assert_allclose(found["of a delta"], log_mixture(y - X), rtol=1e-10)
    elements = log_mixture((y - X)[..., None])
    np.testing.assert_allclose(found["per element"], elements, rtol=1e-10)
    np.testing.assert_allclose(found["normal"], log_mixture(y - X, 0.4), rtol=1e-10)
    kept = log_mixture(y[:, [0, 2]], 0.4)  # one level for what is left of the event
    np.testing.assert_allclose(found["masked"], kept, rtol=1e-10)


@in_both
def test_a_draw_of_an_event_has_one_level_and_its_moments(b):
    fn = levels(b)(b.np.zeros((20_000, 3)), 1)
    noise = np.asarray(fn.sample(*b.key))
    variance = SCALE**2 * (WEIGHTS @ LEVELS**2)
    np.testing.assert_allclose(fn.variance, np.full((20_000, 3), variance), rtol=1e-6)
    squares = noise**2
    # Var of a mean of squares: 3 s^4 E l^4 - variance^2 over 20,000; four standard errors.
    fourth = 3 * SCALE**4 * (WEIGHTS @ LEVELS**4)
    error = np.sqrt((fourth - variance**2) / 20_000)
    np.testing.assert_allclose(squares.mean(0), variance, atol=4 * error)
    # Squares of two elements go together if one level is for both: E = s^4 E l^4.
    together = SCALE**4 * (WEIGHTS @ LEVELS**4)
    error = np.sqrt(9 * SCALE**8 * (WEIGHTS @ LEVELS**8) / 20_000)
    assert together - variance**2 > 8 * error
    assert (squares[:, 0] * squares[:, 1]).mean() == pytest.approx(together, abs=4 * error)


def observing(b, seen, told):
    """A model without latents, and a guide that notes y and, if told, the level."""

    def model(x):
        with b.plate("data", len(X)):
            b.sample(
                "x", b.dist.Delta(b.np.broadcast_to(b.array(CENTRE), X.shape), event_dim=1), obs=x
            )

    def guide(x):
        seen.append((np.asarray(x), None))

    def asking(x, x_level=None):
        seen.append((np.asarray(x), np.asarray(x_level)))

    return model, asking if told else guide


@in_both
@pytest.mark.parametrize("told", [False, True])
def test_the_likelihood_is_that_of_the_mixture_or_of_the_level_that_was_told(b, told):
    seen = []
    model, guide = observing(b, seen, told)
    loss = b.package.SpreadELBO({"x": levels(b)})
    value = b.loss(loss, model, X, guide=guide)
    y, level = seen[-1]
    if told:
        assert level.shape == (len(X),)
        assert set(level) == set(LEVELS)
        exact = log_normal(y - CENTRE, SCALE * level)
        # y was drawn at the level that was told.
        spread = ((y - X) ** 2).mean(-1) / (SCALE * level) ** 2
        error = np.sqrt(2 / 3 / len(X))
        assert spread.mean() == pytest.approx(1, abs=4 * error)
        for each in LEVELS:
            own = spread[level == each]
            assert own.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / 3 / len(own)))
    else:
        exact = log_mixture(y - CENTRE)
    assert -value == pytest.approx(exact.sum(), rel=1e-8)


@in_both
def test_reshaped_data_get_one_level_for_each_event_of_the_site(b):
    seen = []

    def model(x):
        with b.plate("data", len(X)):
            value = x.reshape(-1, 3)
            b.sample("x", b.dist.Delta(b.np.zeros((len(X), 3)), event_dim=1), obs=value)

    loss = b.package.SpreadELBO({"x": levels(b)})
    flat = X.reshape(-1)
    value = b.loss(loss, model, flat, guide=lambda x, x_level=None: seen.append((x, x_level)))
    y, level = (np.asarray(each) for each in seen[-1])
    assert level.shape == (len(X),)
    exact = log_normal(y.reshape(-1, 3), SCALE * level)
    assert -value == pytest.approx(exact.sum(), rel=1e-8)


@in_both
def test_the_critic_is_told_the_level_of_each_side(b):
    seen = []

    def net(features):
        seen.append(np.asarray(features.detach()) if b is BACKENDS[0] else features)
        return features.sum(-1)

    def model(x):
        with b.plate("data", len(X)):
            zero = b.np.zeros((len(X), 3))
            b.sample("x", b.dist.Normal(zero, 1e-6).to_event(1), obs=x)

    class Net(linen.Module):
        @linen.compact
        def __call__(self, features):
            return net(features)

    critic = b.package.concat_sites(b.pick(net, Net()), "x", "x_level")
    loss = b.package.AdversarialDivergence(critic, noise={"x": levels(b)})
    first = b.pick((), (*b.key, {"discriminator$params": {}}))
    loss.logits(*first, model, no_guide, b.array(X))
    data, draws = (np.asarray(each) for each in seen[-2:])
    for side, clean in ((data, X), (draws, 0.0)):
        noise, level = side[:, :3] - clean, side[:, 3]
        assert set(level) == set(LEVELS)
        ratio = (noise**2).mean(-1) / (SCALE * level) ** 2
        assert ratio.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / 3 / len(X)))
    assert (data[:, 3] != draws[:, 3]).any()


@in_both
@pytest.mark.parametrize("told", [False, True])
def test_a_plate_that_subsamples_inside_the_model(b, told):
    """Rows get their noise as they are taken; levels that are told must be those of all data."""
    seen = []

    def model(x):
        with b.plate("data", len(X), subsample_size=50) as index:
            b.sample("x", b.dist.Delta(b.np.zeros((50, 3)), event_dim=1), obs=x[index])

    def guide(x):
        seen.append(x)

    def asking(x, x_level=None):
        seen.append(x)

    loss = b.package.SpreadELBO({"x": levels(b)})
    if told:
        with pytest.raises(ValueError, match=r"site 'x'.*levels of shape.*take part of the data"):
            b.loss(loss, model, X, guide=asking)
    else:
        b.loss(loss, model, X, guide=guide)


def test_refusals():
    def gaussian(b):
        return b.package.GaussianNoise(1.0)

    def multi(b, *args):
        return b.package.MultiLevelNoise(*args)

    def critic_loss(b):
        def asking(x, x_level=None):
            with b.plate("data", 2):
                b.sample("x", b.dist.Normal(b.np.zeros(2), 1.0), obs=x)

        noise = {"x": multi(b, gaussian(b), [1.0, 2.0])}
        b.loss(b.package.EnergyDistance(noise=noise), asking, np.zeros(2))

    def given(b):
        def model(x, x_level=None):
            b.sample("x", b.dist.Delta(b.np.zeros(2)).to_event(1), obs=x)

        noise = {"x": multi(b, gaussian(b), [1.0, 2.0])}
        loss = b.package.SpreadELBO(noise)
        fn = loss.loss if b is BACKENDS[0] else functools.partial(loss.loss, *b.key, {})
        fn(model, lambda x, x_level=None: None, b.np.zeros(2), x_level=b.np.zeros(2))

    channel = np.array([[0.9, 0.2], [0.1, 0.8]])
    mistakes = {
        "expected a noise kernel": lambda b: multi(b, 0.3, [1.0]),
        "ChannelNoise is not a stationary": lambda b: multi(
            b, b.package.ChannelNoise(b.array(channel)), [1.0]
        ),
        "MultiLevelNoise is not a stationary": lambda b: multi(
            b, multi(b, gaussian(b), [1.0]), [1.0]
        ),
        "levels must be one or more positive": lambda b: multi(b, gaussian(b), [1.0, 0.0]),
        "levels must": lambda b: multi(b, gaussian(b), []),
        "levels must be": lambda b: multi(b, gaussian(b), [float("inf")]),
        "weights must be one or more positive": lambda b: multi(b, gaussian(b), [1.0], [-1.0]),
        r"2 level\(s\) need as many weights, got 1": lambda b: multi(b, gaussian(b), [1, 2], [1]),
        "site 'x': model or guide ask for 'x_level'": critic_loss,
        "site 'x': 'x_level' is the level of the noise": given,
    }
    for match, mistake in mistakes.items():
        assert_refused_alike(mistake, match=match)
