# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Learned noise in both backends: its gradient is that of minus the divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyro
import pytest
import scipy.optimize
import torch
from gaussian_players import FlaxQuadratic, TorchQuadratic, assert_mean, kl, log_ratio
from twins import (
    CRITIC,
    FlaxNet,
    JaxNoise,
    NumPyro,
    Pyro,
    TorchNoise,
    assert_twins,
    compare,
    in_both,
    no_guide,
    numbers,
    torch_net,
)

import numpyro_spread
import pyro_spread

NOISE = "noise$x$params"
DATA, MODEL = np.array([[1.3, 0.2], [0.2, 0.3]]), np.array([0.7, 0.9])
VARIANCE = np.array([0.2, 0.5])


def js(p, q, pi=0.3):
    """By quadrature on a grid, which is exact to eight digits here."""
    axis = np.linspace(-12, 12, 401)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)

    def log_density(v):
        return (
            -0.5 * ((x @ np.linalg.inv(v)) * x).sum(-1) - 0.5 * np.linalg.slogdet(2 * np.pi * v)[1]
        )

    log_p, log_q = log_density(p), log_density(q)
    log_m = np.logaddexp(np.log(pi) + log_p, np.log(1 - pi) + log_q)
    cell = (axis[1] - axis[0]) ** 2
    parts = pi * np.exp(log_p) * (log_p - log_m) + (1 - pi) * np.exp(log_q) * (log_q - log_m)
    return float(parts.sum() * cell)


TRUTHS = {
    "KL": (lambda p: p.KL(), kl),
    "ReverseKL": (lambda p: p.ReverseKL(), lambda p, q: kl(q, p)),
    "JS.3": (lambda p: p.JSPi(0.3), js),
}


def slopes(divergence, make, params, model=MODEL):
    """Derivatives by noise params and by the model's log scale, by central differences."""

    def at(params, log_scale=0.0):
        fields = make._at(params)
        noise = np.diag(np.broadcast_to(fields["scale"], 2) ** 2)
        noise = noise + fields["factor"] @ fields["factor"].T if "factor" in fields else noise
        return divergence(DATA + noise, np.diag(model) * np.exp(2 * log_scale) + noise)

    found, step = {}, 1e-4
    for name, value in params.items():
        found[name] = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            sides = []
            for sign in (1, -1):
                moved = {n: v.copy() for n, v in params.items()}
                moved[name][index] += sign * step
                sides.append(at(moved))
            found[name][index] = (sides[0] - sides[1]) / (2 * step)
    return found, (at(params, step) - at(params, -step)) / (2 * step)


KERNELS = {
    "diagonal": lambda p, array: p.GaussianNoise(array(np.sqrt(VARIANCE))),
    "low rank": lambda p, array: p.LowRankGaussianNoise(
        array(np.sqrt(VARIANCE)), array(np.array([[0.4], [0.2]]))
    ),
}


KERNELS_OF_BOUND = {
    "diagonal": lambda p, array: p.GaussianNoise(array([0.5, 0.7])),
}


def made(b, kernel, constraint):
    """Learned noise of a backend, and torch's, whose params are also those of the other."""
    twin = pyro_spread.learned(KERNELS[kernel](pyro_spread, torch.tensor), constraint)
    return b.pick(
        twin, numpyro_spread.learned(KERNELS[kernel](numpyro_spread, jnp.array), constraint)
    ), twin


def covariance(noise):
    fields = noise._at(noise._start)
    factor = fields.get("factor", np.zeros((2, 1)))
    return np.diag(fields["scale"] ** 2) + factor @ factor.T


