# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Autoregressive models: fully visible sigmoid belief net and MADE
================================================================

log p(x) = sum_i log p(x_i | x_1, ..., x_{i-1}), exactly, and without latents. The belief net (Frey,
Hinton, Dayan 1996) has one logistic unit per pixel, which looks at those before it; here it tosses
16 coins. MADE (Germain et al. 2015) has hidden layers whose masks keep the order, and gives each of
the 17 levels a probability of its own. Masked layers and MADE are NumPyro's.

    python examples/numpyro/zoo/autoregressive.py --output zoo-autoregressive
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.example_libraries import stax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.nn import AutoregressiveNN, MaskedDense
from parts import adam, fit, mean_bound, no_guide
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main


def belief_net(num_pixels):
    """Logistic regression of every pixel on those before it: a net, and what its outputs mean."""
    before = np.triu(np.ones((num_pixels, num_pixels)), 1)

    def pixels(logits):
        return dist.Binomial(MAX_COUNT, logits=logits).to_event(1)

    return stax.serial(MaskedDense(before)), pixels


def made(num_pixels, hidden_dim):
    """MADE: hidden layers, for any distribution of 17 levels."""
    widths = [max(hidden_dim, num_pixels)] * 2  # NumPyro's masks need as many units as inputs

    def pixels(logits):
        return dist.Categorical(logits=jnp.moveaxis(logits, 0, -1)).to_event(1)

    return AutoregressiveNN(num_pixels, widths, param_dims=[NUM_LEVELS]), pixels


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    num_pixels = data.num_pixels
    net, pixels = (
        belief_net(num_pixels) if row == "fvsbn" else made(num_pixels, settings.hidden_dim)
    )

    def model(x):
        outputs = numpyro.module("net", net, x.shape)(x / MAX_COUNT)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", pixels(outputs), obs=x)

    fit_key, draw_key, test_key = random.split(random.key(settings.seed), 3)
    svi = SVI(model, no_guide, adam(settings, weight_decay=0.1), Trace_ELBO())
    state, seconds = fit(fit_key, settings, svi, data.train_counts.astype(np.int32))

    @jax.jit
    def sample(rng_key, params):
        """Pixel after pixel, each given those before it."""

        def fill(pixel, x):
            levels = pixels(net[1](params["net$params"], x / MAX_COUNT))
            level = levels.sample(random.fold_in(rng_key, pixel))[:, pixel]
            return x.at[:, pixel].set(level.astype(x.dtype))

        start = jnp.zeros((settings.num_samples, num_pixels))
        return lax.fori_loop(0, num_pixels, fill, start)

    test = data.test_counts.astype(np.int32)
    return Trained(
        samples=np.asarray(sample(draw_key, svi.get_params(state))) / MAX_COUNT,
        seconds=seconds,
        log_likelihood=mean_bound(test_key, svi, state, test, num_draws=1),
    )


if __name__ == "__main__":
    main("numpyro", "autoregressive", train)
