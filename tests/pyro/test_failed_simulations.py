# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulators that return NaN for a part of their prior."""

import warnings

import every
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro_every import eager_and_compiled

import pyro_spread as ps
from pyro_spread.ratio import MLPCritic

N = 200


def simulator(theta):
    return (theta + 1).sqrt()  # NaN below -1, for 16 % of the prior


def model(x):
    with pyro.plate("data", len(x)):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Delta(simulator(theta)), obs=x)


def guide(x):
    """Exact up to its width: theta = x^2 - 1."""
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("theta", dist.Normal(loc + x**2, scale))


def masking_guide(x):
    failed = torch.isnan(x)
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=~failed):
        pyro.sample("theta", dist.Normal(loc + x.nan_to_num() ** 2, 1.0))


def no_guide(x):
    pass


def critic(*names):
    names = ["theta" if name == "z" else name for name in names]
    return ps.concat_sites(MLPCritic(hidden=[4]), *names)


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def step(loss, guide=guide, model=model):
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss).step(torch.zeros(N))


LOSSES = {
    name: loss for name, loss in (every.LOSSES | every.WITHOUT_NOISE).items() if loss.simulates
}


def made(name):
    """A loss that draws from the model, and its guide."""
    return LOSSES[name].make(ps, critic), no_guide if LOSSES[name].guide == "empty" else guide


def count_of(text):
    return int(text.split("site 'x' of the generator: ")[1].split()[0])


def above(x):
    """The model, whose simulations do not fail at x = 10."""
    with pyro.plate("data", len(x)):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Delta(simulator(theta + x)), obs=x)


@eager_and_compiled(LOSSES)
def test_the_site_and_the_number_are_named(name, how):
    loss, guide = made(name)
    optim = pyro.optim.Adam({"lr": 0.0})
    svi = SVI(above, guide, optim, how.made(loss))
    for _ in range(how.before):
        svi.step(torch.full((N,), 10.0))
    with pytest.raises(
        ps.NonFiniteError, match=rf"'x' of the generator: \d+ of {N} of the model's draws"
    ) as caught:
        svi.step(torch.zeros(N))
    text = str(caught.value)
    assert 10 < count_of(text) < 60
    assert "narrow the prior" in text
    assert ("exclude_invalid_x=True" in text) == (name == "joint KL")
    assert len(text) < 500


def test_the_number_is_that_of_data_and_not_of_elements():
    def wide(x):
        with pyro.plate("data", len(x)):
            theta = pyro.sample("theta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            bad = torch.full_like(theta, torch.nan)
            rows = (torch.arange(len(x)) < 7)[:, None]
            pyro.sample("x", dist.Delta(torch.where(rows, bad, theta), event_dim=1), obs=x)

    with pytest.raises(ps.NonFiniteError, match=r"'x' of the generator: 7 of 20 "):
        SVI(wide, no_guide, pyro.optim.Adam({}), ps.EnergyDistance()).step(torch.zeros(20, 3))


def test_failures_are_left_out():
    loss = ps.JointContrastELBO(divergence=ps.KL(), exclude_invalid_x=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
    with pytest.warns(ps.InvalidSimulationsWarning, match=rf"of {N} simulations .*\d+ at site 'x'"):
        svi.step(torch.zeros(N))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        for _ in range(300):
            svi.step(torch.zeros(N))
    assert pyro.param("loc").item() == pytest.approx(-1.0, abs=0.05)
    assert pyro.param("scale").item() < 0.1


def test_its_value_and_gradient_are_those_of_the_rest():
    theta = torch.tensor([0.5, -2.0, 1.0, -3.0, 0.0])
    good = theta > -1

    def fixed(x):
        with pyro.plate("data", len(x)):
            pyro.sample("theta", dist.Delta(theta))
            pyro.sample("x", dist.Delta(simulator(theta)), obs=x)

    def of(model, x, **kwargs):
        pyro.clear_param_store()
        loss = ps.JointContrastELBO(divergence=ps.KL(), **kwargs)
        value = loss.loss_and_grads(model, guide, x)
        return value, pyro.param("loc").grad.item()

    def rest(x):
        with pyro.plate("data", len(x)):
            pyro.sample("theta", dist.Delta(theta[good]))
            pyro.sample("x", dist.Delta(simulator(theta[good])), obs=x)

    with pytest.warns(ps.InvalidSimulationsWarning, match="2 at site 'x'"):
        value, grad = of(fixed, torch.zeros(5), exclude_invalid_x=True)
    assert (value, grad) == pytest.approx(of(rest, torch.zeros(3)), rel=1e-6)


def test_runs_of_one_datum_are_left_out_whole():
    def single(x):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Delta(simulator(theta)), obs=x)

    def its_guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("theta", dist.Normal(loc + x**2, 1.0))

    loss = ps.JointContrastELBO(divergence=ps.KL(), exclude_invalid_x=True, num_particles=40)
    with pytest.warns(ps.InvalidSimulationsWarning):
        value = SVI(single, its_guide, pyro.optim.Adam({"lr": 0.1}), loss).step(torch.tensor(0.5))
    assert value == pytest.approx(0.5 + 0.919, abs=1e-3)  # theta = x^2 - 1 at every good one


def all_bad(x):
    with pyro.plate("data", len(x)):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Delta(theta * torch.nan), obs=x)


