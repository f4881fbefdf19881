# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Sites that another ArviZ would not take: names with "/", and SVI results of its own reader."""

import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from spread_analysis import to_arviz
from spread_analysis.arviz_export import is_new
from spread_analysis.report import figures

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    az = pytest.importorskip("arviz")

RNG = np.random.default_rng(0)
DRAWS = {"enc/u": RNG.normal(size=(100, 2)), "enc/v": RNG.normal(size=100)}


@pytest.fixture
def new_arviz(monkeypatch):
    """What ArviZ 1 is handed, whichever ArviZ is installed."""

    def from_dict(data, *, coords=None, dims=None):
        assert not any("/" in site for sites in data.values() for site in sites)
        return data, dims

    fake = SimpleNamespace(__version__="1.3.0", from_dict=from_dict)
    monkeypatch.setitem(sys.modules, "arviz", fake)


def test_the_installed_arviz_takes_slashes():
    data = to_arviz(DRAWS, dims={"enc/u": ["code"]})
    name = "enc.u" if is_new(az) else "enc/u"
    assert data["posterior"][name].dims == ("chain", "draw", "code")
    np.testing.assert_array_equal(data["posterior"][name].values[0], DRAWS["enc/u"])
    assert list(az.summary(data, kind="stats").index) == [
        *(f"{name}[{index}]" for index in range(2)),
        name.replace("u", "v"),
    ]


def test_a_tree_gets_names_without_slashes(new_arviz):
    data, dims = to_arviz(DRAWS, observed_data={"x/y": [1.0]}, dims={"enc/u": ["code"]})
    assert list(data["posterior"]) == ["enc.u", "enc.v"]
    assert list(data["observed_data"]) == ["x.y"]
    assert dims == {"enc.u": ["code"]}


def test_two_sites_of_one_name_are_refused(new_arviz):
    with pytest.raises(ValueError, match=r"two sites that ArviZ would call 'a\.b'.*'a/b'"):
        to_arviz({"a.b": np.zeros(3), "a/b": np.zeros(3)})


@pytest.mark.parametrize("names", [("enc/u", "enc/v"), ("u", "v"), ("$u$/", "a b/c")])
def test_the_pair_plot_takes_any_name(names, monkeypatch):
    monkeypatch.setattr(figures, "_DPI", 30)
    draws = dict(zip(names, DRAWS.values(), strict=True))
    assert figures.pair_plot(draws)


@pytest.mark.skipif(not is_new(az), reason="ArviZ reads SVI results since 1.0")
def test_arviz_reads_an_svi_of_ours():
    jax, numpyro = pytest.importorskip("jax"), pytest.importorskip("numpyro")
    optax, ns = pytest.importorskip("optax"), pytest.importorskip("numpyro_spread")
    dist = numpyro.distributions
    x = jax.numpy.linspace(-1.0, 1.0, 20)

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Delta(z), obs=x)

    def guide(x):
        loc = numpyro.param("loc", 0.5)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc * x, 0.5))

    loss = ns.SpreadELBO({"x": ns.GaussianNoise(0.3)})
    svi = numpyro.infer.SVI(model, loss.register(model, guide), optax.adam(1e-2), loss)
    result = svi.run(jax.random.key(0), 5, x, progress_bar=False)
    data = az.from_numpyro_svi(svi, svi_result=result, model_args=(x,), num_samples=200)
    assert dict(data.posterior["z"].sizes) == {"sample": 200, "data": 20}
    summary = az.summary(data, sample_dims="sample", kind="stats", round_to=6)
    assert len(summary) == 20
