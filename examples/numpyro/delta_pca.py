# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Delta-PCA: noise on both sides cancels
======================================

A linear decoder without output noise, x = A z, has no likelihood. Spread by Gaussian noise of any
scale s on both sides, its optimum is that of the clean data, A A' = U_k L_k U_k' (Zhang et al.,
https://arxiv.org/abs/1811.08968, section 4). With noise on the model's side only, as in a VAE of
fixed output variance, every eigenvalue comes out smaller by s^2.

    python examples/numpyro/delta_pca.py --output delta-pca
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO
from studies.pca_study import PCARun, compare, parse_args
from tqdm import tqdm

from numpyro_spread import GaussianNoise, SpreadELBO

CHUNK = 20


def main(args):
    numpyro.set_platform(args.device)

    def fit(x, start, scale, both_sides, seed):
        data, first = jnp.asarray(x, jnp.float32), jnp.asarray(start, jnp.float32)
        eye = jnp.eye(first.shape[1])

        def model(x):
            A = numpyro.param("A", first)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(len(eye)), 1.0).to_event(1))
                mean = z @ A.T
                # One-sided noise: the data stay clean and the likelihood gets the variance.
                likelihood = (
                    dist.Delta(mean, event_dim=1)
                    if both_sides
                    else dist.Normal(mean, scale).to_event(1)
                )
                numpyro.sample("x", likelihood, obs=x)

        def guide(x):
            # A linear Gaussian guide in the coordinates of the decoder's exact posterior. The noise
            # of its z cancels in the gradient of A where the guide is exact, at V = L = I.
            A = numpyro.param("A", first)
            V = numpyro.param("V", eye)
            L = numpyro.param("L", eye, constraint=constraints.lower_cholesky)
            inverse = jnp.linalg.inv(A.T @ A + scale**2 * eye)
            tril = scale * jnp.linalg.cholesky(inverse) @ L
            with numpyro.plate("data", x.shape[0]):
                mean = x @ A @ inverse @ V.T
                numpyro.sample("z", dist.MultivariateNormal(mean, scale_tril=tril))

        # The first gradients, of size 1/s^2, would fill Adam's second moment and stop it for long:
        # clip them at one per datum. The decay lets the noise of the steps average out.
        schedule = optax.exponential_decay(args.learning_rate, args.num_steps, 0.003)
        optim = optax.chain(optax.clip(float(len(data))), optax.adam(schedule))
        loss = SpreadELBO({"x": GaussianNoise(scale)}) if both_sides else Trace_ELBO()
        svi = SVI(model, guide, optim, loss)
        state = svi.init(jax.random.key(seed), data)

        @jax.jit
        def run(state):
            state, losses = jax.lax.scan(lambda s, _: svi.update(s, data), state, length=CHUNK)
            return state, losses.mean() / len(data)

        products = [start @ start.T]
        progress = tqdm(
            total=args.num_steps, desc=f"s={scale:g}{'' if both_sides else ' one side'}"
        )
        for _ in range(-(-args.num_steps // CHUNK)):
            state, mean_loss = run(state)
            A = np.asarray(svi.get_params(state)["A"], np.float64)
            products.append(A @ A.T)
            progress.update(CHUNK)
            progress.set_postfix(bound=f"{-mean_loss:.3f}")
        progress.close()
        return PCARun(CHUNK * np.arange(len(products)), np.stack(products))

    return compare("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