def adversarial(b, noise, twin, divergence, data, **options):
    """Gradients by noise and model, under the best critic for this noise."""
    cov, pi = np.asarray(covariance(noise)), divergence.pi
    matrix, bias = log_ratio(DATA + cov, np.diag(MODEL) + cov)
    net = TorchQuadratic(matrix, bias + np.log(pi / (1 - pi)))

    def model(x):
        log_scale = b.param("log_scale", 0.0)
        with b.plate("data", len(x)):
            scale = b.array(np.sqrt(MODEL)) * b.np.exp(log_scale)
            b.sample("x", b.dist.Normal(b.array(np.zeros(2)), scale).to_event(1), obs=x)

    critic = b.pick(net, FlaxQuadratic())
    loss = b.package.AdversarialDivergence(critic, divergence, noise={"x": noise}, **options)
    nets = {CRITIC: net, NOISE: twin}
    return b.loss_and_grads(loss, model, no_guide, data, params={"log_scale": 0.0}, nets=nets)[1]


@in_both
@pytest.mark.parametrize(
    ("name", "kernel", "constraint"),
    [
        ("KL", "diagonal", "determinant"),
        pytest.param("ReverseKL", "low rank", "trace", marks=pytest.mark.slow),
        pytest.param("JS.3", "diagonal", "determinant", marks=pytest.mark.slow),
        pytest.param("JS.3", "low rank", "trace", marks=pytest.mark.slow),
    ],
)
def test_the_noise_raises_the_divergence_and_the_model_lowers_it(
    b, name, kernel, constraint, monkeypatch
):
    make, exact = TRUTHS[name]
    noise, twin = made(b, kernel, constraint)
    of_noise, of_model = slopes(exact, noise, noise._start)
    root = np.linalg.cholesky(DATA)
    found = []
    for seed in range(8):
        torch.manual_seed(seed)
        monkeypatch.setattr(NumPyro, "key", (jax.random.key(seed),))
        data = numbers(f"data {seed}", 40_000, 2) @ root.T
        for param in twin.parameters():
            param.grad = None
        found.append(adversarial(b, noise, twin, make(b.package), data))
    for param, truth in of_noise.items():
        assert_mean([grads[NOISE][param] for grads in found], -truth, 0.5)
    assert_mean([grads["log_scale"] for grads in found], of_model, 0.5)


def test_twins_have_one_gradient():
    """In both backends, in one pass of the critic and in two, with weights and a mask."""
    data, mask = numbers("data", 6, 2), np.arange(6) != 3

    def result(b, update):
        twin = pyro_spread.learned(TorchNoise(torch.tensor([0.4, 0.6])), "trace")
        other = numpyro_spread.learned(JaxNoise(jnp.array([0.4, 0.6])), "trace")
        net = torch_net((numbers("a", 2, 5), numbers("b", 5), numbers("c", 5, 1), np.zeros(1)))

        def model(x):
            loc = b.param("loc", np.array([0.3, -0.2]))
            scale = b.array(1.0 + np.arange(6))
            with (
                b.plate("data", 6),
                b.handlers.mask(mask=b.array(mask)),
                b.handlers.scale(scale=scale),
            ):
                draws = loc + b.array(numbers("z", 6, 2))
                b.sample("x", b.dist.Delta(draws, event_dim=1), obs=x)

        critic = b.package.concat_sites(b.pick(net, FlaxNet()), "x")
        loss = b.package.AdversarialDivergence(
            critic, b.package.JSPi(0.3), {"x": b.pick(twin, other)}, update=update
        )
        params, nets = {"loc": np.array([0.3, -0.2])}, {CRITIC: net, NOISE: twin}
        return b.loss_and_grads(loss, model, no_guide, data, params=params, nets=nets)

    one = compare(lambda b: result(b, "one_pass"))
    assert_twins(one, compare(lambda b: result(b, "two_pass")))
    assert all(grad.any() for grad in one[1][NOISE].values())


# --- under a bound

BOUND_DATA, BOUND_MODEL = np.array([1.8, 0.2]), np.array([0.2, 1.5])


def bound_program(b, noise):
    """Whose guide is the exact posterior, so that the bound is log q(y)."""
    variance = covariance(noise).diagonal()
    gain = BOUND_MODEL / (BOUND_MODEL + variance)

    def model(x):
        log_scale = b.param("log_scale", 0.0)
        with b.plate("data", len(x)):
            scale = b.array(np.sqrt(BOUND_MODEL)) * b.np.exp(log_scale)
            z = b.sample("z", b.dist.Normal(b.array(np.zeros(2)), scale).to_event(1))
            b.sample("x", b.dist.Delta(z, event_dim=1), obs=x)

    def guide(x):
        with b.plate("data", len(x)):
            loc, scale = b.array(gain) * x, b.array(np.sqrt(gain * variance))
            b.sample("z", b.dist.Normal(loc, scale).to_event(1))

    return model, guide


