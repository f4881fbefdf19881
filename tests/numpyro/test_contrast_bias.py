# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""PriorContrastELBO in NumPyro says by how many nats its critic lags; truth in closed form."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import lax, random
from jax.tree_util import Partial
from numpyro.handlers import mask as masked
from numpyro.infer import SVI
from numpyro_contrast import Told, X, silent

from numpyro_spread import FalseEvidenceWarning, ImplicitDistribution, PriorContrastELBO

RHO, NUM_DATA = 0.9, 6
# KL divergence of a Gaussian with this correlation from the independent one, per datum.
LAG = -0.5 * math.log(1 - RHO**2)


def model(x, mask=True):
    with numpyro.plate("data", 10 * NUM_DATA, subsample_size=NUM_DATA), masked(mask=mask):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)


def guide(x, mask=True, rho=RHO):
    tril = jnp.array([[1.0, 0.0], [rho, math.sqrt(1 - rho**2)]])
    fn = Partial(lambda x, eps: 0.1 * x[:, None] + 0.5 * (tril @ eps[..., None])[..., 0], x)
    base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    with numpyro.plate("data", 10 * NUM_DATA, subsample_size=NUM_DATA), masked(mask=mask):
        numpyro.sample("z", ImplicitDistribution(fn, base, event_shape=(2,)))


def prior_ratio(values, x, mask=True):
    """The log-ratio to the prior, but for the correlation."""
    z = values["z"]
    own = dist.Normal(0.1 * x[:, None] + 0 * z, 0.5).to_event(1)
    return own.log_prob(z) - dist.Normal(jnp.zeros(2), 1.0).to_event(1).log_prob(z)


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ({}, True),
        ({"num_particles": 3}, [True, False, True, True, False, True]),
        pytest.param({"num_critic_draws": 1}, True, marks=pytest.mark.slow),
        ({"adaptive": False}, [True, False, True, True, False, True]),
    ],
)
def test_the_lag_of_a_critic_in_closed_form(options, mask):
    num, mask = (NUM_DATA, True) if mask is True else (sum(mask), np.array(mask))
    x = jnp.where(mask, X, 1e4)  # what is masked may be anything
    critic = Told(silent if options.get("adaptive", True) else prior_ratio)
    loss = PriorContrastELBO(critic, num_moment_draws=60, **options)
    registered = loss.register(model, guide)
    svi = SVI(model, registered, optax.sgd(0.0), loss)
    params = svi.get_params(svi.init(random.key(0), x, mask))

    def gap(key):
        step = loss._spreading.looked(params, model, (x, mask), {}, registered)
        _, run = loss._run(key, loss._options, step, params, model, registered, None)
        return run.learn(jnp.asarray(True))[1][0][1]

    looked = np.asarray(jax.jit(lambda keys: lax.map(gap, keys))(random.split(random.key(1), 300)))
    gaps, data = looked.T
    assert set(data) == {10.0 * num}  # of a subsampled plate all, of masked data none
    error = gaps.std() / math.sqrt(len(gaps))
    wanted = 10 * num * LAG
    assert error < 0.08 * wanted
    assert abs(gaps.mean() - wanted) < 4 * error


def train(monkeypatch, rho):
    """At every step a look, so that seven blocks of sixteen are 112 steps."""
    monkeypatch.setattr("numpyro_spread.infer.contrast_elbo.GAP_EVERY", 1)
    loss = PriorContrastELBO(Told(silent), num_moment_draws=32, num_critic_draws=4)
    of_rho = functools.partial(guide, rho=rho)
    svi = SVI(model, loss.register(model, of_rho), optax.sgd(0.0), loss)
    jax.block_until_ready(svi.run(random.key(0), 115, X, progress_bar=False))
    return loss


def test_training_with_a_critic_that_lags_warns_though_it_is_rarely_right(monkeypatch):
    with pytest.warns(FalseEvidenceWarning, match=r"lies [45]\d.* own draws allow"):
        train(monkeypatch, RHO)


def test_training_with_a_critic_that_knows_does_not(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = train(monkeypatch, 0.0)
    assert loss._gap.blocks == 7


def checked(loss, guide, x, model=model):
    svi = SVI(model, loss.register(model, guide), optax.sgd(0.0), loss)
    params = svi.get_params(svi.init(random.key(0), x))
    return loss.held_out_check(random.key(1), params, model, guide, x, num_steps=2, num_draws=100)


@pytest.mark.parametrize("adaptive", [pytest.param(True, marks=pytest.mark.slow), False])
def test_the_held_out_check_finds_the_lag(adaptive):
    loss = PriorContrastELBO(Told(silent if adaptive else prior_ratio), adaptive=adaptive)
    with pytest.warns(FalseEvidenceWarning, match="overstates the ELBO by"):
        report = checked(loss, guide, X)
    assert abs(report.gap - 10 * NUM_DATA * LAG) < 4 * report.standard_error
    assert report.is_known()


def scalar(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.3, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def bumps(x):
    """Two bumps of 0.1 at ±0.5: its Gaussian is two thirds of a nat away."""
    fn = Partial(lambda x, e: 0.7 * x + 0.5 * jnp.sign(e[..., 0]) + 0.1 * e[..., 1], x)
    base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", ImplicitDistribution(fn, base, ()))


def bumps_ratio(values, x):
    z = values["z"]
    low, high = (dist.Normal(0.7 * x + at, 0.1).log_prob(z) - math.log(2) for at in (-0.5, 0.5))
    return jnp.logaddexp(low, high) - dist.Normal(0.3, 1.0).log_prob(z)


@pytest.mark.slow
def test_where_no_other_critic_is_as_good_nothing_is_known():
    loss = PriorContrastELBO(Told(bumps_ratio), adaptive=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FalseEvidenceWarning)
        report = checked(loss, bumps, X, scalar)
    assert not report.is_known()
    assert str(report).endswith("not known")
    assert report.gap < -2
