# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
One generator, many losses
==========================

A generator is a model without a likelihood: x = g(z), a point mass. Here one and the same model is
trained by unmodified SVI under adversarial divergences (JS_pi and KL), with a Wasserstein critic,
and by distances that need no critic; only ``loss=`` differs. On MNIST the adversarial divergences
lose classes, noise or not, unless R1 penalises the critic's gradient.

    python examples/numpyro/gan.py --output gan
    python examples/numpyro/gan.py --dataset mnist --data-dir DIR --losses js js-no-r1 energy
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
from studies.gan_study import (
    Fit,
    as_images,
    as_signed,
    bandwidths,
    batches,
    compare,
    parse_args,
)
from tqdm import tqdm

from numpyro_spread import (
    KL,
    MMD,
    R1,
    AdversarialDivergence,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    HingeCritic,
    JSPi,
    RelativisticCritic,
    ReverseKL,
    SlicedWasserstein,
    WassersteinCritic,
    adaptive,
    concat_sites,
    two_player,
)


def adversarial(args, critic, divergence, generator="divergence", regularised=True, noise=None):
    return AdversarialDivergence(
        critic,
        divergence,
        noise={"x": noise or GaussianNoise(args.noise_scale)},
        generator=generator,
        regularizer=R1(args.gamma, every=4) if regularised else None,
    )


# Every loss that the model is trained by: this is all that differs.
LOSSES = {
    "js": lambda args, critic, _: adversarial(args, critic, JSPi(0.5)),
    "js-ns": lambda args, critic, _: adversarial(args, critic, JSPi(0.5), "non_saturating"),
    "js-no-r1": lambda args, critic, _: adversarial(args, critic, JSPi(0.5), regularised=False),
    "js-ns-no-r1": lambda args, critic, _: adversarial(
        args, critic, JSPi(0.5), "non_saturating", regularised=False
    ),
    # The scale that nobody picks: it keeps the critic right about three times in four.
    "js-adaptive": lambda args, critic, _: adversarial(
        args, critic, JSPi(0.5), noise=adaptive(GaussianNoise(1.0))
    ),
    "js-0.1": lambda args, critic, _: adversarial(args, critic, JSPi(0.1)),
    "js-0.9": lambda args, critic, _: adversarial(args, critic, JSPi(0.9)),
    "kl": lambda args, critic, _: adversarial(args, critic, KL()),
    "reverse-kl": lambda args, critic, _: adversarial(args, critic, ReverseKL()),
    "wasserstein": lambda args, critic, _: WassersteinCritic(critic),
    "hinge": lambda args, critic, _: HingeCritic(critic, regularizer=R1(args.gamma, every=4)),
    "relativistic": lambda args, critic, _: RelativisticCritic(critic, args.gamma),
    "mmd": lambda args, _, dataset: MMD(GaussianKernel(bandwidths(dataset))),
    "energy": lambda args, *_: EnergyDistance(),
    "sliced": lambda args, *_: SlicedWasserstein(),
}
WITHOUT_CRITIC = ("mmd", "energy", "sliced")


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
    prepared = {}

    def prepare(name, dataset):
        """The model, its SVI and many steps of it, compiled once for all seeds."""
        generator = nn.Sequential([MLP(args.hidden_dim, dataset.image_size, nn.relu), nn.tanh])
        critic = concat_sites(MLP(args.hidden_dim, 1, leaky_relu), "x")

        def model(x, num_images=0):
            net = flax_module("generator", generator, input_shape=(args.latent_dim,))
            prior = dist.Normal(jnp.zeros(args.latent_dim), 1.0).to_event(1)
            with numpyro.plate("data", num_images if x is None else len(x)):
                z = numpyro.sample("z", prior)
                numpyro.sample("x", dist.Delta(net(z), event_dim=1), obs=x)

        def guide(x, num_images=0):
            pass  # nothing to infer: z is the generator's noise

        loss = LOSSES[name](args, critic, dataset)
        optim = optax.adam(args.learning_rate, b1=0.5)
        if name not in WITHOUT_CRITIC:
            optim = two_player(optim, optim)
        svi = SVI(model, loss.register(model, guide), optim, loss)

        @jax.jit
        def steps(state, train, chunk):
            return lax.scan(lambda s, batch: svi.update(s, train[batch]), state, chunk)

        return model, svi, steps

    def fit(name, seed, dataset, num_samples):
        if name not in prepared:
            prepared[name] = prepare(name, dataset)
        model, svi, steps = prepared[name]
        train = jnp.asarray(as_signed(dataset.train_images))
        init_key, draw_key = random.split(random.key(seed))

        start = time.perf_counter()
        state = svi.init(init_key, train[: args.batch_size])
        with tqdm(total=args.num_steps, desc=f"{name}, seed {seed}", mininterval=1) as progress:
            for chunk in batches(len(train), args.batch_size, args.num_steps, seed):
                state, values = steps(state, train, chunk)
                progress.set_postfix(loss=f"{values[-1]:.3f}", refresh=False)
                progress.update(len(chunk))
        seconds = time.perf_counter() - start

        params = svi.get_params(state)
        draws = Predictive(model, params=params, num_samples=1)(draw_key, None, num_samples)
        return Fit(as_images(np.asarray(draws["x"][0])), seconds)

    compare("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
