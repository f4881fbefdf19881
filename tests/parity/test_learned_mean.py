# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The learned mean of noise: injective at every step, and a player that raises the divergence."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyro
import pytest
import scipy.optimize
import torch
from flax import linen
from gaussian_players import FlaxQuadratic, TorchQuadratic, assert_mean, kl, log_ratio
from torch import nn
from twins import (
    CRITIC,
    FlaxNet,
    JaxNoise,
    NumPyro,
    Pyro,
    TorchNoise,
    assert_refused_alike,
    assert_twins,
    compare,
    flax_params,
    in_both,
    no_guide,
    numbers,
    torch_net,
)

import numpyro_spread
import pyro_spread
from numpyro_spread.noise import residual as jax_residual
from pyro_spread.noise import residual as torch_residual

NOISE = "noise$x$params"
PACKAGES = pyro_spread, numpyro_spread
SIZES = 3, 16, 16, 3
ACTIVATIONS = {"tanh": (nn.Tanh, jnp.tanh), "silu": (nn.SiLU, linen.silu)}


def nets(sizes, activation="tanh", steep=1.0, bias=True):
    """A chain of torch with these weights times a number, and the same of flax."""
    ours, theirs, (torch_act, jax_act) = [], [], ACTIVATIONS[activation]
    for number, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layer = nn.Linear(fan_in, fan_out, bias=bias).double()
        with torch.no_grad():
            layer.weight.copy_(steep * torch.tensor(numbers(f"net {number}", fan_out, fan_in)))
            if bias:
                layer.bias.copy_(torch.tensor(numbers(f"bias {number}", fan_out)))
        ours += [layer, torch_act()]
        theirs += [linen.Dense(fan_out, use_bias=bias), jax_act]
    return nn.Sequential(*ours[:-1]), linen.Sequential(theirs[:-1])


def with_mean(made, scale=0.5, **options):
    """Learned noise of both backends, of Gaussian noise round these nets."""
    return tuple(
        package.learned(package.GaussianNoise(as_scale(array, scale)), mean=net, **options)
        for net, package, array in zip(made, PACKAGES, (torch.tensor, jnp.array), strict=True)
    )


def as_scale(array, scale):
    return scale if isinstance(scale, float) else array(np.array(scale))


def kernel_of(b, pair):
    """The kernel that it is, at the params of torch's."""
    ours, theirs = pair
    return b.pick(lambda: ours.kernel(), lambda: theirs.kernel(flax_params(ours)))()


def moved(b, kernel, x, event_dim=1):
    return np.asarray(kernel(b.array(x), event_dim).mean)


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
    with pytest.raises(NotImplementedError, match="ResidualNoise"):
        kernel.spread(b.dist.Normal(b.array(x), 1.0).to_event(1))


# --- the gradient, beside closed forms


DATA, MODEL = np.array([[1.4, 0.3], [0.3, 0.7]]), np.diag([0.5, 0.5])
CASES = {
    # Noise, its constraint, how large the linear g is, bound.
    "mean alone, below its bound": (0.6, None, 0.1, 0.9),
    "with a trace, at its bound": ([0.5, 0.7], "trace", 1.0, 0.5),
}


def made(name):
    scale, constraint, steep, bound = CASES[name]
    chains = nets((2, 2), steep=steep, bias=False)
    return with_mean(chains, scale, lipschitz=bound, constraint=constraint)


def covariances(noise, params, *sides):
    """Those of f of Gaussians of mean 0, with noise."""
    kernel = params["Dense_0"]["kernel"]
    kernel = kernel * min(1.0, noise.lipschitz / np.linalg.norm(kernel, 2))
    scale = noise._at(params).get("scale", noise._kernel.scale)
    a = np.eye(2) + kernel
    return [a.T @ side @ a + np.diag(np.broadcast_to(scale, 2) ** 2) for side in sides]


def slopes(divergence, noise, params):
    """Of a divergence of noisy Gaussians by noise params, and by the model's log scale."""

    def at(params, log_scale=0.0):
        return divergence(*covariances(noise, params, DATA, MODEL * np.exp(2 * log_scale)))

    leaves, structure = jax.tree.flatten(params)
    found, step = [np.zeros(leaf.shape) for leaf in leaves], 1e-5
    for leaf, slope in zip(leaves, found, strict=True):
        for index in np.ndindex(leaf.shape):
            sides, kept = [], leaf[index]
            for sign in (1, -1):
                leaf[index] = kept + sign * step
                sides.append(at(params))
            leaf[index] = kept
            slope[index] = (sides[0] - sides[1]) / (2 * step)
    return jax.tree.unflatten(structure, found), (at(params, step) - at(params, -step)) / (2 * step)


def start_of(pair):
    return jax.tree.map(np.array, flax_params(pair[0]))


def prior(b):
    def model(x):
        scale = b.array(np.sqrt(MODEL.diagonal())) * b.np.exp(b.param("log_scale", 0.0))
        with b.plate("data", len(x)):
            z = b.sample("z", b.dist.Normal(b.array(np.zeros(2)), scale).to_event(1))
            b.sample("x", b.dist.Delta(z, event_dim=1), obs=x)

    return model


