# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""MMD, energy distance and sliced Wasserstein in unmodified SVI, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Predictive
from numpyro_discrepancy import LOSSES, evaluate, guide, injected, model, points, two_sites

from numpyro_spread import (
    MMD,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    SlicedWasserstein,
)

# --- unmodified SVI ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_svi_finds_location_and_scale(name):
    x = 2 + 0.5 * points(64)
    svi = SVI(model, guide, optax.adam(0.1), LOSSES[name]())
    first = svi.evaluate(svi.init(jax.random.key(0), x), x)
    result = svi.run(jax.random.key(1), 120, x, progress_bar=False)
    assert abs(float(result.params["loc"]) - x.mean()) < 0.15
    assert abs(float(result.params["scale"]) - x.std()) < 0.15
    assert svi.evaluate(result.state, x) < 0.1 * first
    draws = Predictive(model, params=result.params, num_samples=50)
    free = Predictive(handlers.uncondition(model), params=result.params, num_samples=50)
    assert draws(jax.random.key(2), np.zeros(100))["z"].shape == (50, 100)
    assert abs(float(free(jax.random.key(2), np.zeros(100))["x"].mean()) - 2) < 0.15


@pytest.mark.parametrize("name", LOSSES)
def test_update_and_evaluate(name):
    loss, x = LOSSES[name](), points(30)
    svi = SVI(model, loss.register(model, guide), optax.sgd(0.1), loss)
    assert svi.guide is guide
    state = svi.init(jax.random.key(0), x)
    before = svi.get_params(state)
    svi.evaluate(state, x)
    assert svi.get_params(state) == before
    for update in (svi.stable_update, jax.jit(svi.update)):
        state, value = update(state, x)
        after = svi.get_params(state)
        assert np.isfinite(value)
        assert all(after[n] != before[n] for n in after)
        before = after


def test_no_guide_at_all_and_a_progress_bar():
    loss, x = EnergyDistance(), points(30)
    svi = SVI(model, loss.register(model, None), optax.sgd(0.1), loss)
    assert svi.run(jax.random.key(0), 3, x, stable_update=True).losses.shape == (3,)


@pytest.mark.parametrize("name", LOSSES)
def test_keys_repeat(name):
    params = {"loc": 0.0, "scale": 1.0}
    loss, x = LOSSES[name](), points(30)
    values = [loss.loss(jax.random.key(s), params, model, guide, x) for s in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_global_latents_come_from_the_guide():
    def model(x):
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Delta(mean + z), obs=x)

    def guide(x):
        numpyro.sample("mean", dist.Delta(numpyro.param("mean_loc", 0.0)))

    x = 1.5 + points(100)
    svi = SVI(model, guide, optax.adam(0.05), EnergyDistance())
    result = svi.run(jax.random.key(0), 150, x, progress_bar=False)
    assert abs(float(result.params["mean_loc"]) - x.mean()) < 0.25


# --- refusals ------------------------------------------------------------------------------------

MISTAKES = [
    (lambda: MMD("rbf"), TypeError, "MMD: kernel must be callable, got 'rbf'"),
    (lambda: MMD(GaussianKernel(1.0), num_particles=0), ValueError, "num_particles must be a pos"),
    (lambda: EnergyDistance(num_particles=1.5), ValueError, "num_particles must be a positive"),
    (lambda: EnergyDistance(2.0), ValueError, "beta must lie strictly between 0 and 2, got 2.0"),
    (lambda: EnergyDistance(given="c"), TypeError, "given must be a sequence of argument names"),
    (lambda: EnergyDistance(given=[0]), TypeError, "given must be a sequence of argument names"),
    (lambda: EnergyDistance(noise=[0.3]), TypeError, "noise must be a dict"),
    (lambda: SlicedWasserstein(0), ValueError, "num_projections must be a positive integer"),
    (lambda: SlicedWasserstein(2.5), ValueError, "num_projections must be a positive integer"),
    (lambda: SlicedWasserstein(p=0.5), ValueError, "p must be a finite number of at least 1"),
    (lambda: SlicedWasserstein(p=float("inf")), ValueError, "p must be a finite number of at"),
    (lambda: SlicedWasserstein(p=float("nan")), ValueError, "p must be a finite number of at"),
]


@pytest.mark.parametrize(("mistake", "kind", "match"), MISTAKES)
def test_refused_when_made(mistake, kind, match):
    with pytest.raises(kind, match=match):
        mistake()


USES = [
    (EnergyDistance(given=["nope"]), ValueError, "'nope' is neither a site that is compared"),
    (EnergyDistance(noise={"y": GaussianNoise(1.0)}), ValueError, "noise names the site 'y'"),
    (
        MMD(GaussianKernel(1.0), {"x": GaussianNoise(jnp.ones(3))}),
        ValueError,
        r"site 'x': GaussianNoise: a scale of shape \(3,\)",
    ),
    (MMD(GaussianKernel(1.0), block_size=0), ValueError, "block_size must be a positive integer"),
]


@pytest.mark.parametrize(("loss", "kind", "match"), USES)
def test_refused_when_used(loss, kind, match):
    with pytest.raises(kind, match=match):
        evaluate(loss, injected, points(5, 2), points(5, 2))


@pytest.mark.parametrize("name", LOSSES)
def test_one_datum_is_too_few(name):
    with pytest.raises(ValueError, match=r"holds 1 sample\(s\).* Use a larger batch"):
        evaluate(LOSSES[name](), injected, points(1, 2), points(1, 2))


@pytest.mark.parametrize("name", LOSSES)
def test_arguments_must_have_the_batch_shape(name):
    with pytest.raises(ValueError, match=r"value 'c' of shape \(3,\) does not begin with"):
        evaluate(
            LOSSES[name](given=["c"]),
            two_sites,
            points(5, 2),
            points(5),
            points(5, 2),
            c=np.zeros(3),
        )


def test_mutable_state_with_particles():
    def model(x):
        state = numpyro.primitives.mutable("count", {"n": jnp.zeros(())})
        state["n"] = state["n"] + 1
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Delta(numpyro.param("w", 0.5) * x), obs=x)

    x = points(5)
    svi = SVI(model, guide, optax.sgd(0.1), EnergyDistance())
    state = svi.init(jax.random.key(0), x)
    for _ in range(2):
        state, _ = svi.update(state, x)
    assert float(state.mutable_state["count"]["n"]) == 3  # init counts as one
    svi = SVI(model, guide, optax.sgd(0.1), EnergyDistance(num_particles=2))
    with pytest.raises(NotImplementedError, match="mutable state, and num_particles=2"):
        svi.update(svi.init(jax.random.key(0), x), x)
