# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Adversarial variational Bayes on four points
============================================

The example of Mescheder et al. (https://arxiv.org/abs/1701.04722, section 4.1): four images of four
pixels, each with another pixel on, and two latent variables. To give each image the probability 1/4
the codes of the four must share out the prior among them, without gaps or overlap. Gaussian codes,
those of a VAE, cannot. An encoder that is also fed noise can, but has no density: here it is
trained by ``PriorContrastELBO`` with a critic, and by ``SemiImplicitELBO`` without one. The
codes of an image are only log 4 nats away from the prior, which is a fine contrast then:
``adaptive=False``.

    python examples/numpyro/avb_toy.py --num-seeds 3 --output avb-toy
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen as nn
from jax import lax, random
from numpyro import handlers
from numpyro.contrib.module import flax_module
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO
from studies.avb_toy_study import Fit, batch, compare, latent_grid, parse_args
from studies.comparison import learning_rate_factor

from numpyro_spread import (
    GaussianNoise,
    ImplicitDistribution,
    PriorContrastELBO,
    SemiImplicitELBO,
    concat_sites,
    two_player,
)
from numpyro_spread.ratio import MLPCritic


class MLP(nn.Module):
    hidden_dim: int
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        # PyTorch's default, so that both backends start alike.
        dense = functools.partial(
            nn.Dense, kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        )
        for _ in range(2):
            x = nn.relu(dense(self.hidden_dim)(x))
        return dense(self.num_outputs)(x)


class Encoder(nn.Module):
    """z = eps + net(x, eps) with as many of the eps as there are z, at first nearly the prior."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x, eps):
        x = jnp.broadcast_to(x, (*eps.shape[:-1], 4))
        return eps[..., :2] + MLP(self.hidden_dim, 2)(jnp.concatenate([x, eps], -1))


class Moments(nn.Module):
    """Mean and standard deviation given x: the VAE's encoder."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x):
        loc, scale = jnp.split(MLP(self.hidden_dim, 4)(x), 2, -1)
        return loc, nn.softplus(scale + 0.55)  # a standard deviation near one at first


def main(args):
    numpyro.set_platform(args.device)
    x = jnp.asarray(batch(args.copies))
    decoder, moments = MLP(args.hidden_dim, 4), Moments(args.hidden_dim)
    noise = dist.Normal(jnp.zeros(args.noise_dim), 1.0).to_event(1)

    def model(x):
        net = flax_module("decoder", decoder, input_shape=(2,))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    def implicit_guide(x):
        encoder = Encoder(args.hidden_dim)
        net = flax_module("encoder", encoder, jnp.zeros(4), jnp.zeros(args.noise_dim))
        with numpyro.plate("data", len(x)):
            encode = ImplicitDistribution(functools.partial(net, x), noise, event_shape=(2,))
            return numpyro.sample("z", encode)

    def gaussian_guide(x):
        net = flax_module("moments", moments, input_shape=(4,))
        with numpyro.plate("data", len(x)):
            return numpyro.sample("z", dist.Normal(*net(x)).to_event(1))

    def kernel(x):
        std = numpyro.param("kernel", args.kernel_scale, constraint=constraints.positive)
        return {"z": GaussianNoise(std)}

    @functools.cache
    def prepare(name):
        """A whole run and its final evaluation, compiled once."""
        guide, critic_steps = implicit_guide, 1
        if name == "avb":
            critic_steps = args.critic_steps
            critic = concat_sites(MLPCritic([args.hidden_dim] * 2), "x", "z")
            loss = PriorContrastELBO(critic, adaptive=False)
        elif name == "semi-implicit":
            loss = SemiImplicitELBO(kernel, args.num_mixture)
        else:
            guide, loss = gaussian_guide, Trace_ELBO()
        num_steps = critic_steps * args.num_steps

        def adam(rate, steps_between):
            def decay(step):
                return rate * learning_rate_factor(step * steps_between / num_steps)

            return optax.adam(decay, b1=0.5)

        optim = adam(args.learning_rate, critic_steps)
        if name == "avb":
            optim = two_player(optim, adam(args.critic_learning_rate, 1), critic_steps)
        registered = guide if name == "vae" else loss.register(model, guide)
        svi = SVI(model, registered, optim, loss)
        posterior = loss.spread_guide(model, guide) if name == "semi-implicit" else guide

        @jax.jit
        def run(key):
            init_key, loss_key, draw_key = random.split(key, 3)
            state = svi.init(init_key, x)
            state = lax.scan(lambda s, _: svi.update(s, x), state, length=num_steps)[0]
            params = svi.get_params(state)

            def reported(key):
                return loss.loss(key, params, model, registered, x) / len(x)

            losses = lax.map(reported, random.split(loss_key, args.num_evaluations))
            draw = handlers.seed(handlers.substitute(posterior, params), draw_key)
            codes = draw(jnp.tile(jnp.eye(4), (args.num_draws, 1)))
            grid_logits = decoder.apply({"params": params["decoder$params"]}, latent_grid())
            return codes.reshape(args.num_draws, 4, 2), grid_logits, losses.mean()

        return run

    def fit(name, seed):
        codes, grid_logits, loss = prepare(name)(random.key(seed))
        return Fit(np.swapaxes(codes, 0, 1), np.asarray(grid_logits), -float(loss))

    return compare("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
