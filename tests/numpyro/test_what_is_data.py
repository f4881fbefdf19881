# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What a model observes is data only if the model has neither drawn nor learned it itself."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import lax
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI

from numpyro_spread import (
    KL,
    AdversarialDivergence,
    EnergyDistance,
    JointContrastELBO,
    concat_sites,
)
from numpyro_spread.ratio import MLPCritic

N = 30
X = np.random.default_rng(0).normal(size=N).astype(np.float32)


def no_guide(*args, **kwargs):
    pass


def model(x, observe=lambda x, z, w: x, score=None):
    w = numpyro.param("w", 0.5)
    with numpyro.plate("data", N):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        if score is not None:
            numpyro.sample("score", dist.Normal(5.0, 1.0), obs=score(z))
        numpyro.sample("x", dist.Normal(w * z, 1.0), obs=observe(x, z, w))


def density_guide(x):
    with numpyro.plate("data", N):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.1), 1.0))


def step(loss, model, guide=no_guide, x=X):
    svi = SVI(model, loss.register(model, guide), optax.sgd(0.1), loss)
    state = svi.init(jax.random.key(0), x)
    return svi.update(state, x)[1]


OWN_DRAWS = {
    "itself": lambda z: z,
    "detached": lax.stop_gradient,
    "a function": lambda z: jnp.square(z)[::-1],
    "rounded": lambda z: jnp.round(10 * z),
}


def losses():
    yield EnergyDistance(), no_guide
    yield AdversarialDivergence(concat_sites(MLPCritic([4]), "x")), no_guide
    yield JointContrastELBO(concat_sites(MLPCritic([4]), "x", "z")), density_guide
    yield JointContrastELBO(divergence=KL()), density_guide


@pytest.mark.parametrize("name", OWN_DRAWS)
def test_own_draws_are_no_data(name):
    for loss, guide in losses():

        def scored(x):
            model(x, score=OWN_DRAWS[name])

        with pytest.raises(ValueError, match=r"site 'score': what it observes .*SpreadELBO"):
            step(loss, scored, guide)


def test_draws_at_observed_sites_are_own_draws():
    def residual(x):
        with numpyro.plate("data", N):
            drawn = numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            numpyro.sample("residual", dist.Normal(0.0, 1.0), obs=drawn - 1.0)

    with pytest.raises(ValueError, match="site 'residual': what it observes changes"):
        step(EnergyDistance(), residual)


def test_discrete_draws_are_own_draws():
    def switched(x):
        which = numpyro.sample("which", dist.Bernoulli(0.5))
        with numpyro.plate("data", N):
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x + which)

    with pytest.raises(ValueError, match="site 'x': what it observes changes"):
        step(EnergyDistance(), switched)


@pytest.mark.parametrize("own", [True, False])
def test_steps_of_a_scan(own):
    def series(x):
        def body(carry, x):
            with numpyro.plate("data", N):
                z = numpyro.sample("z", dist.Normal(carry, 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=z if own else x)
            return z, None

        scan(body, jnp.zeros(N), jnp.stack([x, x + 1.0]))

    if not own:
        assert np.isfinite(step(EnergyDistance(), series))
        return
    with pytest.raises(ValueError, match="site 'x': what it observes changes"):
        step(EnergyDistance(), series)


def test_what_is_learned_is_no_data():
    def own(x):
        model(x, observe=lambda x, z, w: x / w)

    with pytest.raises(ValueError, match=r"site 'x': what it observes depends on params"):
        step(EnergyDistance(), own)


@pytest.mark.parametrize("own", [True, False])
def test_a_model_that_asks_for_values_is_run(own):
    def eager(x):
        with numpyro.plate("data", N):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            sign = 1.0 if z.sum() > 0 else -1.0
            numpyro.sample("x", dist.Normal(sign, 1.0), obs=jnp.sort(z if own else x))

    def look():
        return EnergyDistance().loss(jax.random.key(0), {}, eager, no_guide, X)

    if not own:
        assert np.isfinite(look())
        return
    with pytest.raises(ValueError, match="site 'x': what it observes changes"):
        look()


def test_functions_of_the_arguments_are_data():
    def prepared(x):
        noise = jax.random.uniform(numpyro.prng_key(), (N,))
        model(x, observe=lambda x, z, w: jnp.where(x > 0, jnp.exp(x), x) + noise)

    def subsampled(x):
        with numpyro.plate("data", N, subsample_size=10) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def without_data(x):
        with numpyro.plate("data", N):
            numpyro.sample("x", dist.Normal(0.0, 1.0))

    conditioned = handlers.condition(without_data, data={"x": X})
    for model_of_data in (prepared, subsampled, conditioned):
        assert np.isfinite(step(EnergyDistance(), model_of_data, x=jnp.asarray(X)))


# --- a latent that all data share


def shared(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", N):
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def global_guide(x):
    numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.1), 1.0))


def crossed(x):
    rows, cols = numpyro.plate("data", 10, dim=-2), numpyro.plate("cols", 3, dim=-1)
    with cols:
        loc = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with rows, cols:
        numpyro.sample("x", dist.Normal(loc, 1.0), obs=x.reshape(10, 3))


def unplated(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(N), 1.0))
    numpyro.sample("x", dist.Normal(mu + z, 1.0), obs=x)


@pytest.mark.parametrize("model", [shared, crossed, unplated])
def test_a_shared_latent_of_the_prior_is_told_once(model):
    def fresh(x):
        model(x)

    where = "the batch" if model is unplated else "the plate 'data'"
    with pytest.warns(UserWarning, match=f"'mu' stands outside of {where}.*Put it into the guide"):
        step(EnergyDistance(), fresh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(EnergyDistance(), fresh)
        step(AdversarialDivergence(concat_sites(MLPCritic([4]), "x")), fresh)


def test_other_latents_are_fine():
    def constant(x):
        numpyro.sample("one", dist.Delta(1.0))
        model(x)

    def fresh(x):
        shared(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(EnergyDistance(), fresh, global_guide)
        step(EnergyDistance(), constant)
