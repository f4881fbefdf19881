# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Eight schools with two modes
============================

The eight schools (Rubin 1981), with a scale tau that may be negative: since only the products
tau * eta are identified, the posterior of (tau, eta) has two mirror-image halves, which no Gaussian
guide can express and between which NUTS moves with difficulty. ``AutoImplicit`` makes a guide
without a density from the model, for mu and tau; given them eta gets a Gaussian, whose density
stays in the ELBO. ``PriorContrastELBO`` trains the guide against a critic, ``SemiImplicitELBO``
without one. For comparison ``contrast-all`` leaves all ten latents to ``AutoImplicit`` and the
critic. The exact moments come from quadrature.

    python examples/numpyro/eight_schools.py --num-seeds 5 --output eight-schools
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen as nn
from numpyro import handlers
from numpyro.contrib.module import flax_module
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from studies.comparison import learning_rate_factor
from studies.schools_study import MU_SCALE, TAU_SCALE, Fit, compare, parse_args

from numpyro_spread import (
    AutoImplicit,
    GaussianNoise,
    PriorContrastELBO,
    SemiImplicitELBO,
    averaged_params,
    concat_sites,
    two_player,
)
from numpyro_spread.ratio import MLPCritic
from spread_analysis.reference import EIGHT_SCHOOLS_EFFECTS, EIGHT_SCHOOLS_ERRORS


class Effects(nn.Module):
    """Mean and standard deviation of eta given mu and tau; those of the prior at first."""

    @nn.compact
    def __call__(self, mu, tau):
        x = jnp.stack([mu / MU_SCALE, tau / TAU_SCALE], -1)
        for _ in range(2):
            x = nn.silu(nn.Dense(64)(x))
        loc, log_scale = jnp.split(nn.Dense(16, kernel_init=nn.initializers.zeros)(x), 2, -1)
        return loc, jnp.exp(log_scale)


def main(args):
    numpyro.set_platform(args.device)
    effects = jnp.array(EIGHT_SCHOOLS_EFFECTS, jnp.float32)
    deviations = jnp.array(EIGHT_SCHOOLS_ERRORS, jnp.float32)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, MU_SCALE))
        tau = numpyro.sample("tau", dist.Normal(0.0, TAU_SCALE))
        eta = numpyro.sample("eta", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
        theta = numpyro.deterministic("theta", mu[..., None] + tau[..., None] * eta)
        numpyro.sample("y", dist.Normal(theta, deviations).to_event(1), obs=y)

    def adam(rate, num_steps):
        def decay(step):
            return rate * learning_rate_factor(step / (num_steps + 1))

        return optax.adam(decay, b1=0.5)

    def samples(draws):
        theta = draws["mu"][:, None] + draws["tau"][:, None] * draws["eta"]
        values = {"mu": draws["mu"], "tau": draws["tau"], "theta": theta}
        return {name: np.asarray(value) for name, value in values.items()}

    def structured():
        hyperparameters = AutoImplicit(handlers.block(model, hide=["eta"]))

        def guide(y):
            draws = hyperparameters(y)
            net = flax_module("effects", Effects(), jnp.zeros(()), jnp.zeros(()))
            eta = dist.Normal(*net(draws["mu"], draws["tau"])).to_event(1)
            return {**draws, "eta": numpyro.sample("eta", eta)}

        return guide

    def fit(method, seed):
        train_key, test_key, draw_key = jax.random.split(jax.random.key(seed), 3)
        if method == "nuts":
            mcmc = MCMC(
                NUTS(model),
                num_warmup=args.num_draws // 2,
                num_samples=args.num_draws,
                progress_bar=False,
            )
            mcmc.run(train_key, effects)
            return Fit(samples(mcmc.get_samples()), float("nan"))

        num_steps = args.num_steps
        if method == "normal":
            guide, loss = AutoMultivariateNormal(model), Trace_ELBO(args.num_particles)
            optim = adam(args.learning_rate, num_steps)
        elif method == "semi-implicit":
            guide = structured()

            def noise(y):
                scale = numpyro.param(
                    "scale", 0.3 * jnp.ones(2), constraint=dist.constraints.positive
                )
                return {"_auto_latent": GaussianNoise(scale)}

            loss = SemiImplicitELBO(noise, args.num_mixture, Trace_ELBO(args.num_particles))
            optim = adam(args.learning_rate, num_steps)
        else:
            guide = structured() if method == "contrast" else AutoImplicit(model)
            critic = concat_sites(MLPCritic([args.hidden_dim] * 2))
            num_steps *= args.critic_steps
            loss = PriorContrastELBO(
                critic, annealing=args.num_steps, num_particles=args.num_particles
            )
            optim = two_player(
                adam(args.learning_rate, args.num_steps),  # counts its own steps
                adam(args.critic_learning_rate, num_steps),
                args.critic_steps,
                ema=0.999,
            )
        registered = guide if method == "normal" else loss.register(model, guide)
        svi = SVI(model, registered, optim, loss)
        result = svi.run(train_key, num_steps, effects, progress_bar=False)

        test_keys = jax.random.split(test_key, 50)
        states = [result.state._replace(rng_key=key) for key in test_keys]
        estimate = -np.mean([svi.evaluate(state, effects) for state in states])
        is_contrast = method in ("contrast", "contrast-all")
        params = averaged_params(svi, result.state) if is_contrast else result.params
        posterior = loss.spread_guide(model, guide) if method == "semi-implicit" else guide
        draw = Predictive(posterior, params=params, num_samples=args.num_samples, parallel=True)
        return Fit(samples(draw(draw_key, effects)), estimate)

    compare("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
