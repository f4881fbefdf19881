# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A time series as a Python loop and as NumPyro's scan: steps, models, guides and critics."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.tree_util import Partial
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from numpyro_spread import ImplicitDistribution

T, N = 3, 4
KEYS = jax.random.split(jax.random.key(7), 6)
X, EPS, NOISE = (jax.random.normal(key, (T, N)) for key in KEYS[:3])
X2, EPS2 = (jax.random.normal(key, (T, 2, N)) for key in KEYS[3:5])
MASK = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]], bool)


class Driven(dist.Normal):
    """A normal distribution whose draws are given."""

    pytree_data_fields = ("eps",)

    def __init__(self, loc, scale, eps):
        self.eps = eps
        super().__init__(loc, scale)

    def expand(self, batch_shape):
        wide = [jnp.broadcast_to(each, batch_shape) for each in (self.loc, self.scale)]
        return Driven(*wide, self.eps)

    def sample(self, key, sample_shape=()):
        value = jnp.asarray(self.loc + self.scale * self.eps)
        return jnp.broadcast_to(value, (*sample_shape, *value.shape))


class Step:
    """One step: a body of scan and of a Python loop, where sites have numbers."""

    start = staticmethod(lambda: jnp.zeros(N))
    data = X

    def before(self):
        """Sites outside of the steps."""

    def __call__(self, name, previous, item):
        raise NotImplementedError


class StateSpace(Step):
    def __call__(self, name, previous, item):
        x, eps, noise, _ = item
        with numpyro.plate("N", N):
            z = numpyro.sample(name("z"), Driven(self.a * previous, 1.0, eps))
            numpyro.sample(name("x"), Driven(z, 0.5, noise), obs=x)
        return z


class Deterministic(Step):
    def __call__(self, name, previous, item):
        x, eps, _, _ = item
        with numpyro.plate("N", N):
            z = numpyro.sample(name("z"), Driven(self.a * previous, 1.0, eps))
            numpyro.sample(name("x"), dist.Delta(2 * z), obs=x)
        return z


class TeacherForced(Step):
    """The next step's condition is what is observed, or drawn in its place."""

    def __call__(self, name, previous, item):
        x, eps, _, _ = item
        with numpyro.plate("N", N):
            return numpyro.sample(name("x"), Driven(self.a * previous, 0.5, eps), obs=x)


class Masked(Step):
    def __call__(self, name, previous, item):
        x, eps, noise, mask = item
        with numpyro.plate("N", N), handlers.mask(mask=mask):
            z = numpyro.sample(name("z"), Driven(self.a * previous, 1.0, eps))
            numpyro.sample(name("x"), Driven(z, 0.5, noise), obs=x)
        return z


class Global(Step):
    def before(self):
        self.b = numpyro.sample("b", Driven(0.0, 1.0, 0.3))

    def __call__(self, name, previous, item):
        x, eps, _, _ = item
        with numpyro.plate("N", N):
            return numpyro.sample(name("x"), Driven(self.a * previous + self.b, 0.5, eps), obs=x)


class TwoPlates(Step):
    """The inner plate's sensors share the state of their series."""

    data = X2

    def __call__(self, name, previous, item):
        x, eps, _, _ = item
        with numpyro.plate("N", N, dim=-1):
            z = numpyro.sample(name("z"), Driven(self.a * previous, 1.0, eps[0]))
            with numpyro.plate("sensors", 2, dim=-2):
                numpyro.sample(name("x"), Driven(z, 0.5, eps), obs=x)
        return z


class PlateOutside(Step):
    """A site before the scan stands in the same plate."""

    def before(self):
        with numpyro.plate("N", N):
            self.first = numpyro.sample("z_0", Driven(0.0, 1.0, EPS[1]))

    def __call__(self, name, previous, item):
        x, eps, _, _ = item
        with numpyro.plate("N", N):
            return numpyro.sample(
                name("x"), Driven(self.a * previous + self.first, 0.5, eps), obs=x
            )


def over_time(step, data, scanned):
    """Run the steps: as scan or as a loop."""
    eps = EPS2 if step.data is X2 else EPS
    step.before()
    if scanned:

        def body(previous, item):
            return step(lambda site: site, previous, item), None

        scan(body, jnp.zeros(N), (data, eps, NOISE, MASK))
        return
    previous = jnp.zeros(N)
    for t in range(T):
        previous = step(
            lambda site, t=t: f"{site}{t}", previous, (data[t], eps[t], NOISE[t], MASK[t])
        )


def model_of(kind, scanned):
    def run(data):
        step = kind()
        step.a = numpyro.param("a", 0.6)
        over_time(step, data, scanned)

    if scanned:
        return lambda x: run(x)
    return lambda x0, x1, x2: run([x0, x1, x2])


def arguments(kind, scanned):
    return (kind.data,) if scanned else tuple(kind.data)


def _push(w, x, previous, eps):
    return w * x + 0.3 * previous + 0.8 * eps


class ImplicitStep(Step):
    """The guide's: without."""

    def __call__(self, name, previous, item):
        x, eps, _, _ = item
        fn = Partial(_push, self.a, x, previous)
        with numpyro.plate("N", N):
            return numpyro.sample(name("z"), ImplicitDistribution(fn, Driven(0.0, 1.0, eps), ()))


def guide_of(kind, scanned):
    def run(data):
        step = kind()
        step.a = numpyro.param("w", 0.4)
        over_time(step, data, scanned)

    if scanned:
        return lambda x: run(x)
    return lambda x0, x1, x2: run([x0, x1, x2])


def no_guide(*args):
    pass
