# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The three discrepancies of both backends in float64, with the model's noise as an argument."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from twins import NumPyro, Pyro, compare, no_guide

from numpyro_spread.infer import discrepancy as theirs
from pyro_spread.infer import discrepancy as ours

RNG = np.random.default_rng(11)
X, Y, EPS, C = (RNG.normal(size=shape) for shape in ((8, 3), (8,), (8, 3), (8, 2)))
MASK = np.arange(8) % 3 > 0
SCALE = 0.1 + RNG.random(8)
DIRECTIONS = RNG.normal(size=(5, 6))


def result(b, loss, variant):
    """Value, and gradients by the names of params."""
    around = {
        "plain": contextlib.nullcontext,
        "masked": lambda: b.handlers.mask(mask=b.array(MASK)),
        "scaled": lambda: b.handlers.scale(scale=b.array(SCALE)),
    }[variant]

    def model(x, y, eps, c):
        with around():
            w = b.param("w", 0.8)
            with b.plate("data", 8):
                b.sample("x", b.dist.Delta(w * eps, event_dim=1), obs=x)
                b.sample("y", b.dist.Delta(b.array(np.cos(Y)) * w**2), obs=y)

    data = X, Y, EPS, C
    return b.loss_and_grads(loss(b), model, no_guide, *data, params={"w": 0.8}, compiled=True)


def noise(b):
    return {
        "y": b.package.GaussianNoise(0.4),
        "x": b.package.GaussianNoise(b.array(np.array([0.2, 0.5, 1.0]))),
    }


LOSSES = {
    "mmd": lambda b: b.package.MMD(b.package.GaussianKernel([0.5, 2.0])),
    "mmd-given": lambda b: b.package.MMD(b.package.LaplaceKernel(1.0), given=["c"]),
    "mmd-rational": lambda b: b.package.MMD(b.package.RationalQuadraticKernel(1.0), block_size=3),
    "mmd-noise": lambda b: b.package.MMD(b.package.GaussianKernel(0.9), noise(b), given=["c"]),
    "energy": lambda b: b.package.EnergyDistance(),
    "energy-given": lambda b: b.package.EnergyDistance(1.3, given=["c"], num_particles=2),
    "sliced": lambda b: b.package.SlicedWasserstein(5, given=["c"]),
    "sliced-1": lambda b: b.package.SlicedWasserstein(5, p=1.0, given=["c"]),
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

    for module, b in ((ours, Pyro), (theirs, NumPyro)):
        patched = with_directions(module.sliced_wasserstein, b.array)
        monkeypatch.setattr(module, "sliced_wasserstein", patched)


@pytest.mark.parametrize(("name", "variant"), sorted(CASES))
def test_values_and_gradients(name, variant):
    _, grads = compare(lambda b: result(b, LOSSES[name], variant), atol=1e-14)
    assert abs(grads["w"]) > 1e-3


def test_variants_differ():
    values = {result(Pyro, LOSSES["energy"], each)[0] for each in ("plain", "masked", "scaled")}
    assert len(values) == 3
