# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A report says how many data the loss sums over: masks, subsamples and inner plates included."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyro_spread import GaussianNoise, SpreadELBO, report

X = torch.linspace(-1.0, 1.0, 12)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr("spread_analysis.report.figures._DPI", 20)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def guide(x):
    pass


def plain(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.param("w", torch.tensor(0.0)), 1.0), obs=x)


def masked(x):
    with poutine.mask(mask=x > 0):
        plain(x)


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=3) as index:
        pyro.sample("x", dist.Normal(pyro.param("w", torch.tensor(0.0)), 1.0), obs=x[index])


def nested(x):
    loc = pyro.param("w", torch.tensor(0.0))
    with pyro.plate("data", 4, dim=-1), pyro.plate("parts", 3, dim=-2):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x.reshape(3, 4))


def inner_subsampled(x):
    loc = pyro.param("w", torch.tensor(0.0))
    with pyro.plate("data", 4, dim=-1), pyro.plate("parts", 3, 2, dim=-2) as index:
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x.reshape(3, 4)[index])


def no_plate(x):
    pyro.sample(
        "x", dist.Normal(pyro.param("w", torch.tensor(0.0)), 1.0).expand([12]).to_event(1), obs=x
    )


def averaged(x):
    with poutine.scale(scale=1 / 12):
        plain(x)


def two_counts(x):
    loc = pyro.param("w", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
    with pyro.plate("others", 2):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=x[:2])


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (plain, 12.0),
        (masked, 6.0),
        (subsampled, 12.0),
        (nested, 4.0),
        (inner_subsampled, 4.0),
        (no_plate, 1.0),
        (averaged, 1.0),
        (two_counts, math.nan),
    ],
)
def test_data_are_counted_as_the_loss_does(model, count, tmp_path):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(X)
    found = report(tmp_path / "run.html", svi, X, num_samples=4)
    assert found.num_data == pytest.approx(count, nan_ok=True)
    assert ("nats per datum" in found._repr_html_()) == math.isfinite(count)


def test_a_spread_elbo_is_given_per_datum(tmp_path):
    svi = SVI(plain, guide, pyro.optim.Adam({"lr": 1e-2}), SpreadELBO({"x": GaussianNoise(0.3)}))
    svi.step(X)
    found = report(tmp_path / "run.html", svi, X, num_samples=12)
    assert (found.words.is_sum, found.num_data) == (True, 12.0)
    assert "nats per datum; 12 data" in (tmp_path / "run.html").read_text()
    assert len(repr(found)) < 200
