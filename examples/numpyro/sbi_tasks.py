# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Amortised posteriors of ten simulators
======================================

The tasks of the benchmark of simulation-based inference, each an ordinary program: a prior, and a
simulator in NumPy. ``amortize`` makes a posterior for every x of it, with the same defaults for
all; it is judged by C2ST against exact posteriors or the benchmark's reference draws.

    python examples/numpyro/sbi_tasks.py --tasks two_moons gaussian_mixture
    python examples/numpyro/sbi_tasks.py --tasks sir lotka_volterra --data-dir DIR
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from studies.sbi_tasks_study import parse_args, run

from numpyro_spread import Simulations, Simulator, amortize


def prior_distribution(prior):
    parameters = {name: jnp.asarray(value) for name, value in prior.parameters.items()}
    distribution = getattr(dist, prior.distribution)(**parameters)
    return distribution.to_event(len(prior.shape) - distribution.event_dim)


def program(task):
    """The task as a model: a site for each parameter, or one for all, and x."""
    event_dims = [len(prior.shape) for prior in task.priors.values()]

    def model(x=None):
        values = [
            numpyro.sample(name, prior_distribution(prior)) for name, prior in task.priors.items()
        ]
        simulator = Simulator(
            task.run, *values, event_shape=(task.num_data,), arg_event_dims=event_dims
        )
        numpyro.sample("x", simulator, obs=x)

    return model


def fit(task, theta, x, seed):
    # Prior and simulator have run already; amortize(model, num_simulations=...) would run them.
    table = Simulations.from_dict(theta, {"x": x})
    posterior = amortize(program(task), observed="x", simulations=table, seed=seed)
    return lambda x, num: posterior.sample(x, num_samples=num)


def main(args):
    numpyro.set_platform(args.device)
    return run(args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
