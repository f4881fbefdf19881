# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoAmortized's draws: inside the supports, as the density says, with gradients."""

import dataclasses

import numpy as np
import pytest
from amortised_models import SHAPES, classes, hierarchy, interval_and_scale, many_supports
from scipy import stats

RNG = np.random.default_rng(0)
X = np.float32(0.7)
TABLE = RNG.normal(size=(2, 4, 2)).astype("float32")
GROUPS = RNG.normal(size=5).astype("float32")


@pytest.fixture(scope="module")
def groups(lib):
    return lib.ready(hierarchy(lib.B), GROUPS, observed="x", disturbed=0.1)


@pytest.fixture(scope="module")
def many(lib):
    return lib.ready(many_supports(lib.B), TABLE, observed="x", disturbed=0.05)


@pytest.fixture(scope="module")
def coins(lib):
    return lib.ready(classes(lib.B), X, observed="x")


# --- where they are


def test_draws_are_inside_the_supports(lib, many):
    values = many.draw(TABLE, sample_shape=(1000,))
    for name, support in many.guide.supports.items():
        assert values[name].shape == (1000, *SHAPES[name])
        assert lib.inside(support, values[name]).all(), name
    assert ((values["u"] > -1) & (values["u"] < 2)).all()
    assert ((values["loose"] > 1) & (values["loose"] < 2)).all()
    assert set(np.unique(values["k"])) == {0, 1, 2, 3}


def test_draws_stay_off_the_ends_of_an_interval(lib):
    # The posterior is far beyond the end, where rounding could leave the interval.
    guide = lib.ready(interval_and_scale(lib.B), X, observed="x", disturbed=1.0)
    for x in (-50.0, 50.0):
        theta = guide.draw(x, sample_shape=(3000,))["theta"]
        assert theta.dtype == np.float32
        assert ((theta > -1) & (theta < 2)).all()


# --- as the density says


def test_log_prob_is_that_of_the_sites_of_a_trace(lib, many):
    sites = many.sites(TABLE)
    values = {name: lib.host(site["value"]) for name, site in sites.items()}
    assert {name: value.shape for name, value in values.items()} == SHAPES
    each = {name: lib.host(site["fn"].log_prob(site["value"])) for name, site in sites.items()}
    shapes = {name: value.shape for name, value in each.items()}
    batch = {"w": (2, 1), "loose": (2, 4), "v": (4,), "c": (2, 4)}
    assert shapes == dict.fromkeys(SHAPES, ()) | batch
    total = sum(value.sum() for value in each.values())
    assert many.log_prob(values, TABLE) == pytest.approx(total, rel=1e-4)


def test_many_values_at_once(many):
    drawn = many.draw(TABLE, sample_shape=(1000,))
    values = {name: value[:6].reshape(3, 2, *SHAPES[name]) for name, value in drawn.items()}
    together = many.log_prob(values, TABLE)
    assert together.shape == (3, 2)
    for place in np.ndindex(3, 2):
        alone = many.log_prob({name: value[place] for name, value in values.items()}, TABLE)
        assert together[place] == pytest.approx(alone, rel=1e-4, abs=1e-3)


def test_draws_follow_the_density(lib):
    guide = lib.ready(interval_and_scale(lib.B), X, observed="x", ensemble=2)
    values = guide.draw(X, sample_shape=(1000,))
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


def test_classes_are_drawn_as_often_as_the_density_says(coins):
    every = np.stack(np.meshgrid(range(3), range(2), range(2), range(2)), -1).reshape(-1, 4)
    k, f, two = every[:, 0], every[:, 1].astype("float32"), every[:, 2:].astype("float32")
    expected = np.exp(np.float64(coins.log_prob({"k": k, "f": f, "two": two}, X)))
    values = coins.draw(X, sample_shape=(4000,))
    drawn = np.concatenate([values["k"][:, None], values["f"][:, None], values["two"]], 1)
    counts = [(drawn == row).all(1).sum() for row in every]
    assert sum(counts) == 4000
    assert stats.chisquare(counts, 4000 * expected / expected.sum()).pvalue > 0.01


def test_seeds(groups):
    first, again, other = (groups.draw(GROUPS, seed=seed) for seed in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).all()


# --- gradients


def test_gradient_is_that_of_the_quantile(lib):
    with lib.double():
        x = np.float64(0.7)
        guide = lib.ready(interval_and_scale(lib.B), x, observed="x", ensemble=2)
        sites = guide.sites(x, seed=4)
        for name, grid in {
            "theta": np.linspace(-1, 2, 40001),
            "s": np.exp(np.linspace(-12, 8, 40001)),
        }.items():
            site = sites[name]["fn"]
            assert site.has_rsample
            direction = lib.direction_of(site.conditional)

            def at(by, site=site, direction=direction):
                moved = lib.moved(site.conditional, direction, by)
                return lib.with_conditional(site, moved)

            def cdf(by, at=at, grid=grid):
                return _cumulative(np.exp(lib.host(at(by).log_prob(lib.Array(grid)))), grid)

            level = np.interp(lib.host(lib.draw_of(at(0.0))), grid, cdf(0.0))
            up, down = (np.interp(level, cdf(by), grid) for by in (1e-3, -1e-3))
            found = lib.slope(lambda by, at=at: lib.draw_of(at(by)))
            assert found == pytest.approx((up - down) / 2e-3, rel=1e-3)


def test_discrete_sites_have_no_gradient(coins):
    fns = {name: site["fn"] for name, site in coins.sites(X).items()}
    assert not any(fn.has_rsample for fn in fns.values())


def _cumulative(density, grid):
    found = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
    return found / found[-1]


# --- Predictive, quantiles, tables


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(groups, parallel):
    drawn = groups.predictive(7, parallel, GROUPS)
    assert drawn["z"].shape == (7, 5)
    assert np.unique(drawn["mu"]).shape == (7,)


def test_conditioned_guide(lib, groups):
    values = groups.draw(GROUPS)
    total = lib.log_prob_of(groups.conditioned(values, GROUPS))
    assert total == pytest.approx(groups.log_prob(values, GROUPS), rel=1e-5)


def test_quantiles_and_median(many):
    found = many.quantiles([0.1, 0.5, 0.9], TABLE)
    assert {n: value.shape for n, value in found.items()} == {n: (3, *s) for n, s in SHAPES.items()}
    values = many.draw(TABLE, sample_shape=(1000,))
    for name in ("u", "loose", "k"):
        low, middle, high = found[name]
        assert (low <= middle).all()
        assert (middle <= high).all()
        expected = np.quantile(values[name], [0.1, 0.9], axis=0, method="nearest")
        np.testing.assert_allclose([low, high], expected, atol=0.15)
    for name, value in many.median(TABLE).items():
        assert value.shape == SHAPES[name]


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
    table = Table(latents | {"x": x})
    drawn = groups.sample_rows(table, 3)
    of_draws = groups.log_prob_rows(table, drawn)
    shapes = {name: value.shape for name, value in drawn.items()}
    assert shapes == {"mu": (3, 4), "tau": (3, 4), "z": (3, 4, 5)}
    for row in range(4):
        of_row = {name: value[:, row] for name, value in drawn.items()}
        np.testing.assert_allclose(of_draws[:, row], groups.log_prob(of_row, x[row]), rtol=1e-4)
