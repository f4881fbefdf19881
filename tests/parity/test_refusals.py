# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What one backend refuses or accepts, the other does too: one list of programs, run in both."""

import numpy as np
import pytest
from twins import (
    CRITIC,
    FlaxNet,
    assert_refused_alike,
    compare_gradients,
    in_both,
    no_guide,
    torch_net,
    weights,
)

DATA = np.random.default_rng(2).normal(size=(6, 4))
SCALES = np.array([0.1, 0.2, 0.4, 0.8])


def _noise(b, scale=0.3):
    return b.package.GaussianNoise(b.array(scale) if np.ndim(scale) else scale)


def _model(b, observe):
    def model(x):
        with b.plate("data", 6):
            delta = b.dist.Delta(b.array(np.zeros((6, 4))), event_dim=1)
            b.sample("x", delta, obs=observe(x))

    return model


# --- kernels: constructor arguments that both take, and that both refuse alike

ACCEPTED = {
    "list of scales": lambda b: b.package.GaussianNoise([0.1, 0.2]),
    "array of scales": lambda b: b.package.LaplaceNoise(np.array([0.1, 0.2])),
    "integer scale": lambda b: b.package.GaussianNoise(b.array(np.array([1, 2]))),
    "nested lists as channel": lambda b: b.package.ChannelNoise([[0.9, 0.2], [0.1, 0.8]]),
    "integer channel": lambda b: b.package.ChannelNoise(np.eye(3, dtype=int)),
    "NumPy integer": lambda b: b.package.ChannelNoise.symmetric(np.int64(3), 0.1),
    "array factor": lambda b: b.package.LowRankGaussianNoise([0.1] * 3, np.ones((3, 1))),
}


@in_both
@pytest.mark.parametrize("name", ACCEPTED)
def test_constructors_take_what_array_functions_take(b, name):
    kernel = ACCEPTED[name](b)
    for value in vars(kernel).values():
        assert not isinstance(value, list | np.ndarray)


REFUSED = {
    "no number": (lambda b: b.package.GaussianNoise(None), "scale must be positive"),
    "text": (lambda b: b.package.GaussianNoise("a"), "scale must be positive"),
    "no columns": (lambda b: b.package.LowRankGaussianNoise(0.1, np.ones((3, 0))), "D x R"),
    "inverse of a degenerate map": (
        lambda b: b.package.TransformedNoise(
            b.dist.transforms.AffineTransform(0.0, 0.0).inv, _noise(b)
        ),
        "not injective",
    ),
    "NaN slope": (
        lambda b: b.package.TransformedNoise(
            b.dist.transforms.AffineTransform(0.0, float("nan")), _noise(b)
        ),
        "not injective",
    ),
    "shapes that do not broadcast": (
        lambda b: b.package.StudentTNoise(b.array(np.ones(2)), b.array(np.ones(4)))(
            b.array(DATA), 1
        ),
        r"StudentTNoise: parameters of shapes \(2,\) and \(4,\) do not broadcast to one shape",
    ),
    "a fresh label with no probability": (
        lambda b: b.package.ChannelNoise.symmetric(3, None),
        r"flip must lie in \[0, 1\), got None",
    ),
    "bandwidth that no float can hold": (
        lambda b: b.package.GaussianKernel(10**400),
        "bandwidth must be positive and finite",
    ),
    "variance that no float can hold": (
        lambda b: b.package.GaussianKernel(1.0).convolved(10**400),
        "variance",
    ),
    "negative event_dim": (lambda b: _noise(b)(b.array(DATA), -1), "event_dim=-1"),
    "scale that widens a transformed site": (
        lambda b: b.package.TransformedNoise(
            b.dist.transforms.SigmoidTransform(), _noise(b, np.ones((5, 1)))
        ).spread(b.dist.Delta(b.array(np.zeros(3)))),
        "does not fit",
    ),
}


