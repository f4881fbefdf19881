# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
One posterior for groups of any number and size
===============================================

A program with plates: a mean, groups round it, measurements round their group. How many groups
there are, and how many measurements each has, are drawn in the program and given as data; what is
beyond them is masked. ``amortize`` trains once; the mean and the groups of each data set are
compared with the closed form.

    python examples/numpyro/amortized_plates.py --output amortized-plates
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import mask
from studies.plates_study import (
    BETWEEN,
    MEAN_SCALE,
    MOST_GROUPS,
    MOST_MEASUREMENTS,
    WITHIN,
    parse_args,
    run,
)

from numpyro_spread import amortize


def model(y=None, num_groups=None, sizes=None):
    is_there = jnp.arange(MOST_GROUPS + 1) > 1  # two groups at least
    num_groups = numpyro.sample(
        "num_groups", dist.Categorical(is_there / is_there.sum()), obs=num_groups
    )
    mu = numpyro.sample("mu", dist.Normal(0.0, MEAN_SCALE))
    of_groups = jnp.arange(MOST_GROUPS)[:, None] < num_groups
    with numpyro.plate("groups", MOST_GROUPS, dim=-2), mask(mask=of_groups):
        # One less than the group's number of measurements.
        each = jnp.ones(MOST_MEASUREMENTS) / MOST_MEASUREMENTS
        sizes = numpyro.sample("sizes", dist.Categorical(each), obs=sizes)
        theta = numpyro.sample("theta", dist.Normal(mu, BETWEEN))
        of_measurements = jnp.arange(MOST_MEASUREMENTS) <= sizes
        with numpyro.plate("measurements", MOST_MEASUREMENTS, dim=-1), mask(mask=of_measurements):
            numpyro.sample("y", dist.Normal(theta, WITHIN), obs=y)


def main(args):
    numpyro.set_platform(args.device)

    def fit(num_simulations, seed):
        posterior = amortize(
            model,
            observed=["y", "num_groups", "sizes"],
            num_simulations=num_simulations,
            seed=seed,
            progress_bar=False,
        )
        return lambda data, num_draws: posterior.sample(**data, num_samples=num_draws)

    return run("numpyro", args, fit)


if __name__ == "__main__":
    main(parse_args("numpyro", __doc__.strip().split("\n")[0]))
