# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Pairs of data and latents in nested plates are pairs of the outermost plate."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_nested_plates import (
    COLS,
    DATA,
    ROWS,
    Recorder,
    _implicit,
    assert_same,
    pair_critic,
    pair_guide,
    pair_model,
    points,
    scale,
)
from torch import nn

from pyro_spread import KL, JointContrastELBO, JSPi, ReverseKL


def pair_event(x, z, e):
    with pyro.plate("rows", ROWS):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a[:, None].expand(ROWS, COLS), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(b * scale(), 1.0).to_event(1), obs=x)


def pair_event_guide(x, z, e, density=False):
    m = pyro.param("m", lambda: torch.tensor([0.4, -0.3, 0.2]))
    with pyro.plate("rows", ROWS):
        pyro.sample("a", dist.Normal(m.sum(), 1.0))
        noise = dist.Normal(torch.zeros(ROWS, COLS), 1.0).to_event(1)
        event = dist.Normal(m * x, 1.0).to_event(1)
        pyro.sample("b", event if density else _implicit(noise, m * x, (COLS,)))


@pytest.mark.parametrize("divergence", [ReverseKL(), JSPi(0.3), KL()], ids=repr)
def test_pairs_of_nested_plates_are_pairs_of_data(divergence):
    results = []
    for model, guide in ((pair_model, pair_guide), (pair_event, pair_event_guide)):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        loss = JointContrastELBO(pair_critic(), divergence)
        value = loss.loss_and_grads(model, guide, *DATA)
        named = pyro.get_param_store().named_parameters()
        results.append((value, {n: p.grad.clone() for n, p in named}))
        assert loss.logits(model, guide, *DATA).data.shape == (ROWS,)
    assert_same(*results)


def test_posterior_estimation_counts_the_outermost_plate():
    results = []
    for model, guide in ((pair_model, pair_guide), (pair_event, pair_event_guide)):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        loss = JointContrastELBO(divergence=KL())

        def with_density(*args, guide=guide):
            return guide(*args, density=True)

        value = loss.loss_and_grads(model, with_density, *DATA)
        named = pyro.get_param_store().named_parameters()
        results.append((value, {n: p.grad.clone() for n, p in named if p.grad is not None}))
    assert_same(*results)


def test_a_pair_stands_for_the_data_and_not_for_the_cells_left_out():
    def model(x, guide=False):
        rows = pyro.plate("rows", 20, subsample_size=5, dim=-2)
        cols = pyro.plate("cols", 10, subsample_size=4, dim=-1)
        with rows as i, cols as j:
            b = pyro.sample("b", dist.Normal(torch.zeros(5, 4), 1.0))
            if not guide:
                pyro.sample("x", dist.Normal(b, 1.0), obs=x[i[:, None], j])

    class Constant(nn.Module):
        def forward(self, values, *args, **kwargs):
            return torch.full(values.batch_shape, 2.0)

    loss = JointContrastELBO(Constant())
    value = loss.loss(model, lambda x: model(x, guide=True), points(20, 10))
    assert value == pytest.approx(20 * 2.0)


def test_pairs_that_cannot_be_decided_are_refused():
    def model(x, guide=False):
        rows, cols = pyro.plate("rows", ROWS, dim=-2), pyro.plate("cols", COLS, dim=-1)
        with cols, rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if not guide:
            with rows, cols:
                pyro.sample("x", dist.Normal(z * scale(), 1.0), obs=x)

    with pytest.raises(ValueError, match=r"'rows' for 'x' and .*'cols' for 'z'.*to_event"):
        JointContrastELBO(Recorder()).loss_and_grads(model, lambda x: model(x, guide=True), DATA[0])
