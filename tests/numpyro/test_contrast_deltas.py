# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Deltas in a guide of PriorContrastELBO: what is refused of them, and what is accepted."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from numpyro_contrast import ALL, ZERO, X, affine, model, run, two_model

from numpyro_spread import PriorContrastELBO


def tempting(x):
    m, s = numpyro.param("m", 0.7), numpyro.param("s", 0.6)
    with numpyro.plate("data", len(x)):
        eps = numpyro.sample("eps", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Delta(m * x + s * eps))


def hidden(x):
    m, s = numpyro.param("m", 0.7), numpyro.param("s", 0.6)
    with numpyro.plate("data", len(x)):
        eps = random.normal(numpyro.prng_key(), (len(x),))
        numpyro.sample("z", dist.Delta(m * x + s * eps).mask(True))


def beside_implicit(x):
    m = numpyro.param("m", 0.7)
    with numpyro.plate("data", len(x)):
        y = numpyro.sample("y", affine(x, 1.0))
        numpyro.sample("z", dist.Delta(jax.jit(jnp.multiply)(m, y)))


@pytest.mark.parametrize("bad", [tempting, hidden])
@pytest.mark.parametrize("compile", [False, True])
def test_a_delta_at_random_noise_is_refused(bad, compile):
    loss = PriorContrastELBO(ZERO)
    call = jax.jit(lambda params: run(loss, guide=bad, params=params))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'z' is a Delta at a function of random noise and"):
            call(ALL) if compile else run(loss, guide=bad)


def test_a_delta_at_an_implicit_draw_and_params_is_refused():
    with pytest.raises(ValueError, match=r"'z' is a Delta at a function of random noise and"):
        run(PriorContrastELBO(ZERO), two_model, beside_implicit)


def transformed(x):
    with numpyro.plate("data", len(x)):
        eps = numpyro.sample("eps", affine(x, 1.0), infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Delta(jnp.sinh(eps), log_density=-jnp.log(jnp.cosh(eps))))


def free_of_params(x):
    with numpyro.plate("data", len(x)):
        eps = numpyro.sample("eps", affine(x, 1.0), infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Delta(2 * eps))


def subsampled_map(x):
    loc = numpyro.param("loc", jnp.zeros(len(x)))
    with numpyro.plate("data", len(x), subsample_size=3) as indices:
        numpyro.sample("z", dist.Delta(loc[indices]))


@pytest.mark.parametrize("good", [transformed, free_of_params])
def test_a_change_of_variables_is_accepted(good):
    assert jnp.isfinite(run(PriorContrastELBO(ZERO), guide=good))


def subsampling(x):
    with numpyro.plate("data", len(x), subsample_size=3) as indices:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x[indices])


@pytest.mark.parametrize(
    ("good", "model"),
    [
        (AutoDelta, subsampling),
        (AutoNormal, subsampling),
        (AutoMultivariateNormal, model),
        (lambda model: subsampled_map, subsampling),
    ],
)
def test_point_estimates_and_autoguides_are_accepted(good, model):
    loss = PriorContrastELBO(ZERO)
    svi = SVI(model, loss.register(model, good(model)), optax.sgd(0.1), loss)
    state = svi.init(random.key(0), X)
    assert jnp.isfinite(svi.update(state, X)[1])
