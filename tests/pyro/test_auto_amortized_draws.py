# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoAmortized's draws: inside the supports, as the density says, with gradients."""

import dataclasses

import numpy as np
import pyro
import pytest
import torch
from amortised_models import SHAPES, classes, hierarchy, interval_and_scale, many_supports
from pyro import poutine
from pyro.infer import Predictive
from pyro_amortised import Array, B, direction_of, host, moved, ready, slope
from scipy import stats

RNG = np.random.default_rng(0)
X = Array(0.7)
TABLE = Array(RNG.normal(size=(2, 4, 2)).astype("float32"))
GROUPS = RNG.normal(size=5).astype("float32")


@pytest.fixture(scope="module")
def two():
    return ready(interval_and_scale(B), X, observed="x")


@pytest.fixture(scope="module")
def groups():
    return ready(hierarchy(B), Array(GROUPS), observed="x", disturbed=0.1)


@pytest.fixture(scope="module")
def many():
    return ready(many_supports(B), TABLE, observed="x", disturbed=0.05)


# --- where they are


def test_draws_are_inside_the_supports(many):
    guide = many
    values = guide.draw(TABLE, sample_shape=(300,))
    for name, support in guide.guide.supports.items():
        assert values[name].shape == (300, *SHAPES[name])
        assert host(support.check(Array(values[name]))).all(), name
    assert ((values["u"] > -1) & (values["u"] < 2)).all()
    assert ((values["loose"] > 1) & (values["loose"] < 2)).all()
    assert set(np.unique(values["k"])) == {0, 1, 2, 3}


def test_draws_stay_off_the_ends_of_an_interval():
    # The posterior is far beyond the end, where rounding could leave the interval.
    guide = ready(interval_and_scale(B), X, observed="x", disturbed=1.0)
    for x in (-50.0, 50.0):
        theta = guide.draw(Array(x), sample_shape=(3000,))["theta"]
        assert theta.dtype == np.float32
        assert ((theta > -1) & (theta < 2)).all()


# --- as the density says


def test_draws_follow_the_density():
    guide = ready(interval_and_scale(B), X, observed="x", ensemble=2)
    values = guide.draw(X, sample_shape=(1500,))
    # Each number's distribution function at its draw, given those before it.
    theta = np.linspace(-1, 2, 401, dtype="float32")
    log_s = np.linspace(-12, 12, 1201, dtype="float32")
    a, b = np.meshgrid(theta, log_s, indexing="ij")
    joint = np.exp(guide.log_prob({"theta": a, "s": np.exp(b)}, X) + b)
    cdf = _cumulative(np.trapezoid(joint, log_s, axis=-1), theta)
    assert stats.kstest(np.interp(values["theta"], theta, cdf), "uniform").pvalue > 0.01
    some = slice(0, 300)
    wide = np.broadcast_to(values["theta"][some, None], (300, len(log_s)))
    density = np.exp(guide.log_prob({"theta": wide, "s": np.exp(b[:1] + 0 * wide)}, X) + log_s)
    places = [
        np.interp(np.log(s), log_s, _cumulative(row, log_s))
        for s, row in zip(values["s"][some], density, strict=True)
    ]
    assert stats.kstest(places, "uniform").pvalue > 0.01


def test_classes_are_drawn_as_often_as_the_density_says():
    guide = ready(classes(B), X, observed="x")
    every = np.stack(np.meshgrid(range(3), range(2), range(2), range(2)), -1).reshape(-1, 4)
    k, f, two = every[:, 0], every[:, 1].astype("float32"), every[:, 2:].astype("float32")
    expected = np.exp(np.float64(guide.log_prob({"k": k, "f": f, "two": two}, X)))
    values = guide.draw(X, sample_shape=(4000,))
    drawn = np.concatenate([values["k"][:, None], values["f"][:, None], values["two"]], 1)
    counts = [(drawn == row).all(1).sum() for row in every]
    assert sum(counts) == 4000
    assert stats.chisquare(counts, 4000 * expected / expected.sum()).pvalue > 0.01


def test_seeds(groups):
    guide = groups
    first, again, other = (guide.draw(Array(GROUPS), seed=seed) for seed in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).all()


# --- gradients


def test_gradient_is_that_of_the_quantile(double):
    guide = ready(interval_and_scale(B), X.double(), observed="x", ensemble=2)
    for name, grid in {
        "theta": np.linspace(-1, 2, 40001),
        "s": np.exp(np.linspace(-12, 8, 40001)),
    }.items():
        site = guide.sites(X.double(), seed=4)[name]["fn"]
        assert site.has_rsample
        direction = direction_of(site.conditional)

        def at(by, site=site, direction=direction):
            return _with(site, moved(site.conditional, direction, by))

        pyro.set_rng_seed(1)
        here = host(at(0.0).rsample())

        def draw(by, at=at):
            pyro.set_rng_seed(1)
            return at(by).rsample()

        level = np.interp(here, grid, _cdf(at(0.0), grid))
        up, down = (np.interp(level, _cdf(at(by), grid), grid) for by in (1e-3, -1e-3))
        assert slope(draw) == pytest.approx((up - down) / 2e-3, rel=1e-3)


