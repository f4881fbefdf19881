# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Every loss trained on one batch, which one device holds or many do.

Writes what the params became, and the noise that a batch gets.

    python numpyro_distributed.py OUTPUT
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python numpyro_distributed.py OUTPUT
    python numpyro_distributed.py OUTPUT COORDINATOR NUM_PROCESSES PROCESS_ID
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

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
from jax.tree_util import Partial
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, RenyiELBO, TraceMeanField_ELBO

from numpyro_spread import (
    KL,
    MMD,
    R1,
    R2,
    AdversarialDivergence,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    HingeCritic,
    ImplicitDistribution,
    JointContrastELBO,
    JSPi,
    LaplaceKernel,
    LeastSquaresCritic,
    MultiLevelNoise,
    PriorContrastELBO,
    RelativisticCritic,
    SemiImplicitELBO,
    SlicedWasserstein,
    SpreadELBO,
    WassersteinCritic,
    adaptive,
    annealed,
    concat_sites,
    learned,
)

NUM_DATA, BATCH, X_DIM, Z_DIM, HIDDEN, STEPS = 64, 16, 3, 2, 4, 3
NOISE = {"x": GaussianNoise(0.3)}
LEVELS = {"x": MultiLevelNoise(GaussianNoise(0.3), [0.5, 2.0])}
# A sum, means and all pairs, where every program is compiled by two processes at once.
FEW = ("spread", "adversarial_masked", "sliced_masked")


class Net(nn.Module):
    num_outputs: int
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(HIDDEN)(x))
        if self.batch_norm:
            x = (x - x.mean(0)) / (x.std(0) + 0.1)
        return nn.Dense(self.num_outputs)(x)


def counted(mask):
    return nullcontext() if mask is None else numpyro.handlers.mask(mask=mask)


def model(x, mask=None, scale=None):
    decoder = flax_module("decoder", Net(X_DIM), input_shape=(Z_DIM,))
    with numpyro.plate("data", NUM_DATA, len(x)), counted(mask):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(Z_DIM), 1.0).to_event(1))
        mean = decoder(z)
        fn = dist.Delta(mean, event_dim=1) if scale is None else None
        numpyro.sample("x", fn or dist.Normal(mean, scale).to_event(1), obs=x)


def smooth(x, mask=None):
    return model(x, mask, 0.5)


def guide(x, mask=None):
    net = flax_module("encoder", Net(2 * Z_DIM), input_shape=(X_DIM,))
    loc, log_scale = jnp.split(net(x), 2, -1)
    with numpyro.plate("data", NUM_DATA, len(x)), counted(mask):
        numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


def asking(x, mask=None, x_level=None):
    """A guide that is told the level of the noise."""
    level = jnp.ones(len(x)) if x_level is None else x_level  # nobody tells it in ``init``
    return guide(x / (1 + level[:, None]), mask)


def learned_noise():
    scale, net = jnp.array([0.3, 0.4, 0.5]), [nn.Dense(HIDDEN), jnp.tanh, nn.Dense(X_DIM)]
    return {"x": learned(GaussianNoise(scale), "trace", mean=nn.Sequential(net))}


def implicit(x, mask=None):
    net = flax_module("encoder", Net(Z_DIM), input_shape=(2 * X_DIM,))

    def fn(x, eps):
        return net(jnp.concatenate([eps, jnp.broadcast_to(x, eps.shape)], -1))

    base = dist.Normal(jnp.zeros(X_DIM), 1.0).to_event(1)
    with numpyro.plate("data", NUM_DATA, len(x)), counted(mask):
        numpyro.sample("z", ImplicitDistribution(Partial(fn, x), base, (Z_DIM,)))


def critic(*names, batch_norm=False):
    return concat_sites(Net(1, batch_norm), *names)


def prior(**options):
    return PriorContrastELBO(critic("x", "z"), num_moment_draws=16, num_critic_draws=4, **options)


def joint(divergence=None, **options):
    return JointContrastELBO(critic("x", "z"), divergence, NOISE, **options)


