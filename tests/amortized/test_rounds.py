# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Rounds for one observation, in both backends: where they simulate, and what they refuse."""

import importlib
import warnings
from types import SimpleNamespace

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
from spread_analysis import MisspecificationWarning
from spread_analysis.rounds import below, inside_first
from spread_core.amortized.truncation import TruncatedPrior

BACKENDS = {
    "pyro": (pyro_spread, pyro, pyro.distributions, torch, torch.as_tensor),
    "numpyro": (numpyro_spread, numpyro, numpyro.distributions, jnp, jnp.asarray),
}
QUICK = {"progress_bar": False, "ensemble": 1, "max_steps": 200}
X = np.float32([1.1, 0.9, 1.0])
EXACT = X.sum() / (3 + 1 / 25), (3 + 1 / 25) ** -0.5


def backend_of(name):
    spread, ppl, dist, xp, array = BACKENDS[name]
    return SimpleNamespace(spread=spread, ppl=ppl, dist=dist, xp=xp, array=array)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return backend_of(request.param)


def boxed(own, runs):
    """Three measurements of a mean by a black box that counts its runs; a wide prior."""

    def measure(rng, mean):
        runs.append(np.array(mean))
        return mean[:, None] + rng.normal(size=(len(mean), 3))

    def model(x=None):
        mean = own.ppl.sample("mean", own.dist.Normal(0.0, 5.0))
        own.ppl.sample("x", own.spread.Simulator(measure, mean, event_shape=(3,)), obs=x)

    return model


@pytest.fixture(scope="module", params=BACKENDS)
def trained(request):
    own, runs = backend_of(request.param), []
    own.model, own.x = boxed(own, runs), own.array(X)
    own.posterior = own.spread.amortize(
        own.model, observed="x", num_simulations=901, rounds=3, x_observed=own.x, **QUICK
    )
    own.runs = np.concatenate([np.ravel(each) for each in runs])
    return own


def test_the_posterior_at_the_observation(trained):
    draws = np.asarray(trained.posterior.sample(trained.x, num_samples=4000)["mean"])
    mean, sd = EXACT
    assert abs(draws.mean() - mean) < 0.25 * sd  # over seeds it differs by a tenth
    assert abs(draws.std() / sd - 1) < 0.2


def test_rounds_simulate_where_the_posterior_is(trained):
    told = trained.posterior.record["rounds"]
    assert [each["simulations"] for each in told] == [301, 300, 300]
    assert told[1]["method"] == "rejection"
    assert told[1]["acceptance"] < 0.8
    kept = trained.posterior.simulations["mean"]
    assert len(kept) == told[-1]["used"] > 601  # the first round's that lie inside as well
    assert np.abs(kept - EXACT[0]).max() < 8 < 15
    assert np.abs(kept).max() < 10 < 5 * 3  # three sds of the prior
    region = trained.posterior.truncation
    assert region.contains({"mean": kept}).all()
    inside = region.contains({"mean": np.float32([EXACT[0], 14.0, np.nan])})
    np.testing.assert_array_equal(inside, [True, False, False])


def test_the_simulator_runs_as_often_as_was_said(trained):
    # Chunks of runs are of a fixed size, some of which are thrown away: the values tell.
    assert np.isin(trained.posterior.simulations["mean"], np.float32(trained.runs)).all()
    assert len(np.unique(trained.runs)) < 4000  # proposals, tens of thousands, are not simulated


def test_the_check_stays_where_was_trained(trained):
    with warnings.catch_warnings():
        warnings.simplefilter("error", MisspecificationWarning)
        check = trained.posterior.check(num_simulations=100)
    assert check.num_simulations == 100
    assert check.passed
    table = trained.spread.simulate(trained.model, 400, observed="x", seed=8)
    inside = trained.posterior.truncation.contains({"mean": table["mean"]}).sum()
    assert trained.posterior.check(table).num_simulations == inside < 400
    far = table.take(np.abs(table["mean"]) > 9)
    with pytest.raises(ValueError, match="None of these simulations lies where the rounds"):
        trained.posterior.check(far)


def test_other_data_are_warned_of(trained):
    with pytest.warns(MisspecificationWarning, match="are not the x_observed that the rounds"):
        trained.posterior.sample(trained.x + 1.0, num_samples=2)


def test_the_prior_is_scored_chunk_by_chunk(trained, monkeypatch):
    prior, sizes = trained.posterior.truncation.prior, []
    runs = importlib.import_module(f"{trained.spread.__name__}._forward_runs").ForwardRuns
    score = runs.log_prior

    def log_prior(self, names, start, stop):
        sizes.append(stop - start)
        return score(self, names, start, stop)

    monkeypatch.setattr(runs, "log_prior", log_prior)
    monkeypatch.setattr(prior, "chunk_size", 256)
    z = np.linspace(-9, 9, 600, dtype=np.float32)
    expected = -0.5 * (z / 5) ** 2 - np.log(5) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(prior.log_prob({"mean": z}), expected, atol=1e-5)
    assert sizes == [256, 256, 88]


