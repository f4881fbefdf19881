# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Guides without a density, their twins that have one, and critics that know the log-ratio."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_spread import ImplicitDistribution, two_player

VALUES = {"m": 0.7, "s": 0.6, "mu": 0.3}


def data(n=6):
    """The data in the default type: 0.5, -1.0, 2.0, ..."""
    return torch.tensor([0.5, -1.0, 2.0, 0.1, -0.4, 1.3])[:n]


def param(name, value=None):
    return pyro.param(name, torch.tensor(VALUES[name] if value is None else value))


class Known(ImplicitDistribution):
    """The twin of an implicit distribution: the same draws, and a density that is told."""

    def __init__(self, fn, base_dist, event_shape, log_q):
        super().__init__(fn, base_dist, event_shape)
        self.log_q = log_q

    def expand(self, batch_shape, _instance=None):
        base = self.base_dist.expand(batch_shape)
        return Known(self.fn, base, self.event_shape, self.log_q)

    def log_prob(self, value):
        return self.log_q(value).expand(value.shape[: value.dim() - self.event_dim])


def normal(value, loc, scale):
    return dist.Normal(loc, scale).log_prob(value)


def affine(loc, scale, twin=False):
    """loc + scale * eps; the twin's density has fixed params, as a frozen critic has."""
    base = dist.Normal(torch.zeros(()), 1.0)
    if not twin:
        return ImplicitDistribution(lambda eps: loc + scale * eps, base, ())
    fixed = torch.as_tensor(loc).detach(), torch.as_tensor(scale).detach()
    return Known(lambda eps: loc + scale * eps, base, (), lambda v: normal(v, *fixed))


class Told(nn.Module):
    """A critic that is told its logit, times a param."""

    def __init__(self, fn, gain=1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.fn = fn

    def forward(self, values, *args, **kwargs):
        return self.gain * self.fn(values, *args, **kwargs)


def total(values, *args, **kwargs):
    """The sum of all that is shown, for critics that shall learn something."""
    return sum(value.reshape(*values.batch_shape, -1).sum(-1) for value in values.values())


def silent(values, *args, **kwargs):
    """The log-ratio of a Gaussian guide to its adaptive contrast."""
    return torch.zeros(values.batch_shape)


class Recorder(nn.Module):
    """A critic that remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.seen = []

    def forward(self, values, *args, **kwargs):
        self.seen.append((values, args, kwargs))
        return self.weight * total(values)

    def values(self, name):
        return [values[name].detach() for values, _, _ in self.seen]

    def arguments(self, name):
        return [values.arguments[name] for values, _, _ in self.seen]


# --- the smallest case: z ~ N(mu, 1), x ~ N(z, 1/2), q = N(m x, s²)


def model(x):
    mu = param("mu")
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x, twin=False):
    m, s = param("m"), param("s")
    with pyro.plate("data", len(x)):
        pyro.sample("z", affine(m * x, s, twin))


def log_ratio(values, x):
    """What the plain contrast's critic should say of the smallest case."""
    z, at = values["z"], values.arguments["x"]
    return normal(z, VALUES["m"] * at, VALUES["s"]) - normal(z, VALUES["mu"], 1.0)


def exact_loss(m, s, mu, x):
    """Minus the ELBO of the smallest case, in closed form."""
    likelihood = normal(x, m * x, 0.5) - s**2 / (2 * 0.25)
    prior = normal(m * x, mu, 1.0) - s**2 / 2
    entropy = s.log() + 0.5 * torch.log(2 * torch.pi * torch.e * torch.ones(()))
    return -(likelihood + prior + entropy).sum()


# --- steps


def value_and_grads(loss, model, guide, *args, seed=0, **kwargs):
    """The loss and the gradient of every param in the store, from params as they begin."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    value = loss.loss_and_grads(model, guide, *args, **kwargs)
    grads = {}
    for name, value_ in pyro.get_param_store()._params.items():
        grads[name], value_.grad = value_.grad, None
    return value, grads


def assert_equal(ours, stock, rtol=1e-9):
    """Values, and gradients of all params that the stock ELBO has."""
    torch.testing.assert_close(ours[0], stock[0], rtol=rtol, atol=rtol)
    assert stock[1]
    for name, grad in stock[1].items():
        torch.testing.assert_close(ours[1][name], grad, rtol=rtol, atol=rtol, msg=name)


def sgd(generator=0.01, critic=0.01, steps=1):
    rates = (pyro.optim.SGD({"lr": rate}) for rate in (generator, critic))
    return two_player(*rates, discriminator_steps=steps)


def snapshot():
    """What an error must leave as it is: params in the store, and their gradients."""
    store = pyro.get_param_store()
    return {
        name: (p.detach().clone(), None if p.grad is None else p.grad.clone())
        for name, p in store._params.items()
    }


def unchanged(before):
    """Whether the store is as it was."""
    after = snapshot()
    if before.keys() != after.keys():
        return False
    return all(
        torch.equal(before[name][0], after[name][0])
        and (before[name][1] is None) == (after[name][1] is None)
        and (before[name][1] is None or torch.equal(before[name][1], after[name][1]))
        for name in before
    )
