# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Amortised guides in Pyro as tests use them; the twin for NumPyro has the same names."""

import dataclasses
import types

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_spread import AutoAmortized

B = types.SimpleNamespace(
    sample=pyro.sample, plate=pyro.plate, mask=poutine.mask, dist=dist, np=torch
)
Array = torch.tensor


def host(value):
    """As an array of NumPy."""
    return np.asarray(torch.as_tensor(value).detach())


def ready(model, *args, disturbed=0.3, **options):
    """A guide that is set up, with params away from where they start."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    defaults = {"hidden": (8,), "num_components": 3, "init_samples": 60, "exchangeable": True}
    options = defaults | options
    guide = AutoAmortized(model, **options)
    guide(*args)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(disturbed * torch.randn_like(parameter))
    return Ready(guide)


class Ready:
    """A guide with its params."""

    def __init__(self, guide):
        self.guide = guide

    def log_prob(self, values, *args, **kwargs):
        pyro.clear_param_store()
        values = {
            name: value if isinstance(value, torch.Tensor) else torch.tensor(value)
            for name, value in values.items()
        }
        return host(self.guide.log_prob(values, *args, **kwargs))

    def draw(self, *args, seed=0, sample_shape=(), **kwargs):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        found = self.guide.sample_posterior(*args, sample_shape=sample_shape, **kwargs)
        return {name: host(value) for name, value in found.items()}

    def sites(self, *args, program=None, seed=0, **kwargs):
        """The latents of a run of the guide, or of ``program``, which is made of it."""
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        nodes = poutine.trace(program or self.guide).get_trace(*args, **kwargs).nodes
        return {name: nodes[name] for name in self.guide.supports}


def moved(conditional, direction, by):
    """A conditional with other params."""
    params = {name: value + by * direction[name] for name, value in conditional.params.items()}
    return dataclasses.replace(conditional, params=params)


def direction_of(conditional):
    """A direction in which to move its params."""
    torch.manual_seed(3)
    return {name: torch.randn_like(value) for name, value in conditional.params.items()}


def slope(function):
    """Derivative of a function of a number at 0."""
    by = torch.zeros((), requires_grad=True)
    return torch.autograd.grad(function(by), by)[0].item()
