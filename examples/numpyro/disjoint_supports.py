# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Disjoint supports: the gradient that vanishes, and the noise that brings it back
================================================================================

Data on the line x1 = a of the plane, a model on the line x1 = theta. The two have no point in
common, wherever theta is: every critic can be perfect, JS_pi is stuck at H(pi) and its gradient is
zero (Arjovsky et al., https://arxiv.org/abs/1701.07875, example 1). After Gaussian noise of scale s
on both sides the divergence tells how far the lines are apart, KL = (a - theta)^2 / (2 s^2), and is
zero where they meet (Zhang et al., https://arxiv.org/abs/1811.08968). The two runs differ in the
argument noise= alone.

The generator is trained by plain gradient descent, whose steps show the gradient as it is.

    python examples/numpyro/disjoint_supports.py --num-seeds 5 --output disjoint-supports
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI
from studies.comparison import learning_rate_factor
from studies.supports_study import Run, compare, parse_args

from numpyro_spread import AdversarialDivergence, GaussianNoise, JSPi, concat_sites, two_player
from numpyro_spread.ratio import MLPCritic


def main(args):
    numpyro.set_platform(args.device)
    num_steps = args.warm_up + args.critic_steps * args.num_steps

    def draw(key, num):
        x2 = jax.random.normal(key, (num,))
        return jnp.stack([jnp.full_like(x2, args.distance), x2], -1)

    def model(x):
        theta = numpyro.param("theta", jnp.zeros(()))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            line = jnp.stack([jnp.broadcast_to(theta, z.shape), z], -1)
            numpyro.sample("x", dist.Delta(line, event_dim=1), obs=x)

    def guide(x):
        pass

    def decay(step):
        return learning_rate_factor(step / num_steps)

    def generator_rate(own_step):  # at first the critic learns alone
        step = args.critic_steps * own_step
        return args.learning_rate * jnp.where(step >= args.warm_up, decay(step), 0.0)

    def fit(noise_scale, seed):
        critic = concat_sites(MLPCritic([args.hidden_dim] * 2), "x")
        noise = None if noise_scale is None else {"x": GaussianNoise(noise_scale)}
        loss = AdversarialDivergence(critic, JSPi(args.pi), noise)
        optim = two_player(
            optax.sgd(generator_rate),
            optax.adam(lambda step: args.critic_learning_rate * decay(step)),
            args.critic_steps,
        )
        svi = SVI(model, loss.register(model, guide), optim, loss)

        @jax.jit
        def train(state, keys):
            def step(state, key):
                state, loss = svi.update(state, draw(key, args.batch_size))
                return state, (svi.get_params(state)["theta"], loss)

            return jax.lax.scan(step, state, keys)[1]

        init_key, data_key = jax.random.split(jax.random.key(seed))
        state = svi.init(init_key, draw(data_key, args.batch_size))
        theta, losses = train(state, jax.random.split(data_key, num_steps))
        return Run(np.asarray(theta, np.float64), np.asarray(losses, np.float64))

    return compare("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
