# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Posteriors of a simulator
=========================

Of theta one can draw from the prior, of x one can draw from a simulator, and no density is known.
``JointContrastELBO`` trains a guide that answers for every x at once, on a table of 10,000
simulations. Which divergence it takes of the guide's pairs (x, theta) from the table's is free:
``KL()`` with a guide that has a density needs no critic and is neural posterior estimation; with a
critic the guide may be any net of noise. ``SemiImplicitELBO``, which trains such guides without a
critic elsewhere, scores the likelihood and so has nothing to say here.

All nets see theta less its linear regression on x, standardised: the posterior is narrow compared
with the prior, and a critic that sees theta on the scale of the prior is blind to its shape. The
box of a uniform prior is enforced on the draws at the end.

    python examples/numpyro/simulator.py --num-seeds 3 --output simulator
"""

from __future__ import annotations

import functools
import itertools
import time

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
from numpyro.infer import SVI
from studies.comparison import learning_rate_factor
from studies.simulator_study import (
    CHECK_EVERY,
    DENSITY,
    Fit,
    compare,
    parse_args,
)

from numpyro_spread import (
    KL,
    ImplicitDistribution,
    JointContrastELBO,
    JSPi,
    ReverseKL,
    averaged_params,
    concat_sites,
    two_player,
)

DIVERGENCES = {"reverse-kl": ReverseKL(), "js": JSPi(0.5), "kl": KL()}


class MLP(nn.Module):
    hidden_dim: int
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        # PyTorch's default, so that both backends start alike.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        for _ in range(2):
            x = nn.leaky_relu(nn.Dense(self.hidden_dim, kernel_init=init)(x), 0.2)
        return nn.Dense(self.num_outputs, kernel_init=init)(x)


def model(x, theta):
    # A mini-batch of the table, in which prior and simulator have drawn already.
    with numpyro.plate("data", len(x)):
        numpyro.sample("theta", dist.Delta(theta, event_dim=1))
        numpyro.sample("x", dist.Delta(x, event_dim=1), obs=x)


def trainer(args):
    """A function that trains one guide: from loss, table, observations and seed to a ``Fit``."""
    numpyro.set_platform(args.device)

    def adam(beta1, num_steps):
        def decay(step):
            return args.learning_rate * learning_rate_factor(step / num_steps)

        return optax.adam(decay, b1=beta1)

    def stepper(svi, x, theta):
        """A step of SVI on a mini-batch of the table, for ``lax.scan``."""

        def step(state, key):
            rows = random.randint(key, (args.batch_size,), 0, len(x))
            return svi.update(state, x[rows], theta[rows])

        return step

    def drawing(guide):
        def draw(key, params, x):
            return handlers.seed(handlers.substitute(guide, params), key)(x)

        return jax.jit(draw)

    def fit_density(dim):
        """Neural posterior estimation, up to where held-out simulations are likeliest."""
        num, num_steps = args.num_components, args.num_steps
        net = MLP(args.hidden_dim, num * (1 + 2 * dim))

        def guide(x, theta=None):
            outputs = flax_module("net", net, input_shape=(dim,))(x)
            weights, outputs = jnp.split(outputs, [num], -1)
            locs, log_scales = jnp.split(outputs.reshape(len(x), num, 2 * dim), 2, -1)
            components = dist.Normal(locs, jnp.exp(log_scales)).to_event(1)
            mixing = dist.Categorical(logits=weights)
            with numpyro.plate("data", len(x)):
                return numpyro.sample("theta", dist.MixtureSameFamily(mixing, components))

        loss = JointContrastELBO(divergence=KL())
        svi = SVI(model, loss.register(model, guide), adam(0.9, num_steps), loss)
        between = min(CHECK_EVERY, num_steps)

        @jax.jit
        def run(key, train, held_out):
            init_key, key = random.split(key)
            state = svi.init(init_key, *held_out)

            def advance(carry, key):
                state, least, best = carry
                keys = random.split(key, between)
                state = lax.scan(stepper(svi, *train), state, keys)[0]
                value = svi.evaluate(state, *held_out)
                better = value < least
                best = jax.tree.map(
                    functools.partial(jnp.where, better), svi.get_params(state), best
                )
                return (state, jnp.minimum(value, least), best), None

            keys = random.split(key, num_steps // between)
            return lax.scan(advance, (state, jnp.inf, svi.get_params(state)), keys)[0][2]

        return run, drawing(guide)

    def fit_implicit(name, dim):
        noise_dim = dim + args.extra_noise_dim
        noise = dist.Normal(jnp.zeros(noise_dim), 1.0).to_event(1)

        def sampler(net, x, eps):
            x = jnp.broadcast_to(x, (*eps.shape[:-1], dim))
            return eps[..., :dim] + net(jnp.concatenate([x, eps], -1))

        def guide(x, theta=None):
            net = flax_module("net", MLP(args.hidden_dim, dim), input_shape=(dim + noise_dim,))
            with numpyro.plate("data", len(x)):
                draw = functools.partial(sampler, net, x)
                return numpyro.sample("theta", ImplicitDistribution(draw, noise, (dim,)))

        critic = concat_sites(MLP(args.hidden_dim, 1), "x", "theta")
        loss = JointContrastELBO(critic, DIVERGENCES[name])
        num_steps = args.critic_steps * args.num_steps
        optim = two_player(
            adam(0.5, args.num_steps), adam(0.5, num_steps), args.critic_steps, ema=args.ema
        )
        svi = SVI(model, loss.register(model, guide), optim, loss)

        @jax.jit
        def run(key, train, held_out):
            # The game has no loss to stop by: it sees all simulations, to the end.
            x, theta = (jnp.concatenate(parts) for parts in zip(train, held_out, strict=True))
            init_key, key = random.split(key)
            state = svi.init(init_key, *held_out)
            keys = random.split(key, num_steps)
            state = lax.scan(stepper(svi, x, theta), state, keys)[0]
            return averaged_params(svi, state)

        return run, drawing(guide)

    @functools.cache
    def prepare(name, dim):
        """A training run and a function that draws from its guide, each compiled once."""
        return fit_density(dim) if name == DENSITY else fit_implicit(name, dim)

    def fit(name, table, x, seed):
        key, draw_key = random.split(random.key(seed))
        start = time.perf_counter()
        train, draw_guide = prepare(name, x.shape[1])
        params = train(key, *((part.x, part.theta) for part in table.split()))
        jax.block_until_ready(params)
        seconds = time.perf_counter() - start
        calls = itertools.count()

        def draw(num):
            key = random.fold_in(draw_key, next(calls))
            theta = draw_guide(key, params, np.repeat(x, num, 0))
            return np.asarray(theta).reshape(len(x), num, -1)

        return Fit(draw, seconds)

    return fit


def main(args):
    return compare("numpyro", args, trainer(args))


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
