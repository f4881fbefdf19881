# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Two compiled SVIs at once in two threads, and each of them alone."""

from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI

from numpyro_spread import AdversarialDivergence, concat_sites, finite_guard, two_player

X = jnp.linspace(-1.0, 2.0, 16)


def prepared(index):
    """A step that is compiled, and the state it starts from."""

    def model(x):
        w = numpyro.param("w", 0.5)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Delta(w * z + index), obs=x)

    loss = AdversarialDivergence(concat_sites(nn.Dense(1), "x"))
    optim = two_player(optax.adam(1e-2), optax.adam(1e-2))
    svi = finite_guard(SVI(model, loss.register(model, lambda x: None), optim, loss), "skip")
    state = svi.init(jax.random.key(index), X)
    return jax.jit(svi.update).lower(state, X).compile(), state


def trained(update, state):
    for _ in range(200):
        state, _ = update(state, X)
    return jax.tree.map(np.asarray, state.optim_state)


runs = [prepared(index) for index in range(2)]
alone = [trained(*run) for run in runs]
with ThreadPoolExecutor(2) as pool:
    together = list(pool.map(lambda run: trained(*run), runs))
for one, other in zip(together, alone, strict=True):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    print("equal")
