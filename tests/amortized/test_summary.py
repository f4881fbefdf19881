# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What latents see of plates: means as far as they are to be believed, and spreads of any size."""

import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from amortised_models import heavy_scale
from numpyro import distributions

import numpyro_spread
import pyro_spread
from spread_core.amortized.context import Context
from spread_core.amortized.layout import Variable
from spread_core.amortized.summary import fit_against, pooled

ROWS = 4000
ARRAYS = {"pyro": torch.as_tensor, "numpyro": jnp.asarray}


@pytest.fixture(scope="module")
def nested():
    """Up to 12 groups of up to 6 measurements, what is there of them, and the mean of all."""
    rng = np.random.default_rng(0)
    groups, sizes = rng.integers(2, 13, ROWS), rng.integers(1, 7, (ROWS, 12, 1))
    mask = np.arange(6) < sizes
    mask &= (np.arange(12) < groups[:, None])[..., None]
    mean = 2 * rng.normal(size=(ROWS, 1, 1))
    theta = mean + rng.normal(size=(ROWS, 12, 1))
    y = theta + 0.7 * rng.normal(size=(ROWS, 12, 6))
    return np.where(mask, y, 0.0)[..., None], mask


def test_ratios_of_variances_are_found(nested):
    np.testing.assert_allclose(fit_against(*nested, [-3, -2])[:, 0], [0.49, 1 / 4], rtol=0.05)
    # Of a single group the mean tells the group's own, of variance 4 + 1.
    np.testing.assert_allclose(fit_against(*nested, [-2])[:, 0], [0.49 / 5], rtol=0.05)
    nothing = fit_against(np.zeros((2, 3, 1)), np.ones((2, 3), bool), [-2])
    np.testing.assert_array_equal(nothing, [[0.0]])


@pytest.mark.parametrize("backend", ARRAYS)
def test_the_believed_mean_is_the_exact_posterior_mean(nested, backend):
    y, mask = nested
    array = ARRAYS[backend]
    against = array(np.array([[0.49], [1 / 4]]))
    found = np.asarray(pooled(array(y), array(mask), [-3, -2], against)[0])[:, 0, 0, 0]
    sizes = mask.sum(-1)
    precision = np.where(sizes > 0, 1 / (1 + 0.49 / np.maximum(sizes, 1)), 0.0)
    of_groups = y[..., 0].sum(-1) / np.maximum(sizes, 1)
    exact = (precision * of_groups).sum(-1) / (precision.sum(-1) + 1 / 4)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
    nobody = pooled(array(y), array(np.zeros_like(mask)), [-3, -2], against)
    assert all(np.isfinite(np.asarray(part)).all() for part in nobody)


@pytest.mark.parametrize("backend", ARRAYS)
def test_noise_round_the_lines_of_a_plate_is_seen(backend):
    rng = np.random.default_rng(0)
    noise = np.exp(rng.uniform(-3, 0, (200, 1, 1)))
    level, slope = rng.normal(size=(2, 200, 30, 1))
    y = level + slope * np.linspace(-1, 1, 5) + noise * rng.normal(size=(200, 30, 5))
    mask = rng.uniform(size=(200, 30)) < 0.8
    array = ARRAYS[backend]
    found = np.asarray(pooled(array(y), array(mask), [-2], together=True)[2])[:, 0]
    for row in range(20):
        factor = np.linalg.cholesky(np.cov(y[row][mask[row]].T, bias=True))
        np.testing.assert_allclose(found[row], np.log(np.diag(factor)), atol=0.05)
    # The noise of a number that a line through the two before it predicts, or three, or four.
    assert np.corrcoef(found[:, 2:].mean(-1), np.log(noise[:, 0, 0]))[0, 1] > 0.98
    alone = pooled(array(y[..., :1]), array(mask), [-2], together=True)
    assert len(alone) == len(pooled(array(y), array(mask), [-2], together=True)) - 1


@pytest.mark.parametrize("backend", ARRAYS)
def test_fewer_elements_than_numbers(backend):
    y = 100 * np.random.default_rng(0).normal(size=(500, 2, 8)).astype(np.float32)
    found = np.asarray(pooled(ARRAYS[backend](y), None, [-2], together=True)[2])
    assert np.isfinite(found).all()


@pytest.mark.parametrize("ordered", [False, True])
def test_spreads_of_heavy_data_tell_of_a_scale_at_any_size(ordered):
    rng = np.random.default_rng(0)
    tau = np.abs(rng.standard_cauchy(ROWS))
    z = tau[:, None] * rng.normal(size=(ROWS, 8))
    data = {"x": z + 0.5 * rng.normal(size=z.shape)}
    plates = {"group": -1}
    latents = [Variable("tau", (), (), {}, {}), Variable("z", (8,), (), plates, plates)]
    context = Context(latents, [Variable("x", (8,), (), plates, plates)])
    context.heavy = frozenset(["x"])
    context = context.without(["group"] if ordered else [])
    fitted = context.fit({"tau": np.log(tau), "z": z}, data, {})
    group = context.groups[0]
    columns, _ = context.described(group, fitted, context.scores(fitted, data, 1), {})
    assert columns.shape[-1] == (8 if ordered else 2) + 2
    large = tau > 10
    log_sd = columns[large, 0, -1]
    slope, _ = np.polyfit(log_sd, np.log(tau[large]), 1)
    assert slope == pytest.approx(1, abs=0.1)
    assert np.corrcoef(log_sd, np.log(tau[large]))[0, 1] > 0.95


@pytest.mark.parametrize("backend", ARRAYS)
def test_data_with_heavy_tails_are_found_and_kept_with_the_posterior(backend, tmp_path):
    if backend == "pyro":
        spread, ppl, dist = pyro_spread, pyro, pyro.distributions
    else:
        spread, ppl, dist = numpyro_spread, numpyro, distributions

    class Names:
        sample, plate = staticmethod(ppl.sample), ppl.plate

    Names.dist, model = dist, heavy_scale(Names)
    posterior = spread.amortize(
        model, observed="x", num_simulations=300, max_steps=2, ensemble=1, progress_bar=False
    )
    assert posterior.guide.structure()["heavy"] == ["x"]
    posterior.save(tmp_path)
    read = spread.AmortizedPosterior.load(tmp_path, model)
    assert read.guide.structure() == posterior.guide.structure()
    x = ARRAYS[backend](np.float32([300.0, -200.0, 10.0, 80.0]))
    draws = posterior.sample(x, num_samples=20)
    np.testing.assert_allclose(
        np.asarray(read.log_prob(draws, x)), np.asarray(posterior.log_prob(draws, x)), rtol=1e-5
    )
