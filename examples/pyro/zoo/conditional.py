# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Maximum likelihood of a conditional model
=========================================

A model of images given their label, p(x | y): a coin for every pixel and every digit. Trained by
``Trace_ELBO``, exact since nothing is latent. To compare with models that are not conditional on
the label it is summed over: log p(x) = log sum_y p(y) p(x | y), with p(y) the shares of the
training images.

    python examples/pyro/zoo/conditional.py --output zoo-conditional
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from parts import CHUNK, adam, draw_counts, fit, no_guide, start
from pyro.infer import SVI, Trace_ELBO
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main, mixture_bound


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)

    def coins(label):
        logits = pyro.param("logits", torch.zeros(data.num_classes, data.num_pixels))
        return dist.Binomial(MAX_COUNT, logits=logits[label]).to_event(1)

    def model(x, label):
        with pyro.plate("data", len(label)):
            pyro.sample("x", coins(label), obs=x)

    svi = SVI(model, no_guide, adam(settings), Trace_ELBO())
    seconds = fit(settings, svi, data.train_counts, data.train_labels)
    labels = torch.as_tensor(data.label_draws(settings.num_samples, settings.seed))
    test = torch.as_tensor(data.test_counts).unsqueeze(1)
    with torch.no_grad():
        components = coins(torch.arange(data.num_classes))
        given_labels = torch.cat([components.log_prob(chunk) for chunk in test.split(CHUNK)])
    return Trained(
        samples=draw_counts(model, None, labels),
        seconds=seconds,
        log_likelihood=float(mixture_bound(given_labels.cpu(), data.label_shares).mean()),
    )


if __name__ == "__main__":
    main("pyro", "conditional", train)
