# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The three discrepancies of both backends in float64, with the model's noise as an argument."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import numpyro_spread
import pyro_spread
from numpyro_spread.infer import discrepancy as theirs
from pyro_spread.infer import discrepancy as ours

RNG = np.random.default_rng(11)
X, Y, EPS, C = (RNG.normal(size=shape) for shape in ((8, 3), (8,), (8, 3), (8, 2)))
MASK = np.arange(8) % 3 > 0
SCALE = 0.1 + RNG.random(8)
DIRECTIONS = RNG.normal(size=(5, 6))


def model_of(lang, handlers, dists, array, init, variant):
    def sites(x, y, eps, c):
        w = lang.param("w", init)
        with lang.plate("data", 8):
            lang.sample("x", dists.Delta(w * eps, event_dim=1), obs=x)
            lang.sample("y", dists.Delta(array(np.cos(Y)) * w**2), obs=y)

    def model(x, y, eps, c):
        if variant == "masked":
            with handlers.mask(mask=array(MASK)):
                sites(x, y, eps, c)
        elif variant == "scaled":
            with handlers.scale(scale=array(SCALE)):
                sites(x, y, eps, c)
        else:
            sites(x, y, eps, c)

    return model


def guide(*args):
    pass


def pyro_result(loss, variant):
    pyro.clear_param_store()
    model = model_of(pyro, poutine, dist, torch.tensor, torch.tensor(0.8), variant)
    args = [torch.tensor(v) for v in (X, Y, EPS, C)]
    value = loss.loss_and_grads(model, guide, *args)
    return value, pyro.param("w").unconstrained().grad.item()


def numpyro_result(loss, variant):
    model = model_of(numpyro, numpyro.handlers, numpyro_dist, jnp.asarray, jnp.array(0.8), variant)

    def value(w):
        args = [jnp.asarray(v) for v in (X, Y, EPS, C)]
        return loss.loss(jax.random.key(0), {"w": w}, model, guide, *args)

    return jax.jit(jax.value_and_grad(value))(jnp.array(0.8))


def noise(package, array):
    return {
        "y": package.GaussianNoise(0.4),
        "x": package.GaussianNoise(array(np.array([0.2, 0.5, 1.0]))),
    }


LOSSES = {
    "mmd": lambda p, array: p.MMD(p.GaussianKernel([0.5, 2.0])),
    "mmd-given": lambda p, array: p.MMD(p.LaplaceKernel(1.0), given=["c"]),
    "mmd-rational": lambda p, array: p.MMD(p.RationalQuadraticKernel(1.0), block_size=3),
    "mmd-noise": lambda p, array: p.MMD(p.GaussianKernel(0.9), noise(p, array), given=["c"]),
    "energy": lambda p, array: p.EnergyDistance(),
    "energy-given": lambda p, array: p.EnergyDistance(1.3, given=["c"], num_particles=2),
    "sliced": lambda p, array: p.SlicedWasserstein(5, given=["c"]),
    "sliced-1": lambda p, array: p.SlicedWasserstein(5, p=1.0, given=["c"]),
}


# Masked data draw their noise, and the backends' random streams differ.
CASES = set(itertools.product(LOSSES, ("plain", "masked", "scaled"))) - {("mmd-noise", "masked")}


@pytest.fixture(autouse=True)
def _same_directions(monkeypatch):
    def with_directions(function, array):
        unit = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)

        def patched(x, y, directions, *rest):
            assert directions.shape == unit.shape
            if isinstance(directions, torch.Tensor):
                np.testing.assert_allclose(directions.norm(dim=1), np.ones(5), rtol=1e-10)
            return function(x, y, array(unit), *rest)

        return patched

    for module, array in ((ours, torch.tensor), (theirs, jnp.asarray)):
        patched = with_directions(module.sliced_wasserstein, array)
        monkeypatch.setattr(module, "sliced_wasserstein", patched)


@pytest.mark.parametrize(("name", "variant"), sorted(CASES))
def test_values_and_gradients(name, variant):
    one = pyro_result(LOSSES[name](pyro_spread, torch.tensor), variant)
    other = numpyro_result(LOSSES[name](numpyro_spread, jnp.asarray), variant)
    np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-14)
    assert abs(one[1]) > 1e-3


def test_variants_differ():
    loss = LOSSES["energy"](pyro_spread, torch.tensor)
    values = {pyro_result(loss, variant)[0] for variant in ("plain", "masked", "scaled")}
    assert len(values) == 3
