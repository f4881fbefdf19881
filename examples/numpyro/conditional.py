# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A generator conditional on the class
====================================

The model takes the class as an argument, one-hot: x = g(z, label). It has no likelihood. The critic
sees the image and that same argument, ``concat_sites(net, "x", "label")``, so that an image of
another class than the one asked for gives the generator away.

    python examples/numpyro/conditional.py --output conditional
    python examples/numpyro/conditional.py --dataset mnist --data-dir DIR --num-seeds 1
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen as nn
from jax import lax, random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Predictive
from studies.conditional_study import compare_conditional
from studies.gan_study import Fit, as_images, as_signed, batches, parse_args
from tqdm import tqdm

from numpyro_spread import R1, AdversarialDivergence, GaussianNoise, JSPi, concat_sites, two_player


class MLP(nn.Module):
    num_hidden: int
    num_outputs: int
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # PyTorch's default, so that both backends start alike.
        dense = functools.partial(
            nn.Dense, kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        )
        for _ in range(2):
            x = self.activation(dense(self.num_hidden)(x))
        return dense(self.num_outputs)(x)


def leaky_relu(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, 0.2)


def main(args):
    numpyro.set_platform(args.device)
    prepared = []

    def prepare(image_size, num_classes):
        """The model, its SVI and many steps of it, compiled once for all seeds."""
        generator = nn.Sequential([MLP(args.hidden_dim, image_size, nn.relu), nn.tanh])
        num_inputs = args.latent_dim + num_classes

        def model(x, label):
            net = flax_module("generator", generator, input_shape=(num_inputs,))
            prior = dist.Normal(jnp.zeros(args.latent_dim), 1.0).to_event(1)
            with numpyro.plate("data", len(label)):
                z = numpyro.sample("z", prior)
                image = net(jnp.concatenate([z, label], -1))
                numpyro.sample("x", dist.Delta(image, event_dim=1), obs=x)

        def guide(x, label):
            pass  # nothing to infer: z is the generator's noise

        loss = AdversarialDivergence(
            concat_sites(MLP(args.hidden_dim, 1, leaky_relu), "x", "label"),
            JSPi(0.5),
            noise={"x": GaussianNoise(args.noise_scale)},
            regularizer=R1(args.gamma, every=4),
        )
        adam = optax.adam(args.learning_rate, b1=0.5)
        svi = SVI(model, loss.register(model, guide), two_player(adam, adam), loss)

        @jax.jit
        def steps(state, images, labels, chunk):
            def step(state, batch):
                return svi.update(state, images[batch], labels[batch])

            return lax.scan(step, state, chunk)

        return model, svi, steps

    def fit(seed, dataset, asked):
        one_hot = jnp.eye(int(asked.max()) + 1)
        if not prepared:
            prepared.append(prepare(dataset.image_size, len(one_hot)))
        model, svi, steps = prepared[0]
        train = jnp.asarray(as_signed(dataset.train_images))
        train_labels = one_hot[dataset.train_labels]
        init_key, draw_key = random.split(random.key(seed))

        start = time.perf_counter()
        state = svi.init(init_key, train[: args.batch_size], train_labels[: args.batch_size])
        with tqdm(total=args.num_steps, desc=f"numpyro, seed {seed}", mininterval=1) as progress:
            for chunk in batches(len(train), args.batch_size, args.num_steps, seed):
                state, values = steps(state, train, train_labels, chunk)
                progress.set_postfix(loss=f"{values[-1]:.3f}", refresh=False)
                progress.update(len(chunk))
        seconds = time.perf_counter() - start

        params = svi.get_params(state)
        draws = Predictive(model, params=params, num_samples=1)(draw_key, None, one_hot[asked])
        return Fit(as_images(np.asarray(draws["x"][0])), seconds)

    compare_conditional("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0], program="conditional"))
