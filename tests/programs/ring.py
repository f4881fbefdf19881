# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Modes kept on a ring of eight Gaussians, with a critic thirty times slower than the generator.

The data are those of Metz et al. 2017 (radius 2, standard deviation 0.02), the nets smaller.

    python tests/programs/ring.py numpyro 0 5 RelativisticCritic
    python tests/programs/ring.py pyro 5 --seed 0
"""

import argparse
from typing import NamedTuple

import numpy as np

SEEDS, STEPS, BATCH, Z_DIM, HIDDEN = range(5), 6000, 64, 16, 64
RATES = 3e-3, 1e-4
RADIUS, SD = 2.0, 0.02
ANGLES = 2 * np.pi * np.arange(8) / 8
CENTRES = RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)


class Found(NamedTuple):
    """
    What 2,500 samples of a generator show.

    :param modes: how many of the eight have a sample within three standard deviations.
    :param near: share of samples within a tenth of the radius of a mode.
    """

    modes: int
    near: float


def look(samples):
    """How many modes samples of shape (n, 2) have."""
    distance = np.linalg.norm(samples[:, None] - CENTRES, axis=-1)
    good = distance.min(1) < 3 * SD
    return Found(len(set(distance.argmin(1)[good])), float((distance.min(1) < 0.1 * RADIUS).mean()))


def in_numpyro(unroll, steps=STEPS, seeds=SEEDS, make=None):
    """One :class:`Found` per seed; all seeds are trained at once."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    import optax
    from flax import linen
    from numpyro.contrib.module import flax_module
    from numpyro.infer import SVI

    import numpyro_spread as ns

    class Net(linen.Module):
        outputs: int

        @linen.compact
        def __call__(self, x):
            for _ in range(2):
                x = jnp.tanh(linen.Dense(HIDDEN)(x))
            return linen.Dense(self.outputs)(x)

    def model(x):
        generator = flax_module("generator", Net(2), input_shape=(Z_DIM,))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(Z_DIM), 1.0).to_event(1))
            numpyro.sample("x", dist.Delta(generator(z), event_dim=1), obs=x)

    def no_guide(x):
        pass

    def draw(key):
        mode_key, noise_key = jax.random.split(key)
        centres = jnp.asarray(CENTRES)[jax.random.randint(mode_key, (BATCH,), 0, 8)]
        return centres + SD * jax.random.normal(noise_key, (BATCH, 2))

    critic = ns.concat_sites(Net(1), "x")
    loss = make(ns, critic) if make else ns.AdversarialDivergence(critic, unroll=unroll)
    generator, discriminator = (optax.adam(rate, b1=0.5) for rate in RATES)
    optim = ns.two_player(generator, discriminator)
    svi = SVI(model, loss.register(model, no_guide), optim, loss)

    def train(seed):
        keys = jax.random.split(jax.random.key(1000 + seed), steps)
        state = svi.init(jax.random.key(seed), draw(keys[0]))
        state, _ = jax.lax.scan(lambda state, key: svi.update(state, draw(key)), state, keys)
        z = jax.random.normal(jax.random.key(5), (2500, Z_DIM))
        return Net(2).apply({"params": svi.get_params(state)["generator$params"]}, z)

    return [look(samples) for samples in np.asarray(jax.jit(jax.vmap(train))(np.array(seeds)))]


def in_pyro(unroll, steps=STEPS, seeds=SEEDS, make=None):
    """The same, one seed after the other."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI
    from torch import nn

    import pyro_spread as ps

    def net(inputs, outputs):
        hidden = nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh()
        return nn.Sequential(*hidden, nn.Linear(HIDDEN, outputs))

    def train(seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        generator, critic = net(Z_DIM, 2), ps.concat_sites(net(2, 1), "x")
        centres = torch.tensor(CENTRES).float()

        def model(x):
            pyro.module("generator", generator)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(Z_DIM), 1.0).to_event(1))
                pyro.sample("x", dist.Delta(generator(z), event_dim=1), obs=x)

        def no_guide(x):
            pass

        loss = make(ps, critic) if make else ps.AdversarialDivergence(critic, unroll=unroll)
        adams = [pyro.optim.Adam({"lr": rate, "betas": (0.5, 0.999)}) for rate in RATES]
        svi = SVI(model, loss.register(model, no_guide), ps.two_player(*adams), loss)
        for _ in range(steps):
            svi.step(centres[torch.randint(8, (BATCH,))] + SD * torch.randn(BATCH, 2))
        with torch.no_grad():
            return generator(torch.randn(2500, Z_DIM)).numpy()

    return [look(train(seed)) for seed in seeds]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=["pyro", "numpyro"])
    parser.add_argument("losses", nargs="+", help="k of unroll, or the name of a loss")
    parser.add_argument("--seed", type=int, nargs="*", default=list(SEEDS))
    options = parser.parse_args()
    run = in_pyro if options.backend == "pyro" else in_numpyro
    for name in options.losses:
        unroll, make = (int(name), None) if name.isdigit() else (0, _by_name(name))
        print(options.backend, name, run(unroll, STEPS, options.seed, make), flush=True)


def _by_name(name):
    return lambda package, critic: getattr(package, name)(critic)


if __name__ == "__main__":
    main()
