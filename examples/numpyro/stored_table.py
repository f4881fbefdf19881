# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A posterior from simulations that somebody else has made
========================================================

A pendulum with friction is simulated and the runs are written to a netCDF file, chunk by chunk,
so that a killed run goes on where it was. Then, as in another office, the file is read, a part of
its rows is held out, and ``amortize`` trains on the others. The program is needed for its prior
alone: the simulator is not run again, not for the check either.

    python examples/numpyro/stored_table.py --output stored-table
    python examples/numpyro/stored_table.py --table stored-table/table.nc --output again
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from studies.stored_study import NUM_TIMES, PRIOR, parse_args, pendulum, run

from numpyro_spread import Simulations, Simulator, amortize, simulate


def model(x=None):
    rates = [numpyro.sample(name, dist.Uniform(*bounds)) for name, bounds in PRIOR.items()]
    numpyro.sample("x", Simulator(pendulum, *rates, event_shape=(NUM_TIMES,)), obs=x)


def write(path, num_simulations, seed):
    simulate(model, num_simulations, observed="x", path=path, seed=seed, progress_bar=False)


def train(path, num_held_out, seed):
    table = Simulations.from_arviz(path)
    used, held_out = table.split(num_held_out / len(table), seed=seed)
    posterior = amortize(model, observed="x", simulations=used, seed=seed, progress_bar=False)
    return posterior, held_out


def main(args):
    numpyro.set_platform(args.device)
    return run("numpyro", args, write, train, jnp.asarray)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
