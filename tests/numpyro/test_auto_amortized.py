# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoAmortized's density: normalised, of all latents together, given what counts of the data."""

import numpy as np
import pytest
from amortised_models import SHAPES, classes, hierarchy, interval_and_scale, many_supports
from numpyro_amortised import Array, B, host, ready

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


def is_normalised(density, *grids):
    """Whether a density on a grid integrates to 1."""
    for grid in reversed(grids):
        density = np.trapezoid(density, grid, axis=-1)
    return abs(density - 1) < 2e-3


# --- normalised


def test_an_interval_integrates_to_one():
    def model(x=None):
        theta = B.sample("theta", B.dist.Uniform(-1.0, 2.0))
        B.sample("x", B.dist.Normal(theta, 0.3), obs=x)

    grid = np.linspace(-1, 2, 2001, dtype="float32")
    for members in (1, 3):
        guide = ready(model, X, observed="x", ensemble=members)
        for x in (-0.9, 0.4, 1.9):
            assert is_normalised(np.exp(guide.log_prob({"theta": grid}, Array(x))), grid)


def test_two_numbers_integrate_to_one():
    guide = ready(interval_and_scale(B), X, observed="x", disturbed=0.1)
    theta = np.linspace(-1, 2, 301, dtype="float32")
    log_s = np.linspace(-9, 8, 901, dtype="float32")
    a, b = np.meshgrid(theta, log_s, indexing="ij")
    log_prob = guide.log_prob({"theta": a, "s": np.exp(b)}, X)
    assert log_prob.shape == a.shape
    assert is_normalised(np.exp(log_prob + b), theta, log_s)


def test_classes_sum_to_one():
    guide = ready(classes(B), X, observed="x", ensemble=2)
    every = np.stack(np.meshgrid(range(3), range(2), range(2), range(2)), -1).reshape(-1, 4)
    k, f, two = every[:, 0], every[:, 1].astype("float32"), every[:, 2:].astype("float32")
    log_prob = guide.log_prob({"k": k, "f": f, "two": two}, X)
    assert np.exp(log_prob).sum() == pytest.approx(1, abs=1e-5)
    assert len(np.unique(log_prob.round(4))) > 12
    assert guide.log_prob({"k": np.array(3), "f": f[0], "two": two[0]}, X) == -np.inf


def test_nothing_is_outside_of_an_interval(two):
    guide = two
    theta = np.float32([-1.01, -0.99, 1.99, 2.01])
    log_prob = guide.log_prob({"theta": theta, "s": np.ones(4, "float32")}, X)
    assert list(np.isfinite(log_prob)) == [False, True, True, False]
    assert (log_prob[[0, 3]] == -np.inf).all()


def test_intervals_that_differ_along_a_plate():
    def model(x=None):
        with B.plate("data", 3):
            z = B.sample("z", B.dist.Uniform(Array([0.0, 1.0, 2.0]), Array([1.0, 3.0, 5.0])))
            B.sample("x", B.dist.Normal(z, 0.3), obs=x)

    guide = ready(model, Array([0.5, 2.0, 3.0]), observed="x")
    z = guide.draw(Array([0.5, 2.0, 3.0]), sample_shape=(300,))["z"]
    low, high = np.array([0.0, 1, 2]), np.array([1.0, 3, 5])
    assert ((z >= low) & (z <= high)).all()
    assert (np.ptp(z, axis=0) > 0.5 * (high - low)).all()


# --- of all latents


def test_log_prob_is_that_of_the_sites_of_a_trace(many):
    guide = many
    sites = guide.sites(TABLE)
    values = {name: host(site["value"]) for name, site in sites.items()}
    assert {name: value.shape for name, value in values.items()} == SHAPES
    each = {name: host(site["fn"].log_prob(site["value"])) for name, site in sites.items()}
    shapes = {name: value.shape for name, value in each.items()}
    batch = {"w": (2, 1), "loose": (2, 4), "v": (4,), "c": (2, 4)}
    assert shapes == dict.fromkeys(SHAPES, ()) | batch
    total = sum(value.sum() for value in each.values())
    assert guide.log_prob(values, TABLE) == pytest.approx(total, rel=1e-4)


def test_many_values_at_once(many):
    guide = many
    values = guide.draw(TABLE, sample_shape=(3, 2))
    assert {name: value.shape[2:] for name, value in values.items()} == SHAPES
    together = guide.log_prob(values, TABLE)
    assert together.shape == (3, 2)
    for place in np.ndindex(3, 2):
        alone = guide.log_prob({name: value[place] for name, value in values.items()}, TABLE)
        assert together[place] == pytest.approx(alone, rel=1e-4, abs=1e-3)


