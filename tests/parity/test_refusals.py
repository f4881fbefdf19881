# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What one backend refuses or accepts, the other does too: one list of programs, run in both."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import numpyro.handlers
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from flax import linen

import numpyro_spread
import pyro_spread

DATA = np.random.default_rng(2).normal(size=(6, 4))
SCALES = np.array([0.1, 0.2, 0.4, 0.8])


class Pyro:
    package, dist, handlers = pyro_spread, pyro_dist, pyro.poutine
    plate, sample = staticmethod(pyro.plate), staticmethod(pyro.sample)
    array, stack = staticmethod(torch.as_tensor), staticmethod(torch.stack)
    flip = staticmethod(lambda x: x.flip(-1))

    @staticmethod
    def loss(loss, model, *args):
        return loss.loss(model, lambda *args: None, *args)


class NumPyro:
    package, dist, handlers = numpyro_spread, numpyro_dist, numpyro.handlers
    plate, sample = staticmethod(numpyro.plate), staticmethod(numpyro.sample)
    array, stack = staticmethod(jnp.asarray), staticmethod(jnp.stack)
    flip = staticmethod(lambda x: x[..., ::-1])

    @staticmethod
    def loss(loss, model, *args):
        return float(loss.loss(jax.random.key(0), {}, model, lambda *args: None, *args))


both = pytest.mark.parametrize("backend", [Pyro, NumPyro])


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


@both
@pytest.mark.parametrize("name", ACCEPTED)
def test_constructors_take_what_array_functions_take(backend, name):
    kernel = ACCEPTED[name](backend)
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
    "negative event_dim": (lambda b: _noise(b)(b.array(DATA), -1), "event_dim=-1"),
    "scale that widens a transformed site": (
        lambda b: b.package.TransformedNoise(
            b.dist.transforms.SigmoidTransform(), _noise(b, np.ones((5, 1)))
        ).spread(b.dist.Delta(b.array(np.zeros(3)))),
        "does not fit",
    ),
}