@pytest.mark.filterwarnings("ignore::pyro_spread.InvalidSimulationsWarning")
def test_if_all_fail_nothing_is_left():
    loss = ps.JointContrastELBO(divergence=ps.KL(), exclude_invalid_x=True)
    with pytest.raises(ps.NonFiniteError, match="leaves nothing"):
        step(loss, model=all_bad)
    with pytest.raises(ValueError, match=r"simulations are NaN or inf: too few are left to rank"):
        ps.simulation_based_calibration(all_bad, guide, torch.zeros(N), exclude_invalid_x=True)


def test_only_the_forward_divergence_leaves_out():
    for arguments in (
        {"discriminator": critic("x")},
        {"discriminator": critic("x"), "divergence": ps.KL()},
    ):
        with pytest.raises(ValueError, match="exclude_invalid_x=True needs KL"):
            ps.JointContrastELBO(exclude_invalid_x=True, **arguments)


def test_calibration_names_them_and_leaves_them_out():
    def exact(x):
        with pyro.plate("data", len(x)):
            pyro.sample("theta", dist.Normal(x, 0.5**0.5))

    def partly(x):  # fails by chance and where theta is small
        with pyro.plate("data", len(x)):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            y = theta / 2 + 0.5 * torch.randn(len(x))
            pyro.sample("x", dist.Delta(torch.where(y > -0.5, y, torch.nan)), obs=x)

    x = torch.zeros(500)
    with pytest.raises(
        ps.NonFiniteError, match=r"'x' of the generator: \d+ of 500 .*exclude_invalid_x=True"
    ):
        ps.simulation_based_calibration(partly, exact, x, num_draws=9)
    with pytest.warns(ps.InvalidSimulationsWarning):
        report = ps.simulation_based_calibration(
            partly, exact, x, num_draws=9, num_simulations=2000, exclude_invalid_x=True
        )
    assert len(report.ranks["theta"]) >= 2000
    assert report.p_value() > 1e-3


def test_a_guide_may_mask_them_itself():
    loss = ps.JointContrastELBO(divergence=ps.KL())
    assert step(loss, masking_guide) < 10
    report = ps.simulation_based_calibration(model, masking_guide, torch.zeros(N), num_draws=5)
    assert len(report.ranks["theta"]) < 1000


def test_a_generator_under_noise_is_named():
    with pytest.raises(
        ps.NonFiniteError, match=r"'x' of the generator: \d+ of 200 of the model's draws"
    ):
        step(ps.SpreadELBO({"x": ps.GaussianNoise(0.3)}))
