# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
r"""
Real NVP
========

An invertible net with a density (Dinh, Sohl-Dickstein, Bengio 2017), out of Pyro's transforms.
A density of whole numbers is unbounded, so that the pixels get uniform noise u in [0, 1) first.
What is learned then bounds the log-likelihood of whole numbers (Theis, van den Oord, Bethge 2016):

.. math:: \log P(x) = \log \int_{[0, 1)^{64}} p(x + u) du \ge E_u \log p(x + u).

The flow is of v = (x + u) / 17, in the unit cube, so that p(x + u) = p(v) / 17^64. A sample is the
level floor(17 v).

    python examples/pyro/zoo/real_nvp.py --output zoo-real-nvp
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from parts import adam, draw, fit, mean_bound, no_guide, standard_normal, start
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import DenseNN
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main
from torch import nn

NUM_COUPLINGS = 6


def dequantised(x):
    """Whole numbers to a point of the unit cube that rounds down to them."""
    v = (x + torch.rand_like(x)) / NUM_LEVELS
    return v.clamp(1e-6, 1 - 1e-6)  # float32 may round to the edges, where the logit is infinite


def real_nvp(data: ZooData, settings: Settings) -> tuple[nn.ModuleList, list[T.Transform]]:
    """The couplings, and all transforms from the standard normal to the unit cube."""
    size, half = data.num_pixels, data.num_pixels // 2
    couplings, transforms = nn.ModuleList(), []
    for _ in range(NUM_COUPLINGS):
        hypernet = DenseNN(half, [settings.hidden_dim] * 2, [size - half] * 2)
        nn.init.zeros_(hypernet.layers[-1].weight)  # starts as the identity
        nn.init.zeros_(hypernet.layers[-1].bias)
        couplings.append(T.AffineCoupling(half, hypernet))
        transforms += [couplings[-1], T.Permute(torch.randperm(size))]
    logits = torch.logit(dequantised(torch.as_tensor(data.train_counts)))
    to_data = T.AffineTransform(logits.mean(0), logits.std(0), event_dim=1)
    return couplings, [*transforms, to_data, T.SigmoidTransform()]


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    couplings, transforms = real_nvp(data, settings)
    base = standard_normal(data.num_pixels)

    def model(x, num_images=0):
        pyro.module("couplings", couplings)
        with pyro.plate("data", num_images if x is None else len(x)):
            # Fresh noise at every step: the mean over it is what bounds log P(x).
            v = None if x is None else dequantised(x)
            pyro.sample("x", dist.TransformedDistribution(base, transforms), obs=v)

    svi = SVI(model, no_guide, adam(settings, weight_decay=1e-2), Trace_ELBO())
    seconds = fit(settings, svi, data.train_counts)
    of_v = mean_bound(svi, data.test_counts)
    samples = (draw(model, None, settings.num_samples) * NUM_LEVELS).astype(int)
    return Trained(
        samples=samples.clip(0, MAX_COUNT) / MAX_COUNT,
        seconds=seconds,
        log_likelihood=of_v - data.num_pixels * math.log(NUM_LEVELS),
    )


if __name__ == "__main__":
    main("pyro", "real_nvp", train)
