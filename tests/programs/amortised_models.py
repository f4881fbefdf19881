# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Programs for amortised guides, each written once.

``b`` has the members ``sample``, ``plate``, ``mask``, ``dist`` and ``np`` of a backend.
"""

import contextlib


def interval_and_scale(b):
    """A latent in an interval and a positive one."""

    def model(x=None):
        theta = b.sample("theta", b.dist.Uniform(-1.0, 2.0))
        s = b.sample("s", b.dist.LogNormal(-0.5, 0.5))
        b.sample("x", b.dist.Normal(theta, s), obs=x)

    return model


def classes(b):
    """Discrete latents: classes, a coin, and two coins in one site."""

    def model(x=None):
        k = b.sample("k", b.dist.Categorical(b.np.ones(3) / 3))
        f = b.sample("f", b.dist.Bernoulli(0.3))
        two = b.sample("two", b.dist.Bernoulli(0.4 * b.np.ones(2)).to_event(1))
        b.sample("x", b.dist.Normal(k + f + two.sum(-1), 0.5), obs=x)

    return model


def hierarchy(b):
    """Global and local latents, of which some may be masked."""

    def model(x=None, size=5, mask=None):
        mu = b.sample("mu", b.dist.Normal(0.0, 1.0))
        tau = b.sample("tau", b.dist.HalfNormal(1.0))
        with b.plate("group", size if x is None else len(x), dim=-1):
            z = b.sample("z", b.dist.Normal(mu, tau))
            with contextlib.nullcontext() if mask is None else b.mask(mask=mask):
                b.sample("x", b.dist.Normal(z, 0.5), obs=x)

    return model


def heavy_scale(b):
    """Groups round a mean, of a scale that may be anything."""

    def model(x=None):
        tau = b.sample("tau", b.dist.HalfCauchy(1.0))
        with b.plate("group", 4 if x is None else len(x), dim=-1):
            z = b.sample("z", b.dist.Normal(0.0, tau))
            b.sample("x", b.dist.Normal(z, 0.5), obs=x)

    return model


def many_supports(b):
    """Every kind of support, plates next to dims of no plate, nested plates."""

    def model(x=None):
        ones = b.np.ones
        u = b.sample("u", b.dist.Uniform(-1.0 * ones(2), 2.0 * ones(2)).to_event(1))
        b.sample("t", b.dist.HalfCauchy(1.0))
        b.sample("l", b.dist.LKJCholesky(3, 1.0))
        k = b.sample("k", b.dist.Categorical(ones(4) / 4))
        outer, inner = b.plate("outer", 2, dim=-2), b.plate("inner", 4, dim=-1)
        with outer:
            w = b.sample("w", b.dist.Dirichlet(ones(3)))
            loose = b.sample("loose", b.dist.Uniform(ones(4), 1.0 + ones(4)))
        with inner:
            v = b.sample("v", b.dist.LogNormal(0.0, 1.0))
        with outer, inner:
            c = b.sample("c", b.dist.Normal(w[..., 0] + v, 1.0))
            loc = b.np.stack([c + k, loose + u[..., 0]], -1)
            b.sample("x", b.dist.Normal(loc, 1.0).to_event(1), obs=x)

    return model


#: Shapes of the latents of :func:`many_supports`.
SHAPES = {
    "u": (2,),
    "t": (),
    "l": (3, 3),
    "k": (),
    "w": (2, 1, 3),
    "loose": (2, 4),
    "v": (4,),
    "c": (2, 4),
}


def conjugate(b):
    """A normal mean, once for every datum: given x it is normal with mean .8 x, variance .2."""

    def model(x):
        with b.plate("data", len(x), dim=-1):
            z = b.sample("z", b.dist.Normal(0.0, 1.0))
            b.sample("x", b.dist.Normal(z, 0.5), obs=x)

    return model
