# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulations in Pyro: when many runs may be one, and what they draw then."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_spread import DeterministicGenerator, ImplicitDistribution, simulate
from pyro_spread._forward_runs import ForwardRuns
from spread_core.runs import NotOneRunError


def nested(x=None):
    mu = pyro.sample("mu", dist.Normal(5.0, 1.0))
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    count = pyro.sample("count", dist.Poisson(4.0))
    with pyro.plate("groups", 2, dim=-2):
        z = pyro.sample("z", dist.Normal(mu, 0.1))
        with pyro.plate("data", 4, dim=-1), poutine.mask(mask=torch.arange(4) < 3):
            loc = torch.stack([z + w[..., 0], -z + count], -1).expand(
                *torch.broadcast_shapes(z.shape, (4,)), 2
            )
            pyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x)


def test_runs_that_are_one_have_the_shapes_and_dependencies_of_single_ones():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sims = simulate(nested, 300, torch.zeros(2, 4, 2), chunk_size=128)
    program = ForwardRuns(nested, (torch.zeros(2, 4, 2),), {}, 0)
    program.batched = False
    single = program(0, 300)
    assert list(sims.values) == list(single.values)
    for site, value in single.values.items():
        assert sims[site].shape == value.shape
        assert sims[site].dtype == value.dtype
        far = abs(sims[site].mean(0) - value.mean(0)) > 5 * value.std(0) * (2 / 300) ** 0.5
        assert not far.any()
    assert sims.observed == single.observed == ("x",)
    np.testing.assert_array_equal(sims.masks["x"], single.masks["x"])
    np.testing.assert_allclose(sims["z"][..., 0], sims["mu"][:, None] + np.zeros(2), atol=0.6)
    expected = (sims["z"] + sims["w"][:, 0, None, None]) + np.zeros(4)
    np.testing.assert_allclose(sims["x"][..., 0], expected, atol=0.6)
    assert all(len(np.unique(sims[site])) > 250 for site in ("mu", "w", "z", "x"))


def sums_over_runs():
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal((z**2).sum(), 1.0))


def indexes_from_the_left():
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", DeterministicGenerator(z.flatten()[0] + z.flatten()[1]))


def implicit_of_another_run():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    pyro.sample("x", ImplicitDistribution(lambda eps: eps + z.flatten()[0], base, (2,)))


@pytest.mark.parametrize("model", [sums_over_runs, indexes_from_the_left, implicit_of_another_run])
def test_a_run_that_depends_on_others_is_made_by_itself(model):
    with pytest.warns(UserWarning, match="the model runs once for every simulation") as caught:
        sims = simulate(model, 20)
    assert "has another distribution at site 'x' than by itself. Index values from the right" in (
        str(caught[0].message)
    )
    z = sims["z"]
    if model is indexes_from_the_left:
        np.testing.assert_allclose(sims["x"], z[:, 0] + z[:, 1], rtol=1e-6)


def implicit(x=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    return pyro.sample("x", ImplicitDistribution(lambda eps: eps + z.unsqueeze(-1), base, (2,)))


def series():
    z = pyro.sample("z_0", dist.Normal(0.0, 1.0))
    for t in pyro.plate("steps", 3):
        z = pyro.sample(f"z_{t + 1}", dist.Delta(z + 1.0))


@pytest.mark.parametrize("model", [implicit, series])
def test_runs_without_densities_are_one_too(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sims = simulate(model, 50)
    if model is series:
        np.testing.assert_allclose(sims["z_3"], sims["z_0"] + 3, rtol=1e-6)
    else:
        assert np.corrcoef(sims["z"], sims["x"][:, 0])[0, 1] > 0.4


def test_a_plate_that_subsamples_is_made_run_by_run():
    def model():
        with pyro.plate("data", 100, subsample_size=3):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match="plate 'data' subsamples, and all runs would share one"):
        assert simulate(model, 5)["x"].shape == (5, 3)


def rarely_fails():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if bool((z > 2.0).any()):
        raise ArithmeticError("no")


def test_where_a_chunk_fails_the_whole_table_is_made_run_by_run():
    with pytest.warns(UserWarning, match="cannot be one: ArithmeticError: no"):
        sims = simulate(rarely_fails, 200, chunk_size=50)
    failed = int(sims.failed.sum())
    assert 0 < failed < 20
    program = ForwardRuns(rarely_fails, (), {}, 0)
    program.batched = False
    single = program(0, 200)
    np.testing.assert_array_equal(sims["z"], single.values["z"])
    np.testing.assert_array_equal(sims.failed, single.failed)


def test_a_failing_chunk_says_so_by_text_so_that_it_leaves_a_worker():
    program = ForwardRuns(rarely_fails, (), {}, 0)
    program.chunk_size = 200
    with pytest.raises(NotOneRunError, match="ArithmeticError: no"):
        program(0, 200)


def test_params_and_buffers_stay_as_they_were():
    net = torch.nn.BatchNorm1d(1)

    def model(x=None):
        scale = pyro.param("scale", torch.tensor(2.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(4, 1), scale).to_event(2))
        pyro.sample("x", dist.Normal(net(z.reshape(-1, 1)).reshape(z.shape), 1.0).to_event(2))

    before = net.running_mean.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulate(model, 5)
    assert torch.equal(net.running_mean, before)
    assert not pyro.param("scale").grad_fn
    assert pyro.param("scale").item() == 2.0


def test_arguments_of_numpy_are_converted():
    def model(loc, x=None):
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    sims = simulate(model, 5, np.zeros(3), np.zeros(3, np.float32))
    assert sims.observed == ("x",)
    assert sims["z"].dtype == np.float32


def test_an_error_of_the_model_does_not_blame_an_argument_of_simulate():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        raise KeyError("missing")

    with pytest.raises(KeyError, match=r"^'missing'$"):
        simulate(model, 5, observed="x")
