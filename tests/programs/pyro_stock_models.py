# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Models with a likelihood of an element that is handed to them, and handlers around them."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam, TransformReparam

from pyro_spread import GaussianNoise

SCALE, SHIFT, N = 0.5, 0.3, 6
X = torch.linspace(-1.0, 2.0, N).double()
X2 = torch.linspace(-1.0, 2.0, 12).double().reshape(4, 3)


class Handed(GaussianNoise):
    """Noise that is not drawn, so that what else is drawn is drawn alike."""

    def draw(self, x):
        return x + SHIFT


def delta(loc):
    return dist.Delta(loc)


def normal(loc=0.0, scale=1.0):
    return dist.Normal(torch.tensor(loc).double(), torch.tensor(scale).double())


def weight():
    return pyro.param("weight", torch.tensor(0.7).double())


# Every model takes the data and the likelihood of an element, given its location.


def local(x, like):
    mu = pyro.sample("mu", normal())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal())
        pyro.sample("x", like(mu + weight() * z), obs=x)


def blocked(x, like):
    def inner():
        return pyro.sample("u", normal())

    shift = poutine.block(inner, hide=["u"])()
    mu = pyro.sample("mu", normal())
    with pyro.plate("data", len(x)):
        pyro.sample("x", like(mu + weight() * shift + x.new_zeros(len(x))), obs=x)


def masked(x, like):
    mu = pyro.sample("mu", normal())
    with pyro.plate("data", len(x)), poutine.mask(mask=torch.arange(len(x)) % 2 == 0):
        z = pyro.sample("z", normal())
        pyro.sample("x", like(mu + weight() * z), obs=x)


def masked_site(x, like):
    mu = pyro.sample("mu", normal())
    with pyro.plate("data", len(x)):
        pyro.sample("x", like((mu * weight()).expand(len(x))).mask(torch.arange(len(x)) > 1), obs=x)


def scaled(x, like):
    mu = pyro.sample("mu", normal())
    with pyro.plate("data", len(x)), poutine.scale(scale=2.5):
        z = pyro.sample("z", normal())
        pyro.sample("x", like(mu + weight() * z), obs=x)


def two_observed(x, like):
    mu = pyro.sample("mu", normal())
    with pyro.plate("data", len(x)):
        pyro.sample("x", like((mu * weight()).expand(len(x))), obs=x)
        pyro.sample("w", dist.Normal(mu, 1.0), obs=torch.ones(len(x)).double())


def factor(x, like):
    mu = pyro.sample("mu", normal())
    pyro.factor("bonus", -0.1 * mu**2)
    with pyro.plate("data", len(x)):
        pyro.sample("x", like((mu * weight()).expand(len(x))), obs=x)


def markov(x, like):
    z = torch.zeros(()).double()
    xs = []
    for i in pyro.markov(range(3)):
        z = pyro.sample(f"z_{i}", dist.Normal(weight() * z, 1.0))
        xs.append(z)
    with pyro.plate("data", len(x)):
        pyro.sample("x", like(torch.stack(xs).sum().expand(len(x))), obs=x)


def event(x, like):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", like(weight() * z.sum(-1)), obs=x)


def nested(x, like):
    with pyro.plate("rows", x.shape[0], dim=-2):
        r = pyro.sample("r", normal())
        with pyro.plate("columns", x.shape[1], dim=-1):
            z = pyro.sample("z", normal())
            pyro.sample("x", like(r + weight() * z), obs=x)


def crossed(x, like):
    rows, columns = (
        pyro.plate("rows", x.shape[0], dim=-2),
        pyro.plate("columns", x.shape[1], dim=-1),
    )
    with rows:
        r = pyro.sample("r", normal())
    with columns:
        c = pyro.sample("c", normal())
    with rows, columns:
        pyro.sample("x", like(weight() * (r + c)), obs=x)


def stacked(x, like):
    with pyro.plate_stack("cells", x.shape):
        z = pyro.sample("z", normal())
        pyro.sample("x", like(weight() * z), obs=x)


def upright(x, like):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", normal())
        pyro.sample("x", like(weight() * z), obs=x[:, None])


def subsampled(x, like):
    mu = pyro.sample("mu", normal())
    with pyro.plate("data", len(x), subsample_size=3) as index:
        pyro.sample("x", like((mu * weight()).expand(3)), obs=x[index])


def subsampled_given(x, like):
    mu = pyro.sample("mu", normal())
    with pyro.plate("data", len(x), subsample=torch.tensor([0, 2, 5])) as index:
        pyro.sample("x", like((mu * weight()).expand(3)), obs=x[index])


def sequential(x_0, x_1, x_2, like):
    mu, x = pyro.sample("mu", normal()), (x_0, x_1, x_2)
    for i in pyro.plate("data", 3):
        pyro.sample(f"x_{i}", like(mu * weight()), obs=x[i])


def independent(x, like):
    with pyro.plate("rows", x.shape[0]):
        z = pyro.sample("z", normal())
        loc = (weight() * z)[:, None].expand(-1, x.shape[1])
        pyro.sample("x", like(loc).to_event(1), obs=x)


MODELS = {
    "local": (local, X),
    "block": (blocked, X),
    "mask": (masked, X),
    "mask of the site": (masked_site, X),
    "scale": (scaled, X),
    "two observed": (two_observed, X),
    "factor": (factor, X),
    "markov": (markov, X),
    "event latent": (event, X),
    "nested": (nested, X2),
    "crossed": (crossed, X2),
    "stacked": (stacked, X2),
    "dim -2": (upright, X),
    "subsample": (subsampled, X),
    "subsample given": (subsampled_given, X),
    "sequential": (sequential, tuple(X[:3])),
    "event data": (independent, X2),
}
HANDLERS = {
    "condition": lambda fn: poutine.condition(fn, {"mu": torch.tensor(0.4).double()}),
    "do": lambda fn: poutine.do(fn, {"mu": torch.tensor(0.4).double()}),
    "block": lambda fn: poutine.block(fn, hide_fn=lambda site: site["name"] == "nothing"),
    "mask": lambda fn: poutine.mask(fn, mask=torch.tensor(True)),
    "scale": lambda fn: poutine.scale(fn, scale=0.25),
    "seed": lambda fn: poutine.seed(fn, 7),
    "substitute": lambda fn: poutine.substitute(fn, {"weight": torch.tensor(1.3).double()}),
    "lift": lambda fn: poutine.lift(fn, prior={"weight": normal(0.5, 0.1)}),
    "infer config": lambda fn: poutine.infer_config(fn, lambda site: {"note": 1}),
    "location-scale reparam": lambda fn: poutine.reparam(fn, {"mu": LocScaleReparam(0.5)}),
    "transform reparam": lambda fn: poutine.reparam(fn, {"u": TransformReparam()}),
    "equalize": lambda fn: poutine.equalize(fn, "nothing"),
    "two of them": lambda fn: poutine.scale(poutine.mask(fn, mask=torch.tensor(True)), scale=2.0),
}
