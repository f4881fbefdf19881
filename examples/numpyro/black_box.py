# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Posteriors of black boxes
=========================

An epidemic with an unknown rate of infection and of recovery, simulated outside of JAX: by SciPy's
ODE solver, which takes all runs at once, and by a program of its own, which is started for each
run. ``Simulator`` makes a site of either, which ``svi.run`` calls from its compiled loop.
``JointContrastELBO`` with ``KL()`` trains a guide that answers for every x at once, and is judged
on simulations that it has not seen.

    python examples/numpyro/black_box.py --simulators ode --output black-box
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import random
from numpyro.contrib.module import flax_module
from numpyro.handlers import seed, substitute, uncondition
from numpyro.infer import SVI
from studies.black_box_study import NUM_DAYS, PRIOR, Fit, compare, parse_args

from numpyro_spread import KL, JointContrastELBO, Simulator


class MLP(nn.Module):
    hidden_dim: int
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(self.hidden_dim)(x))
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.normal(0.01))(x)


def main(args):
    numpyro.set_platform(args.device)

    def fit(simulator, vectorized, num_steps, batch_size):
        def model(x):
            with numpyro.plate("data", len(x)):
                rates = [
                    numpyro.sample(name, dist.LogNormal(loc, scale))
                    for name, (loc, scale) in PRIOR.items()
                ]
                counts = Simulator(
                    simulator, *rates, event_shape=(NUM_DAYS,), vectorized=vectorized
                )
                return jnp.stack(rates, -1), numpyro.sample("x", counts, obs=x)

        net = MLP(args.hidden_dim, 2 * len(PRIOR))

        def guide(x):
            outputs = flax_module("net", net, input_shape=(NUM_DAYS,))(jnp.log1p(x))
            locs, log_scales = jnp.split(outputs, 2, -1)
            with numpyro.plate("data", len(x)):
                rates = [
                    numpyro.sample(name, dist.LogNormal(prior[0] + loc, jnp.exp(log_scale)))
                    for (name, prior), loc, log_scale in zip(
                        PRIOR.items(), locs.T, log_scales.T, strict=True
                    )
                ]
            return jnp.stack(rates, -1)

        loss = JointContrastELBO(divergence=KL())
        svi = SVI(model, loss.register(model, guide), optax.adam(args.learning_rate), loss)
        train_key, test_key, draw_key = random.split(random.key(args.seed), 3)
        batch = jnp.zeros((batch_size, NUM_DAYS))
        params = svi.run(train_key, num_steps, batch, progress_bar=False).params
        unseen = jnp.zeros((args.num_tests, NUM_DAYS))
        truth, x = seed(uncondition(model), test_key)(unseen)
        draws = jax.vmap(lambda key: seed(substitute(guide, params), key)(x))(
            random.split(draw_key, args.num_draws)
        )
        return Fit(np.asarray(truth), np.asarray(draws))

    return compare("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
