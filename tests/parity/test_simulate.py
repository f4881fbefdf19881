# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulations of the same program in both backends: sites, masks, failed runs, refusals."""

import warnings

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
import pyro
import pyro.distributions
import pytest
import torch

import numpyro_spread
import pyro_spread
from spread_analysis import InvalidSimulationsWarning

BACKENDS = {
    "pyro": (pyro_spread, pyro, pyro.distributions, pyro.poutine, torch),
    "numpyro": (
        numpyro_spread,
        numpyro,
        numpyro.distributions,
        numpyro.handlers,
        jnp,
    ),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


def groups(backend):
    """A model with a global latent, local ones, and data some of which are masked."""
    _, ppl, dist, handlers, xp = backend

    def model(x=None):
        mu = ppl.sample("mu", dist.Normal(10.0, 1.0))
        with ppl.plate("groups", 4):
            z = ppl.sample("z", dist.Normal(mu, 0.1))
            with handlers.mask(mask=xp.arange(4) < 3):
                loc = xp.stack([z, -z], -1)
                ppl.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x)

    return model


def test_every_site_is_drawn_whatever_is_observed(backend):
    package, xp = backend[0], backend[-1]
    for x in (None, xp.zeros((4, 2))):
        sims = package.simulate(groups(backend), 30, x)
        shapes = {site: value.shape for site, value in sims.values.items()}
        assert shapes == {"mu": (30,), "z": (30, 4), "x": (30, 4, 2)}
        assert sims.observed == (() if x is None else ("x",))
        np.testing.assert_allclose(sims["z"], sims["mu"][:, None] + np.zeros(4), atol=1.0)
        np.testing.assert_allclose(sims["x"][..., 1], -sims["z"], atol=1.0)
        assert all(len(np.unique(value)) == value.size for value in sims.values.values())
        assert list(sims.masks) == ["x"]
        np.testing.assert_array_equal(sims.masks["x"], np.arange(4) < np.full((30, 1), 3))
        assert sims["x"].dtype == np.float64  # as the fixtures of this folder set it


def test_data_can_be_named(backend):
    sims = backend[0].simulate(groups(backend), 5, observed=["x"])
    assert sims.observed == ("x",)
    with pytest.raises(ValueError, match=r"observed names \['y'\], but the sites are \['mu', 'x'"):
        backend[0].simulate(groups(backend), 5, observed="y")


@pytest.mark.parametrize("together", [True, False])
def test_a_seed_makes_one_table(backend, together):
    model = groups(backend) if together else failing(backend, limit=100.0)

    def run(number=11, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("error" if together else "ignore")
            return backend[0].simulate(model, number, **options)["x"]

    first = run(seed=3)
    np.testing.assert_array_equal(run(seed=3), first)
    np.testing.assert_array_equal(run(20, seed=3)[:11], first)
    assert not np.array_equal(run(seed=4), first)
    if not (together and backend[0] is pyro_spread):
        np.testing.assert_array_equal(run(seed=3, chunk_size=4), first)


def failing(backend, limit=10.0):
    _, ppl, dist, _, _ = backend

    def model(x=None):
        mu = ppl.sample("mu", dist.Normal(10.0, 1.0))
        if float(mu) > limit:
            raise ArithmeticError("the solver did not converge")
        ppl.sample("x", dist.Normal(mu, 1.0), obs=x)

    return model


@pytest.mark.filterwarnings("ignore:the model runs once")
def test_failed_runs_are_counted_and_kept_as_rows_of_nan(backend):
    with pytest.warns(InvalidSimulationsWarning) as caught:
        sims = backend[0].simulate(failing(backend), 40, observed="x", chunk_size=15)
    said = [str(w.message) for w in caught if w.category is InvalidSimulationsWarning]
    failed = int((~sims.valid).sum())
    assert 5 < failed < 35
    assert len(said) == 1
    assert f"of 40 simulations some failed: {failed} raised an error" in said[0]
    assert "ArithmeticError: the solver did not converge" in said[0]
    assert np.isnan(sims["mu"][~sims.valid]).all()
    assert (sims["mu"][sims.valid] <= 10).all()


@pytest.mark.filterwarnings("ignore:the model runs once")
def test_an_error_in_all_runs_is_raised(backend):
    with pytest.raises(ArithmeticError, match="the solver did not converge"):
        backend[0].simulate(failing(backend, -100.0), 20)


def test_runs_that_are_nan_are_counted_by_site(backend):
    package, ppl, dist, _, xp = backend

    def model(x=None):
        mu = ppl.sample("mu", dist.Normal(xp.zeros(2), 1.0).to_event(1))
        ppl.sample("x", dist.Delta(xp.log(mu), event_dim=1), obs=x)

    with pytest.warns(InvalidSimulationsWarning, match=r"of 40 simulations some failed: \d+ NaN"):
        sims = package.simulate(model, 40, observed="x")
    np.testing.assert_array_equal(sims.valid, (sims["mu"] > 0).all(-1))


def test_a_factor_is_refused(backend):
    package, ppl, dist, _, _ = backend

    def model():
        ppl.factor("f", -(ppl.sample("z", dist.Normal(0.0, 1.0)) ** 2))

    with pytest.raises(ValueError, match="site 'f' is a factor: it changes the model's density"):
        package.simulate(model, 3)


def test_what_the_model_draws_itself_is_no_data(backend):
    package, ppl, dist, _, _ = backend

    def model():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(z, 0.1), obs=2 * z)

    with pytest.raises(ValueError, match="'x': what it observes changes with what the model draws"):
        package.simulate(model, 3)


def test_a_black_box_in_runs_that_are_one(backend):
    package, ppl, dist, _, _ = backend
    rows = []

    def fn(rng, z):
        rows.append(len(z))
        return z[:, None] + 0.01 * rng.normal(size=(len(z), 2))

    def model(x=None):
        with ppl.plate("groups", 3):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            ppl.sample("x", package.Simulator(fn, z, event_shape=(2,)), obs=x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sims = package.simulate(model, 50, observed="x")
    assert max(rows) >= 50 * 3
    assert len(rows) < 10
    np.testing.assert_allclose(sims["x"], sims["z"][..., None] + np.zeros(2), atol=0.1)
    noise = sims["x"] - sims["z"][..., None]
    assert len(np.unique(noise.round(12))) == noise.size


def test_a_model_without_sites_is_refused(backend):
    with pytest.raises(ValueError, match="the model has no sample site"):
        backend[0].simulate(lambda: None, 3)


@pytest.mark.filterwarnings("ignore:the model runs once")
def test_runs_of_other_sites_or_shapes_are_refused(backend):
    package, ppl, dist, _, xp = backend

    def sites():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("a" if float(z) > 0 else "b", dist.Normal(0.0, 1.0))

    def shapes():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(xp.zeros(1 + (float(z) > 0)), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"run \d+ of the model has the sites \['[ab]', 'z'\], b"):
        package.simulate(sites, 20)
    with pytest.raises(ValueError, match=r"site 'x' has shape \([12],\) in run \d+ of the model"):
        package.simulate(shapes, 20)


def test_numbers_must_be_positive(backend):
    for options in ({"num_simulations": 0}, {"num_simulations": 3, "chunk_size": 0}):
        with pytest.raises(ValueError, match="must be a positive integer, got 0"):
            backend[0].simulate(groups(backend), **options)


def test_the_random_state_stays():
    pyro.set_rng_seed(0)
    expected = torch.randn(())
    pyro.set_rng_seed(0)
    pyro_spread.simulate(groups(BACKENDS["pyro"]), 2)
    assert torch.randn(()) == expected
