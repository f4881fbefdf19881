# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""PriorContrastELBO has a twin: the same weights and draws give the same value and gradients."""

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
    jax_contrast_draw,
    numbers,
    start_over,
    torch_contrast_draw,
    torch_net,
    weights,
)
from flax import linen
from jax.tree_util import Partial
from torch import nn

import numpyro_spread
import pyro_spread
from numpyro_spread.infer._gaussian_contrast import GaussianContrast as JaxContrast
from pyro_spread.infer._gaussian_contrast import GaussianContrast as TorchContrast

N, D, MOMENTS, DRAWS = 4, 2, 6, 3
DATA, MASK, SCALE = numbers("x", N, D), numbers("mask", N) > -0.5, np.exp(numbers("scale", N))
PARAMS = {
    "mw": 0.2,
    "m": numbers("m", D),
    "s": 0.6,
    "u": 0.4,
    "mu": 0.3,
    "noise": 0.7,
}
# name -> shapes of what the critic sees
CRITICS = {"z": ("z", "x", "w"), "y": ("y", "z", "x"), "both": ("z", "y", "x", "w")}
WEIGHTS = {name: weights(name, 6 if name == "both" else 5) for name in CRITICS}
HEAD = np.array([0.3, 0.8])


def around(handlers, how, array):
    """Plate sizes apart, what may act on the plate: a mask, a scale of every datum, a number."""
    if how == "mask":
        return handlers.mask(mask=array(MASK))
    return handlers.scale(scale=array(SCALE) if how == "scale" else 1.0)


class TorchHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(HEAD))

    def forward(self, x):
        loc, scale = self.weight[0] * x, self.weight[1]
        return {"z": (loc, scale), "y": (loc.sum(-1), scale)}


class FlaxHead(linen.Module):
    @linen.compact
    def __call__(self, x):
        weight = self.param("weight", lambda key: jnp.asarray(HEAD))
        loc, scale = weight[0] * x, weight[1]
        return {"z": (loc, scale), "y": (loc.sum(-1), scale)}


class TorchNoise(pyro_spread.GaussianNoise):
    def _around(self, x, scale, validate_args=None):
        return TorchNormal("noisy", x, scale)


class JaxNoise(numpyro_spread.GaussianNoise):
    def _around(self, x, *parameters):
        return JaxNormal("noisy", x, *parameters)


def in_pyro(how, size, delta):
    def param(name):
        return pyro.param(name, torch.as_tensor(PARAMS[name]))

    def data_plate():
        return pyro.plate("data", size, subsample_size=N)

    def model(x):
        mu = param("mu")
        w = pyro.sample("w", pyro_dist.Normal(mu, 1.0))
        with data_plate(), around(pyro.poutine, how, torch.tensor):
            loc = (mu * w).expand(N, D)
            z = pyro.sample("z", TorchNormal("prior z", loc, torch.ones(())).to_event(1))
            y = pyro.sample("y", TorchNormal("prior y", z.sum(-1), torch.tensor(0.7)))
            mean = (z + y[:, None]).tanh()
            fn = pyro_dist.Delta(mean) if delta else pyro_dist.Normal(mean, 0.5)
            pyro.sample("x", fn.to_event(1), obs=x)

    def guide(x):
        m, s, u = param("m"), param("s"), param("u")
        w = pyro.sample("w", TorchNormal("w", param("mw"), torch.tensor(0.5)))
        zero, one = torch.zeros(N, D), torch.ones(N, D)
        base = TorchNormal("z", zero, one).to_event(1)
        with data_plate(), around(pyro.poutine, how, torch.tensor):
            fn = lambda eps: m * x + w + s * eps.sinh()  # noqa: E731
            z = pyro.sample("z", pyro_spread.ImplicitDistribution(fn, base, (D,)))
            fn = lambda eps: u * z.sum(-1) + s * eps  # noqa: E731
            base = TorchNormal("y", zero[:, 0], one[:, 0])
            pyro.sample("y", pyro_spread.ImplicitDistribution(fn, base, ()))

    return model, guide, lambda x: {"x": TorchNoise(param("noise"))}