def test_discrete_sites_have_no_gradient():
    guide = ready(classes(B), X, observed="x")
    fns = {name: site["fn"] for name, site in guide.sites(X).items()}
    assert not any(fn.has_rsample for fn in fns.values())


def test_gradients_reach_all_params():
    guide = ready(hierarchy(B), Array(GROUPS), observed="x", disturbed=0.1).guide
    sum(value.square().sum() for value in guide(Array(GROUPS)).values()).backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name != "nets.auto_group.from_latents":  # one number, which sees none before it
            assert parameter.grad.abs().sum() > 0, name


def _with(site, conditional):
    found = site.expand(site.batch_shape)
    found.conditional = conditional
    return found


def _cumulative(density, grid):
    found = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
    return found / found[-1]


def _cdf(site, grid):
    return _cumulative(np.exp(host(site.log_prob(Array(grid)))), grid)


# --- particles, Predictive, quantiles


def test_vectorised_particles(many):
    guide = many

    def particles(*args):
        with pyro.plate("particles", 5, dim=-3):
            return guide.guide(*args)

    sites = guide.sites(TABLE, program=particles)
    values = {name: host(site["value"]) for name, site in sites.items()}
    assert {name: value.shape[0] for name, value in values.items()} == dict.fromkeys(SHAPES, 5)
    assert values["p"].shape == (5, 1, 1)
    assert values["u"].shape == (5, 1, 1, 3)
    assert values["v"].shape == (5, 1, 4, 2)
    assert values["w"].shape == (5, 2, 1, 3)
    assert len(np.unique(values["p"])) == 5
    total = 0
    for site in sites.values():
        log_prob = site["fn"].log_prob(site["value"])
        assert log_prob.shape == site["fn"].batch_shape
        total = total + host(log_prob).reshape(5, -1).sum(1)
    alone = {name: value.reshape(5, *SHAPES[name]) for name, value in values.items()}
    np.testing.assert_allclose(guide.log_prob(alone, TABLE), total, rtol=1e-4)


def test_predictive(groups):
    guide = groups.guide
    for parallel in (False, True):
        predictive = Predictive(guide.model, guide=guide, num_samples=7, parallel=parallel)
        drawn = predictive(Array(GROUPS))
        assert drawn["z"].shape == (7, 5)
        assert drawn["mu"].flatten().unique().shape == (7,)


def test_conditioned_guide(groups):
    guide = groups
    values = guide.draw(Array(GROUPS))
    given = {name: torch.as_tensor(value) for name, value in values.items()}
    trace = poutine.trace(poutine.condition(guide.guide, data=given)).get_trace(Array(GROUPS))
    assert host(trace.log_prob_sum()) == pytest.approx(
        guide.log_prob(values, Array(GROUPS)), rel=1e-5
    )


def test_quantiles_and_median(many):
    guide = many
    found = guide.guide.quantiles([0.1, 0.5, 0.9], TABLE)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        name: (3, *shape) for name, shape in SHAPES.items()
    }
    values = guide.draw(TABLE, sample_shape=(4000,))
    for name in ("u", "loose", "k", "p"):
        low, middle, high = host(found[name])
        assert (low <= middle).all()
        assert (middle <= high).all()
        expected = np.quantile(values[name], [0.1, 0.9], axis=0, method="nearest")
        np.testing.assert_allclose([low, high], expected, atol=0.15)
    for name, value in guide.guide.median(TABLE).items():
        assert tuple(value.shape) == SHAPES[name]


def test_rows_of_a_table(groups):
    @dataclasses.dataclass
    class Table:
        values: dict
        masks: dict = dataclasses.field(default_factory=dict)

        def __getitem__(self, name):
            return self.values[name]

        def __contains__(self, name):
            return name in self.values

        def __len__(self):
            return 4

    x = RNG.normal(size=(4, 5)).astype("float32")
    latents = {"mu": x[:, 0], "tau": np.exp(x[:, 1]), "z": x + 0.1}
    guide = groups
    table = Table(latents | {"x": x})
    drawn = guide.guide.sample_rows(table, 3)
    of_draws = guide.guide.log_prob_rows(table, drawn)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "mu": (3, 4),
        "tau": (3, 4),
        "z": (3, 4, 5),
    }
    for row in range(4):
        of_row = {name: host(value)[:, row] for name, value in drawn.items()}
        expected = guide.log_prob(of_row, Array(x[row]))
        np.testing.assert_allclose(host(of_draws)[:, row], expected, rtol=1e-4)