def under_a_critic(b, pair):
    """At the best critic for this noise."""
    matrix, bias = log_ratio(*covariances(pair[0], start_of(pair), DATA, MODEL))
    net = TorchQuadratic(matrix, bias)
    loss = b.package.AdversarialDivergence(
        b.pick(net, FlaxQuadratic()), b.package.KL(), noise={"x": b.pick(*pair)}
    )
    return loss, prior(b), no_guide, {CRITIC: net}, 40_000


def under_a_bound(b, pair):
    """With the exact posterior for a guide."""
    params = start_of(pair)
    ((_, total),) = [covariances(pair[0], params, DATA, MODEL)]
    kernel = params["Dense_0"]["kernel"]
    a = np.eye(2) + kernel * min(1.0, pair[0].lipschitz / np.linalg.norm(kernel, 2))
    gain = np.linalg.solve(total, a.T @ MODEL)
    root = np.linalg.cholesky(MODEL - MODEL @ a @ gain)

    def guide(x):
        with b.plate("data", len(x)):
            tril = b.array(root)
            b.sample("z", b.dist.MultivariateNormal(x @ b.array(gain), scale_tril=tril))

    return b.package.SpreadELBO({"x": b.pick(*pair)}), prior(b), guide, {}, 800


LOSSES = {"critic": under_a_critic, "bound": under_a_bound}


BELOW, AT = CASES
TRUTHS = [
    ("critic", AT, Pyro),
    ("critic", AT, NumPyro),
    ("bound", BELOW, Pyro),
    pytest.param("bound", BELOW, NumPyro, marks=pytest.mark.slow),
    pytest.param("critic", BELOW, Pyro, marks=pytest.mark.slow),
    pytest.param("critic", BELOW, NumPyro, marks=pytest.mark.slow),
    pytest.param("bound", AT, Pyro, marks=pytest.mark.slow),
    pytest.param("bound", AT, NumPyro, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "name", "b"), TRUTHS)
def test_the_noise_raises_the_divergence_and_the_model_lowers_it(kind, name, b, monkeypatch):
    pair = made(name)
    loss, model, guide, others, size = LOSSES[kind](b, pair)
    of_noise, of_model = slopes(kl, pair[0], start_of(pair))
    root, found = np.linalg.cholesky(DATA), []
    for seed in range(8):
        torch.manual_seed(seed)
        monkeypatch.setattr(NumPyro, "key", (jax.random.key(seed),))
        data = numbers(f"data {seed}", size, 2) @ root.T
        pair[0].zero_grad()
        params, given = {"log_scale": 0.0}, {NOISE: pair[0]} | others
        grads = b.loss_and_grads(loss, model, guide, data, params=params, nets=given)[1]
        whole = 1 if kind == "critic" else size
        found.append(jax.tree.map(lambda grad: np.asarray(grad) / whole, grads))
    leaves = [jax.tree.leaves(grads[NOISE]) for grads in found]
    for number, truth in enumerate(jax.tree.leaves(of_noise)):
        assert_mean([each[number] for each in leaves], -truth, 0.7)
    assert_mean([grads["log_scale"] for grads in found], of_model, 0.7)


@pytest.mark.parametrize("kind", LOSSES)
def test_twins_have_one_gradient(kind):
    """With a mask and weights under a critic, in one pass and two; with a plate that subsamples."""
    start = {"a": numbers("a", 3, 2), "w": numbers("w", 2, 3)}
    mask = np.arange(6) != 3

    def result(b, update=None):
        twin, other = with_noise((nets((2, 5, 2), steep=0.7)))
        net = torch_net((numbers("a", 2, 5), numbers("b", 5), numbers("c", 5, 1), np.zeros(1)))

        def model(x):
            a = b.param("a", start["a"])
            with b.plate("data", 60, subsample_size=6):
                z = b.sample("z", b.normal("z", b.np.zeros((6, 3)), 1.0, vmapped=False).to_event(1))
                fn = b.dist.Delta(b.np.tanh(z @ a), event_dim=1)
                b.sample("x", fn if update is None else fn.mask(b.array(mask)), obs=x)

        def guide(x):
            w = b.param("w", start["w"])
            with b.plate("data", 60, subsample_size=6):
                fn = b.normal("z", x @ w, b.np.ones((6, 3)), vmapped=False)
                b.sample("z", fn.to_event(1))

        noise = {"x": b.pick(twin, other)}
        if update is None:
            loss, program, given = b.package.SpreadELBO(noise), guide, {NOISE: twin}
        else:
            critic = b.package.concat_sites(b.pick(net, FlaxNet()), "x")
            loss = b.package.AdversarialDivergence(
                critic, b.package.JSPi(0.3), noise, update=update
            )
            program, given = no_guide, {NOISE: twin, CRITIC: net}
        params = start if update is None else {"a": start["a"]}
        data = numbers("data", 6, 2)
        if update is not None:
            data[3] = np.nan  # what is masked may be anything
        return b.loss_and_grads(loss, model, program, data, params=params, nets=given)

    if kind == "bound":
        _, grads = compare(result)
    else:
        one = compare(lambda b: result(b, "one_pass"))
        assert_twins(one, compare(lambda b: result(b, "two_pass")))
        grads = one[1]
    assert all(np.asarray(grad).any() for grad in jax.tree.leaves(grads[NOISE]))
    assert grads["a"].any()


