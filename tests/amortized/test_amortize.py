# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Amortised posteriors in one call, in both backends: right, repeatable, kept, or refused."""

import warnings
from types import SimpleNamespace

import jax
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
from spread_analysis import (
    CalibrationWarning,
    InvalidSimulationsWarning,
    MisspecificationWarning,
)

BACKENDS = {
    "pyro": (pyro_spread, pyro, pyro.distributions, torch, torch.as_tensor),
    "numpyro": (numpyro_spread, numpyro, numpyro.distributions, jnp, jnp.asarray),
}
QUICK = {"progress_bar": False, "ensemble": 2}
X = np.float32([0.9, 0.4, 1.3, 0.6, 0.2])


def normal(ppl, dist, xp, scale=1.0):
    """Five measurements of a normal mean, whose posterior is known."""

    def model(x=None):
        mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        loc = ppl.deterministic("loc", mean[..., None] * xp.ones(5))
        ppl.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    return model


EXACT = X.sum() / 6, 6**-0.5


@pytest.fixture(scope="module", params=BACKENDS)
def trained(request):
    spread, ppl, dist, xp, array = BACKENDS[request.param]
    model = normal(ppl, dist, xp)
    posterior = spread.amortize(model, observed="x", num_simulations=3000, seed=0, **QUICK)
    return SimpleNamespace(
        spread=spread, ppl=ppl, dist=dist, xp=xp, x=array(X), model=model, posterior=posterior
    )


@pytest.fixture(params=BACKENDS)
def backend(request):
    spread, ppl, dist, xp, array = BACKENDS[request.param]
    return SimpleNamespace(spread=spread, ppl=ppl, dist=dist, xp=xp, array=array)


def host(value):
    return np.asarray(value)


def test_a_known_posterior(trained):
    draws = trained.posterior.sample(trained.x, num_samples=4000)
    mean, sd = EXACT
    assert draws["mean"].shape == (4000,)
    assert abs(host(draws["mean"]).mean() - mean) < 0.15 * sd
    assert abs(host(draws["mean"]).std() / sd - 1) < 0.15


def test_the_density_is_that_of_the_draws(trained):
    grid = np.linspace(-2, 3, 2001, dtype=np.float32)
    density = np.exp(host(trained.posterior.log_prob({"mean": grid}, trained.x)))
    assert density.shape == grid.shape
    assert abs(np.trapezoid(density, grid) - 1) < 1e-3
    draws = host(trained.posterior.sample(trained.x, num_samples=4000)["mean"])
    assert abs(np.trapezoid(density * grid, grid) - draws.mean()) < 0.04


def test_any_data_at_once(trained):
    means = [
        host(trained.posterior.sample(trained.x + shift, num_samples=2000)["mean"]).mean()
        for shift in (-1.0, 0.0, 1.0)
    ]
    np.testing.assert_allclose(np.diff(means), 5 / 6, atol=0.12)


def test_the_maximum(trained):
    top = trained.posterior.map(trained.x)
    assert top["mean"].shape == ()
    grid = np.linspace(-1, 2, 601, dtype=np.float32)
    density = host(trained.posterior.log_prob({"mean": grid}, trained.x))
    at_top = host(trained.posterior.log_prob({"mean": host(top["mean"])[None]}, trained.x))
    assert at_top[0] > density.max() - 1e-3


def test_arviz(trained):
    data = trained.posterior.to_arviz(trained.x, num_samples=50)
    assert data.posterior["mean"].shape == (1, 50)
    assert data.prior["mean"].shape == (1, 50)
    loc = np.asarray(data.posterior["mean"])[..., None] * np.ones(5, np.float32)
    np.testing.assert_array_equal(data.posterior["loc"], loc)
    for group in (data.posterior_predictive, data.prior_predictive):
        assert set(group.data_vars) == {"x"}
        assert group["x"].shape == (1, 50, 5)
        assert len(np.unique(group["x"])) > 50  # drawn, not the data
    np.testing.assert_array_equal(data.observed_data["x"], X)
    assert abs(float(data.posterior_predictive["x"].mean()) - EXACT[0]) < 0.3


