# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What both backends share of a docstring stands between the example and the references."""

import inspect

import pytest
import torch

import numpyro_spread
import pyro_spread
from numpyro_spread.infer._critic_loss import CriticLoss as JaxCriticLoss
from pyro_spread.infer._critic_loss import CriticLoss as TorchCriticLoss
from spread_core.shared_docs import SharedDocs

CLASSES = sorted(
    name
    for name in pyro_spread.__all__
    if inspect.isclass(getattr(pyro_spread, name))
    and issubclass(getattr(pyro_spread, name), SharedDocs)
    and name != "SpreadNoise"  # the base class of kernels, without arguments
)


def _places(doc, *starts):
    """Where in the docstring its parts begin, in the order asked for."""
    found = [doc.find(start) for start in starts]
    assert min(found) >= 0, starts
    return found


def test_there_are_such_classes():
    assert {"MMD", "SpreadELBO", "GaussianNoise"} <= set(CLASSES)


@pytest.mark.parametrize("package", [pyro_spread, numpyro_spread])
@pytest.mark.parametrize("name", CLASSES)
def test_it_says_first_what_the_class_is_and_last_what_the_arguments_are(package, name):
    doc = inspect.getdoc(getattr(package, name))
    first, _, rest = doc.partition("\n\n")
    assert first not in rest
    fields = rest.find(":param")
    assert fields >= 0
    assert "\n\n" not in rest[fields:].rstrip()


@pytest.mark.parametrize("package", [pyro_spread, numpyro_spread])
def test_the_explanation_follows_the_example(package):
    doc = inspect.getdoc(package.MMD)
    starts = ">>> import", ".. math::", "**Data parallelism**", "**References**", ":param kernel:"
    places = _places(doc, *starts)
    assert places == sorted(places)


@pytest.mark.parametrize("base", [TorchCriticLoss, JaxCriticLoss])
def test_a_loss_with_a_critic_says_what_its_players_minimise(base):
    with pytest.raises(TypeError, match=r"abstract methods? .*_critic_loss"):
        base(torch.nn.Linear(1, 1), None, None, None, 1, "discriminator")
