# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""JointContrastELBO has a twin: the same weights and draws give the same value and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from contrast_draws import (
    FlaxNet,
    JaxNormal,
    TorchNormal,
    flax_params,
    numbers,
    torch_net,
    weights,
)
from jax.tree_util import Partial

import numpyro_spread
import pyro_spread

N, D = 5, 2
DATA, MASK = numbers("joint x", N, D), numbers("joint mask", N) > -0.5
PARAMS = {"mw": 0.2, "m": numbers("m", D), "s": 0.6, "mu": 0.3, "a": 0.8}
SHOWN = {False: ("x", "z"), True: ("x", "z", "w")}
WEIGHTS = {latent: weights(f"joint {latent}", 4 + latent) for latent in SHOWN}


class TorchNoise(pyro_spread.GaussianNoise):
    def _around(self, x, scale, validate_args=None):
        return TorchNormal("noisy", x, scale)


class JaxNoise(numpyro_spread.GaussianNoise):
    def _around(self, x, *parameters):
        return JaxNormal("noisy", x, *parameters)


def in_pyro(masked, size, latent, dense):
    """A simulator with a learned prior; if ``latent``, a global one above it."""

    def param(name):
        return pyro.param(name, torch.as_tensor(PARAMS[name]))

    def given(name, dim=1):
        shape = (N, D)[:dim]
        return TorchNormal(name, torch.zeros(shape), torch.ones(shape)).to_event(dim - 1)

    def mask():
        return pyro.poutine.mask(mask=torch.tensor(MASK) if masked else True)

    def model(x):
        mu, a = param("mu"), param("a")
        w = pyro.sample("w", pyro_dist.Normal(mu, 1.0)) if latent else mu
        with pyro.plate("data", size, subsample_size=N), mask():
            fn = lambda eps: w + a * eps.sinh()  # noqa: E731
            z = pyro.sample("z", pyro_spread.ImplicitDistribution(fn, given("model z", 2), (D,)))
            fn = lambda eps: (z + a * eps).tanh()  # noqa: E731
            pyro.sample("x", pyro_spread.ImplicitDistribution(fn, given("x", 2), (D,)), obs=x)

    def guide(x):
        m, s = param("m"), param("s")
        scale = torch.tensor(0.5)
        w = pyro.sample("w", TorchNormal("w", param("mw"), scale)) if latent else 0.0
        with pyro.plate("data", size, subsample_size=N), mask():
            if dense:
                pyro.sample("z", pyro_dist.Normal(m * x, s).to_event(1))
                return
            fn = lambda eps: m * x + w + s * eps.sinh()  # noqa: E731
            pyro.sample("z", pyro_spread.ImplicitDistribution(fn, given("z", 2), (D,)))

    return model, guide, {"x": TorchNoise(0.7)}


def in_numpyro(masked, size, latent, dense):
    def param(name):
        return numpyro.param(name, jnp.asarray(PARAMS[name]))

    def given(name):
        return JaxNormal(name, jnp.zeros((N, D)), 1.0).to_event(1)

    def mask():
        return numpyro.handlers.mask(mask=jnp.asarray(MASK) if masked else True)

    def implicit(name, fn, *args):
        return numpyro_spread.ImplicitDistribution(Partial(fn, *args), given(name), (D,))

    def model(x):
        mu, a = param("mu"), param("a")
        w = numpyro.sample("w", numpyro_dist.Normal(mu, 1.0)) if latent else mu
        with numpyro.plate("data", size, subsample_size=N), mask():
            z = implicit("model z", lambda w, a, eps: w + a * jnp.sinh(eps), w, a)
            z = numpyro.sample("z", z)
            fn = implicit("x", lambda z, a, eps: jnp.tanh(z + a * eps), z, a)
            numpyro.sample("x", fn, obs=x)

    def guide(x):
        m, s = param("m"), param("s")
        w = numpyro.sample("w", JaxNormal("w", param("mw"), 0.5)) if latent else 0.0
        with numpyro.plate("data", size, subsample_size=N), mask():
            if dense:
                numpyro.sample("z", numpyro_dist.Normal(m * x, s).to_event(1))
                return
            fn = implicit("z", lambda m, w, s, eps: m * x + w + s * jnp.sinh(eps), m, w, s)
            numpyro.sample("z", fn)

    return model, guide, {"x": JaxNoise(0.7)}


CASES = {
    "reverse-kl": ("ReverseKL", {"size": 10 * N}),
    "reverse-kl, global latent": ("ReverseKL", {"size": 10 * N, "latent": True}),
    "js.5": ("JSPi", {"pi": 0.5}),
    "js.2, masked": ("JSPi", {"pi": 0.2, "masked": True}),
    "kl": ("KL", {}),
    "noise": ("JSPi", {"pi": 0.5, "spread": True}),
    "penalty": ("ReverseKL", {"penalty": 2.0, "masked": True}),
    "kl with a density": ("KL", {"dense": True}),
}


def joint_loss(package, name, critic, noise, pi=None, penalty=None, latent=False, **others):
    divergence = getattr(package, name)(*([] if pi is None else [pi]))
    options = {"noise": noise} if others.get("spread") else {}
    if penalty is not None:
        options["regularizer"] = package.R1(penalty)
    if others.get("dense"):
        return package.JointContrastELBO(divergence=divergence)
    critic = package.concat_sites(critic, *SHOWN[latent])
    return package.JointContrastELBO(critic, divergence, **options)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name):
    divergence, options = CASES[name]
    latent, dense = options.get("latent", False), options.get("dense", False)
    setting = options.get("masked", False), options.get("size", N), latent, dense

    model, guide, noise = in_pyro(*setting)
    net = torch_net(WEIGHTS[latent])
    loss = joint_loss(pyro_spread, divergence, net, noise, **options)
    value = loss.loss_and_grads(model, guide, torch.tensor(DATA))
    store = pyro.get_param_store()
    grads = {n: store[n].unconstrained().grad for n in PARAMS if n in store}
    learned = {"m", "s"} if dense else {"m", "s", "mu", "a"}
    learned |= {"mw"} if latent else set()
    assert learned <= {n for n, grad in grads.items() if grad is not None and grad.any()}

    model, guide, noise = in_numpyro(*setting)
    twin = joint_loss(numpyro_spread, divergence, FlaxNet(), noise, **options)
    params = {n: jnp.asarray(v) for n, v in PARAMS.items()}
    params["discriminator$params"] = flax_params(WEIGHTS[latent])

    def other(params):
        return twin.loss(jax.random.key(0), params, model, guide, jnp.asarray(DATA))

    other_value, other_grads = jax.jit(jax.value_and_grad(other))(params)
    equal = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
    equal(value, other_value)
    for n, grad in grads.items():
        equal(np.zeros(()) if grad is None else grad.numpy(), other_grads[n], err_msg=n)
    layers = other_grads["discriminator$params"]
    layers = [layers[f"Dense_{i}"][key] for i in (0, 1) for key in ("kernel", "bias")]
    for param, grad in zip(net.parameters(), layers, strict=True):
        equal(0.0 if dense else param.grad.numpy().T, grad)
        assert dense or np.abs(grad).max() > 1e-4
