# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What every loss says of itself, in the same words in both backends."""

import numpyro
import pyro
import pytest
import torch
from every import LOSSES
from flax import linen

import numpyro_spread
import pyro_spread
from numpyro_spread.infer._registration import Loss as JaxLoss
from pyro_spread.infer._registration import Loss as TorchLoss
from spread_analysis.report import LossWords, describe


def torch_critic(*sites):
    return pyro_spread.concat_sites(torch.nn.LazyLinear(1), *sites)


def jax_critic(*sites):
    return numpyro_spread.concat_sites(linen.Dense(1), *sites)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_what_it_reports(name):
    make = LOSSES[name].make
    ours, theirs = make(pyro_spread, torch_critic), make(numpyro_spread, jax_critic)
    words = describe(ours)
    assert words == describe(theirs) == ours.describe()
    assert words != LossWords.of_class(type(ours))
    assert words.name == type(ours).__name__
    kinds = [sorted(type(each).__name__ for each in loss.monitors()) for loss in (ours, theirs)]
    assert kinds[0] == kinds[1]
    assert kinds[0] or not (LOSSES[name].has_critic and words.is_classifier)


class SilentTorch(TorchLoss):
    def loss(self, model, guide, *args, **kwargs):
        return 0.0

    differentiable_loss = loss


class SilentJax(JaxLoss):
    def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
        return 0.0


@pytest.mark.parametrize("base", [SilentTorch, SilentJax])
def test_a_loss_of_your_own_is_called_what_it_says(base):
    class Spoken(base):
        def describe(self):
            return LossWords(type(self).__name__, "my distance", "metres", is_divergence=True)

    assert describe(base()) == LossWords(base.__name__, f"loss of {base.__name__}")
    assert describe(Spoken()).label == "my distance (metres)"
    assert base().monitors() == []


@pytest.mark.parametrize("stock", [pyro.infer.Trace_ELBO, numpyro.infer.Trace_ELBO])
def test_a_stock_loss_is_a_sum_over_the_data(stock):
    assert describe(stock()) == LossWords("Trace_ELBO", "loss of Trace_ELBO", is_sum=True)
