# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What is an error where values are known is NaN where tracing hides them: never a number."""

import pyro.distributions as dist
import pytest
import torch

from pyro_spread import GaussianNoise
from pyro_spread.infer._mixture import SiteNoise

X = torch.tensor([0.5, 1.5])


def test_the_density_of_a_delta():
    def value(log_density):
        return GaussianNoise(0.3).spread(dist.Delta(X, log_density=log_density)).log_prob(X).sum()

    traced = torch.jit.trace(value, torch.zeros(2))
    torch.testing.assert_close(traced(torch.zeros(2)), value(torch.zeros(2)))
    assert torch.isnan(traced(torch.tensor([0.0, 1.0])))
    with pytest.raises(NotImplementedError, match="log_density"):
        value(torch.tensor([0.0, 1.0]))


def test_draws_outside_of_a_support():
    def value(psi):
        fn = dist.Normal(torch.zeros(2), 1.0)
        support = dist.constraints.interval(0.0, 1.0)
        return SiteNoise("z", fn, GaussianNoise(0.1), support).to_reals(psi)

    inside, outside = torch.tensor([0.2, 0.8]), torch.tensor([0.2, 1.5])
    traced = torch.jit.trace(value, inside)
    torch.testing.assert_close(traced(inside), value(inside))
    assert torch.isnan(traced(outside)).all()
    with pytest.raises(ValueError, match="'z'"):
        value(outside)