def test_a_check_that_passes(trained):
    check = trained.posterior.check(num_simulations=200)
    assert check.passed
    assert check.num_simulations == 200


def test_a_check_that_fails(trained):
    wide = normal(trained.ppl, trained.dist, trained.xp, 2.0)
    table = trained.spread.simulate(wide, 200, observed="x", seed=5)
    with pytest.warns(CalibrationWarning):
        assert not trained.posterior.check(table).passed


def test_draws_corrected_by_weights(trained):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = trained.posterior.refine(trained.x, num_samples=400, num_proposals=1000)
    assert found["mean"].shape == (400,)
    assert (found.pareto_k > 0.7) == any(
        "Importance weights have a Pareto k" in str(w) for w in told
    )
    assert 100 < found.effective_sample_size <= 1000 + 1e-3
    assert abs(host(found["mean"]).mean() - EXACT[0]) < 0.1


def test_weights_that_are_not_to_be_trusted(trained, monkeypatch):
    def heavy(log_weights):
        return np.full(len(log_weights), 1 / len(log_weights)), 0.9

    monkeypatch.setattr("spread_analysis.amortized.smoothed", heavy)
    with pytest.warns(UserWarning, match=r"Importance weights have a Pareto k of 0.90, over 0.7"):
        found = trained.posterior.refine(trained.x, num_samples=10, num_proposals=100)
    assert found.pareto_k == 0.9


def test_draws_corrected_by_chains(trained):
    found = trained.posterior.refine(
        trained.x, method="nuts", num_samples=200, num_warmup=50, num_chains=2
    )
    assert found["mean"].shape == (200,)
    assert found.pareto_k is None
    assert abs(host(found["mean"]).mean() - EXACT[0]) < 0.15


def test_kept_and_loaded(trained, tmp_path):
    path = trained.posterior.save(tmp_path / "posterior")
    assert path.suffix == ".safetensors"
    again = trained.spread.AmortizedPosterior.load(tmp_path / "posterior", trained.model)
    grid = np.linspace(-1, 2, 11, dtype=np.float32)
    old, new = (
        host(each.log_prob({"mean": grid}, trained.x)) for each in (trained.posterior, again)
    )
    np.testing.assert_array_equal(old, new)
    assert len(again.simulations) == 3000
    assert again.record == trained.posterior.record


def test_a_file_of_something_else_is_refused(trained, tmp_path):
    with pytest.raises(FileNotFoundError):
        trained.spread.AmortizedPosterior.load(tmp_path, trained.model)
    path = trained.posterior.save(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(trained.spread.CheckpointError):
        trained.spread.AmortizedPosterior.load(tmp_path, trained.model)


def test_data_unlike_any_simulation(trained):
    with pytest.warns(MisspecificationWarning, match=r"unlike the simulations"):
        trained.posterior.sample(trained.x + 40.0, num_samples=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hmc"}, "method must be 'importance' or 'nuts', got 'hmc'"),
        ({"num_proposals": 0}, "num_proposals must be a positive integer, got 0"),
        ({"method": "nuts", "num_chains": 0}, "num_chains must be a positive integer, got 0"),
    ],
)
def test_refinements_that_there_are_not(trained, options, message):
    with pytest.raises(ValueError, match=message):
        trained.posterior.refine(trained.x, **options)


def test_checks_that_there_are_not(trained):
    with pytest.raises(ValueError, match="num_samples must be a positive integer, got 0"):
        trained.posterior.check(num_samples=0)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 1\.5"):
        trained.posterior.check(seed=1.5)


