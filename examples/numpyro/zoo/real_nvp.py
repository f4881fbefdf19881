# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
r"""
Real NVP
========

An invertible net with a density (Dinh, Sohl-Dickstein, Bengio 2017), out of NumPyro's transforms
and a coupling, which NumPyro has not.
A density of whole numbers is unbounded, so that the pixels get uniform noise u in [0, 1) first.
What is learned then bounds the log-likelihood of whole numbers (Theis, van den Oord, Bethge 2016):

.. math:: \log P(x) = \log \int_{[0, 1)^{64}} p(x + u) du \ge E_u \log p(x + u).

The flow is of v = (x + u) / 17, in the unit cube, so that p(x + u) = p(v) / 17^64. A sample is the
level floor(17 v).

    python examples/numpyro/zoo/real_nvp.py --output zoo-real-nvp
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import linen as nn
from jax import random
from numpyro.contrib.module import flax_module
from numpyro.distributions import constraints
from numpyro.distributions import transforms as T
from numpyro.infer import SVI, Trace_ELBO
from parts import Dense, adam, draw, fit, mean_bound, no_guide, standard_normal
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main

NUM_COUPLINGS = 6


class ShiftAndLogScale(nn.Module):
    """Two hidden layers; zero at first, so that a coupling starts as the identity."""

    hidden_dim: int
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(Dense(self.hidden_dim)(x))
        shift, log_scale = jnp.split(
            nn.Dense(2 * self.num_outputs, kernel_init=nn.initializers.zeros)(x), 2, -1
        )
        # Without a limit, held-out images that are dark where none of training is cost thousands of
        # nats each.
        return shift, 2 * jnp.tanh(log_scale / 2)


class AffineCoupling(T.Transform):
    """The first dims stay; the others are shifted and scaled by a net's output for the first."""

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, net, num_fixed):
        self.net, self.num_fixed = net, num_fixed

    def _split(self, x):
        fixed, moved = jnp.split(x, [self.num_fixed], -1)
        return fixed, moved, *self.net(fixed)

    def __call__(self, x):
        fixed, moved, shift, log_scale = self._split(x)
        return jnp.concatenate([fixed, moved * jnp.exp(log_scale) + shift], -1)

    def _inverse(self, y):
        fixed, moved, shift, log_scale = self._split(y)
        return jnp.concatenate([fixed, (moved - shift) * jnp.exp(-log_scale)], -1)

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return self._split(x)[-1].sum(-1)

    def tree_flatten(self):
        return (), ((), {"net": self.net, "num_fixed": self.num_fixed})

    def eq(self, other, static=False):
        return isinstance(other, AffineCoupling) and self.net is other.net


def dequantised(rng_key, x):
    """Whole numbers to a point of the unit cube that rounds down to them."""
    v = (x + random.uniform(rng_key, x.shape)) / NUM_LEVELS
    return v.clip(1e-6, 1 - 1e-6)  # float32 may round to the edges, where the logit is infinite


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    size, half = data.num_pixels, data.num_pixels // 2
    fit_key, draw_key, test_key, scale_key, *order_keys = random.split(
        random.key(settings.seed), 4 + NUM_COUPLINGS
    )
    net = ShiftAndLogScale(settings.hidden_dim, size - half)
    orders = [T.PermuteTransform(random.permutation(key, size)) for key in order_keys]
    v = dequantised(scale_key, jnp.asarray(data.train_counts))
    logits = jnp.log(v) - jnp.log1p(-v)
    to_data = T.AffineTransform(logits.mean(0), logits.std(0))

    def model(x, num_images=0):
        transforms = []
        for i, order in enumerate(orders):
            coupling = flax_module(f"coupling_{i}", net, input_shape=(half,))
            transforms += [AffineCoupling(coupling, half), order]
        flow = dist.TransformedDistribution(
            standard_normal(size), [*transforms, to_data, T.SigmoidTransform()]
        )
        with numpyro.plate("data", num_images if x is None else len(x)):
            # Fresh noise at every step: the mean over it is what bounds log P(x).
            v = None if x is None else dequantised(numpyro.prng_key(), x)
            numpyro.sample("x", flow, obs=v)

    svi = SVI(model, no_guide, adam(settings, weight_decay=1e-2), Trace_ELBO())
    state, seconds = fit(fit_key, settings, svi, data.train_counts)
    of_v = mean_bound(test_key, svi, state, data.test_counts)
    samples = np.floor(draw(draw_key, svi, state, None, settings.num_samples) * NUM_LEVELS)
    return Trained(
        samples=samples.clip(0, MAX_COUNT) / MAX_COUNT,
        seconds=seconds,
        log_likelihood=of_v - size * math.log(NUM_LEVELS),
    )


if __name__ == "__main__":
    main("numpyro", "real_nvp", train)
