# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Masks, plates, events and transforms of implicit sites in Pyro, against guides with a density."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro_contrast import (
    Known,
    Told,
    affine,
    assert_equal,
    data,
    guide,
    log_ratio,
    model,
    normal,
    param,
    total,
    value_and_grads,
)
from torch.distributions import ExpTransform

from pyro_spread import ImplicitDistribution, PriorContrastELBO

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("where", ["distribution", "handler", "twice"])
def test_masked_elements_have_no_term(where):
    mask = torch.tensor([True, False, True, True, False, True])
    other = torch.tensor([True, True, True, True, True, False])

    def masked(guide_or_model):
        def run(x, twin=False):
            s = param("s") if guide_or_model == "guide" else param("mu")
            outer = mask if where == "handler" else torch.ones(6, dtype=torch.bool)
            with pyro.plate("data", 6), poutine.mask(mask=outer):
                if guide_or_model == "guide":
                    fn = affine(param("m") * x, s, twin)
                else:
                    fn = dist.Normal(s, 1.0).expand([6])
                if where != "handler":
                    fn = fn.mask(mask)
                if where == "twice":
                    fn = fn.mask(other)
                z = pyro.sample("z", fn)
                if guide_or_model == "model":
                    pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        return run

    loss = PriorContrastELBO(Told(log_ratio), adaptive=False, num_critic_draws=3)
    ours = value_and_grads(loss, masked("model"), masked("guide"), data())
    twin = functools.partial(masked("guide"), twin=True)
    assert_equal(ours, value_and_grads(Trace_ELBO(), masked("model"), twin, data()))
    logits = loss.logits(masked("model"), masked("guide"), data())
    wanted = mask & other if where == "twice" else mask
    assert torch.equal(logits.weights_p, wanted.double().expand(3, 6))


def test_a_mask_of_false_takes_a_site_out():
    def off(program):
        def run(x):
            with poutine.mask(mask=False):
                program(x)

        return run

    def half(x):
        guide(x)
        pyro.sample("y", affine(0.0, 1.0).mask(False))

    def half_model(x):
        model(x)
        pyro.sample("y", dist.Normal(0.0, 1.0).mask(False))

    for adaptive in (True, False):
        loss = PriorContrastELBO(Told(total), adaptive=adaptive)
        value, grads = value_and_grads(loss, off(model), off(guide), data())
        assert value == 0
        assert all(grad is None or not grad.any() for grad in grads.values())
    loss = PriorContrastELBO({"z": Told(log_ratio)}, adaptive=False)
    ours = value_and_grads(loss, half_model, half, data())
    assert ours[0] == value_and_grads(loss, model, guide, data())[0]


@pytest.mark.parametrize("vectorize", [False, True])
def test_nested_plates_and_events(vectorize):
    x = torch.arange(24.0).reshape(3, 4, 2) / 10
    factor = torch.tensor([1.0, -0.5])

    def plates():
        return pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 8, subsample_size=4, dim=-1)

    def nested_model(x):
        rows, columns = plates()
        with columns:
            c = pyro.sample("c", dist.Normal(0.0, 2.0))
            with rows:
                z = pyro.sample("z", dist.Normal(c[..., None] * factor, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def nested_guide(x, twin=False):
        m, s = param("m"), param("s")
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        fixed = m.detach(), s.detach()
        rows, columns = plates()
        with columns:
            c = pyro.sample("c", affine(m, s, twin))

            def fn(eps):
                return m * x + s * eps + c[..., None]

            def known(value):
                return normal(value, fixed[0] * x + c[..., None], fixed[1]).sum(-1)

            with rows:
                if twin:
                    pyro.sample("z", Known(fn, base, (2,), known))
                else:
                    pyro.sample("z", ImplicitDistribution(fn, base, (2,)))

    def of_c(values, x):
        return normal(values["c"], 0.7, 0.6) - normal(values["c"], 0.0, 2.0)

    def of_z(values, x):
        c = values.arguments["c"]
        assert c.shape == values["z"].shape[:-1]
        q = normal(values["z"], 0.7 * values.arguments["x"] + c[..., None], 0.6)
        return (q - normal(values["z"], c[..., None] * factor, 1.0)).sum(-1)

    options = {"num_particles": 2, "vectorize_particles": vectorize}
    loss = PriorContrastELBO({"c": Told(of_c), "z": Told(of_z)}, adaptive=False, **options)
    ours = value_and_grads(loss, nested_model, nested_guide, x)
    twin = functools.partial(nested_guide, twin=True)
    assert_equal(ours, value_and_grads(Trace_ELBO(**options), nested_model, twin, x))


def test_a_transformed_implicit_distribution():
    def positive(x):
        m, s = param("m"), param("s")
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(affine(m * x, s), [ExpTransform()]))

    def twin(x):
        m, s = param("m"), param("s")
        fixed = dist.LogNormal(m.detach() * x, s.detach())
        base = dist.Normal(torch.zeros(()), 1.0)
        fn = Known(lambda e: (m * x + s * e).exp(), base, (), fixed.log_prob)
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn)

    def positive_model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(param("mu"), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def critic(values, x):
        z, at = values["z"], values.arguments["x"]
        ratio = dist.LogNormal(0.7 * at, 0.6).log_prob(z) - dist.LogNormal(0.3, 1.0).log_prob(z)
        return ratio

    loss = PriorContrastELBO(Told(critic), adaptive=False)
    ours = value_and_grads(loss, positive_model, positive, data())
    assert_equal(ours, value_and_grads(Trace_ELBO(), positive_model, twin, data()))
