# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What AutoAmortized refuses, and what it says then."""

import re

import numpy as np
import pyro
import pytest
import torch
from amortised_models import hierarchy, interval_and_scale
from pyro_amortised import Array, B, ready

from pyro_spread import AutoAmortized

X = Array(0.7)
GROUPS = Array(np.float32([0.1, 0.5, -0.3]))


def refused(message, model, *args, error=ValueError, **options):
    """Whether a new guide refuses the model with a message."""
    guide = AutoAmortized(model, init_samples=3, **options)
    with pytest.raises(error, match=re.escape(message)):
        guide(*args)
    return guide


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"density": "flow"},
            "density must be 'mixture', 'nsf', 'maf' or a function that makes one, got 'flow'",
        ),
        ({"hidden": ()}, "hidden must be a sequence of layer sizes"),
        ({"hidden": (8, 0)}, "hidden must be a sequence of layer sizes"),
        ({"num_components": 0}, "num_components"),
        ({"ensemble": 0}, "ensemble"),
        ({"init_samples": -1}, "init_samples"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AutoAmortized(interval_and_scale(B), **options)


def test_not_set_up():
    guide = AutoAmortized(interval_and_scale(B), observed="x")
    with pytest.raises(RuntimeError, match="Call guide"):
        _ = guide.context


def test_nothing_observed():
    refused("the model observes nothing at these arguments", interval_and_scale(B))


def test_factors_are_no_data():
    def model():
        theta = B.sample("theta", B.dist.Normal(0.0, 1.0))
        pyro.factor("prior", -theta)
        pyro.deterministic("twice", 2 * theta)

    refused("the model observes nothing at these arguments", model)


def test_no_such_site():
    message = "observed names 'y', which is no sample site of the model. It has ['s', 'theta', 'x']"
    refused(message, interval_and_scale(B), X, observed="y")


def test_no_latents():
    def model(x):
        B.sample("x", B.dist.Normal(0.0, 1.0), obs=x)

    refused("found no latent site in the model beside its data", model, X)


def test_infinite_support():
    def model(x):
        k = B.sample("k", B.dist.Poisson(3.0))
        B.sample("x", B.dist.Normal(k, 1.0), obs=x)

    message = "no density for the discrete latent 'k' (Poisson), whose support is not finite"
    refused(message, model, X)


def test_discrete_vectors():
    def model(x):
        k = B.sample("k", B.dist.Multinomial(3, torch.ones(4) / 4))
        B.sample("x", B.dist.Normal(k[0], 1.0), obs=x)

    refused("the discrete latent 'k' (Multinomial), whose values are vectors", model, X)


def test_a_support_that_moves():
    def model(x):
        top = B.sample("top", B.dist.LogNormal(0.0, 1.0))
        theta = B.sample("theta", B.dist.Uniform(0.0, top))
        B.sample("x", B.dist.Normal(theta, 1.0), obs=x)

    guide = refused("The support of latent 'theta' differs from run to run", model, X)
    assert guide.prototype_trace is None


def test_no_data_at_a_call():
    guide = ready(interval_and_scale(B), X, observed="x")
    for call in (guide.guide, guide.draw, guide.guide.observation):
        with pytest.raises(ValueError, match="observes no data at site 'x' at these arguments"):
            call()


def test_other_shapes_of_data():
    guide = ready(interval_and_scale(B), X, observed="x")
    with pytest.raises(ValueError, match=re.escape("'x' have the shape (3,), but the guide was")):
        guide.draw(Array([0.1, 0.2, 0.3]))


def test_data_that_are_no_numbers():
    guide = ready(hierarchy(B), GROUPS, observed="x")
    x = np.float32([0.1, np.nan, 0.4])
    for mask in (None, np.array([False, True, True])):
        with pytest.raises(ValueError, match="site 'x' hold NaN or inf"):
            guide.draw(Array(x), 3, None if mask is None else Array(mask))


def test_given_without_a_site():
    guide = ready(interval_and_scale(B), X, observed="x")
    with pytest.raises(ValueError, match=re.escape("'x' lacks a value: given are those of ['y']")):
        guide.sites(program=guide.guide.given({"y": X}))


def test_values_without_a_site():
    guide = ready(interval_and_scale(B), X, observed="x")
    with pytest.raises(ValueError, match=re.escape("lack latent site 's'; they hold ['theta']")):
        guide.log_prob({"theta": np.float32(0.0)}, X)


def test_masks_that_nothing_was_trained_with():
    guide = ready(hierarchy(B), GROUPS, observed="x")
    with pytest.raises(ValueError, match="it masked nothing where AutoAmortized was set up"):
        guide.draw(GROUPS, 3, Array(np.array([True, False, True])))
