# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
One posterior for groups of any number and size
===============================================

A program with plates: a mean, groups round it, measurements round their group. How many groups
there are, and how many measurements each has, are drawn in the program and given as data; what is
beyond them is masked. ``amortize`` trains once; the mean and the groups of each data set are
compared with the closed form.

    python examples/pyro/amortized_plates.py --output amortized-plates
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine import mask
from studies.plates_study import (
    BETWEEN,
    MEAN_SCALE,
    MOST_GROUPS,
    MOST_MEASUREMENTS,
    WITHIN,
    parse_args,
    run,
)

from pyro_spread import amortize


def model(y=None, num_groups=None, sizes=None):
    is_there = 1.0 * (torch.arange(MOST_GROUPS + 1) > 1)  # two groups at least
    num_groups = pyro.sample(
        "num_groups", dist.Categorical(is_there / is_there.sum()), obs=num_groups
    )
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), MEAN_SCALE))
    of_groups = torch.arange(MOST_GROUPS)[:, None] < num_groups
    with pyro.plate("groups", MOST_GROUPS, dim=-2), mask(mask=of_groups):
        # One less than the group's number of measurements.
        each = torch.ones(MOST_MEASUREMENTS) / MOST_MEASUREMENTS
        sizes = pyro.sample("sizes", dist.Categorical(each), obs=sizes)
        theta = pyro.sample("theta", dist.Normal(mu, BETWEEN))
        of_measurements = torch.arange(MOST_MEASUREMENTS) <= sizes
        with pyro.plate("measurements", MOST_MEASUREMENTS, dim=-1), mask(mask=of_measurements):
            pyro.sample("y", dist.Normal(theta, WITHIN), obs=y)


def main(args):
    torch.set_num_threads(args.num_threads)
    torch.set_default_device("cuda" if args.cuda else "cpu")

    def fit(num_simulations, seed):
        posterior = amortize(
            model,
            observed=["y", "num_groups", "sizes"],
            num_simulations=num_simulations,
            seed=seed,
            progress_bar=False,
        )

        def draw(data, num_draws):
            tensors = {name: torch.as_tensor(value) for name, value in data.items()}
            draws = posterior.sample(**tensors, num_samples=num_draws)
            return {name: value.cpu().numpy() for name, value in draws.items()}

        return draw

    return run("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
