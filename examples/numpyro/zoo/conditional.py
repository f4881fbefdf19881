# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Maximum likelihood of a conditional model
=========================================

A model of images given their label, p(x | y): a coin for every pixel and every digit. Trained by
``Trace_ELBO``, exact since nothing is latent. To compare with models that are not conditional on
the label it is summed over: log p(x) = log sum_y p(y) p(x | y), with p(y) the shares of the
training images.

    python examples/numpyro/zoo/conditional.py --output zoo-conditional
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.infer import SVI, Trace_ELBO
from parts import CHUNK, adam, draw_counts, fit, no_guide
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main, mixture_bound


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    def model(x, label):
        # Not at zero, as the coin.
        logits = numpyro.param("logits", jnp.full((data.num_classes, data.num_pixels), -1.0))
        with numpyro.plate("data", len(label)):
            pixels = dist.Binomial(MAX_COUNT, logits=logits[label]).to_event(1)
            numpyro.sample("x", pixels, obs=x)

    fit_key, draw_key = random.split(random.key(settings.seed))
    svi = SVI(model, no_guide, adam(settings), Trace_ELBO())
    state, seconds = fit(fit_key, settings, svi, data.train_counts, data.train_labels)
    labels = jnp.asarray(data.label_draws(settings.num_samples, settings.seed))
    components = dist.Binomial(MAX_COUNT, logits=svi.get_params(state)["logits"]).to_event(1)
    test = data.test_counts[:, None]
    chunks = (test[start : start + CHUNK] for start in range(0, len(test), CHUNK))
    given_labels = jnp.concatenate([components.log_prob(chunk) for chunk in chunks])
    return Trained(
        samples=draw_counts(draw_key, svi, state, None, labels),
        seconds=seconds,
        log_likelihood=mixture_bound(given_labels, data.label_shares).mean(),
    )


if __name__ == "__main__":
    main("numpyro", "conditional", train)
