# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What AutoAmortized refuses, and what it says then."""

import re

import numpy as np
import pytest
from amortised_models import hierarchy, interval_and_scale

X = np.float32(0.7)
GROUPS = np.float32([0.1, 0.5, -0.3])


@pytest.fixture(scope="module")
def two(lib):
    return lib.ready(interval_and_scale(lib.B), X, observed="x")


@pytest.fixture(scope="module")
def groups(lib):
    return lib.ready(hierarchy(lib.B), GROUPS, observed="x")


def refused(lib, message, model, *args, error=ValueError, **options):
    """Whether a new guide refuses the model with a message."""
    guide = lib.AutoAmortized(model, init_samples=3, **options)
    with pytest.raises(error, match=re.escape(message)):
        lib.run(guide, *args)
    return guide


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": "flow"}, "or a function that makes one, got 'flow'"),
        ({"hidden": ()}, "hidden must be a sequence of layer sizes"),
        ({"hidden": (8, 0)}, "hidden must be a sequence of layer sizes"),
        ({"num_components": 0}, "num_components"),
        ({"ensemble": 0}, "ensemble"),
        ({"init_samples": -1}, "init_samples"),
    ],
)
def test_arguments(lib, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lib.AutoAmortized(interval_and_scale(lib.B), **options)


def test_not_set_up(lib):
    guide = lib.AutoAmortized(interval_and_scale(lib.B), observed="x")
    with pytest.raises(RuntimeError, match="Call guide"):
        _ = guide.context


def test_nothing_observed(lib):
    refused(lib, "the model observes nothing at these arguments", interval_and_scale(lib.B))


def test_factors_are_no_data(lib):
    def model():
        theta = lib.B.sample("theta", lib.B.dist.Normal(0.0, 1.0))
        lib.B.factor("prior", -theta)
        lib.B.deterministic("twice", 2 * theta)

    refused(lib, "the model observes nothing at these arguments", model)


def test_no_such_site(lib):
    message = "observed names 'y', which is no sample site of the model. It has ['s', 'theta', 'x']"
    refused(lib, message, interval_and_scale(lib.B), X, observed="y")


def test_no_latents(lib):
    def model(x):
        lib.B.sample("x", lib.B.dist.Normal(0.0, 1.0), obs=x)

    refused(lib, "found no latent site in the model beside its data", model, X)


def test_infinite_support(lib):
    def model(x):
        k = lib.B.sample("k", lib.B.dist.Poisson(3.0))
        lib.B.sample("x", lib.B.dist.Normal(k, 1.0), obs=x)

    message = "no density for the discrete latent 'k' (Poisson), whose support is not finite"
    refused(lib, message, model, X)


def test_discrete_vectors(lib):
    def model(x):
        k = lib.B.sample("k", lib.B.dist.Multinomial(3, lib.B.np.ones(4) / 4))
        lib.B.sample("x", lib.B.dist.Normal(k[0], 1.0), obs=x)

    refused(lib, "), whose values are vectors", model, X)


def test_a_support_that_moves(lib):
    def model(x):
        top = lib.B.sample("top", lib.B.dist.LogNormal(0.0, 1.0))
        theta = lib.B.sample("theta", lib.B.dist.Uniform(0.0, top))
        lib.B.sample("x", lib.B.dist.Normal(theta, 1.0), obs=x)

    guide = refused(lib, "The support of latent 'theta' differs from run to run", model, X)
    assert guide.prototype_trace is None


def test_no_data_at_a_call(two):
    for call in (two.sites, two.draw, two.guide.observation):
        with pytest.raises(ValueError, match="observes no data at site 'x' at these arguments"):
            call()


def test_other_shapes_of_data(two):
    with pytest.raises(ValueError, match=re.escape("'x' have the shape (3,), but the guide was")):
        two.draw(np.float32([0.1, 0.2, 0.3]))


def test_data_that_are_no_numbers(groups):
    x = np.float32([0.1, np.nan, 0.4])
    for mask in (None, np.array([False, True, True])):
        with pytest.raises(ValueError, match="site 'x' hold NaN or inf"):
            groups.draw(x, 3, None if mask is None else mask)


def test_given_without_a_site(two):
    with pytest.raises(ValueError, match=re.escape("'x' lacks a value: given are those of ['y']")):
        two.sites(program=two.guide.given({"y": X}))


def test_values_without_a_site(two):
    with pytest.raises(ValueError, match=re.escape("lack latent site 's'; they hold ['theta']")):
        two.log_prob({"theta": np.float32(0.0)}, X)


def test_masks_that_nothing_was_trained_with(groups):
    with pytest.raises(ValueError, match="it masked nothing where AutoAmortized was set up"):
        groups.draw(GROUPS, 3, np.array([True, False, True]))
