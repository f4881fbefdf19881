# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Arguments that PriorContrastELBO refuses in Pyro as it is made, and in which words."""

import pytest
from pyro.nn import PyroModule
from pyro_contrast import Told, total
from torch import nn

from pyro_spread import GaussianNoise, PriorContrastELBO
from pyro_spread.ratio import MLPCritic

POSITIVE = "must be a positive integer"
ARGUMENTS = {
    "critic": ({"discriminator": lambda v: v["z"]}, TypeError, "discriminator must be a torch.nn"),
    "critic of a site with a dot": (
        {"discriminator": {"net.z": nn.Linear(1, 1)}},
        ValueError,
        r"critic for the site 'net\.z', but torch.nn.ModuleDict",
    ),
    "critic of a site with a method's name": (
        {"discriminator": {"type": nn.Linear(1, 1)}},
        ValueError,
        r"critic for the site 'type', but torch.nn.ModuleDict",
    ),
    "critic of a site": (
        {"discriminator": {"z": 3}},
        TypeError,
        r"discriminator must be a torch.nn.Module.*got 3",
    ),
    "net on features": ({"discriminator": MLPCritic()}, TypeError, "adapted by concat_sites"),
    "features by site": ({"discriminator": {"z": MLPCritic()}}, TypeError, "adapted by concat"),
    "pyro module": ({"discriminator": PyroModule()}, TypeError, "is a PyroModule"),
    "particles": ({"num_particles": 0}, ValueError, f"num_particles {POSITIVE}, got 0"),
    "half a particle": ({"num_particles": 1.5}, ValueError, f"num_particles {POSITIVE}"),
    "float": ({"num_particles": 2.0}, ValueError, rf"num_particles {POSITIVE}, got 2\.0"),
    "infinite": ({"num_particles": float("inf")}, ValueError, f"num_particles {POSITIVE}"),
    "moments": (
        {"num_moment_draws": 2},
        ValueError,
        "num_moment_draws must be an integer of at least 3, got 2",
    ),
    "critic draws": ({"num_critic_draws": 0}, ValueError, f"num_critic_draws {POSITIVE}"),
    "annealing": ({"annealing": 0}, ValueError, f"annealing {POSITIVE}, got 0"),
    "annealing by half": ({"annealing": 10.0}, ValueError, f"annealing {POSITIVE}"),
    "head": ({"head": lambda x: (x, x)}, TypeError, r"head must be a torch.nn.Module, or None"),
    "head without adaptive": (
        {"head": nn.Identity(), "adaptive": False},
        ValueError,
        "head is the contrast of adaptive=True, but adaptive=False",
    ),
    "regularizer": ({"regularizer": 1.0}, TypeError, "regularizer must be a Regularizer such as"),
    "bare kernel": ({"noise": GaussianNoise(0.1)}, TypeError, "noise"),
    "data": ({"noise": {"x": GaussianNoise(0.1)}, "data": {"y": "x"}}, ValueError, "data= names"),
}


@pytest.mark.parametrize("mistake", ARGUMENTS)
def test_arguments(mistake):
    wrong, error, message = ARGUMENTS[mistake]
    with pytest.raises(error, match=message):
        PriorContrastELBO(**{"discriminator": Told(total), **wrong})
