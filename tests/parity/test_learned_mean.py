# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The learned mean of noise is injective whatever its params are; what is refused."""

import re

import jax.numpy as jnp
import numpy as np
import pyro
import pytest
import torch
from flax import linen
from learned_means import ACTIVATIONS, NOISE, as_scale, kernel_of, moved, nets, with_mean
from torch import nn
from twins import CRITIC, NumPyro, Pyro, assert_refused_alike, flax_params, in_both, numbers

import pyro_spread
from numpyro_spread.noise import residual as jax_residual
from pyro_spread.noise import residual as torch_residual

SIZES = 3, 16, 16, 3


@in_both
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("steep", [0.01, 10.0])
def test_it_is_injective_whatever_the_weights(b, activation, steep):
    bound = 0.8
    kernel = kernel_of(b, with_mean(nets(SIZES, activation, steep), lipschitz=bound))
    x, other = (3 * numbers(name, 500, 3) for name in ("x", "other"))
    other[:250] = x[:250] + 1e-3 * other[:250]
    f, f_other = moved(b, kernel, x), moved(b, kernel, other)
    steepness = np.linalg.norm((f - x) - (f_other - other), axis=-1)
    steepness = steepness / np.linalg.norm(x - other, axis=-1)
    assert steepness.max() <= bound
    # The product of the layers' largest singular values, and of the slopes of the activations.
    norms = [np.linalg.norm(np.asarray(weight), 2) for weight, _ in kernel.net.args[0]]
    product = np.prod(norms) * {"tanh": 1.0, "silu": 1.1}[activation] ** 2
    assert product == pytest.approx(bound, rel=1e-12) if steep > 1 else product < bound
    back = f
    for _ in range(160):  # .8^160 is 3e-16
        back = f - (moved(b, kernel, back) - back)
    np.testing.assert_allclose(back, x, atol=1e-12)


def test_activations_are_no_steeper_than_said():
    x, step = np.linspace(-12, 12, 240_001), 1e-4
    made = {nn.ELU: lambda: nn.ELU(1.5), nn.LeakyReLU: lambda: nn.LeakyReLU(-1.2)}
    for kind, slope in torch_residual._SLOPES.items():
        layer = made.get(kind, kind)()
        y = layer(torch.tensor(x)).numpy()
        assert abs(np.diff(y)).max() / step <= slope(layer) * (1 + 1e-9) < 1.05 * steepest(y, step)
    for function, slope in jax_residual._SLOPES.values():
        y = np.asarray(function(jnp.asarray(x)))
        assert abs(np.diff(y)).max() / step <= slope * (1 + 1e-9) < 1.05 * steepest(y, step)


def steepest(y, step):
    return abs(np.diff(y)).max() / step


@in_both
def test_an_event_of_several_dims_is_flattened_and_a_layer_may_be_there_twice(b):
    torch.manual_seed(0)
    layer, dense = nn.Linear(4, 4).double(), linen.Dense(4)
    pair = with_mean((nn.Sequential(layer, nn.Tanh(), layer), linen.Sequential([dense, dense])))
    x = numbers("images", 5, 2, 2)
    kernel = kernel_of(b, pair)
    flat = moved(b, kernel, x.reshape(5, 4)).reshape(x.shape)
    np.testing.assert_allclose(moved(b, kernel, x, 2), flat)
    assert kernel.draw(*b.key, b.array(x)).shape == (5, 2, 2)
    assert set(pair[1].init()) == set(flax_params(pair[0])) == {"Dense_0"}


KERNELS = {
    "gaussian": lambda b: b.package.GaussianNoise(b.array(np.full((2, 2), 0.3))),
    "laplace": lambda b: b.package.LaplaceNoise(0.3),
    "logistic": lambda b: b.package.LogisticNoise(b.array(np.array(0.3))),
    "low rank": lambda b: b.package.LowRankGaussianNoise(0.3, b.array(numbers("factor", 4, 1))),
}


@in_both
@pytest.mark.parametrize("name", KERNELS)
def test_it_is_the_kernel_round_f(b, name):
    noise, (net, twin) = KERNELS[name](b), nets((4, 4))
    own = b.package.learned(noise, mean=b.pick(net, twin))
    kernel = b.pick(lambda: own.kernel(), lambda: own.kernel(flax_params(net)))()
    x, y = (b.array(numbers(side, 5, 2, 2)) for side in "xy")
    of_f = noise(x + kernel.net(x.reshape(5, 4)).reshape(x.shape), 2)
    ours, theirs = (np.asarray(fn.log_prob(y)) for fn in (kernel(x, 2), of_f))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert kernel.draw(*b.key, x).shape == (5, 2, 2)


