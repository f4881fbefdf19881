# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Maximum likelihood of a coin
============================

Every pixel of the digits counts the dark ones of 16, so that the simplest model tosses a coin of
its own 16 times for each. There is nothing latent and hence no guide: ``Trace_ELBO`` is the exact
log-likelihood, and its maximum is known, the mean of the pixel over 16.

    python examples/pyro/zoo/coin.py --output zoo-coin
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from parts import adam, draw_counts, fit, mean_bound, no_guide, start
from pyro.infer import SVI, Trace_ELBO
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)

    def model(x, num_images=0):
        logits = pyro.param("logits", torch.zeros(data.num_pixels))
        with pyro.plate("data", num_images if x is None else len(x)):
            pyro.sample("x", dist.Binomial(MAX_COUNT, logits=logits).to_event(1), obs=x)

    svi = SVI(model, no_guide, adam(settings), Trace_ELBO())
    seconds = fit(settings, svi, data.train_counts)
    return Trained(
        samples=draw_counts(model, None, settings.num_samples),
        seconds=seconds,
        log_likelihood=mean_bound(svi, data.test_counts, num_draws=1),
    )


if __name__ == "__main__":
    main("pyro", "coin", train)
