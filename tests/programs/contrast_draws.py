# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Normals of both backends that draw the same given numbers, and critics of the same weights."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as numpyro_dist
import pyro.distributions as pyro_dist
import torch
from flax import linen
from torch import nn


def numbers(name, *shape):
    """Standard normal numbers, the same wherever they are asked for by this name."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)


def weights(name, inputs):
    """Kernels and biases of a net with five hidden units."""
    shapes = (inputs, 5), (5,), (5, 1), (1,)
    return [0.5 * numbers(f"{name} {i}", *shape) for i, shape in enumerate(shapes)]


# A site's own draw has a name; several draws per datum are rows 0, 1, ... of another table. Torch
# asks for them in two calls, the moments' first, and JAX at once: for all the rows.
_rows_asked: dict[str, int] = {}


def start_over():
    """Before a loss is evaluated in Pyro: rows are counted from the first."""
    _rows_asked.clear()


def rows(name, start, count, shape):
    return numbers(f"{name} rows", 64, *shape)[start : start + count]


class TorchNormal(pyro_dist.Normal):
    """Draws given numbers."""

    def __init__(self, name, loc, scale, validate_args=None):
        self.name = name
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return TorchNormal(self.name, self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def rsample(self, sample_shape=()):
        if len(sample_shape) == 0:
            given = numbers(self.name, *self.batch_shape)
        else:
            start = _rows_asked.get(self.name, 0)
            _rows_asked[self.name] = start + sample_shape[0]
            given = rows(self.name, start, sample_shape[0], self.batch_shape)
        return self.loc + self.scale * torch.as_tensor(given)

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.rsample(sample_shape)


class JaxNormal(numpyro_dist.Normal):
    """Its twin."""

    def __init__(self, name, loc, scale, *, validate_args=None):
        self.name = name
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, batch_shape):
        parts = (jnp.broadcast_to(part, batch_shape) for part in (self.loc, self.scale))
        return JaxNormal(self.name, *parts)

    def tree_flatten(self):
        return (self.loc, self.scale), self.name

    @classmethod
    def tree_unflatten(cls, name, parts):
        self = cls.__new__(cls)
        numpyro_dist.Distribution.__init__(self, jnp.shape(parts[0]), ())
        self.name, (self.loc, self.scale) = name, parts
        return self

    def sample(self, key, sample_shape=()):
        assert sample_shape == ()
        name, shape = self.name, self.batch_shape

        @jax.custom_batching.custom_vmap
        def draw(key):
            return jnp.asarray(numbers(name, *shape))

        @draw.def_vmap
        def several(axis_size, in_batched, key):
            return jnp.asarray(rows(name, 0, axis_size, shape)), True

        return self.loc + self.scale * draw(jax.random.key_data(key))


def _contrast_numbers(contrast, sample_shape):
    shape = tuple(contrast.loc.shape)
    return numbers(f"contrast {len(shape)}", *sample_shape, *shape)


def torch_contrast_draw(contrast, sample_shape=()):
    """In the place of ``GaussianContrast.draw``."""
    return torch.as_tensor(_contrast_numbers(contrast, sample_shape))


def jax_contrast_draw(contrast, key, sample_shape=()):
    """Its twin."""
    return jnp.asarray(_contrast_numbers(contrast, sample_shape))


# --- critics


def torch_net(given):
    """A net with these weights."""
    net = nn.Sequential(nn.Linear(*given[0].shape), nn.Tanh(), nn.Linear(*given[2].shape))
    with torch.no_grad():
        for param, value in zip(net.parameters(), given, strict=True):
            param.copy_(torch.as_tensor(value.T))
    return net.double()


class FlaxNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = jnp.tanh(linen.Dense(5)(x))
        return linen.Dense(1)(hidden)


def flax_params(given):
    """The same weights for its twin."""
    arrays = [jnp.asarray(value) for value in given]
    return {
        "Dense_0": {"kernel": arrays[0], "bias": arrays[1]},
        "Dense_1": {"kernel": arrays[2], "bias": arrays[3]},
    }
