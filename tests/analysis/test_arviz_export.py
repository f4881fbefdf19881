# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Samples of either backend in ArviZ: the installed one, and the calls that a new one takes."""

import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from spread_analysis import to_arviz
from spread_analysis.arviz_export import is_new

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    az = pytest.importorskip("arviz")

RNG = np.random.default_rng(0)
DRAWS = {"z": RNG.normal(size=(100, 2)), "w": RNG.normal(3.0, 1.0, 100)}


def everything(**changes):
    groups = {
        "posterior": DRAWS,
        "prior": {"z": RNG.normal(size=(40, 2))},
        "posterior_predictive": {"x": RNG.normal(size=(100, 4))},
        "prior_predictive": {"x": RNG.normal(size=(40, 4))},
        "observed_data": {"x": np.arange(4.0)},
        "sample_stats": {"diverging": np.arange(100) == 7},
        "log_likelihood": {"x": RNG.normal(size=(100, 4))},
    }
    return groups | changes


def test_every_group_arrives_with_its_names():
    groups = everything()
    data = to_arviz(
        **groups, dims={"z": ["code"], "x": ["datum"]}, coords={"code": ["left", "right"]}
    )
    for group, sites in groups.items():
        for site, values in sites.items():
            array = data[group][site]
            lead = () if group == "observed_data" else ("chain", "draw")
            assert array.dims[: len(lead)] == lead
            np.testing.assert_array_equal(array.values.reshape(values.shape), values)
    assert data["posterior"]["z"].dims == ("chain", "draw", "code")
    assert list(data["posterior"]["code"].values) == ["left", "right"]
    assert data["observed_data"]["x"].dims == ("datum",)
    assert data["sample_stats"]["diverging"].dtype == bool


def test_summary_and_plots_just_work():
    data = to_arviz(**everything())
    summary = az.summary(data, round_to=6)
    assert list(summary.index) == ["z[0]", "z[1]", "w"]
    assert float(summary.loc["w", "mean"]) == pytest.approx(DRAWS["w"].mean(), abs=1e-5)
    if is_new(az):
        plot = az.plot_pair(
            data, var_names=["z"], visuals={"divergence": True}, backend="matplotlib"
        )
        scatter, divergence = (
            [found for found in plot.viz[name].values.flat if found is not None]
            for name in ("scatter", "divergence")
        )
        np.testing.assert_array_equal(scatter[0].get_offsets(), DRAWS["z"])
        np.testing.assert_array_equal(divergence[0].get_offsets(), DRAWS["z"][7:8])
        return
    axes = az.plot_pair(data, var_names=["z"], divergences=True)
    pair = np.ravel(axes)[0]
    np.testing.assert_array_equal(pair.collections[0].get_offsets(), DRAWS["z"])
    np.testing.assert_array_equal(pair.lines[0].get_xydata(), DRAWS["z"][7:8])  # the divergence


def test_chains_lie_one_after_another():
    data = to_arviz(DRAWS, prior={"z": np.zeros((5, 2))}, num_chains=4)
    assert dict(data["posterior"]["w"].sizes) == {"chain": 4, "draw": 25}
    np.testing.assert_array_equal(data["posterior"]["w"].values[1], DRAWS["w"][25:50])
    assert dict(data["prior"]["z"].sizes)["chain"] == 1


def test_tensors_of_both_backends_are_read():
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    tensor = torch.tensor(DRAWS["z"], requires_grad=True)
    data = to_arviz({"z": tensor, "w": jnp.asarray(DRAWS["w"], jnp.float32)})
    np.testing.assert_array_equal(data["posterior"]["z"].values[0], DRAWS["z"])
    assert data["posterior"]["w"].values.dtype == np.float32


def test_a_new_arviz_gets_one_nested_dict(monkeypatch):
    calls = []

    def from_dict(data, *, coords=None, dims=None):
        calls.append((data, coords, dims))
        return "a DataTree"

    fake = SimpleNamespace(__version__="1.3.0", from_dict=from_dict)
    monkeypatch.setitem(sys.modules, "arviz", fake)
    assert to_arviz(**everything(), dims={"z": ["code"]}) == "a DataTree"
    [(data, coords, dims)] = calls
    assert (coords, dims) == (None, {"z": ["code"]})
    assert data.keys() == everything().keys()
    assert data["posterior"]["z"].shape == (1, 100, 2)
    assert data["observed_data"]["x"].shape == (4,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"posterior_predictive": {"x": np.zeros((99, 4))}},
            r"`posterior_predictive` of 'x' has 99 samples, but `posterior` of 'z' has 100\.",
        ),
        (
            {"prior_predictive": {"x": np.zeros(41)}},
            "`prior_predictive` of 'x' has 41 samples, but `prior` of 'z' has 40",
        ),
        (
            {"posterior": {"w": DRAWS["w"], "z": DRAWS["z"][1:]}},
            "`posterior` of 'z' has 99 samples, but `posterior` of 'w' has 100",
        ),
        ({"posterior": {"w": 1.0}}, "`posterior` of 'w' is a single number"),
        (
            {"observed_data": {"x": np.array(["a"])}},
            "`observed_data` of 'x' must hold numbers, got an array of type <U1",
        ),
        ({"num_chains": 3}, "`posterior` of 'z' has 100 samples, which are no 3 chains of equal"),
        ({"num_chains": 0}, "`num_chains` must be an integer of at least 1"),
    ],
)
def test_bad_samples_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        to_arviz(**everything(**changes))


def test_nothing_to_convert_is_an_error():
    with pytest.raises(ValueError, match="nothing to convert: pass at least `posterior`"):
        to_arviz({}, prior=None)


def test_a_missing_arviz_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"`spread_analysis\.to_arviz` needs arviz: pip install"):
        to_arviz(DRAWS)
