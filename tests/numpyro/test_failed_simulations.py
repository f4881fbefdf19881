# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulators that return NaN for a part of their prior."""

import warnings

import every
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro import handlers
from numpyro.infer import SVI

import numpyro_spread as ps
from numpyro_spread.ratio import MLPCritic

N = 200
X = jnp.zeros(N)


def simulator(theta):
    return jnp.sqrt(theta + 1)  # NaN below -1, for 16 % of the prior


def model(x):
    with numpyro.plate("data", len(x)):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Delta(simulator(theta)), obs=x)


def guide(x):
    """Exact up to its width: theta = x^2 - 1."""
    loc = numpyro.param("loc", 0.0)
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", len(x)):
        numpyro.sample("theta", dist.Normal(loc + x**2, scale))


def masking_guide(x):
    failed = jnp.isnan(x)
    loc = numpyro.param("loc", 0.0)
    with numpyro.plate("data", len(x)), handlers.mask(mask=~failed):
        numpyro.sample("theta", dist.Normal(loc + jnp.nan_to_num(x) ** 2, 1.0))


def no_guide(x):
    pass


def critic(*names):
    names = ["theta" if name == "z" else name for name in names]
    return ps.concat_sites(MLPCritic([4]), *names)


def svi_of(loss, guide=guide, model=model):
    return SVI(model, loss.register(model, guide), optax.adam(0.02), loss)


LOSSES = {
    name: loss for name, loss in (every.LOSSES | every.WITHOUT_NOISE).items() if loss.simulates
}


def held(contract):
    """Names of the losses that keep a part of the contract."""
    contract = f"failed simulations, NumPyro {contract}"
    return [name for name, loss in LOSSES.items() if contract not in loss.exempt]


def made(name):
    """A loss that draws from the model, and its guide."""
    return LOSSES[name].make(ps, critic), no_guide if LOSSES[name].guide == "empty" else guide


def finished(call):
    """What it returns, once it is there: so are the warnings."""
    return jax.block_until_ready(call())


COUNTED = rf"site 'x' of the generator: \d+ of {N} of the model's draws contain NaN"


@pytest.mark.parametrize("name", held("eager"))
def test_the_site_and_the_number_are_named(name):
    loss, guide = made(name)
    svi = svi_of(loss, guide)
    state = svi.init(random.key(0), X)
    with pytest.raises(ps.NonFiniteError, match=COUNTED) as caught:
        svi.loss.loss(random.key(1), svi.get_params(state), model, svi.guide, X)
    assert ("exclude_invalid_x=True" in str(caught.value)) == (name == "joint KL")


@pytest.mark.parametrize("name", held("compiled"))
def test_compiled_code_says_it_once_and_ends_in_nan(name):
    loss, guide = made(name)
    svi = svi_of(loss, guide)
    state = svi.init(random.key(0), X)
    update = jax.jit(svi.update)
    with pytest.warns(ps.InvalidSimulationsWarning, match=COUNTED) as caught:
        losses = finished(lambda: [update(state, X)[1] for _ in range(3)])
    assert jnp.isnan(losses[0])
    told = [w for w in caught if issubclass(w.category, ps.InvalidSimulationsWarning)]
    assert len(told) == 1
    assert "finite_guard" in str(told[0].message)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_guard_names_them_in_compiled_code(num_particles):
    loss = ps.JointContrastELBO(divergence=ps.KL(), num_particles=num_particles)
    svi = ps.finite_guard(svi_of(loss))
    state = svi.init(random.key(0), X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            jax.errors.JaxRuntimeError, match=rf"'x' of the generator: \d+ of {num_particles * N} "
        ):
            jax.block_until_ready(jax.jit(svi.update)(state, X))


@pytest.mark.parametrize("num_particles", [1, 4])
def test_failures_are_left_out(num_particles):
    loss = ps.JointContrastELBO(
        divergence=ps.KL(), exclude_invalid_x=True, num_particles=num_particles
    )
    svi = svi_of(loss)
    total = num_particles * N
    with pytest.warns(ps.InvalidSimulationsWarning, match=rf"of {total} simulations .*at site 'x'"):
        result = finished(lambda: svi.run(random.key(0), 400, X, progress_bar=False))
    assert float(result.params["loc"]) == pytest.approx(-1.0, abs=0.05)
    assert float(result.params["scale"]) < 0.1


