# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoAmortized's density: normalised, of all latents together, given what counts of the data."""

import numpy as np
import pytest
from amortised_models import classes, hierarchy, interval_and_scale

RNG = np.random.default_rng(0)
X = np.float32(0.7)
TABLE = RNG.normal(size=(2, 4, 2)).astype("float32")
GROUPS = RNG.normal(size=5).astype("float32")


@pytest.fixture(scope="module")
def two(lib):
    return lib.ready(interval_and_scale(lib.B), X, observed="x")


@pytest.fixture(scope="module")
def groups(lib):
    return lib.ready(hierarchy(lib.B), GROUPS, observed="x", disturbed=0.1)


def is_normalised(density, *grids):
    """Whether a density on a grid integrates to 1."""
    for grid in reversed(grids):
        density = np.trapezoid(density, grid, axis=-1)
    return abs(density - 1) < 2e-3


# --- normalised


def test_an_interval_integrates_to_one(lib):
    def model(x=None):
        theta = lib.B.sample("theta", lib.B.dist.Uniform(-1.0, 2.0))
        lib.B.sample("x", lib.B.dist.Normal(theta, 0.3), obs=x)

    grid = np.linspace(-1, 2, 2001, dtype="float32")
    for members in (1, 3):
        guide = lib.ready(model, X, observed="x", ensemble=members)
        for x in (-0.9, 0.4, 1.9):
            assert is_normalised(np.exp(guide.log_prob({"theta": grid}, x)), grid)


def test_two_numbers_integrate_to_one(lib):
    guide = lib.ready(interval_and_scale(lib.B), X, observed="x", disturbed=0.1)
    theta = np.linspace(-1, 2, 301, dtype="float32")
    log_s = np.linspace(-9, 8, 901, dtype="float32")
    a, b = np.meshgrid(theta, log_s, indexing="ij")
    log_prob = guide.log_prob({"theta": a, "s": np.exp(b)}, X)
    assert log_prob.shape == a.shape
    assert is_normalised(np.exp(log_prob + b), theta, log_s)


def test_classes_sum_to_one(lib):
    guide = lib.ready(classes(lib.B), X, observed="x", ensemble=2)
    every = np.stack(np.meshgrid(range(3), range(2), range(2), range(2)), -1).reshape(-1, 4)
    k, f, two = every[:, 0], every[:, 1].astype("float32"), every[:, 2:].astype("float32")
    log_prob = guide.log_prob({"k": k, "f": f, "two": two}, X)
    assert np.exp(log_prob).sum() == pytest.approx(1, abs=1e-5)
    assert len(np.unique(log_prob.round(4))) > 12
    assert guide.log_prob({"k": np.array(3), "f": f[0], "two": two[0]}, X) == -np.inf


def test_nothing_is_outside_of_an_interval(two):
    theta = np.float32([-1.01, -0.99, 1.99, 2.01])
    log_prob = two.log_prob({"theta": theta, "s": np.ones(4, "float32")}, X)
    assert list(np.isfinite(log_prob)) == [False, True, True, False]
    assert (log_prob[[0, 3]] == -np.inf).all()


def test_intervals_that_differ_along_a_plate(lib):
    def model(x=None):
        with lib.B.plate("data", 3):
            ends = lib.Array([0.0, 1.0, 2.0]), lib.Array([1.0, 3.0, 5.0])
            z = lib.B.sample("z", lib.B.dist.Uniform(*ends))
            lib.B.sample("x", lib.B.dist.Normal(z, 0.3), obs=x)

    x = np.float32([0.5, 2.0, 3.0])
    z = lib.ready(model, x, observed="x").draw(x, sample_shape=(300,))["z"]
    low, high = np.array([0.0, 1, 2]), np.array([1.0, 3, 5])
    assert ((z >= low) & (z <= high)).all()
    assert (np.ptp(z, axis=0) > 0.5 * (high - low)).all()


# --- of all latents


def test_a_latent_sees_those_before_it(two):
    s = np.float32(1.0)
    given = [two.log_prob({"theta": np.float32(t), "s": s}, X) for t in (-0.5, 1.5)]
    grid = np.exp(np.linspace(-9, 8, 801, dtype="float32"))
    theta = [
        np.trapezoid(np.exp(two.log_prob({"theta": np.full_like(grid, t), "s": grid}, X)), grid)
        for t in (-0.5, 1.5)
    ]
    conditional = np.array(given) - np.log(theta)
    assert abs(conditional[0] - conditional[1]) > 1e-3


# --- plates and masks


def test_the_order_in_a_plate_does_not_matter(groups):
    values, order = groups.draw(GROUPS), RNG.permutation(5)
    same = groups.log_prob(values | {"z": values["z"][order]}, GROUPS[order])
    assert same == pytest.approx(groups.log_prob(values, GROUPS), rel=1e-4)
    other = groups.log_prob(values, GROUPS[order])
    assert abs(other - same) > 1e-3


def test_other_sizes_of_plates_than_at_first(groups):
    for size in (1, 40):
        x = RNG.normal(size=size).astype("float32")
        values = groups.draw(x, sample_shape=(2,))
        assert values["z"].shape == (2, size)
        assert np.isfinite(groups.log_prob(values, x)).all()
    assert groups.sites(x)["z"]["value"].shape == (size,)


