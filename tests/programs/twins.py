# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
One program in both backends: its values and gradients side by side, on the same numbers.

A program is written once, for a backend ``b``: ``Pyro`` or ``NumPyro`` below, which have the same
members. Draws are numbers that both backends look up by name, so that nothing is left to chance.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import numpyro.handlers
import numpyro.infer
import pyro
import pyro.distributions as pyro_dist
import pyro.infer
import pytest
import torch
from flax import linen
from jax.tree_util import Partial
from torch import nn

import numpyro_spread
import pyro_spread

CRITIC = "discriminator$params"


def no_guide(*args):
    """The guide of a model without latents."""


# --- draws: the same numbers in both backends


def numbers(name, *shape):
    """Standard normal numbers, the same wherever they are asked for by this name."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)


# A site's own draw has a name; several draws per datum are rows 0, 1, ... of another table. Torch
# asks for them in two calls, the moments' first, and JAX at once: for all the rows.
_rows_asked: dict[str, int] = {}


def rows(name, start, count, shape):
    """Rows of the table of a site that is drawn several times at once."""
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
    """
    Its twin.

    :param vmapped: whether draws under ``jax.vmap`` over keys are rows; else all are the same.
    """

    def __init__(self, name, loc, scale, vmapped=True, *, validate_args=None):
        self.name, self.vmapped = name, vmapped
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, batch_shape):
        parts = (jnp.broadcast_to(part, batch_shape) for part in (self.loc, self.scale))
        return JaxNormal(self.name, *parts, self.vmapped)

    def tree_flatten(self):
        return (self.loc, self.scale), (self.name, self.vmapped)

    @classmethod
    def tree_unflatten(cls, aux, parts):
        self = cls.__new__(cls)
        (self.name, self.vmapped), (self.loc, self.scale) = aux, parts
        numpyro_dist.Distribution.__init__(self, jnp.shape(parts[0]), (), validate_args=False)
        return self

    def sample(self, key, sample_shape=()):
        name, shape = self.name, self.batch_shape
        if sample_shape:
            return self.loc + self.scale * jnp.asarray(rows(name, 0, *sample_shape, shape))

        @jax.custom_batching.custom_vmap
        def draw(key):
            return jnp.asarray(numbers(name, *shape))

        @draw.def_vmap
        def several(axis_size, in_batched, key):
            given = rows(name, 0, axis_size, shape) if self.vmapped else numbers(name, *shape)
            return jnp.asarray(given), self.vmapped

        return self.loc + self.scale * draw(jax.random.key_data(key))

    rsample = sample


class TorchNoise(pyro_spread.GaussianNoise):
    """Noise that is numbers named "noisy"."""

    def _around(self, x, scale, validate_args=None):
        return TorchNormal("noisy", x, scale)


class JaxNoise(numpyro_spread.GaussianNoise):
    """Its twin."""

    def _around(self, x, *parameters, validate_args=None):
        return JaxNormal("noisy", x, *parameters, False)


# --- nets: torch's params are read under flax's names


def torch_net(given):
    """A critic with these kernels and biases."""
    net = nn.Sequential(nn.Linear(*given[0].shape), nn.Tanh(), nn.Linear(*given[2].shape))
    with torch.no_grad():
        for param, value in zip(net.parameters(), given, strict=True):
            param.copy_(torch.as_tensor(value.T))
    return net.double()


class FlaxNet(linen.Module):
    """Its twin, with five hidden units."""

    @linen.compact
    def __call__(self, x):
        hidden = jnp.tanh(linen.Dense(5)(x))
        return linen.Dense(1)(hidden)


def weights(name, inputs):
    """Kernels and biases of a critic with five hidden units."""
    shapes = (inputs, 5), (5,), (5, 1), (1,)
    return [0.5 * numbers(f"{name} {i}", *shape) for i, shape in enumerate(shapes)]


def to_jax(tensor):
    return jnp.asarray(tensor.detach().numpy())


def flax_params(module, part=lambda param: param):
    """
    The params of a torch module under flax's names.

    :param module: has dense and convolutional layers, in the order of their use, or its own params.
    :param part: what to take of each param, such as its gradient.
    """

    def read(param):
        taken = part(param)
        return to_jax(torch.zeros_like(param) if taken is None else taken)

    params = {name: read(param) for name, param in module.named_parameters(recurse=False)}
    counts = {"Dense": 0, "Conv": 0}
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if module in layers:
        params = {}
    for layer in layers:
        kind, order = ("Dense", (1, 0)) if isinstance(layer, nn.Linear) else ("Conv", (2, 3, 1, 0))
        # A normalised weight is the result: the raw one is what was learned.
        normalised = getattr(layer, "parametrizations", None)
        weight = layer.weight if normalised is None else normalised.weight.original
        kernel = {"kernel": read(weight).transpose(order)}  # in flax inputs come before outputs
        bias = {} if layer.bias is None else {"bias": read(layer.bias)}
        params[f"{kind}_{counts[kind]}"] = kernel | bias
        counts[kind] += 1
    return params


def _over_nets(function, nets):
    """``function`` of a module, or of each in a dict of them."""
    if isinstance(nets, dict):
        return {name: function(net) for name, net in nets.items()}
    return function(nets)


# --- the two backends


class Pyro:
    """Pyro, as programs of the tests use it."""

    package, dist, handlers, infer = pyro_spread, pyro_dist, pyro.poutine, pyro.infer
    plate, sample = staticmethod(pyro.plate), staticmethod(pyro.sample)
    np, array, partial = torch, staticmethod(torch.as_tensor), functools.partial
    key = ()  # what comes first among the arguments of a function that draws

    @staticmethod
    def param(name, value):
        return pyro.param(name, torch.tensor(value))

    @staticmethod
    def deterministic(name, value):
        return pyro.deterministic(name, value, event_dim=1)

    @staticmethod
    def normal(name, loc, scale, vmapped=True):
        return TorchNormal(name, loc, torch.as_tensor(scale).expand(loc.shape))

    noise = TorchNoise

    @staticmethod
    def pick(ours, theirs):
        """What the two backends cannot share."""
        return ours

    @staticmethod
    def loss(loss, model, *args, guide=no_guide, params=None):
        pyro.clear_param_store()
        _rows_asked.clear()
        return loss.loss(model, guide, *map(torch.as_tensor, args))

    @staticmethod
    def loss_and_grads(loss, model, guide, *data, params, nets=None, compiled=False):
        """
        Value of a loss, and its gradients by the names of params.

        :param params: values by name.
        :param nets: torch modules, or dicts of them, by the name of their params in NumPyro.
        :param compiled: whether NumPyro compiles.
        """
        pyro.clear_param_store()
        _rows_asked.clear()
        value = loss.loss_and_grads(model, guide, *map(torch.tensor, data))
        store = dict(pyro.get_param_store().named_parameters())
        grads = {name: np.zeros(np.shape(given)) for name, given in params.items()}
        for name, given in store.items():
            if name in params and given.grad is not None:
                grads[name] = given.grad.numpy()
        read = functools.partial(flax_params, part=lambda param: param.grad)
        return value, grads | {name: _over_nets(read, net) for name, net in (nets or {}).items()}

    @staticmethod
    def value_and_gradients(function, *arrays, compiled=False):
        tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
        value = function(*tensors)
        if not value.requires_grad:  # a constant
            return value.numpy(), [np.zeros(array.shape) for array in arrays]
        grads = torch.autograd.grad(value.sum(), tensors, materialize_grads=True)
        return value.detach().numpy(), [grad.numpy() for grad in grads]


class NumPyro:
    """NumPyro, with the same members."""

    package, dist, handlers = numpyro_spread, numpyro_dist, numpyro.handlers
    infer = numpyro.infer
    plate, sample = staticmethod(numpyro.plate), staticmethod(numpyro.sample)
    deterministic = staticmethod(numpyro.deterministic)
    np, array, partial = jnp, staticmethod(jnp.asarray), Partial
    key = (jax.random.key(0),)

    @staticmethod
    def param(name, value):
        return numpyro.param(name, jnp.asarray(value))

    normal, noise = JaxNormal, JaxNoise

    @staticmethod
    def pick(ours, theirs):
        return theirs

    @staticmethod
    def loss(loss, model, *args, guide=no_guide, params=None):
        params = jax.tree.map(jnp.asarray, params or {})
        return float(loss.loss(*NumPyro.key, params, model, guide, *map(jnp.asarray, args)))

    @staticmethod
    def loss_and_grads(loss, model, guide, *data, params, nets=None, compiled=False):
        start = {name: jnp.asarray(given) for name, given in params.items()}
        start |= {name: _over_nets(flax_params, net) for name, net in (nets or {}).items()}

        def value(params):
            return loss.loss(*NumPyro.key, params, model, guide, *map(jnp.asarray, data))

        function = jax.value_and_grad(value)
        return (jax.jit(function) if compiled else function)(start)

    @staticmethod
    def value_and_gradients(function, *arrays, compiled=False):
        def both(*arrays):
            value, pull_back = jax.vjp(function, *arrays)
            return value, list(pull_back(jnp.ones_like(value)))

        return (jax.jit(both) if compiled else both)(*map(jnp.asarray, arrays))


BACKENDS = Pyro, NumPyro
in_both = pytest.mark.parametrize("b", BACKENDS, ids=["pyro", "numpyro"])


# --- comparisons


def assert_twins(ours, theirs, rtol=1e-10, atol=1e-12):
    """Check that two trees of one form hold the same numbers; torch tensors count as arrays."""
    ours, theirs = (jax.tree.map(_to_numpy, tree) for tree in (ours, theirs))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    paths, other = jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs)
    for (path, one), two in zip(paths, other, strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(one, two, rtol=rtol, atol=atol, err_msg=name)


def _to_numpy(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def compare(program, **tolerance):
    """
    What ``program(b)`` gives in Pyro, compared with what it gives in NumPyro.

    :param program: gives a tree of arrays in the backend ``b``.
    """
    ours, theirs = map(program, BACKENDS)
    assert_twins(ours, theirs, **tolerance)
    return jax.tree.map(_to_numpy, ours)


def compare_gradients(function, *arrays, compiled=False, **tolerance):
    """Value of ``function(b, *arrays)`` and its gradients in Pyro, compared with NumPyro's."""

    def program(b):
        return b.value_and_gradients(functools.partial(function, b), *arrays, compiled=compiled)

    return compare(program, **tolerance)


def assert_refused_alike(
    mistake, match=None, error=(TypeError, ValueError, NotImplementedError), lengthened=False
):
    """
    Check that ``mistake(b)`` raises one error with one text in both backends.

    :param lengthened: whether Pyro's trace adds the shapes of the sites to the text.
    """
    errors = []
    for b in BACKENDS:
        with pytest.raises(error, match=match) as caught:
            mistake(b)
        errors.append((caught.type, str(caught.value)))
    (kind, text), (other_kind, other) = errors
    assert kind is other_kind
    assert text == other or (lengthened and text.startswith(other))
