# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Calibration on stored simulations: each row once, failures and masks left out."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_spread import Simulations, simulate, simulation_based_calibration
from spread_analysis import InvalidSimulationsWarning

RNG = np.random.default_rng(0)
THETA = RNG.standard_normal(1050)
X = THETA + 0.5 * RNG.standard_normal(1050)
TABLE = Simulations.from_dict({"theta": THETA}, {"x": X})
QUICK = {"num_draws": 19, "parallel": True}


@pytest.fixture(autouse=True)
def _seed():
    pyro.set_rng_seed(0)


def model(x):
    with pyro.plate("data", len(x)):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(theta, 0.5), obs=x)


def guide(x, width=1.0):
    with pyro.plate("data", len(x)):
        pyro.sample("theta", dist.Normal(0.8 * x, width * 0.2**0.5))


def narrow(x):
    guide(x, 0.7)


def ranks(table, at=None, guide=guide, model=model, **options):
    at = torch.zeros(100) if at is None else at
    return simulation_based_calibration(model, guide, at, simulations=table, **(QUICK | options))


def test_a_row_may_be_a_datum_of_the_plate():
    report = ranks(TABLE, num_simulations=5000)
    assert report.ranks["theta"].shape == (1050,)  # the last batch holds half of one
    assert report.recorded
    assert report.p_value() > 0.005
    assert ranks(TABLE, guide=narrow).p_value() < 1e-4


def test_ranks_are_those_of_the_rows():
    def sure(x):
        with pyro.plate("data", len(x)):
            pyro.sample("theta", dist.Normal(x, 1e-6))

    report = ranks(TABLE, guide=sure, num_simulations=1050)
    np.testing.assert_array_equal(report.ranks["theta"], np.where(THETA > X, 19, 0))


def test_there_are_as_many_simulations_as_asked_for():
    report = ranks(TABLE, num_simulations=150)
    assert report.ranks["theta"].shape == (200,)
    assert not report.recorded


def group_model(x=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def group_guide(x=None, width=1.0):
    precision = 0.25 + 3
    pyro.sample("mu", dist.Normal(x.sum(-1) / precision, width * precision**-0.5))


def test_a_row_may_be_a_run_of_the_model():
    table = simulate(group_model, 400, observed="x", seed=1)
    options = {"model": group_model, "num_simulations": 400}
    report = ranks(table, torch.zeros(3), group_guide, **options)
    assert report.ranks["mu"].shape == (400,)
    assert report.p_value() > 0.005
    wide = ranks(table, torch.zeros(3), lambda x: group_guide(x, 1.6), **options)
    assert wide.p_value() < 1e-3


class KnowsItsData:
    """A guide of the signature of the model that is given data by site."""

    def __init__(self, values=None):
        self.values = values

    def data_sites(self, x=None):
        return ("x",)

    def given(self, values):
        return KnowsItsData(values)

    def __call__(self, x=None):
        assert x is None
        group_guide(self.values["x"])


def test_a_guide_may_know_its_data():
    table = simulate(group_model, 400, observed="x", seed=1)
    for simulations in (table, None):
        report = simulation_based_calibration(
            group_model, KnowsItsData(), num_simulations=400, simulations=simulations, **QUICK
        )
        assert report.ranks["mu"].shape == (400,)
        assert report.p_value() > 0.005


def test_rows_that_repeat_count_once():
    rows = np.tile(np.arange(100), 10)
    report = ranks(TABLE.take(rows), num_simulations=1000)
    assert report.ranks["theta"].shape == (100,)
    assert report.recorded
    assert report.p_value() > 0.005
    assert str(report).endswith(" 100 simulations, all that the model has recorded")
    table = simulate(group_model, 40, observed="x").take(np.repeat(np.arange(40), 3))
    report = ranks(table, torch.zeros(3), group_guide, model=group_model)
    assert report.ranks["mu"].shape == (40,)


def test_rows_that_failed_are_left_out():
    x = np.where(RNG.uniform(size=1050) < 0.2, np.nan, X)
    table = Simulations.from_dict({"theta": THETA}, {"x": x})
    with pytest.warns(InvalidSimulationsWarning, match=r"of 1050 .*: \d+ at site 'x'") as caught:
        report = ranks(table, num_simulations=2000)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert report.ranks["theta"].shape == (np.isfinite(x).sum(),)
    assert report.p_value() > 0.005


def test_what_the_table_masks_has_no_rank():
    ok = RNG.uniform(size=1050) < 0.7
    x, theta = np.where(ok, X, np.nan), np.where(ok, THETA, 99.0)
    table = Simulations({"theta": theta, "x": x}, "x", {"theta": ok, "x": ok})
    report = ranks(table, num_simulations=2000)
    assert report.ranks["theta"].shape == (ok.sum(),)
    assert report.p_value() > 0.005


def moving_mask(x):
    with pyro.plate("data", len(x)):
        ok = torch.rand(len(x)) < 0.7
        with poutine.mask(mask=ok):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            y = torch.where(ok, theta + 0.5 * torch.randn(len(x)), torch.nan)
            pyro.sample("x", dist.Delta(y), obs=x)


def test_masks_that_differ_from_run_to_run_are_those_of_the_table():
    table = simulate(moving_mask, 30, torch.zeros(50))
    report = ranks(table, torch.zeros(50), model=moving_mask, num_simulations=5000)
    assert len(report.ranks["theta"]) == table.masks["theta"].sum()
    assert report.p_value() > 0.005
    bare = Simulations.from_dict({"theta": table["theta"]}, {"x": np.nan_to_num(table["x"])})
    with pytest.raises(ValueError, match=r"'theta': the model masks out other elements in every"):
        ranks(bare, torch.zeros(50), model=moving_mask)


def test_masks_of_the_model_are_respected():
    def masked(x, ok):
        with pyro.plate("data", len(x)), poutine.mask(mask=ok):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(theta, 0.5), obs=x)

    ok = torch.arange(100) % 4 > 0
    report = simulation_based_calibration(
        masked, lambda x, ok: guide(x), torch.zeros(100), ok, simulations=TABLE.take(slice(1000)),
        **QUICK,
    )  # fmt: skip
    assert report.ranks["theta"].shape == (750,)


def without_data(x):
    with pyro.plate("data", len(x)):
        pyro.sample("theta", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ranks(Simulations.from_dict({"z": THETA}, {"x": X})),
            r"site 'theta': simulations= has no such site; it has \['x', 'z'\].*sites=",
        ),
        (
            lambda: ranks(Simulations.from_dict({"theta": THETA}, {"y": X})),
            r"site 'x': simulations= has no such site",
        ),
        (
            lambda: ranks(Simulations.from_dict({"theta": THETA}, {"x": X[:, None] * np.ones(3)})),
            r"site 'x': a row of simulations= has the shape \(3,\), but the model's site \(100,\) "
            r"at these arguments, or \(\) if a row is one datum",
        ),
        (
            lambda: ranks(
                Simulations.from_dict({"mu": THETA}, {"x": X}), torch.zeros(3), group_guide,
                model=group_model,
            ),
            r"site 'x': a row of simulations= has the shape \(\), but the model's site \(3,\) at "
            "these arguments. Pass",
        ),
        (lambda: ranks(TABLE, model=without_data), "the model observes nothing at these arguments"),
        (
            lambda: ranks(Simulations.from_dict({"theta": THETA}, {"x": X * np.nan})),
            "all 1050 rows of simulations= are NaN or inf",
        ),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
