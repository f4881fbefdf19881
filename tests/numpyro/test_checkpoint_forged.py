# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in a well-sealed file: the library's error refuses it, or the run goes on."""

import random
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from forged import content_of, forgeries
from numpyro.infer import SVI, Trace_ELBO

from numpyro_spread import (
    CheckpointError,
    PriorContrastELBO,
    concat_sites,
    finite_guard,
    load_checkpoint,
    save_checkpoint,
    two_player,
)
from numpyro_spread.ratio import MLPCritic

X = jnp.linspace(-1.0, 1.0, 4)


def plain():
    def model(x):
        a = numpyro.param("a", jnp.zeros(3))
        scale = numpyro.param("s", 1.0, constraint=dist.constraints.interval(0.1, 9.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(a.sum(), scale), obs=x)

    return SVI(model, lambda x: None, optax.adamw(0.1), Trace_ELBO())


def contrast():
    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))

    loss = PriorContrastELBO(concat_sites(MLPCritic([2]), "z"), annealing=6, num_moment_draws=4)
    optim = two_player(optax.adam(0.1), optax.adam(0.1), ema=0.9)
    return finite_guard(SVI(model, loss.register(model, guide), optim, loss), "reduce")


BUILDS = {"plain": plain, "contrast": contrast}


def check(name, few):
    """One change at every place, or at some of them."""
    svi = BUILDS[name]()
    update, start = jax.jit(svi.update), svi.init(jax.random.key(0), X)
    svi_state, _ = update(start, X)
    metadata = {"n": np.arange(3.0), "t": (1, 2)}
    file = save_checkpoint(tempfile.mkdtemp(), svi, svi_state, 1, metadata=metadata)
    content, sealed = content_of(file.read_bytes())
    arrays = [
        {"!": "tensor", "kind": "numpy", "name": "metadata/n"},
        {"!": "tensor", "kind": "jax", "name": "metadata/n"},
        {"!": "tensor", "kind": "scalar", "name": "metadata/n"},
    ]
    cases = list(forgeries(content, arrays))
    if few:
        cases = random.Random(1).sample(cases, few)
    odd, refused = [], 0
    loss = svi.loss
    for word, make in cases:
        file.write_bytes(sealed(make()))
        before = loss.get_state() if hasattr(loss, "get_state") else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loaded, _ = load_checkpoint(file, svi, start)
            except CheckpointError as error:
                refused += 1
                if before is not None and loss.get_state() != before:
                    odd.append(f"{word}: refused, and something changed")
                if len(str(error)) > 1000:
                    odd.append(f"{word}: {len(str(error))} characters")
                continue
            except Exception as error:
                odd.append(f"{word}: {type(error).__name__}: {str(error)[:80]}")
                continue
            try:
                loaded, _ = update(loaded, X)
                save_checkpoint(tempfile.mkdtemp(), svi, loaded, 3)
            except Exception as error:
                odd.append(f"{word}: loaded, then {type(error).__name__}: {str(error)[:80]}")
    assert not odd, f"{len(odd)} of {len(cases)}\n" + "\n".join(odd[:40])
    assert refused > len(cases) // 2


@pytest.mark.parametrize("name", BUILDS)
def test_some_changes(name):
    check(name, 120)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
def test_every_change(name):
    check(name, None)