@pytest.mark.filterwarnings("ignore::numpyro_spread.InvalidSimulationsWarning")
def test_its_value_and_gradient_are_those_of_the_rest():
    theta = jnp.array([0.5, -2.0, 1.0, -3.0, 0.0])

    def fixed(theta):
        def model(x):
            with numpyro.plate("data", len(x)):
                numpyro.sample("theta", dist.Delta(theta))
                numpyro.sample("x", dist.Delta(simulator(theta)), obs=x)

        return model

    def of(model, x, **kwargs):
        loss = ps.JointContrastELBO(divergence=ps.KL(), **kwargs)

        def value(loc):
            params = {"loc": loc, "scale": jnp.array(1.0)}
            return loss.loss(random.key(0), params, model, guide, x)

        return jax.value_and_grad(value)(0.0)

    found = of(fixed(theta), jnp.zeros(5), exclude_invalid_x=True)
    wanted = of(fixed(theta[theta > -1]), jnp.zeros(3))
    assert [float(v) for v in found] == pytest.approx([float(v) for v in wanted], rel=1e-6)


@pytest.mark.filterwarnings("ignore::numpyro_spread.InvalidSimulationsWarning")
def test_runs_of_one_datum_are_left_out_whole():
    def single(x):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Delta(simulator(theta)), obs=x)

    def its_guide(x):
        loc = numpyro.param("loc", 0.0)
        numpyro.sample("theta", dist.Normal(loc + x**2, 1.0))

    loss = ps.JointContrastELBO(divergence=ps.KL(), exclude_invalid_x=True, num_particles=40)
    value, grad = jax.value_and_grad(
        lambda loc: loss.loss(random.key(0), {"loc": loc}, single, its_guide, jnp.array(0.5))
    )(0.0)
    assert float(value) == pytest.approx(0.5 + 0.919, abs=1e-3)  # theta = x^2 - 1 at the good ones
    assert float(grad) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.filterwarnings("ignore::numpyro_spread.InvalidSimulationsWarning")
def test_if_all_fail_nothing_is_left():
    def all_bad(x):
        with numpyro.plate("data", len(x)):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Delta(theta * jnp.nan), obs=x)

    loss = ps.JointContrastELBO(divergence=ps.KL(), exclude_invalid_x=True)
    svi = svi_of(loss, model=all_bad)
    assert jnp.isnan(jax.jit(svi.update)(svi.init(random.key(0), X), X)[1])
    params = {"loc": 0.0, "scale": 1.0}
    with pytest.raises(ValueError, match=r"simulations are NaN or inf: too few are left to rank"):
        ps.simulation_based_calibration(
            random.key(0), params, all_bad, guide, X, exclude_invalid_x=True
        )


def test_only_the_forward_divergence_leaves_out():
    with pytest.raises(ValueError, match="exclude_invalid_x=True needs KL"):
        ps.JointContrastELBO(critic("x"), exclude_invalid_x=True)


def test_calibration_names_them_and_leaves_them_out():
    def exact(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("theta", dist.Normal(x, 0.5**0.5))

    def partly(x):  # fails by chance and where theta is small
        with numpyro.plate("data", len(x)):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            y = theta / 2 + 0.5 * random.normal(numpyro.prng_key(), (len(x),))
            numpyro.sample("x", dist.Delta(jnp.where(y > -0.5, y, jnp.nan)), obs=x)

    call = random.key(0), {}, partly, exact, jnp.zeros(500)
    with pytest.raises(
        ps.NonFiniteError, match=r"'x' of the generator: \d+ of 500 .*exclude_invalid_x=True"
    ):
        ps.simulation_based_calibration(*call, num_draws=9)
    with pytest.warns(ps.InvalidSimulationsWarning):
        report = ps.simulation_based_calibration(
            *call, num_draws=9, num_simulations=2000, exclude_invalid_x=True
        )
    assert len(report.ranks["theta"]) >= 2000
    assert report.p_value() > 1e-3


def test_a_guide_may_mask_them_itself():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi = svi_of(ps.JointContrastELBO(divergence=ps.KL()), masking_guide)
        assert jnp.isfinite(svi.run(random.key(0), 3, X, progress_bar=False).losses).all()
        report = ps.simulation_based_calibration(
            random.key(0), {"loc": 0.0}, model, masking_guide, X, num_draws=5
        )
    assert len(report.ranks["theta"]) < 1000
