# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Nets of torch and flax with the same weights, and noise of both backends round them."""

import itertools

import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from torch import nn
from twins import flax_params, numbers

import numpyro_spread
import pyro_spread

NOISE = "noise$x$params"
PACKAGES = pyro_spread, numpyro_spread
ACTIVATIONS = {"tanh": (nn.Tanh, jnp.tanh), "silu": (nn.SiLU, linen.silu)}


def nets(sizes, activation="tanh", steep=1.0, bias=True):
    """A chain of torch with these weights times a number, and the same of flax."""
    ours, theirs, (torch_act, jax_act) = [], [], ACTIVATIONS[activation]
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(fan_in, fan_out, bias=bias).double()
        with torch.no_grad():
            layer.weight.copy_(steep * torch.tensor(numbers(f"net {number}", fan_out, fan_in)))
            if bias:
                layer.bias.copy_(torch.tensor(numbers(f"bias {number}", fan_out)))
        ours += [layer, torch_act()]
        theirs += [linen.Dense(fan_out, use_bias=bias), jax_act]
    return nn.Sequential(*ours[:-1]), linen.Sequential(theirs[:-1])


def with_mean(made, scale=0.5, **options):
    """Learned noise of both backends, of Gaussian noise round these nets."""
    return tuple(
        package.learned(package.GaussianNoise(as_scale(array, scale)), mean=net, **options)
        for net, package, array in zip(made, PACKAGES, (torch.tensor, jnp.array), strict=True)
    )


def as_scale(array, scale):
    return scale if isinstance(scale, float) else array(np.array(scale))


def kernel_of(b, pair):
    """The kernel that it is, at the params of torch's."""
    ours, theirs = pair
    return b.pick(lambda: ours.kernel(), lambda: theirs.kernel(flax_params(ours)))()


def moved(b, kernel, x, event_dim=1):
    return np.asarray(kernel(b.array(x), event_dim).mean)
