# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""An epidemic, person by person: a program that knows nothing of those who call it.

    python epidemic.py BETA GAMMA SEED

It prints how many of 1,000 people, of whom ten are ill at first, are ill on ten days. Every second
day each susceptible person may be infected, at rate beta times the share of the ill, and each ill
one recovers at rate gamma.
"""

import math
import random
import sys

PEOPLE, ILL, DAYS, EVERY = 1000, 10, 160, 16


def binomial(rng: random.Random, number: int, rate: float, days: int) -> int:
    """How many of a number of people it happens to, at a rate per day."""
    probability = -math.expm1(-rate * days)
    return sum(rng.random() < probability for _ in range(number))


def main(beta: float, gamma: float, seed: int) -> None:
    """Run one epidemic."""
    rng = random.Random(seed)
    susceptible, ill, days = PEOPLE - ILL, ILL, 2
    for day in range(0, DAYS, days):
        infected = binomial(rng, susceptible, beta * ill / PEOPLE, days)
        recovered = binomial(rng, ill, gamma, days)
        susceptible, ill = susceptible - infected, ill + infected - recovered
        if (day + days) % EVERY == 0:
            print(ill)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
