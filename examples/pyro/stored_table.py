# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A posterior from simulations that somebody else has made
========================================================

A pendulum with friction is simulated and the runs are written to a netCDF file, chunk by chunk,
so that a killed run goes on where it was. Then, as in another office, the file is read, a part of
its rows is held out, and ``amortize`` trains on the others. The program is needed for its prior
alone: the simulator is not run again, not for the check either.

    python examples/pyro/stored_table.py --output stored-table
    python examples/pyro/stored_table.py --table stored-table/table.nc --output again
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from studies.stored_study import NUM_TIMES, PRIOR, parse_args, pendulum, run

from pyro_spread import Simulations, Simulator, amortize, simulate


def model(x=None):
    rates = [pyro.sample(name, dist.Uniform(*bounds)) for name, bounds in PRIOR.items()]
    pyro.sample("x", Simulator(pendulum, *rates, event_shape=(NUM_TIMES,)), obs=x)


def write(path, num_simulations, seed):
    simulate(model, num_simulations, observed="x", path=path, seed=seed, progress_bar=False)


def train(path, num_held_out, seed):
    table = Simulations.from_arviz(path)
    used, held_out = table.split(num_held_out / len(table), seed=seed)
    posterior = amortize(model, observed="x", simulations=used, seed=seed, progress_bar=False)
    return posterior, held_out


def main(args):
    torch.set_num_threads(args.num_threads)
    torch.set_default_device("cuda" if args.cuda else "cpu")
    return run("pyro", args, write, train, torch.as_tensor)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