# Name, model, guide, loss, whether data are masked.
CASES = {
    "spread": (model, guide, lambda: SpreadELBO(NOISE), False),
    "spread_mean_field": (
        smooth,
        guide,
        lambda: SpreadELBO(NOISE, TraceMeanField_ELBO(num_particles=2)),
        True,
    ),
    "spread_renyi": (
        smooth,
        guide,
        lambda: SpreadELBO(NOISE, RenyiELBO(0.5, num_particles=2)),
        False,
    ),
    "adversarial": (model, None, lambda: AdversarialDivergence(critic("x"), noise=NOISE), False),
    "adversarial_masked": (
        model,
        None,
        lambda: AdversarialDivergence(
            critic("x"), JSPi(0.3), NOISE, regularizer=R1(1.0, every=2), num_particles=2
        ),
        True,
    ),
    "adversarial_coupled": (
        model,
        None,
        lambda: AdversarialDivergence(critic("x", batch_norm=True), KL(), NOISE),
        False,
    ),
    "spread_levels_told": (model, asking, lambda: SpreadELBO(LEVELS), True),
    "spread_learned": (model, guide, lambda: SpreadELBO(learned_noise()), False),
    "adversarial_levels_told": (
        model,
        None,
        lambda: AdversarialDivergence(critic("x", "x_level"), noise=LEVELS),
        True,
    ),
    "adversarial_learned": (
        model,
        None,
        lambda: AdversarialDivergence(critic("x"), noise=learned_noise()),
        True,
    ),
    "adversarial_annealed": (
        model,
        None,
        lambda: AdversarialDivergence(
            critic("x"), noise=annealed(NOISE, lambda step: 0.5**step), regularizer=R1() + R2(0.3)
        ),
        True,
    ),
    "adversarial_adaptive": (
        model,
        None,
        lambda: AdversarialDivergence(critic("x"), noise=adaptive(NOISE, speed=0.3)),
        True,
    ),
    "wasserstein": (model, None, lambda: WassersteinCritic(critic("x"), noise=NOISE), True),
    "hinge": (model, None, lambda: HingeCritic(critic("x")), False),
    "least_squares": (model, None, lambda: LeastSquaresCritic(critic("x")), True),
    "relativistic": (model, None, lambda: RelativisticCritic(critic("x"), noise=NOISE), True),
    "unrolled": (
        model,
        None,
        lambda: AdversarialDivergence(critic("x"), noise=NOISE, unroll=2),
        True,
    ),
    "prior_plain": (smooth, implicit, lambda: prior(adaptive=False), False),
    "prior_adaptive": (smooth, implicit, lambda: prior(noise=NOISE), True),
    "joint": (smooth, implicit, joint, False),
    "joint_ali": (model, implicit, lambda: joint(JSPi(0.5)), True),
    "joint_npe": (smooth, guide, lambda: JointContrastELBO(divergence=KL()), True),
    "semi_implicit": (
        smooth,
        implicit,
        lambda: SemiImplicitELBO({"z": GaussianNoise(0.2)}, num_mixture=4),
        False,
    ),
    "mmd": (model, None, lambda: MMD(GaussianKernel([0.5, 1.0]), NOISE), False),
    "mmd_masked": (model, None, lambda: MMD(LaplaceKernel(1.0), NOISE, block_size=4), True),
    "energy": (model, None, lambda: EnergyDistance(noise=NOISE), False),
    "sliced": (model, None, lambda: SlicedWasserstein(10, NOISE), False),
    "sliced_masked": (model, None, lambda: SlicedWasserstein(10, p=1.0), True),
}


def nothing(x, mask=None):
    pass


def named(svi, state):
    """Params by name."""
    params = jax.tree_util.tree_leaves_with_path(svi.optim.get_params(state.optim_state))
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in params}


def train(mesh, model, guide, make_loss, masked):
    """Params and losses of a run whose batches are shared out over the devices."""
    loss = make_loss()
    guide = loss.register(model, guide or nothing) if hasattr(loss, "register") else guide
    svi = SVI(model, guide, optax.adam(1e-2), loss)
    rng = np.random.default_rng(9)
    by_datum = NamedSharding(mesh, PartitionSpec("data"))

    def shared_out(whole):
        return jax.make_array_from_callback(whole.shape, by_datum, lambda index: whole[index])

    data = [rng.normal(size=(BATCH, X_DIM)) for _ in range(STEPS)]
    # More of the first devices' data are masked than of the others'.
    masks = [rng.uniform(size=BATCH) > np.linspace(0.8, 0.0, BATCH) for _ in range(STEPS)]
    everywhere = NamedSharding(mesh, PartitionSpec())
    init = jax.jit(svi.init, out_shardings=everywhere)
    update = jax.jit(svi.update, out_shardings=everywhere)
    options = {"mask": shared_out(masks[0])} if masked else {}
    state = init(random.key(3), shared_out(data[0]), **options)
    start = {f"start.{name}": value for name, value in named(svi, state).items()}
    losses = []
    for x, mask in zip(data, masks, strict=True):
        options = {"mask": shared_out(mask)} if masked else {}
        state, value = update(state, shared_out(x), **options)
        losses.append(float(value))
    return start | named(svi, state), losses


def noise(mesh):
    """The noise that data get, wherever they are."""
    zeros = jax.make_array_from_callback(
        (BATCH, X_DIM),
        NamedSharding(mesh, PartitionSpec("data")),
        lambda index: np.zeros((BATCH, X_DIM))[index],
    )
    draw = jax.jit(lambda key, x: GaussianNoise(1.0)(x, 1).sample(key))
    drawn = draw(random.key(0), zeros)
    shards = len({str(shard.index) for shard in zeros.global_shards})
    if jax.process_count() > 1:
        drawn = multihost_utils.process_allgather(drawn, tiled=True)
    return np.asarray(drawn), shards


def main():
    output, names = Path(sys.argv[1]), tuple(CASES)
    if len(sys.argv) > 2:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        address, num_processes, process_id = sys.argv[2:]
        jax.distributed.initialize(address, int(num_processes), int(process_id))
        names = FEW
    jax.config.update("jax_enable_x64", True)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    losses = {}
    for name in names:
        params, losses[name] = train(mesh, *CASES[name])
        if jax.process_index() == 0:
            np.savez(output / f"{name}.npz", **params)
    drawn, shards = noise(mesh)
    np.save(output / f"noise{jax.process_index()}.npy", drawn)
    report = {"losses": losses, "devices": jax.device_count(), "shards": shards}
    (output / f"process{jax.process_index()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