def test_a_latent_sees_those_before_it(two):
    guide = two
    s = np.float32(1.0)
    given = [guide.log_prob({"theta": np.float32(t), "s": s}, X) for t in (-0.5, 1.5)]
    grid = np.exp(np.linspace(-9, 8, 801, dtype="float32"))
    theta = [
        np.trapezoid(np.exp(guide.log_prob({"theta": np.full_like(grid, t), "s": grid}, X)), grid)
        for t in (-0.5, 1.5)
    ]
    conditional = np.array(given) - np.log(theta)
    assert abs(conditional[0] - conditional[1]) > 1e-3


# --- plates and masks


def test_the_order_in_a_plate_does_not_matter(groups):
    guide = groups
    values, order = guide.draw(Array(GROUPS)), RNG.permutation(5)
    same = guide.log_prob(values | {"z": values["z"][order]}, Array(GROUPS[order]))
    assert same == pytest.approx(guide.log_prob(values, Array(GROUPS)), rel=1e-4)
    other = guide.log_prob(values, Array(GROUPS[order]))
    assert abs(other - same) > 1e-3


def test_other_sizes_of_plates_than_at_first(groups):
    guide = groups
    for size in (1, 3, 40):
        x = Array(RNG.normal(size=size).astype("float32"))
        values = guide.draw(x, sample_shape=(2,))
        assert values["z"].shape == (2, size)
        assert np.isfinite(guide.log_prob(values, x)).all()
        assert guide.sites(x)["z"]["value"].shape == (size,)


def test_what_is_masked_changes_nothing():
    mask = np.array([True, False, True, True, False])
    guide = ready(hierarchy(B), Array(GROUPS), 5, Array(mask), observed="x")
    values = guide.draw(Array(GROUPS), 5, Array(mask))
    log_prob = guide.log_prob(values, Array(GROUPS), 5, Array(mask))
    for instead in (3.0, -100.0, np.nan):
        x = Array(np.where(mask, GROUPS, np.float32(instead)))
        assert guide.log_prob(values, x, 5, Array(mask)) == pytest.approx(log_prob, rel=1e-5)
    # Nothing masked: then it counts, and so does that it was observed.
    everything = guide.log_prob(values, Array(GROUPS))
    assert abs(everything - log_prob) > 1e-4
    assert guide.log_prob(values, Array(GROUPS), 5, Array(np.ones(5, bool))) == pytest.approx(
        everything, rel=1e-5
    )


def test_a_ragged_group_is_a_smaller_one():
    def model(x=None, size=5, mask=None):
        mu = B.sample("mu", B.dist.Normal(0.0, 1.0))
        with B.plate("group", size if x is None else len(x)):
            if mask is None:
                B.sample("x", B.dist.Normal(mu, 0.5), obs=x)
            else:
                with B.mask(mask=mask):
                    B.sample("x", B.dist.Normal(mu, 0.5), obs=x)

    guide = ready(model, Array(GROUPS), 5, Array(np.ones(5, bool)), observed="x")
    mu, mask = {"mu": np.float32(0.3)}, np.array([True, True, False, True, False])
    masked = guide.log_prob(mu, Array(GROUPS), 5, Array(mask))
    assert masked == pytest.approx(guide.log_prob(mu, Array(GROUPS[mask])), rel=1e-5)


# --- which sites are data


@pytest.mark.parametrize("observed", ["x", ["x"], ("x",), None])
def test_data_sites(observed):
    guide = ready(interval_and_scale(B), X, observed=observed)
    assert guide.guide.data_sites(X) == ("x",)
    assert set(guide.draw(X)) == {"theta", "s"}


def test_several_data_sites():
    def model(x=None, y=None):
        theta = B.sample("theta", B.dist.Normal(0.0, 1.0))
        B.sample("x", B.dist.Normal(theta, 1.0), obs=x)
        with B.plate("data", 3):
            B.sample("y", B.dist.Normal(theta, 1.0), obs=y)

    y = Array([0.1, 0.5, -0.2])
    guide = ready(model, X, y, observed=["y", "x"])
    assert sorted(guide.guide.data_sites(X, y)) == ["x", "y"]
    theta = {"theta": np.float32(0.2)}
    first = guide.log_prob(theta, X, y)
    assert abs(guide.log_prob(theta, X + 1, y) - first) > 1e-4
    assert abs(guide.log_prob(theta, X, y + 1) - first) > 1e-4
    only = ready(model, None, y)
    assert only.guide.data_sites(None, y) == ("y",)
    assert set(only.draw(None, y)) == {"theta", "x"}


def test_set_up_without_data(two):
    guide = two
    with_data = guide.guide.data_sites()
    fresh = type(guide.guide)(interval_and_scale(B), observed="x")
    assert fresh.data_sites() == with_data


def test_the_model_runs_once_for_every_call():
    runs = []

    def model(x=None):
        runs.append(x)
        theta = B.sample("theta", B.dist.Normal(0.0, 1.0))
        B.sample("x", B.dist.Normal(theta, 1.0), obs=x)

    guide = ready(model, X, observed="x")
    runs.clear()
    guide.sites(X)
    guide.draw(X)
    guide.log_prob({"theta": np.float32(0.0)}, X)
    assert len(runs) == 3
