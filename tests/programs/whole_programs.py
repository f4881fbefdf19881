# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Whole programs for posterior estimation, written once for both backends, and guides of them.

Their draws are known numbers, so that their losses are: a prior of almost no width.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

TINY = 1e-30
# A row for every particle; of a normal density with these widths the loss is known.
MU = np.array([0.3, -0.8, 1.1, 0.4])
WIDTHS = {"mu": 0.9, "z": 0.6, "c": 1.3}


def minus_log(value, loc, width):
    """Minus the log density of a normal distribution."""
    return 0.5 * np.log(2 * np.pi) + np.log(width) + 0.5 * ((value - loc) / width) ** 2


@dataclass
class Table:
    """Like ``Simulations``, as far as a loss reads it."""

    values: dict[str, np.ndarray]
    observed: tuple[str, ...] = ("x",)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    valid: Any = None

    def __post_init__(self):
        if self.valid is None:
            self.valid = np.ones(len(next(iter(self.values.values()))), bool)


class KnowingGuide:
    """
    A guide that knows its data site: ``fn(b, x, mask)`` at what it is given, or at zeros.

    :param b: the backend.
    :param fn: its sites.
    :param shape: of the data.
    :param sites: the names that it tells.
    """

    def __init__(self, b, fn, shape, sites=("x",), values=None, masks=None):
        self.b, self.fn, self.shape, self.sites = b, fn, shape, sites
        self.values, self.masks = values, masks

    def data_sites(self, *args, **kwargs):
        return self.sites

    def given(self, values, masks=None):
        return KnowingGuide(self.b, self.fn, self.shape, self.sites, values, masks)

    def __call__(self, *args, **kwargs):
        x = self.b.array(np.zeros(self.shape)) if self.values is None else self.values["x"]
        self.fn(self.b, x, (self.masks or {}).get("x"))


class UnmaskedGuide(KnowingGuide):
    """One that cannot be told of masks."""

    def given(self, values):
        return KnowingGuide(self.b, self.fn, self.shape, self.sites, values)


# --- a global latent, local ones, and one inside of these


def hierarchy(b, size=None):
    """Two groups of three: mu, z by group, c by element; ``size`` subsamples three groups."""

    def model(x=None, shift=0.0):
        mu = b.sample("mu", b.dist.Normal(0.3 + shift, TINY))
        groups = {"subsample_size": 2} if size else {}
        with b.plate("groups", size or 2, dim=-2, **groups):
            z = b.sample("z", b.dist.Normal(2 * mu, TINY))
            with b.plate("elements", 3, dim=-1):
                c = b.sample("c", b.dist.Normal(z + 1.0, TINY))
                b.sample("x", b.dist.Normal(c - mu, TINY), obs=x)

    return model


def hierarchical_sites(size=None):
    def sites(b, x, mask=None):
        b.sample("mu", b.dist.Normal(x.mean((-1, -2), keepdims=True), WIDTHS["mu"]))
        groups = {"subsample_size": 2} if size else {}
        with b.plate("groups", size or 2, dim=-2, **groups):
            b.sample("z", b.dist.Normal(x[..., :1], WIDTHS["z"]))
            with b.plate("elements", 3, dim=-1):
                b.sample("c", b.dist.Normal(x, WIDTHS["c"]))

    return sites


def hierarchical_loss(mu=0.3, scale=1.0):
    """Of one run: z is 2 mu, c is z + 1 and x is c - mu."""
    z, c, x = 2 * mu, 2 * mu + 1, mu + 1
    local = 2 * minus_log(z, x, WIDTHS["z"]) + 6 * minus_log(c, x, WIDTHS["c"])
    return minus_log(mu, x, WIDTHS["mu"]) + scale * local


def hierarchical_rows():
    """A table of runs that differ in mu, with the loss of each."""
    ones = np.ones((len(MU), 2, 3))
    mu = MU[:, None, None]
    values = {"mu": MU, "z": 2 * mu * ones[..., :1], "c": (2 * mu + 1) * ones, "x": (mu + 1) * ones}
    return Table(values), np.array([hierarchical_loss(mu) for mu in MU])


def value_of(b, loss, model, guide, *args):
    """The loss where there are no params."""
    key = (*b.key, {}) if b.key else ()
    return float(loss.loss(*key, model, guide, *args))


# --- data of which some are masked

MASK = np.array([True, True, False, True])


def masked_sites(b, x, mask):
    mask = b.array(np.ones(4)) if mask is None else mask * b.array(np.ones(4))
    mean = (x * mask).sum(-1, keepdims=True) / mask.sum(-1, keepdims=True)
    b.sample("mu", b.dist.Normal(mean, WIDTHS["mu"]))