def test_no_prior_in_arviz(trained):
    data = trained.posterior.to_arviz(trained.x, num_samples=20)
    assert data.posterior["mean"].shape == (1, 20)
    assert not hasattr(data, "prior")
    assert not hasattr(data, "prior_predictive")


def test_kept_and_loaded(trained, tmp_path):
    trained.posterior.save(tmp_path)
    again = trained.spread.AmortizedPosterior.load(tmp_path, trained.model)
    grid = {"mean": np.linspace(-6, 8, 57, dtype=np.float32)}
    old, new = (each.truncation.contains(grid) for each in (trained.posterior, again))
    np.testing.assert_array_equal(old, new)
    assert 0 < old.sum() < 57
    assert again.record == trained.posterior.record
    one, two = (each.log_prob(grid, trained.x) for each in (trained.posterior, again))
    np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_latents_in_plates_and_several_data(backend):
    own = backend

    def model(size, y=None, w=None):
        mu = own.ppl.sample("mu", own.dist.Normal(0.0, 3.0))
        own.ppl.sample("w", own.dist.Normal(mu, 0.3), obs=w)
        with own.ppl.plate("groups", size):
            z = own.ppl.sample("z", own.dist.Normal(mu, 1.0))
            own.ppl.sample("y", own.dist.Normal(z, 1.0), obs=y)

    options = QUICK | {"num_simulations": 400, "rounds": 2, "max_steps": 60}
    y = np.float32([1.0, 2.0, 1.5])
    with pytest.raises(ValueError, match=r"x_observed must be a dict .* \['w', 'y'\]"):
        own.spread.amortize(model, 3, observed=["y", "w"], x_observed=y, **options)
    with pytest.raises(ValueError, match=r"x_observed must have the data .* but has \['y'\]"):
        own.spread.amortize(model, 3, observed=["y", "w"], x_observed={"y": y}, **options)
    x = {"y": own.array(y), "w": 1.4}
    posterior = own.spread.amortize(model, 3, observed=["y", "w"], x_observed=x, **options)
    assert posterior.record["rounds"][1]["acceptance"] < 0.5
    assert np.abs(posterior.simulations["mu"] - 1.4).max() < 6


def test_a_hopeless_prior_is_importance_sampled():
    own = backend_of("pyro")  # what each backend does for it is tested above

    def model(x=None):
        theta = own.ppl.sample("theta", own.dist.Normal(own.xp.zeros(4), 30.0).to_event(1))
        own.ppl.sample("x", own.dist.Normal(theta, 0.05).to_event(1), obs=x)

    x = own.array(np.float32([1.0, 2.0, 3.0, 4.0]))
    posterior = own.spread.amortize(
        model, observed="x", num_simulations=400, rounds=2, x_observed=x, **QUICK
    )
    told = posterior.record["rounds"]
    assert told[-1]["method"] == "importance"
    assert told[-1]["acceptance"] < 1e-3
    latents, _ = posterior.truncation.sample(50, 1)
    assert posterior.truncation.contains(latents).all()
    assert len(np.unique(latents["theta"], axis=0)) > 25


class Normal:
    """A posterior and a prior of one number."""

    chunk_size, latents, observed = 1000, ("z",), {}

    def __init__(self, scale, has_density=True):
        self.scale, self.has_density = scale, has_density

    def draw(self, start, stop, seed=None):
        if seed is None:
            values = {"z": self.scale * np.random.default_rng(stop).normal(size=start)}
            return values, self.log_prob(values)
        return {"z": self.scale * np.random.default_rng([seed, start]).normal(size=stop - start)}

    def log_prob(self, values):
        if not self.has_density:
            raise NotImplementedError("site 'z' has none")
        return -0.5 * (values["z"] / self.scale) ** 2 - np.log(self.scale)


def test_a_region_has_all_but_a_little_of_the_mass():
    truncated = TruncatedPrior(Normal(3.0))
    assert truncated.contains({"z": np.array([50.0])}).all()
    truncated.restrict(Normal(1.0), 0)
    latents, told = truncated.sample(5000, 0)
    # All but 1e-4 of a normal lies within 3.89 sds.
    assert 3.5 < np.abs(latents["z"]).max() < 4.6
    assert abs(told["acceptance"] - 0.806) < 0.05
    # Inside it is the prior, not the posterior.
    assert abs(np.mean(np.abs(latents["z"]) < 1) - 0.261 / 0.806) < 0.05
    truncated.restrict(Normal(2.0), 0)  # later regions never win back what was left out
    assert not truncated.contains({"z": np.array([5.0])}).any()


