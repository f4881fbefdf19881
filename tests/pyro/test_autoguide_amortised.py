# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit with an encoder: features by data, mini-batches, plates and errors."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_many_sites import SHAPES, X, disturb, local_model, many_sites, set_up, shapes, traced
from torch import nn

from pyro_spread import AutoImplicit


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 4)

    def forward(self, x, size=None):
        return self.linear(x[:, None]).tanh()


def test_encoder_is_trained_with_the_guide():
    guide = set_up(AutoImplicit(local_model, encoder=Encoder(), init_samples=2000), X)
    values = guide.sample_posterior(X, sample_shape=(4000,))["z"]
    np.testing.assert_allclose(values.mean(0), np.zeros(6), atol=0.25)
    np.testing.assert_allclose(values.std(0), np.ones(6), atol=0.2)
    disturb(guide)
    guide(X)["z"].square().sum().backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    names = set(pyro.get_param_store())
    assert "AutoImplicit.encoder$$$linear.weight" in names
    assert not any("embedding" in name for name in names)
    median = guide.median(X)["z"]
    assert median.shape == (6,)
    assert len(median.unique()) == 6


def test_amortised_plates_are_as_large_as_the_features():
    guide = set_up(AutoImplicit(local_model, encoder=Encoder(), init_samples=4), X)
    for count in (6, 3, 9):
        assert guide(torch.zeros(count))["z"].shape == (count,)
        draws = guide.sample_posterior(torch.zeros(count), sample_shape=(2,))
        assert draws["z"].shape == (2, count)


def test_features_of_all_data_are_subsampled():
    guide = set_up(AutoImplicit(local_model, encoder=Encoder(), init_samples=4), X, size=2)
    sampler = guide.samplers.auto_data
    with torch.no_grad():
        guide.encoder.linear.weight.fill_(1.0)
        guide.encoder.linear.bias.zero_()
        sampler.loc.weight.fill_(1000.0)
    nodes = traced(guide, X, size=2).nodes
    index = nodes["data"]["value"]
    expected = 4000 * X[index].tanh()
    np.testing.assert_allclose(nodes["z"]["value"].detach(), expected, atol=10)
    assert guide.sample_posterior(X)["z"].shape == (6,)


def test_batches_of_a_larger_data_set():
    def model(x):
        with pyro.plate("data", 100, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = set_up(AutoImplicit(model, encoder=Encoder(), init_samples=4), X)
    for count in (6, 5):
        nodes = traced(guide, torch.zeros(count)).nodes
        assert nodes["z"]["value"].shape == (count,)
        assert nodes["z"]["scale"] == pytest.approx(100 / count)


def test_encoder_may_be_lazy_or_a_function_or_give_features_by_plates():
    lazy = AutoImplicit(local_model, encoder=LazyEncoder(), init_samples=2)
    assert lazy(X)["z"].shape == (6,)
    pyro.clear_param_store()
    plain = AutoImplicit(local_model, encoder=lambda x: x[:, None] ** 2, init_samples=2)
    assert plain(X)["z"].shape == (6,)
    pyro.clear_param_store()
    features = {
        "outer": torch.ones(2, 1, 3),
        "inner": torch.ones(6, 2),
        "outer_inner": torch.ones(2, 6, 4),
    }
    guide = AutoImplicit(many_sites, encoder=lambda: features, init_samples=2)
    assert shapes(guide()) == SHAPES


class LazyEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(3)

    def forward(self, x):
        return self.linear(x[:, None])


def test_encoder_errors():
    with pytest.raises(TypeError, match=r"encoder must be a torch.nn.Module or a function.*got 3"):
        AutoImplicit(local_model, encoder=3)

    def refused(error, message, output, model=local_model):
        with pytest.raises(error, match=message):
            AutoImplicit(model, encoder=lambda *args: output, init_samples=2)(X)

    refused(TypeError, "plates 'data' it returned 'text'", "text")
    refused(TypeError, "plates 'data' it returned None", {"wrong": torch.ones(6, 1)})
    message = r"shape \(6,\) for the latents in the plates 'data', expected \(6, number of features"
    refused(ValueError, message, torch.ones(6))
    refused(ValueError, r"'outer', expected \(2, 1, .*return a dict", torch.ones(6, 1), many_sites)
    refused(ValueError, r"'data', expected \(6, number of features\)\.$", {"data": torch.ones(6)})

    def global_only(x):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    refused(ValueError, r"no latent.*in a plate: \['mu'\].*Leave encoder out", None, global_only)


def test_features_must_fit_plates_from_outside():
    guide = AutoImplicit(
        local_model,
        encoder=lambda x: torch.ones(4, 2),
        create_plates=lambda x: pyro.plate("data", 6),
        init_samples=2,
    )
    with pytest.raises(ValueError, match=r"shape \(4, 2\).*'data', expected \(6, number"):
        guide(X)
