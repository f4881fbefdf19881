# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Deterministic ICA: where EM stands still
========================================

Independent component analysis with Laplace sources, x = A z + g e, and next to no output noise g.
EM freezes as g vanishes: the posterior of z is then a point, and the M-step returns the A that it
came from. On spread data it moves (Zhang et al., https://arxiv.org/abs/1811.08968), and so does SVI
with SpreadELBO instead of Trace_ELBO. The problems, one per seed and output noise, are independent
and sit in a plate of their own.

    python examples/numpyro/ica.py --output ica
    python examples/numpyro/ica.py --paper --output ica-paper
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI
from studies.ica_study import compare, parse_args
from tqdm import tqdm

from numpyro_spread import GaussianNoise, SpreadELBO

CHUNK = 20


def init_encoder(key: jax.Array, start: jax.Array, hidden_dim: int) -> dict[str, list[jax.Array]]:
    """
    Initialise as a linear guide: the nets return zero, and the linear maps invert the initial
    decoder.
    """
    problems, dim, num_sources = start.shape
    num_outputs = num_sources + num_sources * (num_sources + 1) // 2
    sizes = (dim, hidden_dim, hidden_dim, num_outputs)
    weights, biases = [], []
    for fan_in, fan_out in itertools.pairwise(sizes):
        key, subkey = jax.random.split(key)
        weights.append(jax.random.normal(subkey, (problems, fan_in, fan_out)) / fan_in**0.5)
        biases.append(jnp.zeros((problems, 1, fan_out)))
    weights[-1] *= 0.0
    linear = start @ jnp.linalg.inv(start.mT @ start + jnp.eye(num_sources))
    return {"weights": weights, "biases": biases, "linear": [linear]}


def encode(params: dict[str, list[jax.Array]], y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Full-covariance Gaussian over z given y, with one small net per problem."""
    h = y
    for i, (weight, bias) in enumerate(zip(params["weights"], params["biases"], strict=True)):
        h = (jnp.tanh(h) if i else h) @ weight + bias
    (linear,) = params["linear"]
    num_sources = linear.shape[-1]
    loc, entries = h[..., :num_sources], h[..., num_sources:]
    rows, columns = np.tril_indices(num_sources)
    entries = jnp.where(rows == columns, jnp.exp(entries - 1), entries)
    tril = jnp.zeros((*h.shape[:-1], num_sources, num_sources)).at[..., rows, columns].set(entries)
    return y @ linear + loc, tril


def main(args):
    numpyro.set_platform(args.device)

    def fit(problems, description):
        data, start, g = (
            jnp.asarray(part, jnp.float32)
            for part in (problems.data, problems.start, problems.output_noise[:, None, None])
        )
        num_problems, num_data, _ = data.shape
        num_sources = start.shape[-1]
        init_key, net_key, batch_key = jax.random.split(jax.random.key(args.seed), 3)
        first = jax.jit(init_encoder, static_argnums=2)(net_key, start, args.hidden_dim)

        def model(x):
            A = numpyro.param("A", start)
            with (
                numpyro.plate("problems", num_problems, dim=-2),
                numpyro.plate("data", x.shape[1]),
            ):
                z = numpyro.sample("z", dist.Laplace(jnp.zeros(num_sources), 2**-0.5).to_event(1))
                numpyro.sample("x", dist.Normal(z @ A.mT, g).to_event(1), obs=x)

        def guide(x):
            encoder = numpyro.param("encoder", first)
            with (
                numpyro.plate("problems", num_problems, dim=-2),
                numpyro.plate("data", x.shape[1]),
            ):
                loc, tril = encode(encoder, x)
                numpyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))

        size = min(args.batch_size, num_data)
        schedule = optax.exponential_decay(args.learning_rate, args.num_steps, 0.05)
        optim = optax.chain(optax.clip(float(size)), optax.adam(schedule))
        svi = SVI(model, guide, optim, loss=SpreadELBO({"x": GaussianNoise(args.noise_scale)}))

        @jax.jit
        def run(state, keys, data):
            def step(state, key):
                batch = data
                if num_data > size:
                    batch = data[:, jax.random.randint(key, (size,), 0, num_data)]
                state, loss = svi.update(state, batch)
                return state, (loss / (num_problems * size), svi.get_params(state)["A"])

            state, (losses, A) = jax.lax.scan(step, state, keys)
            return state, losses.mean(), A.mean(0)

        num_chunks = -(-args.num_steps // CHUNK)
        state, means = svi.init(init_key, data[:, :size]), []
        progress = tqdm(jax.random.split(batch_key, (num_chunks, CHUNK)), desc=description)
        for keys in progress:
            state, loss, mean = run(state, keys, data)
            means.append(np.asarray(mean, np.float64))
            progress.set_postfix(bound=f"{-loss:.3f}", steps_per_iteration=CHUNK)
        # Steps of a constant size move about the optimum: average the last quarter.
        return np.mean(means[-max(1, num_chunks // 4) :], 0)

    return compare("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
