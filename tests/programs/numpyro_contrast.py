# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Guides without a density, their twins that have one, and critics that know the log-ratio."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import linen
from jax import lax, random
from jax.tree_util import Partial

from numpyro_spread import ImplicitDistribution

CRITIC = "discriminator$params"
KNOWN = {"gain": jnp.asarray(1.0)}
PARAMS = {"m": jnp.asarray(0.7), "s": jnp.asarray(0.6), "mu": jnp.asarray(0.3)}
X = jnp.asarray([0.5, -1.0, 2.0, 0.1, -0.4, 1.3])


class Known(ImplicitDistribution):
    """The twin of an implicit distribution: the same draws, and a density that is told."""

    def __init__(self, fn, base_dist, event_shape, log_q):
        self.log_q = log_q
        super().__init__(fn, base_dist, event_shape)

    def expand(self, batch_shape):
        base = self.base_dist.expand(batch_shape)
        return Known(self.fn, base, self.event_shape, self.log_q)

    def log_prob(self, value, intermediates=None):
        return self.log_q(value)


def affine(loc, scale, log_q=None):
    """loc + scale * eps; with ``log_q`` it is the twin."""
    fn, base = Partial(lambda loc, scale, eps: loc + scale * eps, loc, scale), dist.Normal(0.0, 1.0)
    return ImplicitDistribution(fn, base, ()) if log_q is None else Known(fn, base, (), log_q)


def normal(value, loc, scale):
    return dist.Normal(loc, scale).log_prob(value)


def frozen(tree):
    return jax.tree.map(lax.stop_gradient, tree)


class Told(linen.Module):
    """A critic that is told its logit, times a param."""

    fn: Callable
    gain: float = 1.0

    @linen.compact
    def __call__(self, values, *args, **kwargs):
        gain = self.param("gain", lambda _: jnp.asarray(self.gain))
        return gain * self.fn(values, *args, **kwargs)


def total(values, *args, **kwargs):
    """The sum of all that is shown, for critics that shall learn something."""
    shape = (*values.batch_shape, -1)
    return sum(value.reshape(shape).sum(-1) for value in values.values())


def silent(values, *args, **kwargs):
    """The log-ratio of a Gaussian guide to its adaptive contrast."""
    return jnp.zeros(values.batch_shape)


# --- the smallest case: z ~ N(mu, 1), x ~ N(z, 1/2), q = N(m x, s²)


def model(x):
    mu = numpyro.param("mu", 0.3)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x):
    m, s = numpyro.param("m", 0.7), numpyro.param("s", 0.6)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", affine(m * x, s))


def exact_loss(params, x):
    """Minus the ELBO of model and guide, in closed form."""
    m, s, mu = params["m"] * x, params["s"], params["mu"]
    likelihood = normal(x, m, 0.5) - s**2 / (2 * 0.25)
    prior = normal(m, mu, 1.0) - s**2 / 2
    entropy = jnp.log(s) + 0.5 * jnp.log(2 * jnp.pi * jnp.e)
    return -(likelihood + prior + entropy).sum()


# --- where nothing is learned: a critic that says nothing, params, and one loss

ZERO = Told(silent)
ALL = {**PARAMS, CRITIC: KNOWN}


def run(loss, model=model, guide=guide, x=X, params=ALL, **kwargs):
    """The loss of the smallest case, where nothing else is said."""
    return loss.loss(random.key(0), params, model, guide, x, **kwargs)


def two_model(x):
    """Two latents of the same plate."""
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        y = numpyro.sample("y", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(y + z, 0.5), obs=x)


# --- steps, compiled as a whole: op by op, every new shape would be a program of its own


def value_of(loss, params, *args, seed=0, **kwargs):
    """The loss at a key."""
    return jax.jit(lambda params: loss.loss(random.key(seed), params, *args, **kwargs))(params)


def value_and_grads(loss, params, *args, seed=0, **kwargs):
    """The loss at a key, and the gradient of every param."""

    def value(params):
        return loss.loss(random.key(seed), params, *args, **kwargs)

    return jax.jit(jax.value_and_grad(value))(params)


def logits_of(loss, params, *args, seed=0, **kwargs):
    """The critic's logits at a key."""
    return jax.jit(lambda params: loss.logits(random.key(seed), params, *args, **kwargs))(params)


def mean_and_error(fn, num_keys=16, seed=0):
    """Mean and standard error of a pytree over random keys."""
    values = jax.jit(lambda keys: lax.map(fn, keys))(random.split(random.key(seed), num_keys))
    mean = jax.tree.map(lambda value: value.mean(0), values)
    error = jax.tree.map(lambda value: value.std(0, ddof=1) / num_keys**0.5, values)
    return mean, error
