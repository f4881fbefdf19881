# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A hierarchical model whose likelihood is a simulator
====================================================

Groups of measurements, each with its own location theta, all from one population with mean mu and
standard deviation tau. The measurements' noise is g-and-k: easy to simulate, without a closed
density. ``JointContrastELBO`` with ``ReverseKL()`` is the likelihood-free variational inference of
Tran et al. (https://arxiv.org/abs/1702.08896): mu and tau keep the densities of their priors and of
their Normal guides, while theta, local and drawn by a net that is fed noise, needs none. A critic
tells groups with the guide's theta from groups that the model makes from its own theta. It is given
log p(theta | mu, tau), which is known, and learns the rest. Where the likelihood is missing there
is no critic-free bound, and no semi-implicit one.

This simulator is simple enough for quadrature, which gives the exact posterior to compare with.

    python examples/numpyro/hierarchical_implicit.py --num-seeds 3 --output hierarchical-implicit
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen as nn
from jax.tree_util import Partial
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Predictive
from studies.comparison import learning_rate_factor
from studies.hierarchy_study import (
    LOG_TAU_PRIOR,
    MU_PRIOR,
    Fit,
    compare,
    g_and_k,
    parse_args,
)

from numpyro_spread import (
    ImplicitDistribution,
    JointContrastELBO,
    ReverseKL,
    averaged_params,
    concat_sites,
    two_player,
)


class MLP(nn.Module):
    hidden_dim: int

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.silu(nn.Dense(self.hidden_dim)(x))
        return nn.Dense(1)(x)[..., 0]


class Sampler(nn.Module):
    """Theta of a group from its measurements and noise; at first near their median."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x, eps):
        centre = jnp.median(x, -1)
        inputs = jnp.sort(x, -1) - centre[..., None]
        inputs = jnp.broadcast_to(inputs, (*eps.shape[:-1], inputs.shape[-1]))
        out = MLP(self.hidden_dim)(jnp.concatenate([inputs, eps], -1))
        return centre + 0.2 * (eps[..., 0] + out)


class Critic(nn.Module):
    """
    A net of residuals and theta, plus the known part of the log-ratio: -log p(theta | mu, tau).

    What one group tells of mu is far below what a net would resolve, but it counts for all groups.
    """

    hidden_dim: int

    @nn.compact
    def __call__(self, inputs):
        x, (theta, mu, log_tau) = inputs[..., :-3], jnp.split(inputs[..., -3:], 3, -1)
        net = MLP(self.hidden_dim)(jnp.concatenate([jnp.sort(x, -1) - theta, theta], -1))
        return net - dist.Normal(mu, jnp.exp(log_tau)).log_prob(theta)[..., 0]


def main(args):
    numpyro.set_platform(args.device)
    sampler = Sampler(args.hidden_dim)
    num_noise = 4

    def program(batch_size):
        """Model and guide for mini-batches of this many groups."""

        def groups(x):
            return numpyro.plate("groups", len(x), subsample_size=min(batch_size, len(x)))

        def model(x):
            mu = numpyro.sample("mu", dist.Normal(*MU_PRIOR))
            log_tau = numpyro.sample("log_tau", dist.Normal(*LOG_TAU_PRIOR))
            with groups(x) as index:
                theta = numpyro.sample("theta", dist.Normal(mu, jnp.exp(log_tau)))
                noise = dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1)
                measure = Partial(lambda theta, z: theta[..., None] + g_and_k(z, jnp.tanh), theta)
                simulator = ImplicitDistribution(measure, noise, event_shape=(x.shape[1],))
                numpyro.sample("x", simulator, obs=x[index])

        def guide(x):
            net = flax_module("sampler", sampler, jnp.zeros(x.shape[1]), jnp.zeros(num_noise))
            draws = {}
            for name in ("mu", "log_tau"):
                loc = numpyro.param(f"{name}_loc", 0.0)
                log_scale = numpyro.param(f"{name}_log_scale", -2.0)
                draws[name] = numpyro.sample(name, dist.Normal(loc, jnp.exp(log_scale)))
            with groups(x) as index:
                noise = dist.Normal(jnp.zeros(num_noise), 1.0).to_event(1)
                theta = ImplicitDistribution(Partial(net, x[index]), noise, event_shape=())
                draws["theta"] = numpyro.sample("theta", theta)
            return draws

        return model, guide

    def adam(rate, num_steps):
        return optax.adam(lambda step: rate * learning_rate_factor(step / num_steps), b1=0.5)

    def fit(data, seed):
        train_key, draw_key = jax.random.split(jax.random.key(seed))
        x = jnp.asarray(data, jnp.float32)
        critic = concat_sites(Critic(args.hidden_dim), "x", "theta", "mu", "log_tau")
        loss = JointContrastELBO(critic, ReverseKL(), num_particles=args.num_particles)
        num_steps = args.critic_steps * args.num_steps
        optim = two_player(
            adam(args.learning_rate, args.num_steps),
            adam(args.critic_learning_rate, num_steps),
            args.critic_steps,
            ema=0.999,
        )
        model, guide = program(args.batch_size)
        svi = SVI(model, loss.register(model, guide), optim, loss)
        result = svi.run(train_key, num_steps, x, progress_bar=False)
        params = averaged_params(svi, result.state)
        _, whole_guide = program(len(x))
        draw = Predictive(whole_guide, params=params, num_samples=args.num_draws, parallel=True)
        draws = draw(draw_key, x)
        return Fit(*(np.asarray(draws[name]) for name in ("mu", "log_tau", "theta")))

    compare("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
