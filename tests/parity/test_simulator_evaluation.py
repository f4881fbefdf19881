# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of models and guides with a black box."""

import functools

import jax
import pyro
import pytest
from twins import Pyro, in_both


def settled(rng, z):
    return z + 0.5 * rng.normal(size=z.shape)


def simulates(b, x):
    with b.plate("data", len(x)):
        z = b.sample("z", b.dist.Normal(b.np.zeros(()), 1.0))
        b.sample("x", b.package.Simulator(settled, z, event_shape=()), obs=x)


def scores(b, x):
    with b.plate("data", len(x)):
        z = b.sample("z", b.dist.Normal(b.np.zeros(()), 1.0))
        b.sample("x", b.dist.Normal(z, 0.5), obs=x)


def exact(b, x):
    with b.plate("data", len(x)):
        b.sample("z", b.dist.Normal(0.8 * x, 0.2**0.5))


def too_narrow(b, x):
    with b.plate("data", len(x)):
        b.sample("z", b.dist.Normal(0.8 * x, 0.15))


def black_box_guide(b, x):
    with b.plate("data", len(x)):
        b.sample("z", b.package.Simulator(settled, x, event_shape=()))


def before(b):
    """What evaluation takes before the model."""
    pyro.set_rng_seed(0)
    return () if b is Pyro else (jax.random.key(0), {})


@in_both
def test_calibration_of_a_guide_for_a_black_box(b):
    x = b.np.zeros(100)
    for guide, right in ((exact, True), (too_narrow, False)):
        report = b.package.simulation_based_calibration(
            *before(b),
            functools.partial(simulates, b),
            functools.partial(guide, b),
            x,
            num_simulations=4,
            num_draws=19,
        )
        assert (report.p_value() > 1e-3) == right


@in_both
def test_evidence_is_refused(b):
    for model, guide, error in (
        (simulates, exact, NotImplementedError),
        (scores, black_box_guide, ValueError),
    ):
        with pytest.raises(error, match="density"):
            b.package.importance_weighted_bound(
                *before(b), functools.partial(model, b), functools.partial(guide, b), b.np.zeros(5)
            )
