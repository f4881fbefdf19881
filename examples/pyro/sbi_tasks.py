# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Amortised posteriors of ten simulators
======================================

The tasks of the benchmark of simulation-based inference, each an ordinary program: a prior, and a
simulator in NumPy. ``amortize`` makes a posterior for every x of it, with the same defaults for
all; it is judged by C2ST against exact posteriors or the benchmark's reference draws.

    python examples/pyro/sbi_tasks.py --tasks two_moons gaussian_mixture
    python examples/pyro/sbi_tasks.py --tasks sir lotka_volterra --data-dir DIR
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from studies.sbi_tasks_study import parse_args, run

from pyro_spread import Simulations, Simulator, amortize


def prior_distribution(prior):
    parameters = {
        name: torch.as_tensor(value, dtype=torch.get_default_dtype())
        for name, value in prior.parameters.items()
    }
    distribution = getattr(dist, prior.distribution)(**parameters)
    return distribution.to_event(len(prior.shape) - distribution.event_dim)


def program(task):
    """The task as a model: a site for each parameter, or one for all, and x."""
    event_dims = [len(prior.shape) for prior in task.priors.values()]

    def model(x=None):
        values = [
            pyro.sample(name, prior_distribution(prior)) for name, prior in task.priors.items()
        ]
        simulator = Simulator(
            task.run, *values, event_shape=(task.num_data,), arg_event_dims=event_dims
        )
        pyro.sample("x", simulator, obs=x)

    return model


def fit(task, theta, x, seed):
    # Prior and simulator have run already; amortize(model, num_simulations=...) would run them.
    table = Simulations.from_dict(theta, {"x": x})
    posterior = amortize(program(task), observed="x", simulations=table, seed=seed)

    def draw(x, num):
        values = posterior.sample(torch.from_numpy(x), num_samples=num)
        return {name: value.cpu().numpy() for name, value in values.items()}

    return draw


def main(args):
    torch.set_num_threads(args.num_threads)
    if args.cuda:
        torch.set_default_device("cuda")
    return run(args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