def with_noise(pair):
    """Learned noise whose draws are numbers, in both backends."""
    net, twin = pair
    return (
        pyro_spread.learned(TorchNoise(torch.tensor([0.4, 0.6])), "trace", mean=net),
        numpyro_spread.learned(JaxNoise(jnp.array([0.4, 0.6])), "trace", mean=twin),
    )


# --- trained, beside SciPy


def best(bound, data, model, variance):
    """The largest divergence that a linear g may make of two Gaussians."""

    def lost(flat):
        kernel = flat.reshape(2, 2)
        a = np.eye(2) + kernel * min(1.0, bound / np.linalg.norm(kernel, 2))
        return -kl(*(a.T @ side @ a + variance * np.eye(2) for side in (data, model)))

    starts = np.random.default_rng(0).normal(size=(8, 4))
    options = {"maxiter": 4000, "xatol": 1e-8, "fatol": 1e-12}
    found = [
        scipy.optimize.minimize(lost, s, method="Nelder-Mead", options=options) for s in starts
    ]
    return -min(each.fun for each in found)


@pytest.mark.slow
@in_both
def test_a_trained_mean_stretches_where_data_and_model_differ(b):
    bound, variance, steps = 0.6, 0.3, 2000
    along = np.array([0.6, 0.8])
    data, model_side = 0.4 * np.eye(2) + 1.5 * np.outer(along, along), 0.4 * np.eye(2)
    net, twin = nets((2, 2), steep=0.1, bias=False)
    noise = b.package.learned(
        b.package.GaussianNoise(variance**0.5), mean=b.pick(net, twin), lipschitz=bound
    )

    def model(x):
        with b.plate("data", len(x)):
            scale = b.array(np.sqrt(model_side.diagonal()))
            z = b.sample("z", b.dist.Normal(b.array(np.zeros(2)), scale).to_event(1))
            b.sample("x", b.dist.Delta(z, event_dim=1), obs=x)

    critic = b.pick(TorchQuadratic(np.zeros((2, 2)), 0.0), FlaxQuadratic())
    loss = b.package.AdversarialDivergence(critic, b.package.KL(), noise={"x": noise})
    optims = b.pick(lambda rate: pyro.optim.Adam({"lr": rate}), optax.adam)
    optim = b.package.two_player(*map(optims, (1e-3, 2e-2)), noise=optims(5e-3))
    svi = b.infer.SVI(model, loss.register(model, no_guide), optim, loss)
    root = np.linalg.cholesky(data)
    draws = np.random.default_rng(1).normal(size=(steps, 1000, 2)) @ root.T
    if b is NumPyro:
        state = svi.init(jax.random.key(0), jnp.asarray(draws[0]))
        update = jax.jit(svi.update)
        for x in draws:
            state, _ = update(state, x)
        kernel = noise.kernel(svi.get_params(state)[NOISE])
    else:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        for x in torch.as_tensor(draws):
            svi.step(x)
        kernel = noise.kernel()
    a = moved(b, kernel, np.eye(2))
    assert np.linalg.norm(along @ a) == pytest.approx(1 + bound, rel=0.01)
    reached = kl(*(a.T @ side @ a + variance * np.eye(2) for side in (data, model_side)))
    assert reached == pytest.approx(best(bound, data, model_side, variance), rel=0.01)


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
    "lipschitz": (lambda b: dict(mean=chain(b, 2), lipschitz=1.0), "between 0 and 1, got 1.0"),
    "no number": (lambda b: dict(mean=chain(b, 2), lipschitz="0.5"), "between 0 and 1, got '0.5'"),
    "no net": (lambda b: dict(lipschitz=0.5), "pass mean=net too"),
    "no kernel of its size": (
        lambda b: dict(noise=gaussian(b, [0.1, 0.2, 0.3]), mean=chain(b, 2)),
        "mean maps 2 numbers, but the kernel's own are for events of 3 elements",
    ),
    "single scale": (
        lambda b: dict(constraint="trace", mean=chain(b, 2)),
        "To learn the mean alone, pass mean=net without constraint",
    ),
    "no constraint": (lambda b: dict(), "To learn its mean and nothing else, pass mean=net"),
    "another kernel": (
        lambda b: dict(noise=b.package.StudentTNoise(1.0, 0.3), mean=chain(b, 2)),
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
    with pytest.raises(NotImplementedError, match="not of ResidualNoise"):
        b.package.denoise(b.array(numbers("y", 3, 2)), kernel, log_density=lambda y: y.sum(-1))