def test_twins_have_one_gradient_under_a_bound():
    data, start = numbers("data", 6, 2), {"a": numbers("a", 3, 2), "w": numbers("w", 2, 3)}

    def result(b):
        twin = pyro_spread.learned(TorchNoise(torch.tensor([0.4, 0.6])), "trace")
        other = numpyro_spread.learned(JaxNoise(jnp.array([0.4, 0.6])), "trace")

        def model(x):
            a = b.param("a", start["a"])
            with b.plate("data", 60, subsample_size=6):
                z = b.sample("z", b.dist.Normal(b.np.zeros((6, 3)), 1.0).to_event(1))
                b.sample("x", b.dist.Delta(b.np.tanh(z @ a), event_dim=1), obs=x)

        def guide(x):
            w = b.param("w", start["w"])
            with b.plate("data", 60, subsample_size=6):
                b.sample("z", b.normal("z", x @ w, b.np.ones((6, 3)), vmapped=False).to_event(1))

        loss = b.package.SpreadELBO({"x": b.pick(twin, other)})
        return b.loss_and_grads(loss, model, guide, data, params=start, nets={NOISE: twin})

    _, grads = compare(result)
    assert all(grad.any() for grad in (*grads[NOISE].values(), grads["a"], grads["w"]))


@pytest.mark.parametrize("b", [Pyro, pytest.param(NumPyro, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", KERNELS_OF_BOUND)
def test_under_a_bound_the_noise_raises_the_divergence(b, kernel, monkeypatch):
    make = KERNELS_OF_BOUND[kernel]
    twin = pyro_spread.learned(make(pyro_spread, torch.tensor), "determinant")
    other = numpyro_spread.learned(make(numpyro_spread, jnp.array), "determinant")
    noise, size, found = b.pick(twin, other), 800, []
    model, guide = bound_program(b, noise)

    def exact(p, q):
        return kl(np.diag(BOUND_DATA) + p - DATA, q)

    of_noise, of_model = slopes(exact, noise, noise._start, BOUND_MODEL)
    for seed in range(8):
        torch.manual_seed(seed)
        monkeypatch.setattr(NumPyro, "key", (jax.random.key(seed),))
        data = numbers(f"data {seed}", size, 2) * np.sqrt(BOUND_DATA)
        twin.zero_grad()
        loss = b.package.SpreadELBO({"x": noise})
        nets, params = {NOISE: twin}, {"log_scale": 0.0}
        _, grads = b.loss_and_grads(loss, model, guide, data, params=params, nets=nets)
        found.append(jax.tree.map(lambda grad: np.asarray(grad) / size, grads))
    for param, truth in of_noise.items():
        assert_mean([grads[NOISE][param] for grads in found], -truth, 0.4)
    assert_mean([grads["log_scale"] for grads in found], of_model, 0.4)


# --- trained, beside SciPy

PLAYERS = {
    # Divergence, data, model, constraint, least variance, and variances to start from.
    "interior": ("JS.3", [2.0, 0.5], [0.5, 2.0], "determinant", None, [0.2, 0.2]),
    "corner": ("KL", [1.0, 0.25], [0.3, 1.5], "trace", 0.1, [0.5, 0.5]),
}


@in_both
def test_evaluation_of_many_data_takes_no_pairs_of_them(b):
    noise, _ = made(b, "diagonal", "trace")
    model, guide = bound_program(b, noise)
    loss = b.package.SpreadELBO({"x": noise})
    sgd = b.pick(lambda rate: pyro.optim.SGD({"lr": rate}), optax.sgd)
    optim = b.package.two_player(sgd(0.1), None, noise=sgd(0.1))
    svi = b.infer.SVI(model, loss.register(model, guide), optim, loss)
    x = b.array(numbers("many", 300_000, 2))  # 720 GB for all pairs
    if b is NumPyro:
        state = svi.init(jax.random.key(0), x[:4])
        value = jax.jit(svi.evaluate)(state, x)
    else:
        pyro.clear_param_store()
        value = svi.evaluate_loss(x)
    # The guide is the exact posterior, so that the bound is the log density.
    variance = BOUND_MODEL + VARIANCE
    exact = 0.5 * (np.log(2 * np.pi * variance) + (1 + VARIANCE) / variance).sum()
    assert float(value) / len(x) == pytest.approx(exact, rel=0.01)


def best(name, data, model, constraint, least, start):
    """The variances that SciPy finds."""
    data, model, start = map(np.array, (data, model, start))

    def variances(t):
        if constraint == "determinant":
            return np.exp(np.log(start).mean() + np.array([t, -t]))
        return start.sum() * (least / 2 + (1 - least) * np.array([t, 1 - t]))

    def lost(t):
        return -TRUTHS[name][1](np.diag(data + variances(t)), np.diag(model + variances(t)))

    bounds = (-2.5, 0.5) if constraint == "determinant" else (0.0, 1.0)
    inside = scipy.optimize.minimize_scalar(lost, bounds=bounds, method="bounded").x
    return variances(min([inside, *bounds], key=lost))


def trained(b, name, steps, fixed):
    """Variances of noise that plays against a fixed model, or of a generator that it plays with."""
    kind, data, start_model, constraint, least, start = PLAYERS[name]
    noise = b.package.learned(
        b.package.GaussianNoise(b.array(np.sqrt(start))), constraint=constraint, least=least
    )

    def model(x):
        scale = np.sqrt(start_model)
        log_scale = b.array(np.log(scale)) if fixed else b.param("log_scale", np.log(scale))
        with b.plate("data", len(x)):
            z = b.sample("z", b.dist.Normal(b.array(np.zeros(2)), 1.0).to_event(1))
            b.sample("x", b.dist.Delta(z * b.np.exp(log_scale), event_dim=1), obs=x)

    net = TorchQuadratic(np.zeros((2, 2)), 0.0)
    critic = b.pick(net, FlaxQuadratic())
    loss = b.package.AdversarialDivergence(critic, TRUTHS[kind][0](b.package), noise={"x": noise})
    rates = (3e-3, 2e-2, 3e-3)
    optims = b.pick(lambda rate: pyro.optim.Adam({"lr": rate}), lambda rate: optax.adam(rate))
    generator, discriminator, own = map(optims, rates)
    optim = b.package.two_player(generator, discriminator, noise=own)
    svi = b.infer.SVI(model, loss.register(model, no_guide), optim, loss)
    draws = np.random.default_rng(1).normal(size=(steps, 2000, 2)) * np.sqrt(data)
    found = []
    if b is NumPyro:
        state = svi.init(jax.random.key(0), draws[0])
        update = jax.jit(svi.update)
        for x in draws:
            state, _ = update(state, x)
            params = svi.get_params(state)
            scale = noise.kernel(params[NOISE]).scale
            found.append(scale if fixed else jnp.exp(params["log_scale"]))
    else:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        for x in torch.as_tensor(draws):
            svi.step(x)
            scale = noise.kernel().scale
            scale = scale if fixed else pyro.param("log_scale").detach().exp()
            found.append(scale.numpy())
    # The mean of the second half, in which the noise goes to and fro about its place.
    return np.exp(2 * np.log(np.array(found[steps // 2 :])).mean(0))


@pytest.mark.slow
@in_both
@pytest.mark.parametrize("name", PLAYERS)
def test_trained_noise_is_the_worst_there_is(b, name):
    np.testing.assert_allclose(trained(b, name, 4000, True), best(*PLAYERS[name]), rtol=0.02)


@pytest.mark.slow
@in_both
def test_a_linear_generator_still_finds_the_data(b):
    """Where the model is right all noise is alike: the game ends at the data."""
    np.testing.assert_allclose(trained(b, "interior", 4000, False), [2.0, 0.5], rtol=0.02)