def test_a_rare_region():
    prior = Normal(1e4)
    truncated = TruncatedPrior(prior)
    truncated.restrict(Normal(1.0), 0)
    latents, told = truncated.sample(2000, 0)
    assert told["method"] == "importance"
    assert len(latents["z"]) == 2000
    # A flat prior within 3.9 sds.
    assert 1.8 < latents["z"].std() < 2.7
    prior.has_density = False
    with pytest.raises(ValueError, match=r"no density to weight .* by \(site 'z' has none"):
        truncated.sample(2000, 0)


def test_draws_inside_come_first():
    draws = {"z": np.arange(12.0).reshape(4, 3)}
    inside = np.array([[0, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 1]], bool)
    kept, order = inside_first(draws, inside, 2)
    np.testing.assert_array_equal(kept["z"], [[3, 1, 2], [6, 4, 5]])
    np.testing.assert_array_equal(order, [[1, 0, 0], [2, 1, 1]])


def test_tables_below_one_another():
    one, two = (
        pyro_spread.Simulations({"x": np.full(n, float(n))}, ["x"], failed=np.arange(n) < f)
        for n, f in ((2, 1), (3, 0))
    )
    table = below(one, two)
    np.testing.assert_array_equal(table["x"], [2, 2, 3, 3, 3])
    np.testing.assert_array_equal(table.failed, [True, False, False, False, False])
    assert table.observed == ("x",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 2}, "rounds > 1 train for one observation: pass it as x_observed"),
        ({"x_observed": X}, "x_observed is used by rounds alone, of which there is one"),
        ({"rounds": 0}, "rounds must be a positive integer"),
        ({"rounds": 2, "x_observed": X, "table": True}, "choose where to simulate, which a table"),
        (
            {"rounds": 2, "x_observed": {"y": X}},
            r"must have the data sites \['x'\], but has \['y'\]",
        ),
        ({"rounds": 2, "x_observed": X[:2]}, r"data of site 'x' have the shape \(2,\)"),
        ({"rounds": 2, "x_observed": X * np.nan}, "data of site 'x' hold NaN or inf"),
    ],
)
def test_refused(backend, options, message):
    options = {"num_simulations": 60} | QUICK | options
    if options.pop("table", False):
        del options["num_simulations"]
        options["simulations"] = backend.spread.Simulations.from_dict(
            {"mean": np.zeros(100, np.float32)}, {"x": np.zeros((100, 3), np.float32)}
        )
    with pytest.raises(ValueError, match=message):
        backend.spread.amortize(boxed(backend, []), observed="x", **options)


def test_latents_that_depend_on_data_are_refused(backend):
    own = backend

    def model(x=None):
        x = own.ppl.sample("x", own.dist.Normal(0.0, 1.0), obs=x)
        own.ppl.sample("theta", own.dist.Normal(x, 1.0))

    def after(x=None):
        own.ppl.sample("x", own.dist.Normal(0.0, 1.0), obs=x)
        own.ppl.sample("theta", own.dist.Normal(0.0, 1.0))

    options = {"observed": "x", "num_simulations": 60, "rounds": 2, "x_observed": 0.3}
    with pytest.raises(ValueError, match="Latent 'theta' depends on the data that the model draws"):
        own.spread.amortize(model, **options, **QUICK)
    own.spread.amortize(after, **options, **QUICK | {"max_steps": 5})


def test_one_seed_one_posterior_and_random_numbers_of_others_go_on():
    own = backend_of("pyro")  # functions of JAX cannot but repeat themselves
    options = {"observed": "x", "num_simulations": 80, "rounds": 2, "x_observed": X} | QUICK
    options["max_steps"] = 10
    value, x = {"mean": np.float32([0.7])}, torch.as_tensor(X)
    pyro.set_rng_seed(3)
    expected = torch.rand(3)
    pyro.set_rng_seed(3)
    one, other = (pyro_spread.amortize(boxed(own, []), seed=1, **options) for _ in range(2))
    one.truncation.sample(5, 0)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.log_prob(value, x), other.log_prob(value, x))


def test_classes_of_equal_density_stay(backend):
    own = backend

    def model(x=None):
        z = own.ppl.sample("z", own.dist.Bernoulli(0.5))
        own.ppl.sample("x", own.dist.Normal(1.0 * z, 1.0), obs=x)

    options = {"observed": "x", "num_simulations": 400, "rounds": 2, "x_observed": 0.5}
    posterior = own.spread.amortize(model, **options, **QUICK)
    kept = posterior.simulations["z"]
    assert 0.3 < kept.mean() < 0.7  # both are as likely given x
