# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The outermost plate counts the data: a model in nested plates is that of one event per datum."""

from __future__ import annotations

import math

import every
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro_every import AS_IT_IS, eager_and_compiled
from pyro_nested_plates import (
    COLS,
    DATA,
    ROWS,
    Recorder,
    assert_same,
    pair_critic,
    pair_guide,
    pair_model,
    points,
    scale,
)

import pyro_spread
from pyro_spread import (
    AdversarialDivergence,
    EnergyDistance,
    JointContrastELBO,
    concat_sites,
    report,
)
from pyro_spread.ratio import MLPCritic


def critic(*sites):
    torch.manual_seed(5)
    return concat_sites(MLPCritic([8], input_dim=2 * COLS if len(sites) > 1 else COLS), *sites)


LISTED = {name: every.LOSSES[name] for name in every.COMPARES} | every.WITH_NOISE


def made(name):
    return LISTED[name].make(pyro_spread, critic)


def as_event(x, z, e, mask=None):
    with pyro.plate("rows", ROWS):
        latent = pyro.sample("z", dist.Delta(z))
        fn = dist.Delta(latent[:, None] * scale() + e)
        pyro.sample("x", (fn if mask is None else fn.mask(mask)).to_event(1), obs=x)


def rows_left(x, z, e, mask=None):
    with pyro.plate("rows", ROWS, dim=-2):
        latent = pyro.sample("z", dist.Delta(z[:, None]))
        with pyro.plate("cols", COLS, dim=-1), poutine.mask(mask=True if mask is None else mask):
            pyro.sample("x", dist.Delta(latent * scale() + e), obs=x)


def rows_right(x, z, e, mask=None):
    rows, cols = pyro.plate("rows", ROWS, dim=-1), pyro.plate("cols", COLS, dim=-2)
    with rows:
        latent = pyro.sample("z", dist.Delta(z))
    with rows, cols, poutine.mask(mask=True if mask is None else mask.T):
        pyro.sample("x", dist.Delta(latent * scale()[:, None] + e.T), obs=x.T)


def no_guide(*args, **kwargs):
    pass


def value_and_grads(loss, model, *args, how=AS_IT_IS, **kwargs):
    loss = how.made(loss)
    pyro.clear_param_store()
    for _ in range(1 + how.before):
        for _, param in pyro.get_param_store().named_parameters():
            param.grad = None
        pyro.set_rng_seed(3)
        value = loss.loss_and_grads(model, no_guide, *args, **kwargs)
    grads = {n: p.grad.clone() for n, p in pyro.get_param_store().named_parameters()}
    pyro.set_rng_seed(3)
    assert math.isfinite(loss.loss(model, no_guide, *args, **kwargs))
    return value, grads


@eager_and_compiled(LISTED, mask=[None, points(ROWS, COLS, seed=4) > -0.5])
def test_nested_plates_are_one_event(name, how, mask):
    expected = value_and_grads(made(name), as_event, *DATA, mask=mask)
    assert_same(value_and_grads(made(name), rows_left, *DATA, how=how, mask=mask), expected)
    contract = "columns before rows" + ("" if mask is None else ", masked")
    if contract not in LISTED[name].exempt:
        assert_same(value_and_grads(made(name), rows_right, *DATA, how=how, mask=mask), expected)


@pytest.mark.parametrize("name", LISTED)
def test_columns_are_told_apart(name):
    loss = made(name)
    x = points(200, 2, seed=1) * 0.1 + torch.tensor([0.0, 5.0])

    def model(x, loc):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("cols", 2, dim=-1):
            pyro.sample("x", dist.Normal(loc, 0.1), obs=x)

    if LISTED[name].has_critic:
        shapes = []
        net = MLPCritic([4], input_dim=2)
        net.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
        type(loss)(concat_sites(net, "x")).loss(model, no_guide, x, torch.tensor([0.0, 5.0]))
        assert set(shapes) == {(200, 2)}
        return
    right, swapped = (
        loss.loss(model, no_guide, x, torch.tensor(loc)) for loc in ([0.0, 5.0], [5.0, 0.0])
    )
    assert swapped > right + 0.3