@in_both
@pytest.mark.parametrize("name", REFUSED)
def test_constructors_refuse_with_a_name(b, name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        build(b)


@in_both
def test_what_is_no_distribution_has_no_spread(b):
    with pytest.raises(NotImplementedError, match="no exact spread of int"):
        _noise(b).spread(3)


def test_logistic_characteristic_function_has_a_gradient_at_zero():
    _, (gradient,) = compare_gradients(
        lambda b, omega: b.package.LogisticNoise(0.3).characteristic_function(omega), np.zeros(2)
    )
    np.testing.assert_array_equal(gradient, np.zeros(2))


@in_both
def test_characteristic_functions_take_numbers_and_other_types(b):
    single = b.array(np.ones((4, 1), np.float32))
    low_rank = b.package.LowRankGaussianNoise(0.3, single)
    assert float(low_rank.characteristic_function(b.array(DATA[0]))) > 0
    value = _noise(b).characteristic_function(1.0)
    np.testing.assert_allclose(float(value), np.exp(-0.045), rtol=1e-6)


# --- what the model may observe

OBSERVED = {
    "itself": (lambda b: lambda x: x, True),
    "rows in another order": (lambda b: lambda x: x[b.array(np.arange(6)[::-1].copy())], True),
    "a stack of its rows": (lambda b: lambda x: b.np.stack([x[i] for i in range(6)]), True),
    "elements in another order": (lambda b: lambda x: b.np.flip(x, (-1,)), False),
    "a transformed copy": (lambda b: lambda x: 2 * x, False),
    "clean data": (lambda b: lambda x: b.array(DATA), False),
}


@in_both
@pytest.mark.parametrize("observed", OBSERVED)
def test_a_kernel_with_places_needs_elements_in_their_places(b, observed):
    observe, accepted = OBSERVED[observed]
    loss = b.package.SpreadELBO({"x": _noise(b, SCALES)})
    model = _model(b, observe(b))
    if accepted:
        assert np.isfinite(b.loss(loss, model, b.array(DATA)))
    else:
        with pytest.raises(ValueError, match=r"site 'x'.*observes something other"):
            b.loss(loss, model, b.array(DATA))


@in_both
def test_a_kernel_without_places_allows_any_order(b):
    loss = b.package.SpreadELBO({"x": _noise(b)})
    assert np.isfinite(b.loss(loss, _model(b, lambda x: b.np.flip(x, (-1,))), b.array(DATA)))


# --- handlers


@in_both
def test_spreading_twice_is_refused(b):
    noise = {"x": _noise(b)}
    spread = b.package.spread
    model = spread(spread(_model(b, lambda x: x), noise), noise)
    with pytest.raises(ValueError, match="site 'x' is spread already"):
        model(b.array(DATA))
    once = spread(_model(b, lambda x: x), noise)
    with pytest.raises(ValueError, match="site 'x' is spread already"):
        b.loss(b.package.SpreadELBO(noise), once, b.array(DATA))


@in_both
@pytest.mark.parametrize("by", ["distribution", "handler"])
def test_a_masked_out_delta_needs_no_kernel(b, by):
    def model(x):
        b.sample("x", b.dist.Delta(b.array(0.0)), obs=x)
        out = b.dist.Delta(b.array(0.0))
        if by == "distribution":
            b.sample("w", out.mask(False), obs=b.array(1.0))
        else:
            with b.handlers.mask(mask=False):
                b.sample("w", out, obs=b.array(1.0))

    loss = b.package.SpreadELBO({"x": _noise(b)})
    assert np.isfinite(b.loss(loss, model, b.array(0.5)))


@in_both
def test_the_steps_of_a_series_may_share_one_argument(b):
    def model(x):
        for t in range(6):
            delta = b.dist.Delta(b.array(np.zeros(4)), event_dim=1)
            b.sample(f"x{t}", delta, obs=x[t])

    one = _noise(b, SCALES)
    loss = b.package.SpreadELBO({f"x{t}": one for t in range(6)})
    assert np.isfinite(b.loss(loss, model, b.array(DATA)))
    several = {f"x{t}": _noise(b) for t in range(6)}
    with pytest.raises(ValueError, match="one and the same kernel object"):
        b.loss(b.package.SpreadELBO(several), model, b.array(DATA))


# --- adversarial losses: the same program, refused in the same words


def _play(b, name):
    """One step of a game."""
    model, options = GAMES[name](b)
    net = torch_net(weights("game", 1))
    critic = b.package.concat_sites(b.pick(net, FlaxNet()), "x")
    loss = b.package.AdversarialDivergence(critic, **options)
    b.loss_and_grads(loss, model, no_guide, DATA[:, 0], params={"w": 0.5}, nets={CRITIC: net})


def _observe(b, likelihood, plate=6):
    def model(x):
        w = b.param("w", 0.5)
        with b.plate("data", plate):
            b.sample("x", likelihood(w), obs=x)

    return model


def _normal(b):
    return _observe(b, lambda w: b.dist.Normal(w, 1.0))


GAMES = {
    "no data": lambda b: (lambda x: None, {}),
    "NaN": lambda b: (lambda x: _normal(b)(x * float("nan")), {}),
    "events": lambda b: (
        _observe(b, lambda w: b.dist.Normal(w * b.array(np.ones(3)), 1.0).to_event(1)),
        {},
    ),
    "draws for the penalty": lambda b: (
        _observe(b, lambda w: b.dist.Normal(w, 1.0), 8),
        {"regularizer": b.package.GradientPenalty()},
    ),
    "noise at no site": lambda b: (_normal(b), {"noise": {"y": _noise(b)}}),
    "masked": lambda b: (
        lambda x: _observe(
            b, lambda w: b.dist.Normal(w, 1.0).expand([6]).mask(b.array(np.zeros(6, bool)))
        )(x),
        {},
    ),
    "form": lambda b: (_normal(b), {"generator": "both"}),
    "update": lambda b: (_normal(b), {"update": "once"}),
    "smoothing": lambda b: (_normal(b), {"label_smoothing": 2.0}),
    "particles": lambda b: (_normal(b), {"num_particles": -1}),
    "divergence": lambda b: (_normal(b), {"divergence": "js"}),
    "variation": lambda b: (_normal(b), {"divergence": b.package.TotalVariation()}),
}


@pytest.mark.parametrize("name", GAMES)
def test_adversarial_losses_refuse_in_the_same_words(name):
    assert_refused_alike(lambda b: _play(b, name))
