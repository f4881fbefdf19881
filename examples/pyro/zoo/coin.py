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
from parts import adam, fit, no_guide, start
from pyro.infer import Predictive, Trace_ELBO

from spread_analysis.zoo import MAX_COUNT, Settings, Trained, ZooData, main


def model(x, num_images=0):
    logits = pyro.param("logits", lambda: torch.zeros(64))
    with pyro.plate("data", num_images if x is None else len(x)):
        pyro.sample("x", dist.Binomial(MAX_COUNT, logits=logits).to_event(1), obs=x)


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    svi, seconds = fit(settings, model, no_guide, adam(settings), Trace_ELBO(), data.train_counts)
    test = torch.as_tensor(data.test_counts)
    draws = Predictive(model, num_samples=1)(None, settings.num_samples)["x"][0]
    return Trained(
        samples=draws.cpu().numpy() / MAX_COUNT,
        seconds=seconds,
        log_likelihood=-svi.evaluate_loss(test) / len(test),
    )


if __name__ == "__main__":
    main("pyro", "coin", train)