def test_logits_and_arguments_are_those_of_the_data():
    def model(x, label, times, everywhere):
        rows, cols = pyro.plate("rows", ROWS, dim=-1), pyro.plate("cols", COLS, dim=-2)
        with rows, cols:
            pyro.sample("x", dist.Delta(times + everywhere * scale()[:, None]), obs=x)

    loss = AdversarialDivergence(Recorder())
    args = DATA[0].T, points(ROWS, 4), torch.arange(3.0)[:, None], points(COLS, ROWS)
    logits = loss.logits(model, no_guide, *args)
    assert logits.p.shape == logits.q.shape == (ROWS,)
    for values in loss.discriminator.seen:
        assert values["x"].shape == (ROWS, COLS)
        assert torch.equal(values.arguments["everywhere"], args[3].T)
        assert values.arguments["label"] is args[1]
        assert values.arguments["times"] is args[2]


@pytest.mark.parametrize("dims", [(-2, -1), (-1, -2)])
def test_both_plates_may_subsample(dims):
    x, label = torch.arange(200.0).reshape(20, 10), torch.arange(20.0)
    x = x if dims[0] == -2 else x.T

    def model(x, label):
        rows = pyro.plate("rows", 20, subsample_size=5, dim=dims[0])
        cols = pyro.plate("cols", 10, subsample_size=4, dim=dims[1])
        with rows as i, cols as j:
            taken = x[i[:, None], j] if dims[0] == -2 else x[j[:, None], i]
            pyro.sample("x", dist.Normal(0.0 * taken, 1.0), obs=taken)

    loss = AdversarialDivergence(Recorder())
    loss.loss(model, no_guide, x, label)
    values = loss.discriminator.seen[0]
    assert values["x"].shape == (5, 4)
    assert torch.equal(values.arguments["x"], values["x"])
    assert torch.equal(values.arguments["label"], values["x"][:, 0] // 10)


def test_inner_loops_are_parts_of_a_datum():
    def loop(x, z, e):
        with pyro.plate("rows", ROWS):
            latent = pyro.sample("z", dist.Delta(z))
            for i in pyro.plate("cols", COLS):
                pyro.sample(f"x_{i}", dist.Delta(latent * scale()[i] + e[:, i]), obs=x[:, i])

    for name in ("MMD", "energy", "sliced"):
        assert_same(
            value_and_grads(made(name), loop, *DATA),
            value_and_grads(made(name), as_event, *DATA),
        )


def test_weights_are_those_of_the_data():
    weights = torch.arange(1.0, ROWS + 1)

    def weighted(model, weights):
        def run(*args):
            with poutine.scale(scale=weights):
                model(*args)

        return run

    for name in ("MMD", "energy", "sliced", "KL R1"):
        expected = value_and_grads(made(name), weighted(as_event, weights), *DATA)
        left = value_and_grads(made(name), weighted(rows_left, weights[:, None]), *DATA)
        assert_same(left, expected)
        assert_same(value_and_grads(made(name), weighted(rows_right, weights), *DATA), expected)


def test_a_value_that_broadcasts_over_inner_plates_is_one_per_cell():
    def model(x, e):
        with pyro.plate("rows", ROWS, dim=-2), pyro.plate("cols", COLS, dim=-1):
            pyro.sample("x", dist.Delta(e * scale()), obs=x)

    x = DATA[0][:, :1]
    assert EnergyDistance().loss(model, no_guide, x, DATA[2]) == pytest.approx(
        EnergyDistance().loss(model, no_guide, x.expand(ROWS, COLS), DATA[2])
    )


def test_a_guide_may_have_latents_of_inner_plates_alone():
    def model(x):
        rows, cols = pyro.plate("rows", ROWS, dim=-2), pyro.plate("cols", COLS, dim=-1)
        with cols:
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with rows, cols:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        with pyro.plate("cols", COLS, dim=-1):
            pyro.sample("loc", dist.Delta(scale()))

    assert math.isfinite(EnergyDistance().loss_and_grads(model, guide, DATA[0]))
    assert pyro.get_param_store()["A"].grad.abs().min() > 0


def _unplated(x):
    pyro.sample("x", dist.Normal(scale().expand(ROWS, COLS), 1.0), obs=x)


def _beside_a_plate(x):
    with pyro.plate("rows", ROWS, dim=-2):
        pyro.sample("x", dist.Normal(scale().expand(ROWS, COLS), 1.0), obs=x)


def _two_outermost(x):
    with pyro.plate("rows", ROWS):
        pyro.sample("x", dist.Normal(scale()[0], 1.0), obs=x[:, 0])
    with pyro.plate("others", ROWS):
        pyro.sample("y", dist.Normal(scale()[0], 1.0), obs=x[:, 1])


def _another_order(x):
    rows, cols = pyro.plate("rows", ROWS, dim=-2), pyro.plate("cols", COLS, dim=-1)
    with rows, cols:
        pyro.sample("x", dist.Normal(scale(), 1.0), obs=x)
    with cols, rows:
        pyro.sample("y", dist.Normal(scale(), 1.0), obs=x)


def _outside(x):
    pyro.sample("y", dist.Normal(scale()[0], 1.0), obs=x[0, 0])
    with pyro.plate("rows", ROWS):
        pyro.sample("x", dist.Normal(scale()[0], 1.0), obs=x[:, 0])


def _loop_over_data(x):
    for i in pyro.plate("rows", ROWS):
        pyro.sample(f"x_{i}", dist.Normal(scale()[0], 1.0), obs=x[i, 0])


def _scaled_cells(x):
    rows, cols = pyro.plate("rows", ROWS, dim=-2), pyro.plate("cols", COLS, dim=-1)
    with rows, cols, poutine.scale(scale=torch.ones(ROWS, COLS)):
        pyro.sample("x", dist.Normal(scale(), 1.0), obs=x)


def _stack(x):
    with pyro.plate_stack("cell", [ROWS, COLS]):
        pyro.sample("x", dist.Normal(scale(), 1.0), obs=x)


REFUSED = {
    "stack": (_stack, r"'x': plate_stack\('cell', ...\) does not say .*Enter the plate over the"),
    "no plate": (_unplated, r"'x': its batch shape \(7, 3\) belongs to no plate.*to_event"),
    "beside": (_beside_a_plate, r"'x': .*\(7, 3\) belongs to the plate\(s\) \['rows'\] only in"),
    "two": (_two_outermost, r"'x' and 'y' .*outermost plate 'rows' for 'x' and .*'others' for 'y'"),
    "order": (_another_order, r"'x' and 'y' .*'rows' for 'x' and .*'cols' for 'y'.*to_event"),
    "outside": (_outside, r"'y' and 'x' .*in no plate, for 'y' and .*'rows' for 'x'"),
    "loop": (_loop_over_data, r"'x_0': its outermost plate 'rows' .*sequential.*with pyro.plate"),
    "scale": (_scaled_cells, r"'x': a scale of shape \(7, 3\) differs within a datum.*mask"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decided_is_refused(name):
    model, message = REFUSED[name]
    for loss in (EnergyDistance(), AdversarialDivergence(Recorder())):
        with pytest.raises(ValueError, match=message):
            loss.loss_and_grads(model, no_guide, DATA[0])


def test_a_report_has_a_row_for_every_datum(tmp_path):
    loss = JointContrastELBO(pair_critic())
    optim = pyro.optim.Adam({"lr": 1e-3})
    svi = SVI(pair_model, loss.register(pair_model, pair_guide), optim, loss)
    svi.step(*DATA)
    found = report(tmp_path / "page.html", svi, *DATA, num_samples=2 * ROWS)
    assert found.data["x"].shape == (ROWS, COLS)
    assert found.samples["x"].shape == (2 * ROWS, COLS)
    assert found.latents["a"].shape == (2 * ROWS,)
    assert found.latents["b"].shape == (2 * ROWS, COLS)