@pytest.mark.parametrize("seed", ["a", 1.5, None])
def test_seeds_are_integers(backend, seed):
    model = normal(backend.ppl, backend.dist, backend.xp)
    options = {"observed": "x", "num_simulations": 60, "seed": seed, "progress_bar": False}
    for call in (backend.spread.simulate, backend.spread.amortize):
        with pytest.raises(TypeError, match=f"seed must be an integer.*, got {seed!r}"):
            call(model, **options)


def test_no_data_at_the_arguments(trained):
    with pytest.raises(ValueError, match="observes no data at site 'x'"):
        trained.posterior.sample()


def test_a_latent_without_value(trained):
    with pytest.raises(ValueError, match="lack latent site 'mean'"):
        trained.posterior.log_prob({"other": X}, trained.x)


def test_one_seed_one_posterior(backend):
    model = normal(backend.ppl, backend.dist, backend.xp)
    options = QUICK | {"num_simulations": 200, "max_steps": 20}
    value = {"mean": np.float32([0.3])}
    first, same, other = (
        float(
            backend.spread.amortize(model, observed="x", seed=seed, **options).log_prob(
                value, backend.array(X)
            )[0]
        )
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_random_numbers_of_others_go_on():
    model = normal(pyro, pyro.distributions, torch)
    pyro.set_rng_seed(3)
    expected = torch.rand(3)
    pyro.set_rng_seed(3)
    pyro_spread.amortize(model, observed="x", num_simulations=100, max_steps=5, **QUICK)
    assert torch.equal(torch.rand(3), expected)


def test_keys():
    model = normal(numpyro, numpyro.distributions, jnp)
    posterior = numpyro_spread.amortize(
        model, observed="x", num_simulations=100, max_steps=5, seed=jax.random.key(4), **QUICK
    )
    key = jax.random.key(7)
    one, two = (posterior.sample(X, num_samples=5, rng_key=key)["mean"] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, posterior.sample(X, num_samples=5)["mean"])


def test_a_stored_table_and_a_black_box(backend):
    spread, ppl, dist = backend.spread, backend.ppl, backend.dist

    def model(x=None):
        mean = ppl.sample("mean", dist.Uniform(-1.0, 2.0))
        box = spread.Simulator(
            lambda rng, mean: mean[:, None] + rng.normal(size=(len(mean), 5)),
            mean,
            event_shape=(5,),
        )
        ppl.sample("x", box, obs=x)

    rng = np.random.default_rng(0)
    mean = rng.uniform(-1, 2, 3000)
    table = spread.Simulations.from_dict(
        {"mean": np.float32(mean)},
        {"x": np.float32(mean[:, None] + rng.normal(size=(3000, 5)))},
    )
    posterior = spread.amortize(model, observed="x", simulations=table, **QUICK)
    x = backend.array(X)
    draws = host(posterior.sample(x, num_samples=4000)["mean"])
    assert draws.min() > -1
    assert draws.max() < 2
    assert abs(draws.mean() - X.mean()) < 0.08  # a flat prior, hardly cut off
    assert abs(draws.std() / 5**-0.5 - 1) < 0.15
    with pytest.raises(ValueError, match="refine needs the model's density, which it lacks"):
        posterior.refine(x, num_samples=10)


def test_runs_that_failed(backend):
    spread, ppl, dist, xp = backend.spread, backend.ppl, backend.dist, backend.xp

    def model(x=None):
        mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        fails = ppl.sample("fails", dist.Uniform(0.0, 1.0)) < 0.2
        loc = xp.where(fails, xp.nan * mean, mean)
        ppl.sample("x", dist.Normal(loc, 1.0, validate_args=False), obs=x)

    with pytest.warns(InvalidSimulationsWarning):
        posterior = spread.amortize(model, observed="x", num_simulations=3000, **QUICK)
    assert 0.75 < posterior.simulations.valid.mean() < 0.85
    draws = posterior.sample(backend.array(np.float32(1.0)), num_samples=4000)
    assert abs(host(draws["mean"]).mean() - 0.5) < 0.1
    # The posterior given that the simulator succeeds.
    assert np.mean(host(draws["fails"]) < 0.15) < 0.05


def test_groups_that_differ_are_told_apart(backend):
    spread, ppl, dist = backend.spread, backend.ppl, backend.dist
    scale = backend.array(np.float32([0.1, 1.0, 3.0]))

    def model(scale, y=None):
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        with ppl.plate("groups", len(scale)):
            ppl.sample("y", dist.Normal(mu, scale), obs=y)

    posterior = spread.amortize(model, scale, observed="y", num_simulations=3000, **QUICK)
    assert posterior.guide.ordered_plates == ("groups",)
    y = np.float32([0.5, 2.0, -3.0])
    draws = host(posterior.sample(scale, backend.array(y), num_samples=4000)["mu"])
    precision = 1 + (1 / host(scale) ** 2).sum()
    mean, sd = (y / host(scale) ** 2).sum() / precision, precision**-0.5
    assert abs(draws.mean() - mean) < 0.3 * sd
    assert abs(draws.std() / sd - 1) < 0.2
    with pytest.raises(ValueError, match=r"the guide was made for \(3,\)"):
        posterior.sample(scale[:2], backend.array(y[:2]))


def test_groups_that_are_alike_are_summed_up(backend):
    spread, ppl, dist = backend.spread, backend.ppl, backend.dist

    def model(size, y=None):
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        with ppl.plate("groups", size):
            z = ppl.sample("z", dist.Normal(mu, 1.0))
            ppl.sample("y", dist.Normal(z, 1.0), obs=y)

    posterior = spread.amortize(
        model, 6, observed="y", num_simulations=1000, max_steps=300, **QUICK
    )
    assert posterior.guide.ordered_plates == ()
    y = np.float32([2.0, 1.0, 0.0, 3.0, 1.0, 2.0])
    draws = posterior.sample(6, backend.array(y), num_samples=4000)
    assert draws["z"].shape == (4000, 6)
    mean = y.sum() / 2 / 4  # precision 1 + 6 / 2
    assert abs(host(draws["mu"]).mean() - mean) < 0.15
    z = host(draws["z"]).mean(0)
    np.testing.assert_allclose(z, (y + mean) / 2, atol=0.25)
    with pytest.raises(ValueError, match="have other plate sizes"):
        posterior.sample(4, backend.array(y[:4]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs either num_simulations"),
        ({"num_simulations": 100, "simulations": "both"}, "needs either num_simulations"),
        ({"num_simulations": 10}, "too few to train on"),
        ({"num_simulations": 100, "validation": 0.0}, "validation must be a number in"),
        ({"simulations": "lacking"}, r"lacks site 'mean' of the model; it holds \['x'\]"),
    ],
)
def test_refused(backend, options, message):
    model = normal(backend.ppl, backend.dist, backend.xp)
    if "simulations" in options:
        table = backend.spread.Simulations.from_dict({"x": np.zeros((100, 5), np.float32)})
        options = options | {"simulations": table}
    with pytest.raises(ValueError, match=message):
        backend.spread.amortize(model, observed="x", **options, **QUICK)


def test_few_steps_are_few(backend):
    model = normal(backend.ppl, backend.dist, backend.xp)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior = backend.spread.amortize(
            model, observed="x", num_simulations=100, max_steps=1, **QUICK
        )
    assert posterior.record["epochs"] == 1


def test_posteriors_in_pyro_keep_their_params_to_themselves():
    pyro.clear_param_store()
    one, other = (
        pyro_spread.amortize(
            normal(pyro, pyro.distributions, torch, scale),
            observed="x",
            num_simulations=200,
            max_steps=20,
            **QUICK,
        )
        for scale in (0.5, 5.0)
    )
    x, value = torch.as_tensor(X), {"mean": torch.zeros(1)}
    before = float(one.log_prob(value, x))
    other.sample(x)
    assert float(one.log_prob(value, x)) == before != float(other.log_prob(value, x))
    assert not pyro.get_param_store()
