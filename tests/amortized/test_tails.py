# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Latents with heavy tails: what is tamed, and that the density knows of it."""

import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from scipy import stats

import numpyro_spread
import pyro_spread
from spread_core.amortized.tails import fit_tails, log_slope, tame, untame

BACKENDS = {
    "pyro": (pyro_spread, pyro, pyro.distributions, torch.as_tensor),
    "numpyro": (numpyro_spread, numpyro, numpyro.distributions, jnp.asarray),
}
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(3.0, 2.0, 5000)
CAUCHY = 5.0 + 0.1 * RNG.standard_cauchy(5000)
TAILS = fit_tails(np.stack([NORMAL, CAUCHY, CAUCHY], 1), np.array([True, True, False]))


def test_columns_with_heavy_tails_are_tamed_where_they_may_be():
    np.testing.assert_array_equal(TAILS["spread"] > 0, [False, True, False])
    assert TAILS["centre"][1] == pytest.approx(5.0, abs=0.01)
    assert TAILS["spread"][1] == pytest.approx(0.2 / 1.349, rel=0.1)
    others = [RNG.standard_t(3, 5000), RNG.laplace(size=5000), RNG.uniform(size=5000)]
    light = np.stack([*others, np.log(np.abs(RNG.standard_cauchy(5000))), np.ones(5000)], 1)
    assert not fit_tails(light, np.ones(5, bool))["spread"].any()


def test_taming_has_an_inverse_and_a_slope():
    values = np.stack([np.linspace(-20, 20, 9)] * 3, 1)
    tamed = tame(values, TAILS)
    np.testing.assert_array_equal(tamed[:, 0], values[:, 0])
    np.testing.assert_allclose(untame(tamed, TAILS), values, atol=1e-9)
    step = 1e-6
    slope = (tame(values + step, TAILS) - tame(values - step, TAILS)) / (2 * step)
    np.testing.assert_allclose(log_slope(values, TAILS), np.log(slope), atol=1e-6)
    # Nearly linear where most of them are.
    spread = TAILS["spread"][1]
    near = 5.0 + spread * np.array([0.1, 0.2, 0.3])
    wide = tame(np.stack([near] * 3, 1), TAILS)[:, 1]
    np.testing.assert_allclose(wide, [0.1, 0.2, 0.3], rtol=0.03, atol=0.03)


def test_nothing_overflows():
    tails = {name: np.float32(value) for name, value in TAILS.items()}
    far = np.full((1, 3), 1e30, np.float32)
    assert np.isfinite(tame(far, tails)).all()
    assert np.isfinite(log_slope(far, tails)).all()
    assert np.isfinite(untame(np.full((1, 3), 500.0, np.float32), tails)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_location_under_a_half_cauchy_scale(backend):
    spread, ppl, dist, array = BACKENDS[backend]

    def model(x=None):
        tau = ppl.sample("tau", dist.HalfCauchy(array(np.float32(1.0))))
        z = ppl.sample("z", dist.Normal(0.0, tau))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    posterior = spread.amortize(
        model, observed="x", num_simulations=3000, max_steps=600, progress_bar=False, ensemble=2
    )
    # It is tamed.
    assert fit_tails(posterior.simulations["z"][:, None], np.array([True]))["spread"] > 0
    assert posterior.record["tamed"] == ["z"]
    assert repr(posterior).startswith(
        "<AmortizedPosterior of tau, z given x; 3000 simulations, 0 failed; "
    )
    assert repr(posterior).endswith(" nats; heavy tails tamed: z>")
    # Given log tau on a grid z is normal.
    x, log_tau = 3.0, np.linspace(-12, 12, 4001)
    variance = np.exp(2 * log_tau)
    share = variance / (1 + variance)
    weights = np.exp(log_tau) / (1 + variance) * stats.norm.pdf(x, 0, np.sqrt(1 + variance))
    weights /= weights.sum()
    mean = weights @ (share * x)
    sd = np.sqrt(weights @ (share + (share * x) ** 2) - mean**2)
    draws = posterior.sample(array(np.float32(x)), num_samples=4000)
    z = np.asarray(draws["z"])
    assert abs(z.mean() - mean) < 0.2 * sd
    assert abs(z.std() / sd - 1) < 0.2
    assert abs(np.log(np.asarray(draws["tau"])).mean() - weights @ log_tau) < 0.3
    # Far from all simulations it says so, and stays within reach of them.
    with pytest.warns(spread.MisspecificationWarning):
        far = posterior.sample(array(np.float32(1e5)), num_samples=4000)
    z, sims = np.asarray(far["z"]), posterior.simulations["z"][:, None]
    tails = fit_tails(sims, np.array([True]))
    tamed = tame(sims, tails)
    most = untame(tamed.max(0) + 0.25 * np.ptp(tamed, 0), tails)[0]
    assert z.max() <= 1.01 * most
    ends = {"z": array(np.float32([most / 2, 2 * most])), "tau": array(np.float32([1.0, 1.0]))}
    log_prob = np.asarray(posterior.log_prob(ends, array(np.float32(3.0))))
    assert list(np.isfinite(log_prob)) == [True, False]
    # The density is one: it integrates to 1.
    a, b = np.meshgrid(np.linspace(-8, 8, 161), np.linspace(-30, 40, 701), indexing="ij")
    values = {"tau": np.exp(a).ravel(), "z": b.ravel()}
    values = {name: array(value.astype("float32")) for name, value in values.items()}
    density = np.exp(np.asarray(posterior.log_prob(values, array(np.float32(x)))))
    mass = (density * np.exp(a.ravel())).sum() * 0.1 * 0.1
    assert mass == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_unit_of_a_latent_does_not_matter(backend):
    spread, ppl, dist, array = BACKENDS[backend]

    def model(x=None):
        m = ppl.sample("m", dist.Normal(array(np.float32(5e6)), 1e5))
        ppl.sample("x", dist.Normal(m, 1e5), obs=x)

    options = {"num_simulations": 1000, "max_steps": 50, "ensemble": 1, "progress_bar": False}
    posterior = spread.amortize(model, observed="x", **options)
    draws = np.asarray(posterior.sample(array(np.float32(5.1e6)), num_samples=2000)["m"])
    assert abs(draws.mean() - 5.05e6) < 2e4
    assert abs(draws.std() / (1e5 / 2**0.5) - 1) < 0.15


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_too_small_for_their_type(backend):
    spread, ppl, dist, array = BACKENDS[backend]

    def model(x=None):
        scale = ppl.sample("scale", dist.Gamma(array(np.float32(0.02)), 1.0))
        ppl.sample("x", dist.Normal(scale, 1.0), obs=x)

    rng = np.random.default_rng(0)
    scale = rng.gamma(0.02, size=1000).astype("float32")
    scale[:20] = 0.0  # its log is -inf
    x = np.float32(scale + rng.normal(size=1000))
    table = spread.Simulations.from_dict({"scale": scale}, {"x": x})
    posterior = spread.amortize(
        model, observed="x", simulations=table, max_steps=20, ensemble=1, progress_bar=False
    )
    assert np.isfinite(posterior.record["held_out"])
    found = posterior.sample(array(np.float32(0.3)), num_samples=4000)
    draws = np.asarray(found["scale"])
    assert np.isfinite(draws).all()
    assert (draws > 0).all()
    assert not np.isnan(np.asarray(posterior.log_prob(found, array(np.float32(0.3))))).any()
