# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What draws say about a log density, in the arrays of NumPy, torch and JAX alike."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import numbers

from spread_core.math.gaussian_density import GaussianDensity
from spread_core.math.normaliser import log_normaliser
from spread_core.math.own_density import own_log_density


@pytest.mark.parametrize("array", [torch.tensor, jnp.asarray])
@pytest.mark.parametrize(("draws", "event_dim"), [(6, 1), (60, 2)])
def test_the_log_density_of_draws(array, draws, event_dim):
    seen, new = numbers("seen", draws, 4, 3), numbers("new", 5, 4, 3)
    found = own_log_density(array(seen), array(new), event_dim)
    np.testing.assert_allclose(found, own_log_density(seen, new, event_dim), rtol=1e-10)


@pytest.mark.parametrize("array", [torch.tensor, jnp.asarray])
def test_the_whole_covariance_and_the_normaliser(array):
    seen = numbers("seen", 40, 4, 3)
    exact = np.stack([np.cov(seen[:, i].T) for i in range(4)])
    tril = np.asarray(GaussianDensity.of_covariance(array(seen), 1).tril)
    np.testing.assert_allclose(tril @ np.swapaxes(tril, 1, 2), exact, rtol=1e-4)
    np.testing.assert_allclose(log_normaliser(array(seen)), log_normaliser(seen), rtol=1e-10)