@both
@pytest.mark.parametrize("name", REFUSED)
def test_constructors_refuse_with_a_name(backend, name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        build(backend)


@both
def test_what_is_no_distribution_has_no_spread(backend):
    with pytest.raises(NotImplementedError, match="no exact spread of int"):
        _noise(backend).spread(3)


@both
def test_logistic_characteristic_function_has_a_gradient_at_zero(backend):
    if backend is Pyro:
        omega = torch.zeros(2, requires_grad=True)
        pyro_spread.LogisticNoise(0.3).characteristic_function(omega).sum().backward()
        gradient = omega.grad.numpy()
    else:
        cf = numpyro_spread.LogisticNoise(0.3).characteristic_function
        gradient = jax.grad(lambda omega: cf(omega).sum())(jnp.zeros(2))
    np.testing.assert_array_equal(gradient, np.zeros(2))


@both
def test_characteristic_functions_take_numbers_and_other_types(backend):
    single = backend.array(np.ones((4, 1), np.float32))
    low_rank = backend.package.LowRankGaussianNoise(0.3, single)
    assert float(low_rank.characteristic_function(backend.array(DATA[0]))) > 0
    value = _noise(backend).characteristic_function(1.0)
    np.testing.assert_allclose(float(value), np.exp(-0.045), rtol=1e-6)


# --- what the model may observe

OBSERVED = {
    "itself": (lambda b: lambda x: x, True),
    "rows in another order": (lambda b: lambda x: x[b.array(np.arange(6)[::-1].copy())], True),
    "a stack of its rows": (lambda b: lambda x: b.stack([x[i] for i in range(6)]), True),
    "elements in another order": (lambda b: b.flip, False),
    "a transformed copy": (lambda b: lambda x: 2 * x, False),
    "clean data": (lambda b: lambda x: b.array(DATA), False),
}


@both
@pytest.mark.parametrize("observed", OBSERVED)
def test_a_kernel_with_places_needs_elements_in_their_places(backend, observed):
    observe, accepted = OBSERVED[observed]
    loss = backend.package.SpreadELBO({"x": _noise(backend, SCALES)})
    model = _model(backend, observe(backend))
    if accepted:
        assert np.isfinite(backend.loss(loss, model, backend.array(DATA)))
    else:
        with pytest.raises(ValueError, match=r"site 'x'.*observes something other"):
            backend.loss(loss, model, backend.array(DATA))


@both
def test_a_kernel_without_places_allows_any_order(backend):
    loss = backend.package.SpreadELBO({"x": _noise(backend)})
    assert np.isfinite(backend.loss(loss, _model(backend, backend.flip), backend.array(DATA)))


# --- handlers


@both
def test_spreading_twice_is_refused(backend):
    noise = {"x": _noise(backend)}
    spread = backend.package.spread
    model = spread(spread(_model(backend, lambda x: x), noise), noise)
    with pytest.raises(ValueError, match="site 'x' is spread already"):
        model(backend.array(DATA))
    once = spread(_model(backend, lambda x: x), noise)
    with pytest.raises(ValueError, match="site 'x' is spread already"):
        backend.loss(backend.package.SpreadELBO(noise), once, backend.array(DATA))


@both
@pytest.mark.parametrize("by", ["distribution", "handler"])
def test_a_masked_out_delta_needs_no_kernel(backend, by):
    def model(x):
        backend.sample("x", backend.dist.Delta(backend.array(0.0)), obs=x)
        out = backend.dist.Delta(backend.array(0.0))
        if by == "distribution":
            backend.sample("w", out.mask(False), obs=backend.array(1.0))
        else:
            with backend.handlers.mask(mask=False):
                backend.sample("w", out, obs=backend.array(1.0))

    loss = backend.package.SpreadELBO({"x": _noise(backend)})
    assert np.isfinite(backend.loss(loss, model, backend.array(0.5)))


@both
def test_the_steps_of_a_series_may_share_one_argument(backend):
    def model(x):
        for t in range(6):
            delta = backend.dist.Delta(backend.array(np.zeros(4)), event_dim=1)
            backend.sample(f"x{t}", delta, obs=x[t])

    one = _noise(backend, SCALES)
    loss = backend.package.SpreadELBO({f"x{t}": one for t in range(6)})
    assert np.isfinite(backend.loss(loss, model, backend.array(DATA)))
    several = {f"x{t}": _noise(backend) for t in range(6)}
    with pytest.raises(ValueError, match="one and the same kernel object"):
        backend.loss(backend.package.SpreadELBO(several), model, backend.array(DATA))


# --- adversarial losses: the same program, refused in the same words


class _PyroGame:
    @staticmethod
    def run(model, data, **options):
        net = pyro_spread.concat_sites(torch.nn.Linear(1, 1), "x")
        loss = pyro_spread.AdversarialDivergence(net, **options)
        pyro.clear_param_store()
        loss.loss_and_grads(model, lambda *args: None, torch.as_tensor(data))


class _NumPyroGame:
    @staticmethod
    def run(model, data, **options):
        net = numpyro_spread.concat_sites(linen.Dense(1), "x")
        loss = numpyro_spread.AdversarialDivergence(net, **options)
        critic = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}

        def value(w):
            params = {"w": w, "discriminator$params": critic}
            return loss.loss(jax.random.key(0), params, model, lambda *args: None, data)

        jax.grad(value)(0.5)


def _observe(b, likelihood, plate=6):
    param = pyro.param if b is Pyro else numpyro.param

    def model(x):
        w = param("w", b.array(0.5))
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
    texts = []
    for backend, game in ((Pyro, _PyroGame), (NumPyro, _NumPyroGame)):
        model, options = GAMES[name](backend)
        with pytest.raises((ValueError, TypeError, NotImplementedError)) as caught:
            game.run(model, DATA[:, 0], **options)
        texts.append((caught.type, str(caught.value)))
    assert texts[0] == texts[1]