def test_what_is_masked_changes_nothing(lib):
    mask = np.array([True, False, True, True, False])
    guide = lib.ready(hierarchy(lib.B), GROUPS, 5, mask, observed="x")
    values = guide.draw(GROUPS, 5, mask)
    log_prob = guide.log_prob(values, GROUPS, 5, mask)
    for instead in (3.0, -100.0, np.nan):
        x = np.where(mask, GROUPS, np.float32(instead))
        assert guide.log_prob(values, x, 5, mask) == pytest.approx(log_prob, rel=1e-5)
    # Nothing masked: then it counts, and so does that it was observed.
    everything = guide.log_prob(values, GROUPS)
    assert abs(everything - log_prob) > 1e-4
    assert guide.log_prob(values, GROUPS, 5, np.ones(5, bool)) == pytest.approx(
        everything, rel=1e-5
    )


def test_a_ragged_group_is_a_smaller_one(lib):
    def model(x=None, size=5, mask=None):
        mu = lib.B.sample("mu", lib.B.dist.Normal(0.0, 1.0))
        with lib.B.plate("group", size if x is None else len(x)):
            if mask is None:
                lib.B.sample("x", lib.B.dist.Normal(mu, 0.5), obs=x)
            else:
                with lib.B.mask(mask=mask):
                    lib.B.sample("x", lib.B.dist.Normal(mu, 0.5), obs=x)

    guide = lib.ready(model, GROUPS, 5, np.ones(5, bool), observed="x")
    mu, mask = {"mu": np.float32(0.3)}, np.array([True, True, False, True, False])
    masked = guide.log_prob(mu, GROUPS, 5, mask)
    assert masked == pytest.approx(guide.log_prob(mu, GROUPS[mask]), rel=1e-5)


# --- which sites are data


@pytest.mark.parametrize("observed", ["x", ["x"], ("x",), None])
def test_data_sites(lib, observed):
    guide = lib.AutoAmortized(interval_and_scale(lib.B), observed=observed)
    assert guide.data_sites(X) == ("x",)
    assert set(guide.supports) == {"theta", "s"}


def test_several_data_sites(lib):
    def model(x=None, y=None):
        theta = lib.B.sample("theta", lib.B.dist.Normal(0.0, 1.0))
        lib.B.sample("x", lib.B.dist.Normal(theta, 1.0), obs=x)
        with lib.B.plate("data", 3):
            lib.B.sample("y", lib.B.dist.Normal(theta, 1.0), obs=y)

    y = np.float32([0.1, 0.5, -0.2])
    guide = lib.ready(model, X, y, observed=["y", "x"])
    assert sorted(guide.guide.data_sites(X, y)) == ["x", "y"]
    theta = {"theta": np.float32(0.2)}
    first = guide.log_prob(theta, X, y)
    assert abs(guide.log_prob(theta, X + 1, y) - first) > 1e-4
    assert abs(guide.log_prob(theta, X, y + 1) - first) > 1e-4
    only = lib.AutoAmortized(model)
    assert only.data_sites(None, y) == ("y",)
    assert set(only.supports) == {"theta", "x"}


def test_set_up_without_data(lib, two):
    with_data = two.guide.data_sites()
    fresh = type(two.guide)(interval_and_scale(lib.B), observed="x")
    assert fresh.data_sites() == with_data


def test_the_model_runs_once_for_every_call(lib):
    runs = []

    def model(x=None):
        runs.append(x)
        theta = lib.B.sample("theta", lib.B.dist.Normal(0.0, 1.0))
        lib.B.sample("x", lib.B.dist.Normal(theta, 1.0), obs=x)

    guide = lib.ready(model, X, observed="x")
    runs.clear()
    guide.sites(X)
    guide.draw(X)
    guide.log_prob({"theta": np.float32(0.0)}, X)
    assert len(runs) == 3


# --- other data than those at the arguments


def test_given_is_as_if_it_were_an_argument(lib, groups):
    values = groups.draw(GROUPS)
    expected = groups.log_prob(values, GROUPS)
    given = groups.guide.given({"x": lib.Array(GROUPS)})
    for program, args in ((groups.guide, (GROUPS,)), (given, ()), (given, (GROUPS + 3,))):
        sites = groups.conditioned(values, *args, program=program)
        assert lib.host(sites["z"]["value"]).shape == (5,)
        assert lib.log_prob_of(sites) == pytest.approx(expected, rel=1e-5)


def test_given_masks(lib):
    mask = np.array([True, False, True, True, False])
    guide = lib.ready(hierarchy(lib.B), GROUPS, 5, mask, observed="x")
    values = guide.draw(GROUPS, 5, mask)
    given = guide.guide.given({"x": lib.Array(GROUPS)}, {"x": lib.Array(mask)})
    sites = guide.conditioned(values, program=given)
    expected = guide.log_prob(values, GROUPS, 5, mask)
    assert lib.log_prob_of(sites) == pytest.approx(expected, rel=1e-5)
