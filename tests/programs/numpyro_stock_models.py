# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Models with a likelihood of an element that is handed to them, and handlers around them."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.reparam import LocScaleReparam, TransformReparam

from numpyro_spread import GaussianNoise

SCALE, SHIFT, N = 0.5, 0.3, 6
X = np.linspace(-1.0, 2.0, N)
X2 = np.linspace(-1.0, 2.0, 12).reshape(4, 3)


class Handed(GaussianNoise):
    """Noise that is not drawn, so that what else is drawn is drawn alike."""

    def draw(self, rng_key, x):
        return jnp.asarray(x) + SHIFT


def delta(loc):
    return dist.Delta(loc)


def weight():
    return numpyro.param("weight", 0.7)


# Every model takes the data and the likelihood of an element, given its location.


def local(x, like):
    mu, w = numpyro.sample("mu", dist.Normal()), weight()
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", like(mu + w * z), obs=x)


def masked(x, like):
    mu, w = numpyro.sample("mu", dist.Normal()), weight()
    with numpyro.plate("data", len(x)), handlers.mask(mask=jnp.arange(len(x)) % 2 == 0):
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", like(mu + w * z), obs=x)


def masked_site(x, like):
    mu, w = numpyro.sample("mu", dist.Normal()), weight()
    with numpyro.plate("data", len(x)):
        loc = jnp.broadcast_to(mu * w, (len(x),))
        numpyro.sample("x", like(loc).mask(jnp.arange(len(x)) > 1), obs=x)


def scaled(x, like):
    mu, w = numpyro.sample("mu", dist.Normal()), weight()
    with numpyro.plate("data", len(x)), handlers.scale(scale=2.5):
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", like(mu + w * z), obs=x)


def two_observed(x, like):
    mu, w = numpyro.sample("mu", dist.Normal()), weight()
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", like(jnp.broadcast_to(mu * w, (len(x),))), obs=x)
        numpyro.sample("w", dist.Normal(mu, 1.0), obs=jnp.ones(len(x)))


def factor(x, like):
    mu, w = numpyro.sample("mu", dist.Normal()), weight()
    numpyro.factor("bonus", -0.1 * mu**2)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", like(jnp.broadcast_to(mu * w, (len(x),))), obs=x)


def loop(x, like):
    z, w = 0.0, weight()
    for i in range(3):
        z = numpyro.sample(f"z_{i}", dist.Normal(w * z, 1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", like(jnp.broadcast_to(z, (len(x),))), obs=x)


def scanned_latents(x, like):
    w = weight()

    def step(z, _):
        z = numpyro.sample("z", dist.Normal(w * z, 1.0))
        return z, z

    _, zs = scan(step, 0.0, None, length=len(x))
    numpyro.sample("x", like(zs).to_event(1), obs=x)


def event_latent(x, like):
    w = weight()
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", like(w * z.sum(-1)), obs=x)


def event_data(x, like):
    w = weight()
    with numpyro.plate("rows", x.shape[0]):
        z = numpyro.sample("z", dist.Normal())
        loc = jnp.broadcast_to((w * z)[:, None], x.shape)
        numpyro.sample("x", like(loc).to_event(1), obs=x)


def nested(x, like):
    w = weight()
    with numpyro.plate("rows", x.shape[0], dim=-2):
        r = numpyro.sample("r", dist.Normal())
        with numpyro.plate("columns", x.shape[1], dim=-1):
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("x", like(r + w * z), obs=x)


def crossed(x, like):
    w = weight()
    rows = numpyro.plate("rows", x.shape[0], dim=-2)
    columns = numpyro.plate("columns", x.shape[1], dim=-1)
    with rows:
        r = numpyro.sample("r", dist.Normal())
    with columns:
        c = numpyro.sample("c", dist.Normal())
    with rows, columns:
        numpyro.sample("x", like(w * (r + c)), obs=x)


def stacked(x, like):
    w = weight()
    with numpyro.plate_stack("cells", x.shape):
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", like(w * z), obs=x)


def upright(x, like):
    w = weight()
    with numpyro.plate("data", len(x), dim=-2):
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", like(w * z), obs=x[:, None])


def subsampled(x, like):
    mu, w = numpyro.sample("mu", dist.Normal()), weight()
    with numpyro.plate("data", len(x), subsample_size=3):
        batch = numpyro.subsample(jnp.asarray(x), event_dim=0)
        numpyro.sample("x", like(jnp.broadcast_to(mu * w, (3,))), obs=batch)


MODELS = {
    "local": (local, X),
    "mask": (masked, X),
    "mask of the site": (masked_site, X),
    "scale": (scaled, X),
    "two observed": (two_observed, X),
    "factor": (factor, X),
    "loop": (loop, X),
    "scanned latents": (scanned_latents, X),
    "event latent": (event_latent, X),
    "event data": (event_data, X2),
    "nested": (nested, X2),
    "crossed": (crossed, X2),
    "stacked": (stacked, X2),
    "dim -2": (upright, X),
    "subsample": (subsampled, X),
}
HANDLERS = {
    "condition": lambda fn: handlers.condition(fn, {"mu": 0.4}),
    "do": lambda fn: handlers.do(fn, {"mu": 0.4}),
    "block": lambda fn: handlers.block(fn, hide_fn=lambda site: site.get("name") == "nothing"),
    "mask": lambda fn: handlers.mask(fn, mask=True),
    "scale": lambda fn: handlers.scale(fn, scale=0.25),
    "seed": lambda fn: handlers.seed(fn, 7),
    "substitute": lambda fn: handlers.substitute(fn, {"weight": 1.3}),
    "lift": lambda fn: handlers.lift(fn, prior={"weight": dist.Normal(0.5, 0.1)}),
    "infer config": lambda fn: handlers.infer_config(fn, lambda site: {"note": 1}),
    "location-scale reparam": lambda fn: handlers.reparam(fn, {"mu": LocScaleReparam(0.5)}),
    "transform reparam": lambda fn: handlers.reparam(fn, {"u": TransformReparam()}),
    "two of them": lambda fn: handlers.scale(handlers.mask(fn, mask=True), scale=2.0),
}
