# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Watching a run: progress bar, TensorBoard, report
=================================================

A small GAN on the digits. Every hundred steps ``diagnose`` looks at held-out images: the progress
bar shows the divergence estimate and the critic's accuracy, TensorBoard gets all its numbers,
samples and histograms of the log-ratio, and at the end ``report`` writes one HTML page. The steps
between two looks are compiled into one scan.

    python examples/numpyro/tensorboard_logging.py --output watched
    tensorboard --logdir watched
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

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
from studies.tensorboard_study import parse_args
from tensorboardX import SummaryWriter
from tqdm import tqdm

from numpyro_spread import (
    R1,
    AdversarialDivergence,
    GaussianNoise,
    History,
    JSPi,
    concat_sites,
    diagnose,
    report,
    two_player,
)
from numpyro_spread.ratio import log_ratio
from spread_analysis import load_dataset


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


class TensorBoardCallback:
    """A callback that writes numbers, samples and log-ratios to TensorBoard."""

    def __init__(self, folder):
        self.writer = SummaryWriter(str(folder))

    def __call__(self, step, numbers, logits, images, pi):
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        for side in ("data", "model"):
            values = np.asarray(log_ratio(getattr(logits, side), pi))
            self.writer.add_histogram(f"log_ratio/{side}", values, step)
        self.writer.add_images("samples", images, step)  # of shape (N, 1, height, width)


def main(args):
    numpyro.set_platform(args.device)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    dataset = load_dataset("digits")
    train, test = (
        jnp.asarray(images.reshape(-1, dataset.image_size))
        for images in (dataset.train_images, dataset.test_images)
    )
    generator = nn.Sequential([MLP(args.hidden_dim, dataset.image_size, nn.relu), nn.sigmoid])
    leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.2)
    critic = concat_sites(MLP(args.hidden_dim, 1, leaky_relu), "x")

    def model(x, num_images=0):
        net = flax_module("generator", generator, input_shape=(args.latent_dim,))
        prior = dist.Normal(jnp.zeros(args.latent_dim), 1.0).to_event(1)
        with numpyro.plate("data", num_images if x is None else len(x)):
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Delta(net(z), event_dim=1), obs=x)

    def guide(x, num_images=0):
        pass  # nothing to infer: z is the generator's noise

    divergence = JSPi(0.5)
    noise = {"x": GaussianNoise(args.noise_scale)}
    loss = AdversarialDivergence(critic, divergence, noise, regularizer=R1(args.gamma, every=4))
    adam = optax.adam(args.learning_rate, b1=0.5)
    svi = SVI(model, loss.register(model, guide), two_player(adam, adam), loss)

    @functools.partial(jax.jit, static_argnums=2)
    def steps(state, key, number):
        def update(state, key):
            batch = train[random.randint(key, (args.batch_size,), 0, len(train))]
            return svi.update(state, batch)

        return lax.scan(update, state, random.split(key, number))

    init_key, batch_key = random.split(random.key(args.seed))
    state = svi.init(init_key, train[: args.batch_size])
    callback, history, losses = TensorBoardCallback(output), History(), []
    with tqdm(total=args.num_steps, mininterval=1) as progress:
        for start in range(0, args.num_steps, args.every):
            number = min(args.every, args.num_steps - start)
            state, values = steps(state, random.fold_in(batch_key, start), number)
            losses.extend(np.asarray(values))
            step = start + number
            history.add(step, diagnose(svi, state, test))
            progress.set_postfix(history.postfix(), refresh=False)
            progress.update(number)
            params, key = svi.get_params(state), random.fold_in(state.rng_key, 1)
            images = Predictive(model, params=params, num_samples=1)(key, None, 64)["x"]
            logits = loss.logits(key, params, model, svi.guide, test)
            images = np.asarray(images).reshape(64, 1, 8, 8)
            callback(step, history.last, logits, images, divergence.pi)
    callback.writer.close()

    page = report(
        output / "report.html",
        svi,
        state,
        test,
        losses=losses,
        history=history,
        image_shape=dataset.image_shape,
        title="A small GAN on the digits",
        settings=vars(args),
    )
    print(f"wrote {page.path}; {history.postfix()}")


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
