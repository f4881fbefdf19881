# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulation-based calibration, where the posterior is known."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_known_posteriors import (
    FACTOR,
    SCALE,
    X,
    conjugate_guide,
    conjugate_model,
    global_model,
    implicit_guide,
    linear_model,
)

from pyro_spread import simulation_based_calibration


@pytest.mark.parametrize("guide", [conjugate_guide, implicit_guide])
def test_the_exact_posterior_is_calibrated_and_others_are_not(guide):
    x = torch.zeros(500)
    report = simulation_based_calibration(conjugate_model, guide(), x)
    assert report.ranks["z"].shape == (1000,)
    assert report.num_draws == 99
    assert report.p_value() > 0.005
    narrow = simulation_based_calibration(conjugate_model, guide(width=0.6), x)
    counts, _ = narrow.histogram("z", num_bins=10)
    assert narrow.p_value() < 1e-6
    assert min(counts[0], counts[-1]) > 2 * max(counts[4:6])
    assert simulation_based_calibration(conjugate_model, guide(shift=0.4), x).p_value() < 1e-6


def test_a_global_latent_makes_one_simulation_of_a_run():
    def guide(x, width=1.0):
        # posterior of mu ~ N(0, 4) from the mean of x ~ N(mu, 2 / n)
        precision = 0.25 + len(x) / 2
        mu = pyro.sample("mu", dist.Normal(x.sum() / 2 / precision, width * precision**-0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((mu + x) / 2, 0.5**0.5))

    x = torch.zeros(3)
    settings = {"num_simulations": 200, "num_draws": 19}
    report = simulation_based_calibration(global_model, guide, x, parallel=True, **settings)
    assert report.ranks["mu"].shape == (200,)
    assert report.ranks["z"].shape == (200, 3)
    assert report.p_value() > 0.005
    only = simulation_based_calibration(
        global_model, lambda x: guide(x, 0.3), x, sites=["mu"], parallel=True, **settings
    )
    assert list(only.ranks) == ["mu"]
    assert only.p_value() < 1e-6


def test_components_of_an_event_are_ranked_one_by_one():
    precision = np.eye(2) + FACTOR.T @ FACTOR / SCALE**2
    covariance = torch.tensor(np.linalg.inv(precision), dtype=torch.float32)
    gain = covariance @ torch.tensor(FACTOR.T / SCALE**2, dtype=torch.float32)

    def guide(x, wrong=0.0):
        with pyro.plate("data", len(x)):
            shift = torch.tensor([0.0, wrong])
            mean = x @ gain.T + shift
            pyro.sample("z", dist.MultivariateNormal(mean, covariance))

    settings = {"num_simulations": 300, "num_draws": 39}
    report = simulation_based_calibration(linear_model, guide, X, **settings)
    assert report.ranks["z"].shape == (300, 2)
    assert report.p_value() > 0.005
    wrong = simulation_based_calibration(linear_model, lambda x: guide(x, 0.5), X, **settings)
    first, second = wrong.p_values()["z"]
    assert first > 0.001
    assert second < 1e-6


def test_data_names_the_argument_that_the_guide_reads():
    def model(mask, image):
        with pyro.plate("data", 400):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=image)

    def guide(mask, image):
        conjugate_guide()(image)

    arguments = torch.zeros(400, 2), torch.zeros(400)
    report = simulation_based_calibration(model, guide, *arguments, data={"x": "image"})
    assert report.p_value() > 0.005
    with pytest.raises(
        ValueError, match=r"shape \(400,\), but its argument 'mask' has the shape \(400, 2\)"
    ):
        simulation_based_calibration(model, guide, *arguments)
