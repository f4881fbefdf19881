# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Amortised guides with learned embeddings, in both backends alike."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
import optax
import pyro
import pyro.distributions
import torch

import numpyro_spread
import pyro_spread


class Pyro:
    """The Pyro side of every test."""

    spread, ppl, dist, xp = pyro_spread, pyro, pyro.distributions, torch
    array = staticmethod(torch.as_tensor)

    @staticmethod
    def mask(values):
        return pyro.poutine.mask(mask=torch.as_tensor(values))

    @staticmethod
    def dense(inputs, outputs):
        return torch.nn.Linear(inputs, outputs)

    @staticmethod
    def convolution():
        return torch.nn.Sequential(
            torch.nn.Unflatten(1, (1, 8)),
            torch.nn.Conv2d(1, 4, 3),
            torch.nn.SiLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(144, 4),
        )

    def scored(self, guide, values, *args):
        pyro.set_rng_seed(0)
        guide(*args)
        return lambda *others: guide.log_prob(values, *others).detach().numpy()

    def gradients(self, guide, values, *args):
        """Of the log density, of every param."""
        guide.log_prob(values, *args).sum().backward()
        return [param.grad for param in guide.parameters() if param.grad is not None]

    def steps(self, model, guide, count, *args):
        """Params of the embedding before and after steps of SVI."""
        pyro.clear_param_store()
        loss = pyro_spread.JointContrastELBO(
            divergence=pyro_spread.KL(), num_particles=16, vectorize_particles=True
        )
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)

        def own():
            found = guide.params()[guide.embedding_name]
            return {key: value.detach().numpy().copy() for key, value in found.items()}

        guide(*args)
        before = own()
        for _ in range(count):
            assert np.isfinite(svi.step(*args))
        return before, own()


class NumPyro:
    """The NumPyro side of every test."""

    spread, ppl, dist, xp = numpyro_spread, numpyro, numpyro.distributions, jnp
    array = staticmethod(jnp.asarray)

    @staticmethod
    def mask(values):
        return numpyro.handlers.mask(mask=jnp.asarray(values))

    @staticmethod
    def dense(inputs, outputs):
        return nn.Dense(outputs)

    @staticmethod
    def convolution():
        return nn.Sequential(
            [
                lambda x: x[..., None],
                nn.Conv(4, (3, 3), padding="VALID"),
                nn.silu,
                lambda x: x.reshape(len(x), -1),
                nn.Dense(4),
            ]
        )

    def scored(self, guide, values, *args):
        seeded = numpyro.handlers.seed(guide, jax.random.key(0))
        sites = numpyro.handlers.trace(seeded).get_trace(*args)
        params = {n: site["value"] for n, site in sites.items() if site["type"] == "param"}
        return lambda *others: np.asarray(guide.log_prob(params, values, *others))

    def gradients(self, guide, values, *args):
        """Of the log density, of every param."""
        sites = numpyro.handlers.trace(numpyro.handlers.seed(guide, 0)).get_trace(*args)
        params = {n: site["value"] for n, site in sites.items() if site["type"] == "param"}
        return jax.tree.leaves(jax.grad(lambda p: guide.log_prob(p, values, *args).sum())(params))

    def steps(self, model, guide, count, *args):
        """Params of the embedding before and after steps of SVI."""
        loss = numpyro_spread.JointContrastELBO(
            divergence=numpyro_spread.KL(), num_particles=16, vectorize_particles=True
        )
        svi = numpyro.infer.SVI(model, guide, optax.adam(1e-3), loss)
        state = svi.init(jax.random.key(0), *args)
        before = svi.get_params(state)[guide.embedding_name]
        update = jax.jit(lambda state: svi.update(state, *args))
        for _ in range(count):
            state, value = update(state)
            assert np.isfinite(value)
        return before, svi.get_params(state)[guide.embedding_name]


BACKENDS = {"pyro": Pyro(), "numpyro": NumPyro()}


def vector(backend):
    """Five measurements of a normal mean."""

    def model(x=None):
        mean = backend.ppl.sample("mean", backend.dist.Normal(0.0, 1.0))
        loc = mean[..., None] * backend.xp.ones(5)
        backend.ppl.sample("x", backend.dist.Normal(loc, 1.0).to_event(1), obs=x)

    return model


class Recurrent(torch.nn.Module):
    """The last state of a GRU along a series."""

    def __init__(self):
        super().__init__()
        self.gru = torch.nn.GRU(1, 6, batch_first=True)

    def forward(self, x):
        return self.gru(x[..., None])[1][0]


def image(backend):
    """An image whose brightness is the latent."""

    def model(x=None):
        mean = backend.ppl.sample("mean", backend.dist.Normal(0.0, 1.0))
        loc = mean[..., None, None] * backend.xp.ones((8, 8))
        backend.ppl.sample("x", backend.dist.Normal(loc, 0.5).to_event(2), obs=x)

    return model


def ragged(backend):
    """Groups of any size: a scale, and elements of which a mask says which count."""
    ppl, dist = backend.ppl, backend.dist

    def model(mask, x=None):
        scale = ppl.sample("scale", dist.LogNormal(0.0, 1.0))
        with ppl.plate("items", len(mask), dim=-1), backend.mask(mask):
            ppl.sample("x", dist.Normal(0.0, scale), obs=x)

    return model


def shaped(backend, size=40):
    """A shape that mean and spread do not show: mixtures of two normals, all of variance 1."""
    ppl, dist, xp = backend.ppl, backend.dist, backend.xp

    def model(x=None):
        apart = ppl.sample("apart", dist.Uniform(0.0, 1.0))
        with ppl.plate("items", size, dim=-1):
            width = xp.sqrt(1 - 0.95 * apart**2)
            shift = 0.95**0.5 * apart
            locs = xp.stack([-shift, shift], -1)
            scales = xp.stack([width, width], -1)
            mixed = dist.MixtureSameFamily(
                dist.Categorical(probs=0.5 * xp.ones(2)), dist.Normal(locs, scales)
            )
            ppl.sample("x", mixed, obs=x)

    return model
