# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
JS_pi: from covering to mode seeking
====================================

A model that is too simple for its data must choose: cover all of them, or fit some of them well.
The weight pi in JS_pi decides (Huszar, https://arxiv.org/abs/1511.05101): near 0 the divergence
acts as KL[P||Q], near 1 as KL[Q||P]. Here an isotropic Gaussian is fitted to a correlated one, and
a single Gaussian to a mixture of two. Both are deterministic generators without a likelihood,
x = loc + std * eps, trained by SVI against a critic; the exact optima are known.

    python examples/numpyro/js_interpolation.py --num-seeds 5 --output js-interpolation
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI
from studies.comparison import learning_rate_factor
from studies.interpolation_study import (
    CRITICS,
    MIXTURE_START,
    MODE,
    WIDTH,
    Fit,
    compare,
    gaussian_covariance,
    parse_args,
)

from numpyro_spread import AdversarialDivergence, JSPi, concat_sites, two_player
from numpyro_spread.ratio import MLPCritic, QuadraticCritic


def main(args):
    numpyro.set_platform(args.device)
    root = jnp.linalg.cholesky(jnp.asarray(gaussian_covariance(), jnp.float32))

    def draw_gaussian(key, num):
        return jax.random.normal(key, (num, 2)) @ root.T

    def isotropic_gaussian(x):
        log_std = numpyro.param("log_std", jnp.zeros(()))
        with numpyro.plate("data", len(x)):
            eps = numpyro.sample("eps", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Delta(jnp.exp(log_std) * eps, event_dim=1), obs=x)

    def draw_mixture(key, num):
        sign_key, normal_key = jax.random.split(key)
        sign = jax.random.rademacher(sign_key, (num,))
        return MODE * sign + WIDTH * jax.random.normal(normal_key, (num,))

    def single_gaussian(x):
        loc = numpyro.param("loc", jnp.array(MIXTURE_START[0]))
        log_std = numpyro.param("log_std", jnp.log(MIXTURE_START[1]))
        with numpyro.plate("data", len(x)):
            eps = numpyro.sample("eps", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Delta(loc + jnp.exp(log_std) * eps), obs=x)

    def guide(x):
        pass  # nothing to infer: the latent variables are the generator's noise

    def fit(problem, critic, pi, seed):
        draw, model = {
            "gaussian": (draw_gaussian, isotropic_gaussian),
            "mixture": (draw_mixture, single_gaussian),
        }[problem]
        net = MLPCritic([args.hidden_dim] * 2) if critic == "mlp" else QuadraticCritic()
        loss = AdversarialDivergence(concat_sites(net, "x"), JSPi(pi))

        critic_rate, critic_steps = CRITICS[critic]
        num_steps = args.warm_up + critic_steps * args.num_steps

        def decay(step):
            return learning_rate_factor(step / num_steps)

        def generator_rate(own_step):
            # The critic has to know the first model before the model may follow it.
            step = critic_steps * own_step
            return args.learning_rate * jnp.where(step >= args.warm_up, decay(step), 0.0)

        optim = two_player(
            optax.adam(generator_rate, b1=0.5),
            optax.adam(lambda step: critic_rate * decay(step), b1=0.9),
            critic_steps,
        )
        svi = SVI(model, loss.register(model, guide), optim, loss)

        @jax.jit
        def train(state, keys):
            def step(state, key):
                return svi.update(state, draw(key, args.batch_size))

            return jax.lax.scan(step, state, keys)[0]

        init_key, data_key, test_key = jax.random.split(jax.random.key(seed), 3)
        state = svi.init(init_key, draw(data_key, args.batch_size))
        state = train(state, jax.random.split(data_key, num_steps))

        params = svi.get_params(state)
        std = float(jnp.exp(params["log_std"]))
        divergence = float(svi.evaluate(state, draw(test_key, 100_000)))
        return Fit(float(params.get("loc", 0.0)), std, divergence)

    return compare("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
