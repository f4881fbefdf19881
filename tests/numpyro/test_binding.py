# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Critics of flax linen, flax nnx and equinox as pure functions, and none where flax is missing."""

import subprocess
import sys
from pathlib import Path

import equinox
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from numpyro_spread.ratio import SiteValues, concat_sites
from numpyro_spread.ratio.binding import bind


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class RawLinen(linen.Module):
    @linen.compact
    def __call__(self, values, *args, shift=0.0):
        return linen.Dense(1)(values["x"])[..., 0] + shift


class RawNnx(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, values, *args, shift=0.0):
        return self.dense(values["x"])[..., 0] + shift


class RawEquinox(equinox.Module):
    weight: jax.Array

    def __call__(self, values, *args, shift=0.0):
        return values["x"] @ self.weight + shift


RAW = {
    "linen": RawLinen,
    "nnx": lambda: RawNnx(nnx.Rngs(0)),
    "equinox": lambda: RawEquinox(jnp.array([1.0, -2.0])),
}
NETS = {
    "linen": lambda: linen.Dense(1),
    "nnx": lambda: nnx.Linear(2, 1, rngs=nnx.Rngs(0)),
    "equinox": lambda: equinox.nn.Linear(2, 1, key=jax.random.key(0)),
    "equinox-scalar": lambda: equinox.nn.MLP(2, "scalar", 4, 1, key=jax.random.key(0)),
}


@pytest.mark.parametrize("name", RAW)
def test_raw_modules(name):
    module = RAW[name]()
    bound = bind(module)
    values = SiteValues({"x": normal(3, 4, 2)}, (3, 4))
    params = bound.init(jax.random.key(1), values, (), {})
    logits = jax.jit(lambda p: bound.apply(p, values, (), {"shift": 2.0}))(params)
    expected = module.apply({"params": params}, values) if name == "linen" else module(values)
    np.testing.assert_allclose(logits, expected + 2, rtol=1e-5)
    assert not bound.coupled
    # The params are those of the argument, not of the module.
    zeros = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_array_equal(bound.apply(zeros, values, (), {}), np.zeros((3, 4)))


@pytest.mark.parametrize("name", NETS)
def test_adapted_modules(name):
    bound = bind(concat_sites(NETS[name](), "x", "c"))
    x, c = normal(3, 4, 1), np.arange(12).reshape(3, 4)
    values = SiteValues({"x": x}, (3, 4), {"c": c})
    params = bound.init(jax.random.key(1), values, (), {})
    logits = bound.apply(params, values, (), {})
    assert logits.shape == (3, 4)
    for index in ((0, 0), (2, 3)):  # data do not see each other
        one = SiteValues({"x": x[index][None]}, (1,), {"c": c[index][None]})
        np.testing.assert_allclose(bound.apply(params, one, (), {})[0], logits[index], rtol=1e-4)
    grads = jax.grad(lambda p: bound.apply(p, values, (), {}).sum())(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


class LinenNorm(linen.Module):
    running: bool = False

    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.BatchNorm(use_running_average=self.running)(x))


class NnxNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dense = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.norm(x))


@pytest.mark.parametrize("net", [LinenNorm(), NnxNorm(nnx.Rngs(0))], ids=["linen", "nnx"])
def test_batch_norm_couples(net):
    bound = bind(concat_sites(net, "x"))
    values = SiteValues({"x": 5 + normal(6, 2)}, (6,))
    params = bound.init(jax.random.key(0), values, (), {})
    logits = jax.jit(lambda p, v: bound.apply(p, v, (), {}))(params, values)
    assert bound.coupled
    assert float(logits.mean()) == pytest.approx(0, abs=1e-4)  # this batch's own moments
    # Nothing is kept from one call to the next.
    again = bound.apply(params, values, (), {})
    np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_bound():
    for wrong in (lambda values: 0.0, linen.Dense, concat_sites(lambda h: h, "x")):
        with pytest.raises(TypeError, match=r"must be a module of flax linen, flax nnx or equinox"):
            bind(wrong)


def test_logits_must_have_the_batch_shape():
    bound = bind(RawEquinox(jnp.ones((2, 1))))
    values = SiteValues({"x": normal(4, 2)}, (4,))
    with pytest.raises(ValueError, match=r"logits of shape \(4, 1\), expected .* \(4,\)"):
        bound.apply(bound.init(jax.random.key(0), values, (), {}), values, (), {})


def test_flax_is_needed_by_the_ready_critics_only():
    code = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("flax", "equinox"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import jax.numpy as jnp
import numpyro_spread
print(float(numpyro_spread.concat_sites(lambda h: h.sum(-1), "x")({"x": jnp.ones((1, 2))})[0]))
try:
    numpyro_spread.ratio.binding.bind(lambda values: 0.0)
except TypeError as error:
    print("TypeError")
numpyro_spread.ratio.MLPCritic()
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            f"import sys; sys.path.insert(0, {str(root)!r})" + code,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout.split() == ["2.0", "TypeError"], done.stderr
    assert "the extra 'flax'" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("ImportError")