def in_numpyro(how, size, delta):
    def param(name):
        return numpyro.param(name, jnp.asarray(PARAMS[name]))

    def data_plate():
        return numpyro.plate("data", size, subsample_size=N)

    def model(x):
        mu = param("mu")
        w = numpyro.sample("w", numpyro_dist.Normal(mu, 1.0))
        with data_plate(), around(numpyro.handlers, how, jnp.asarray):
            loc = jnp.broadcast_to(mu * w, (N, D))
            z = numpyro.sample("z", JaxNormal("prior z", loc, 1.0).to_event(1))
            y = numpyro.sample("y", JaxNormal("prior y", z.sum(-1), 0.7))
            mean = jnp.tanh(z + y[:, None])
            fn = numpyro_dist.Delta(mean) if delta else numpyro_dist.Normal(mean, 0.5)
            numpyro.sample("x", fn.to_event(1), obs=x)

    def guide(x):
        m, s, u = param("m"), param("s"), param("u")
        w = numpyro.sample("w", JaxNormal("w", param("mw"), 0.5))
        base = JaxNormal("z", jnp.zeros((N, D)), 1.0).to_event(1)
        with data_plate(), around(numpyro.handlers, how, jnp.asarray):
            fn = Partial(lambda m, w, s, eps: m * x + w + s * jnp.sinh(eps), m, w, s)
            z = numpyro.sample("z", numpyro_spread.ImplicitDistribution(fn, base, (D,)))
            fn = Partial(lambda u, z, s, eps: u * z.sum(-1) + s * eps, u, z, s)
            base = JaxNormal("y", jnp.zeros(N), 1.0)
            numpyro.sample("y", numpyro_spread.ImplicitDistribution(fn, base, ()))

    return model, guide, lambda x: {"x": JaxNoise(param("noise"))}


def contrast_loss(package, critic_of, head, noise, case):
    critics = {name: critic_of(name) for name in case["critics"]}
    options = {k: v for k, v in case.items() if k not in ("critics", "how", "size", "make")}
    options.update(case.get("make", lambda package: {})(package))
    if options.pop("noise", False):
        options["noise"] = noise
    if options.pop("head", False):
        options["head"] = head
    critics = {n: package.concat_sites(critic, *CRITICS[n]) for n, critic in critics.items()}
    return package.PriorContrastELBO(
        critics.get("both", critics), num_moment_draws=MOMENTS, **options
    )


SEPARATE = {"critics": ("z", "y"), "num_critic_draws": DRAWS}
JOINT = {"critics": ("both",)}
CASES = {
    "adaptive": {**SEPARATE, "how": "scale"},
    "adaptive, mini-batch": {**SEPARATE, "size": 10 * N},
    "adaptive, own draws, mask": {**SEPARATE, "num_critic_draws": 1, "how": "mask"},
    "adaptive, one critic": {**JOINT, "how": "mask"},
    "head": {**SEPARATE, "head": True, "how": "scale"},
    "plain": {**SEPARATE, "adaptive": False, "how": "mask", "size": 10 * N},
    "plain, own draws": {**SEPARATE, "adaptive": False, "num_critic_draws": 1},
    "plain, one critic": {**JOINT, "adaptive": False, "how": "scale"},
    "noise": {**SEPARATE, "noise": True, "annealing": lambda x: 0.3},
    "penalty": {**SEPARATE, "make": lambda package: {"regularizer": package.R1(2.0)}},
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name, monkeypatch):
    monkeypatch.setattr(TorchContrast, "draw", torch_contrast_draw)
    monkeypatch.setattr(JaxContrast, "draw", jax_contrast_draw)
    case = {"how": None, "size": N, **CASES[name]}
    setting = case["how"], case["size"], case.get("noise", False)

    model, guide, noise = in_pyro(*setting)
    nets, head = {n: torch_net(WEIGHTS[n]) for n in case["critics"]}, TorchHead()
    loss = contrast_loss(pyro_spread, nets.get, head, noise, case)
    start_over()
    value = loss.loss_and_grads(model, guide, torch.tensor(DATA))
    store = pyro.get_param_store()
    grads = {n: store[n].unconstrained().grad for n in PARAMS if n in store}
    assert ("noise" in grads) == case.get("noise", False)

    model, guide, noise = in_numpyro(*setting)
    twin = contrast_loss(numpyro_spread, lambda n: FlaxNet(), FlaxHead(), noise, case)
    critics = {n: flax_params(WEIGHTS[n]) for n in case["critics"]}
    params = {n: jnp.asarray(v) for n, v in PARAMS.items()}
    params["discriminator$params"] = critics.get("both", critics)
    params["discriminator$head"] = {"weight": jnp.asarray(HEAD)}

    def other(params):
        return twin.loss(jax.random.key(0), params, model, guide, jnp.asarray(DATA))

    other_value, other_grads = jax.jit(jax.value_and_grad(other))(params)
    equal = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
    equal(value, other_value)
    for n, grad in grads.items():
        equal(grad.numpy(), other_grads[n], err_msg=n)
        assert grad.abs().max() > 1e-3
    learned = other_grads["discriminator$params"]
    for n, net in nets.items():
        layers = learned if "both" in nets else learned[n]
        layers = [layers[f"Dense_{i}"][key] for i in (0, 1) for key in ("kernel", "bias")]
        for param, grad in zip(net.parameters(), layers, strict=True):
            equal(param.grad.numpy().T, grad)
        assert np.abs(layers[0]).max() > 1e-3
    if case.get("head"):
        equal(head.weight.grad.numpy(), other_grads["discriminator$head"]["weight"])
        assert head.weight.grad.abs().min() > 1e-3
