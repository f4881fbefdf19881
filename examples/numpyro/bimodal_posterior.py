# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A posterior with two modes, and a guide without a density
=========================================================

z ~ N(0, 1), x ~ N(z^2, s^2) and x = 1 is seen: z is near 1 or near -1. A Normal guide has to choose
one of them. A guide that is a net of noise, z = g(eps), can be both, but has no density.
``PriorContrastELBO`` learns the density's ratio to a contrast by a critic; ``SemiImplicitELBO``
needs no critic and pays with a bound. All are compared with quadrature.

    python examples/numpyro/bimodal_posterior.py --num-seeds 5 --output bimodal-posterior
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen as nn
from jax import random
from numpyro.contrib.module import flax_module
from numpyro.distributions import constraints
from numpyro.infer import SVI, Predictive, Trace_ELBO
from studies.bimodal_study import Fit, compare, parse_args
from studies.comparison import learning_rate_factor

from numpyro_spread import (
    AutoImplicit,
    GaussianNoise,
    ImplicitDistribution,
    PriorContrastELBO,
    SemiImplicitELBO,
    concat_sites,
    two_player,
)
from numpyro_spread.ratio import MLPCritic


class Sampler(nn.Module):
    """z = skip * eps_0 + net(eps, sign(eps)), at first N(0, 1); by the signs it can jump."""

    hidden_dim: int

    @nn.compact
    def __call__(self, eps):
        hidden = jnp.concatenate([eps, jnp.sign(eps)], -1)
        hidden = nn.tanh(nn.Dense(self.hidden_dim)(hidden))
        hidden = nn.tanh(nn.Dense(self.hidden_dim)(hidden))
        shift = nn.Dense(1, kernel_init=nn.initializers.zeros)(hidden).squeeze(-1)
        return self.param("skip", nn.initializers.ones, ()) * eps[..., 0] + shift


def main(args):
    numpyro.set_platform(args.device)
    prepared = {}

    def prepare(name, scale):
        """The SVI, a run of it and draws of the posterior, compiled once."""
        noise = dist.Normal(jnp.zeros(args.noise_dim), 1.0).to_event(1)

        def model(x):
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z**2, scale), obs=x)

        def implicit_guide(x):
            net = Sampler(args.hidden_dim)
            sampler = flax_module("sampler", net, input_shape=(args.noise_dim,))
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", ImplicitDistribution(sampler, noise, event_shape=()))

        def normal_guide(x):
            loc = numpyro.param("loc", lambda key: random.normal(key))
            std = numpyro.param("std", 1.0, constraint=constraints.positive)
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", dist.Normal(loc, std))

        def kernel(x):
            std = numpyro.param("kernel", args.kernel_scale, constraint=constraints.positive)
            return {"z": GaussianNoise(std)}

        guide, num_steps, critic_steps = implicit_guide, args.num_steps, 1
        adversarial, site = name in ("adaptive", "automatic", "plain"), "z"
        if name == "automatic":
            guide, site = AutoImplicit(model), "_auto_data"
        if adversarial:
            critic_steps = args.critic_steps
            num_steps = critic_steps * args.num_steps
            loss = PriorContrastELBO(
                concat_sites(MLPCritic([args.hidden_dim] * 2), site),
                adaptive=name != "plain",
                annealing=round(args.warm_up * num_steps),
                num_particles=args.num_particles,
                num_moment_draws=args.num_moment_draws,
                num_critic_draws=args.num_critic_draws,
            )
        elif name == "semi-implicit":
            loss = SemiImplicitELBO(kernel, args.num_mixture, Trace_ELBO(args.num_particles))
        else:
            guide, loss = normal_guide, Trace_ELBO(args.num_particles)

        def adam(rate, steps_between):
            def decay(step):
                return rate * learning_rate_factor(step * steps_between / num_steps)

            return optax.adam(decay, b1=0.5)

        optim = adam(args.learning_rate, critic_steps)
        if adversarial:
            optim = two_player(optim, adam(args.critic_learning_rate, 1), critic_steps)
        registered = guide if name == "normal" else loss.register(model, guide)
        svi = SVI(model, registered, optim, loss)
        posterior = loss.spread_guide(model, guide) if name == "semi-implicit" else guide

        @jax.jit
        def run(key, x):
            init_key, estimate_key, draw_key = random.split(key, 3)
            state = svi.init(init_key, x)
            state = jax.lax.scan(lambda s, _: svi.update(s, x), state, length=num_steps)[0]
            params = svi.get_params(state)

            def estimate(key):
                return -loss.loss(key, params, model, registered, x)

            estimates = jax.lax.map(estimate, random.split(estimate_key, args.num_evaluations))
            draw = Predictive(posterior, params=params, num_samples=args.num_draws, parallel=True)
            return draw(draw_key, x)["z"].flatten(), estimates

        return run

    def fit(name, case, seed):
        if (name, case.scale) not in prepared:
            prepared[name, case.scale] = prepare(name, case.scale)
        draws, estimates = prepared[name, case.scale](random.key(seed), jnp.array([case.observed]))
        return Fit(np.asarray(draws), np.asarray(estimates))

    return compare("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