def test_a_net_may_begin_at_zero():
    """f is the identity then, and the slope of the largest singular value at zero does no harm."""

    def at_zero(b, x, y):
        net, twin = nets((2, 4, 2))
        nn.init.zeros_(net[-1].weight), nn.init.zeros_(net[-1].bias)
        kernel = kernel_of(b, with_mean((net, twin)))
        chain, (weights,) = kernel.net.func, kernel.net.args
        made = chain.bounded([weights[0], (x, None)])
        return -((chain(made, y) - y) ** 2).sum()

    _, (slope, _) = Pyro.value_and_gradients(
        lambda *arrays: at_zero(Pyro, *arrays), np.zeros((4, 2)), numbers("y", 6, 2)
    )
    _, (other, _) = NumPyro.value_and_gradients(
        lambda *arrays: at_zero(NumPyro, *arrays), np.zeros((4, 2)), numbers("y", 6, 2)
    )
    assert np.isfinite(slope).all()
    assert slope.any()
    np.testing.assert_allclose(slope, other, rtol=1e-10)


@in_both
def test_spread_is_known_of_deltas_and_their_mixtures(b):
    kernel = kernel_of(b, with_mean(nets((2, 5, 2))))
    x, y = numbers("x", 6, 2), b.array(numbers("y", 2))
    each = np.asarray(kernel(b.array(x), 1).log_prob(y))
    mixture = b.dist.MixtureSameFamily(
        b.dist.Categorical(b.array(np.full(6, 1 / 6))), b.dist.Delta(b.array(x), event_dim=1)
    )
    found = float(kernel.spread(mixture).log_prob(y))
    assert found == pytest.approx(np.log(np.exp(each).mean()))
    with pytest.raises(NotImplementedError, match="_ResidualNoise"):
        kernel.spread(b.dist.Normal(b.array(x), 1.0).to_event(1))


# --- what is refused


def gaussian(b, scale=0.5):
    return b.package.GaussianNoise(as_scale(b.array, scale))


def chain(b, *layers):
    """Numbers for dense layers, two inputs to the first; the rest as it is."""
    if b is NumPyro:
        return linen.Sequential([linen.Dense(n) if isinstance(n, int) else n for n in layers])
    width, made = 2, []
    for layer in layers:
        made.append(nn.Linear(width, layer) if isinstance(layer, int) else layer)
        width = layer if isinstance(layer, int) else width
    return nn.Sequential(*made)


