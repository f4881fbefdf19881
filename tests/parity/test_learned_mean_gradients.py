# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The learned mean of noise raises the divergence that the model lowers, in both backends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyro
import pytest
import scipy.optimize
import torch
from gaussian_players import FlaxQuadratic, TorchQuadratic, assert_mean, kl, log_ratio
from learned_means import NOISE, moved, nets, with_mean
from twins import (
    CRITIC,
    FlaxNet,
    JaxNoise,
    NumPyro,
    Pyro,
    TorchNoise,
    compare,
    flax_params,
    in_both,
    no_guide,
    numbers,
    torch_net,
)

import numpyro_spread
import pyro_spread

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
TRUTHS = [(Pyro, "critic", AT), (Pyro, "bound", BELOW)]
SLOW = [(Pyro, "critic", BELOW), (Pyro, "bound", AT)]
SLOW += [(NumPyro, kind, name) for kind in LOSSES for name in CASES]
TRUTHS += [pytest.param(*each, marks=pytest.mark.slow) for each in SLOW]


@pytest.mark.parametrize(("b", "kind", "name"), TRUTHS)
def test_the_noise_raises_the_divergence_and_the_model_lowers_it(b, kind, name, monkeypatch):
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
        found.append(jax.tree.map(lambda grad, n=whole: np.asarray(grad) / n, grads))
    leaves = [jax.tree.leaves(grads[NOISE]) for grads in found]
    for number, truth in enumerate(jax.tree.leaves(of_noise)):
        assert_mean([each[number] for each in leaves], -truth, 0.7)
    assert_mean([grads["log_scale"] for grads in found], of_model, 0.7)


@pytest.mark.parametrize("kind", LOSSES)
def test_twins_have_one_gradient(kind):
    """With a mask under a critic, and a plate that subsamples."""
    start = {"a": numbers("a", 3, 2), "w": numbers("w", 2, 3)}
    mask = np.arange(6) != 3

    def result(b):
        twin, other = with_noise(nets((2, 5, 2), steep=0.7))
        net = torch_net((numbers("a", 2, 5), numbers("b", 5), numbers("c", 5, 1), np.zeros(1)))

        def model(x):
            a = b.param("a", start["a"])
            with b.plate("data", 60, subsample_size=6):
                z = b.sample("z", b.normal("z", b.np.zeros((6, 3)), 1.0, vmapped=False).to_event(1))
                fn = b.dist.Delta(b.np.tanh(z @ a), event_dim=1)
                b.sample("x", fn if kind == "bound" else fn.mask(b.array(mask)), obs=x)

        def guide(x):
            w = b.param("w", start["w"])
            with b.plate("data", 60, subsample_size=6):
                fn = b.normal("z", x @ w, b.np.ones((6, 3)), vmapped=False)
                b.sample("z", fn.to_event(1))

        noise = {"x": b.pick(twin, other)}
        if kind == "bound":
            loss, program, given = b.package.SpreadELBO(noise), guide, {NOISE: twin}
        else:
            critic = b.package.concat_sites(b.pick(net, FlaxNet()), "x")
            loss = b.package.AdversarialDivergence(critic, b.package.JSPi(0.3), noise)
            program, given = no_guide, {NOISE: twin, CRITIC: net}
        params = start if kind == "bound" else {"a": start["a"]}
        data = numbers("data", 6, 2)
        if kind == "critic":
            data[3] = np.nan  # what is masked may be anything
        return b.loss_and_grads(loss, model, program, data, params=params, nets=given)

    _, grads = compare(result)
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
