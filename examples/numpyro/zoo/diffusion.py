# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
r"""
Denoising diffusion: spread at many levels
==========================================

Spread the data with Gaussian noise of scale :math:`s_1 < \dots < s_T`, :math:`y_t = x + s_t
\epsilon`. Between two levels the noise is known in closed form,

.. math::

    q(y_{t-1} \mid y_t, x) = N(y_t + (1 - r_t)(x - y_t), \; (1 - r_t) s_{t-1}^2),
    \quad r_t = s_{t-1}^2 / s_t^2,

and the model p is the same with a denoiser's :math:`\hat x(y_t, t)` in place of x. The bound of the
chain is a sum over levels, each a KL of two Gaussians,

.. math:: \tfrac12 (s_{t-1}^{-2} - s_t^{-2}) |x - \hat x(y_t, t)|^2.

So DDPM's loss is a weighted sum of denoising terms (Ho et al. 2020; Kingma et al. 2021). Spread
divergence has the same terms: its KL falls with the noise at the rate :math:`\tfrac12 E|\nabla \log
\tilde p - \nabla \log \tilde q|^2` per unit of :math:`s^2` (de Bruijn), and by Tweedie's formula
that difference of scores is the denoiser's error over :math:`s^2`. A delta-VAE spreads once, at one
scale; a diffusion model adds up all scales, from one at which nothing of the data is left.

It is an ordinary model and guide under stock ``TraceMeanField_ELBO``, whose KLs are exact; the
levels are a plate, of which each step takes a few (``subsample_size``).

    python examples/numpyro/zoo/diffusion.py --output zoo-diffusion
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, TraceMeanField_ELBO
from parts import MLP, adam, fit, mean_bound
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main

from numpyro_spread import GaussianNoise

# From less than half the step between two levels of grey, to much more than the range of pixels.
SMALLEST_SCALE, LARGEST_SCALE = 0.02, 5.0
LEVELS_PER_STEP = 4
WIDTH = 2  # the only net of the system may be wider than those that come in pairs
NUM_FREQUENCIES = 8


class Diffusion:
    """Model and guide of the chain of noisy images, and its draws."""

    def __init__(self, data: ZooData, settings: Settings) -> None:
        self.net = MLP(WIDTH * settings.hidden_dim, data.num_pixels)
        self.num_inputs = data.num_pixels + 2 * NUM_FREQUENCIES
        self.mean = data.train_images.mean(0)
        self.deviation = data.train_images.std()
        self.frequencies = 2.0 ** np.arange(NUM_FREQUENCIES)
        ends = SMALLEST_SCALE, LARGEST_SCALE
        self.scales = jnp.asarray(np.geomspace(*ends, settings.num_levels + 1), jnp.float32)
        self.batch_levels = min(LEVELS_PER_STEP, settings.num_levels)
        self.grey = np.arange(NUM_LEVELS) / MAX_COUNT

    def denoise(self, net, y, scale):
        """Estimate the clean image: a weighted mean of the noisy image and the net's output."""
        # Weights as in Karras et al. 2022 (arXiv:2206.00364): at every level the net's input and
        # what it has to give are of the size of one.
        total = jnp.sqrt(self.deviation**2 + scale**2)
        angles = self.frequencies * jnp.log(scale) / 4
        where = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
        where = jnp.broadcast_to(where, (*y.shape[:-1], where.shape[-1]))
        centred = y - self.mean
        output = net(jnp.concatenate([centred / total, where], -1))
        kept = self.deviation**2 / total**2
        return self.mean + kept * centred + scale * self.deviation / total * output

    def below(self, y, clean, level):
        """Distribution of y at the level below, given y and the clean image, or a guess of it."""
        lower, upper = self.scales[level - 1, None], self.scales[level, None]
        share = 1 - (lower / upper) ** 2
        return dist.Normal(y + share * (clean - y), jnp.sqrt(share) * lower).to_event(1)

    def top(self, num_images):
        """Distribution of y at the highest level: as if all images were the mean image."""
        mean = jnp.broadcast_to(self.mean, (num_images, self.mean.size))
        spread_out = jnp.sqrt(self.scales[-1] ** 2 + self.deviation**2)
        return dist.Normal(mean, spread_out).to_event(1)

    def counts(self, y):
        """
        Distribution of the whole-number pixels given y at the lowest level: nearly always the
        nearest.
        """
        distance = (y[..., None] - self.grey) / self.scales[0]
        return dist.Categorical(logits=-0.5 * distance**2).to_event(1)

    def model(self, x, every_level=False):
        net = flax_module("denoiser", self.net, input_shape=(self.num_inputs,))
        with numpyro.plate("data", len(x), dim=-1):
            numpyro.sample("y_top", self.top(len(x)))
            y = numpyro.sample("y_0", self.lowest(x))
            numpyro.sample("x", self.counts(y), obs=x)
            with self.levels(every_level) as index:
                level = index[:, None] + 1
                y = numpyro.sample("y", self.noisy(x, level))
                guess = self.denoise(net, y, self.scales[level, None])
                numpyro.sample("y_below", self.below(y, guess, level))

    def guide(self, x, every_level=False):
        clean = x / MAX_COUNT
        with numpyro.plate("data", len(x), dim=-1):
            numpyro.sample("y_top", GaussianNoise(self.scales[-1])(clean, event_dim=1))
            numpyro.sample("y_0", self.lowest(x))
            with self.levels(every_level) as index:
                level = index[:, None] + 1
                y = numpyro.sample("y", self.noisy(x, level))
                numpyro.sample("y_below", self.below(y, clean, level))

    def levels(self, every_level):
        size = len(self.scales) - 1
        batch = size if every_level else self.batch_levels
        return numpyro.plate("levels", size, subsample_size=batch, dim=-2)

    # Two auxiliary draws, the same in model and guide: their KL is zero. They stand for the upper
    # end of each term, which the chain reaches with just this distribution.
    def lowest(self, x):
        return GaussianNoise(self.scales[0])(x / MAX_COUNT, event_dim=1)

    def noisy(self, x, level):
        clean = jnp.broadcast_to(x / MAX_COUNT, (len(level), *x.shape))
        return GaussianNoise(self.scales[level, None])(clean, event_dim=1)

    def sample(self, rng_key, params, num_images):
        """From the highest level down: at each the denoiser's guess, and the noise that is left."""

        def net(x):
            return self.net.apply({"params": params["denoiser$params"]}, x)

        def step(y, level):
            at = jnp.full(num_images, level)
            below = self.below(y, self.denoise(net, y, self.scales[at, None]), at)
            return below.sample(random.fold_in(step_key, level)), None

        top_key, step_key, counts_key = random.split(rng_key, 3)
        down = jnp.arange(len(self.scales) - 1, 0, -1)
        y, _ = lax.scan(step, self.top(num_images).sample(top_key), down)
        return self.counts(y).sample(counts_key)


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    diffusion = Diffusion(data, settings)
    svi = SVI(
        diffusion.model,
        diffusion.guide,
        adam(settings, weight_decay=1e-2),
        TraceMeanField_ELBO(),
    )
    fit_key, draw_key, bound_key = random.split(random.key(settings.seed), 3)
    state, seconds = fit(fit_key, settings, svi, data.train_counts.astype(np.int32))
    test = data.test_counts.astype(np.int32)
    sample = jax.jit(diffusion.sample, static_argnums=2)
    return Trained(
        samples=np.asarray(sample(draw_key, svi.get_params(state), settings.num_samples))
        / MAX_COUNT,
        seconds=seconds,
        log_likelihood=mean_bound(bound_key, svi, state, test, num_draws=3, every_level=True),
    )


if __name__ == "__main__":
    main("numpyro", "diffusion", train)
