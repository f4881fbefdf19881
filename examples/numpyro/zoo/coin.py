# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Maximum likelihood of a coin
============================

Every pixel of the digits counts the dark ones of 16, so that the simplest model tosses a coin of
its own 16 times for each. There is nothing latent and hence no guide: ``Trace_ELBO`` is the exact
log-likelihood, and its maximum is known, the mean of the pixel over 16.

    python examples/numpyro/zoo/coin.py --output zoo-coin
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.infer import SVI, Trace_ELBO
from parts import adam, draw_counts, fit, mean_bound, no_guide
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    def model(x, num_images=0):
        # Not at zero, where NumPyro's gradient is that of one side: pixels that are never dark
        # would stay there.
        logits = numpyro.param("logits", jnp.full(data.num_pixels, -1.0))
        with numpyro.plate("data", num_images if x is None else len(x)):
            numpyro.sample("x", dist.Binomial(MAX_COUNT, logits=logits).to_event(1), obs=x)

    fit_key, draw_key, test_key = random.split(random.key(settings.seed), 3)
    svi = SVI(model, no_guide, adam(settings), Trace_ELBO())
    state, seconds = fit(fit_key, settings, svi, data.train_counts)
    return Trained(
        samples=draw_counts(draw_key, svi, state, None, settings.num_samples),
        seconds=seconds,
        log_likelihood=mean_bound(test_key, svi, state, data.test_counts, num_draws=1),
    )


if __name__ == "__main__":
    main("numpyro", "coin", train)