SAME = {
    "lipschitz": (lambda b: {"mean": chain(b, 2), "lipschitz": 1.0}, "between 0 and 1, got 1.0"),
    "no number": (
        lambda b: {"mean": chain(b, 2), "lipschitz": "0.5"},
        "between 0 and 1, got '0.5'",
    ),
    "no net": (lambda b: {"lipschitz": 0.5}, "pass mean=net too"),
    "no kernel of its size": (
        lambda b: {"noise": gaussian(b, [0.1, 0.2, 0.3]), "mean": chain(b, 2)},
        "mean maps 2 numbers, but the kernel's own are for events of 3 elements",
    ),
    "single scale": (
        lambda b: {"constraint": "trace", "mean": chain(b, 2)},
        "To learn the mean alone, pass mean=net without constraint",
    ),
    "no constraint": (lambda b: {}, "To learn its mean and nothing else, pass mean=net"),
    "another kernel": (
        lambda b: {"noise": b.package.StudentTNoise(1.0, 0.3), "mean": chain(b, 2)},
        "learned() does not take StudentTNoise",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_when_it_is_made(name):
    options, words = SAME[name]

    def mistake(b):
        b.package.learned(**({"noise": gaussian(b)} | options(b)))

    assert_refused_alike(mistake, re.escape(words))


OWN = {
    "function": (lambda b: lambda x: x, TypeError, "mean must be a .*Sequential.* one after"),
    "deeper": (lambda b: chain(b, chain(b, 2)), ValueError, "layer 0 of mean, Sequential"),
    "unknown": (
        lambda b: chain(b, 2, b.pick(nn.Dropout(), linen.Dropout(0.1)), 2),
        ValueError,
        "layer 1 of mean, Dropout.* has no known Lipschitz constant. Use ",
    ),
    "no dense layer": (
        lambda b: chain(b, b.pick(nn.ReLU(), linen.relu)),
        ValueError,
        "no dense layer",
    ),
}


@in_both
@pytest.mark.parametrize("name", OWN)
def test_nets_whose_lipschitz_constant_is_not_known(b, name):
    net, error, words = OWN[name]
    with pytest.raises(error, match=words):
        b.package.learned(gaussian(b), mean=net(b))


@pytest.mark.parametrize("widths", [(2, 3), (2, 3, 2)])
def test_widths_of_torch_that_do_not_fit(widths):
    layers = [nn.Linear(2, widths[-1])] if len(widths) == 2 else [nn.Linear(2, 3), nn.Linear(2, 2)]
    with pytest.raises(ValueError, match=r"layer 1 of mean takes 2 numbers and gets 3"):
        pyro_spread.learned(gaussian(Pyro), mean=nn.Sequential(*layers))


def test_spectral_normalisation_of_torch_is_not_needed():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="layer 0 of mean, Parametrized"):
        pyro_spread.learned(gaussian(Pyro), mean=nn.Sequential(layer))


@pytest.mark.parametrize(
    "layer",
    [
        nn.utils.spectral_norm(nn.Linear(2, 2)),  # puts its weight in the place of the param
        nn.Softplus(threshold=0.0),  # jumps where it becomes its input
    ],
)
def test_layers_of_torch_that_are_not_what_they_seem(layer):
    with pytest.raises(ValueError, match=r"layer 1 of mean, .* no known Lipschitz constant"):
        pyro_spread.learned(gaussian(Pyro), mean=nn.Sequential(nn.Linear(2, 2), layer))


def test_one_net_at_two_sites_of_torch():
    net = nn.Linear(2, 2)
    noise = {site: pyro_spread.learned(gaussian(Pyro), mean=net) for site in "xy"}
    with pytest.raises(ValueError, match="sites 'x' and 'y' have the same object of learned"):
        pyro_spread.SpreadELBO(noise)


def first_value(b, pair, model, data):
    loss = b.package.AdversarialDivergence(
        b.package.concat_sites(b.pick(nn.Linear(3, 1).double(), linen.Dense(1)), "x"),
        noise={"x": b.pick(*pair) if isinstance(pair, tuple) else pair},
    )
    params = {CRITIC: {"kernel": np.ones((3, 1)), "bias": np.zeros(1)}}
    if isinstance(pair, tuple):
        params[NOISE] = flax_params(pair[0])
    return b.loss(loss, model, data, params=params)


def test_events_of_another_size():
    def mistake(b):
        def model(x):
            with b.plate("data", 6):
                b.sample("x", b.dist.Normal(b.np.zeros((6, 3)), 1.0).to_event(1), obs=x)

        first_value(b, with_mean(nets((2, 2))), model, numbers("x", 6, 3))

    assert_refused_alike(
        mistake, r"site 'x': .*maps 2 numbers, which does not fit", lengthened=True
    )


def coupling(b):
    """A transform that makes each element of all."""
    noise = gaussian(b)
    if b is Pyro:
        transform = pyro.distributions.transforms.LowerCholeskyAffine(
            torch.zeros(3).double(), torch.eye(3).double()
        )
    else:
        transform = b.dist.transforms.LowerCholeskyAffine(jnp.zeros(3), jnp.eye(3))
    return b.package.TransformedNoise(transform, noise)


@pytest.mark.parametrize("noise", ["mean", "transform"])
def test_masks_within_an_event(noise):
    mask = np.array([True, False, True])

    def mistake(b):
        def model(x):
            with b.plate("data", 6):
                fn = b.dist.Normal(b.np.zeros((6, 3)), 1.0).mask(b.array(mask)).to_event(1)
                b.sample("x", fn, obs=x)

        pair = with_mean(nets((3, 3))) if noise == "mean" else coupling(b)
        first_value(b, pair, model, numbers("x", 6, 3))

    assert_refused_alike(mistake, "site 'x': its mask leaves out elements", lengthened=True)


@in_both
def test_denoising_does_not_know_it(b):
    kernel = kernel_of(b, with_mean(nets((2, 2))))
    with pytest.raises(NotImplementedError, match="not of _ResidualNoise"):
        b.package.denoise(b.array(numbers("y", 3, 2)), kernel, log_density=lambda y: y.sum(-1))
