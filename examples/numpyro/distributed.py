# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
One model, trained on several devices and by several processes
==============================================================

The batch is shared out over all devices by a ``NamedSharding``, params are on every one of them,
and ``jax.jit(svi.update)`` does the rest: the program means the whole batch, and XLA puts in what
the devices have to tell each other. So every loss is exact, also those that compare all samples
with all, and one random key gives every datum noise of its own.

    python examples/numpyro/distributed.py
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/numpyro/distributed.py

Several processes, each with devices of its own, find each other by ``jax.distributed``; on a
cluster that JAX knows it needs no options. By hand, one of these on each machine:

    python examples/numpyro/distributed.py --coordinator HOST:1234 --num-processes 2 --process-id 0
    python examples/numpyro/distributed.py --coordinator HOST:1234 --num-processes 2 --process-id 1
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen as nn
from jax import random
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI
from studies.distributed_study import digits, parse_args, write_summary

from numpyro_spread import (
    MMD,
    AdversarialDivergence,
    GaussianKernel,
    GaussianNoise,
    SpreadELBO,
    concat_sites,
    two_player,
)


class Net(nn.Module):
    num_hidden: int
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_outputs)(nn.relu(nn.Dense(self.num_hidden)(x)))


def build(args, num_data, num_pixels):
    """An SVI like any other."""
    decoder = nn.Sequential([Net(args.hidden_dim, num_pixels), nn.sigmoid])
    encoder = Net(args.hidden_dim, 2 * args.latent_dim)

    def model(x):
        net = flax_module("decoder", decoder, input_shape=(args.latent_dim,))
        prior = dist.Normal(jnp.zeros(args.latent_dim), 1.0).to_event(1)
        with numpyro.plate("data", num_data, subsample_size=len(x)):
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Delta(net(z), event_dim=1), obs=x)

    def guide(x):
        net = flax_module("encoder", encoder, input_shape=(num_pixels,))
        loc, log_scale = jnp.split(net(x), 2, -1)
        with numpyro.plate("data", num_data, subsample_size=len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    def no_guide(x):
        pass  # nothing to infer: z is the generator's noise

    noise, optim = {"x": GaussianNoise(args.noise_scale)}, optax.adam(args.learning_rate)
    if args.loss == "spread":
        return SVI(model, guide, optim, SpreadELBO(noise))
    if args.loss == "mmd":
        return SVI(model, no_guide, optim, MMD(GaussianKernel([0.5, 1.0, 2.0]), noise))
    loss = AdversarialDivergence(concat_sites(Net(args.hidden_dim, 1), "x"), noise=noise)
    generator = optax.adam(args.learning_rate, b1=0.5)
    optim = two_player(generator, optax.adam(2 * args.learning_rate))
    return SVI(model, loss.register(model, no_guide), optim, loss)


def main(args):
    if args.coordinator is not None:
        if not args.cuda:  # what the processes talk by, where there is no NCCL
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    train, test = digits()
    svi = build(args, len(train), train.shape[1])

    mesh = Mesh(np.array(jax.devices()), ("data",))
    by_datum = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    init = jax.jit(svi.init, out_shardings=everywhere)
    update = jax.jit(svi.update, out_shardings=everywhere, donate_argnums=0)

    # Every process knows the order of all data, and puts only its own rows on its devices.
    order = np.random.default_rng(args.seed)

    def next_batch():
        rows = order.choice(len(train), args.batch_size, replace=False)
        shape = (args.batch_size, train.shape[1])
        return jax.make_array_from_callback(shape, by_datum, lambda index: train[rows][index])

    state = init(random.key(args.seed), next_batch())
    for step in range(1, args.num_steps + 1):
        state, loss = update(state, next_batch())
        if step % max(1, args.num_steps // 8) == 0 and jax.process_index() == 0:
            print(f"step {step}: {float(loss):.4f}", flush=True)

    # The noise of one datum on each device, and whether all processes ended with the same params.
    zeros = jax.make_array_from_callback(
        (len(mesh.devices),), by_datum, lambda index: np.zeros(len(mesh.devices), np.float32)[index]
    )
    drawn = jax.jit(lambda key, x: GaussianNoise(1.0)(x).sample(key), out_shardings=everywhere)
    noise = np.asarray(drawn(random.key(args.seed + 1), zeros))
    params = jax.tree.map(np.asarray, svi.get_params(state))
    sums = np.array([np.abs(leaf).sum() for leaf in jax.tree.leaves(params)])
    sums = multihost_utils.process_allgather(sums).reshape(jax.process_count(), -1)
    key = random.key(args.seed + 2)
    held_out = svi.loss.loss(key, params, svi.model, svi.guide, jnp.asarray(test))
    if jax.process_index() == 0:
        write_summary(
            args,
            num_devices=jax.device_count(),
            num_processes=jax.process_count(),
            held_out_loss=float(held_out),
            params_differ_by=float(np.ptp(sums, axis=0).max()),
            noise_on_each_device=noise.tolist(),
        )


if __name__ == "__main__":
    main(parse_args(__doc__.strip().split("\n")[0], processes=True))
