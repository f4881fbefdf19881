# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The outermost plate counts the data: a model in nested plates is that of one event per datum."""

from __future__ import annotations

import every
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen
from numpyro import handlers
from numpyro.infer import SVI

import numpyro_spread
from numpyro_spread import (
    KL,
    AdversarialDivergence,
    EnergyDistance,
    ImplicitDistribution,
    JointContrastELBO,
    JSPi,
    ReverseKL,
    concat_sites,
    report,
)
from numpyro_spread.ratio import MLPCritic

ROWS, COLS = 7, 3


def critic(*sites):
    return concat_sites(MLPCritic([8]), *sites)


LISTED = {name: every.LOSSES[name] for name in every.COMPARES} | every.WITH_NOISE


def made(name):
    return LISTED[name].make(numpyro_spread, critic)


def points(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


DATA = points(ROWS, COLS), points(ROWS, seed=1), points(ROWS, COLS, seed=2)
SCALE = np.array([0.7, -0.2, 1.1], np.float32)


def scale():
    return numpyro.param("A", jnp.asarray(SCALE))


def as_event(x, z, e, mask=True):
    with numpyro.plate("rows", ROWS):
        latent = numpyro.sample("z", dist.Delta(z))
        fn = dist.Delta(latent[:, None] * scale() + e)
        numpyro.sample("x", fn.mask(mask).to_event(1), obs=x)


def rows_left(x, z, e, mask=True):
    with numpyro.plate("rows", ROWS, dim=-2):
        latent = numpyro.sample("z", dist.Delta(z[:, None]))
        with numpyro.plate("cols", COLS, dim=-1), handlers.mask(mask=mask):
            numpyro.sample("x", dist.Delta(latent * scale() + e), obs=x)


def rows_right(x, z, e, mask=True):
    with numpyro.plate("rows", ROWS, dim=-1):
        latent = numpyro.sample("z", dist.Delta(z))
        with (
            numpyro.plate("cols", COLS, dim=-2),
            handlers.mask(mask=mask if mask is True else mask.T),
        ):
            numpyro.sample("x", dist.Delta(latent * scale()[:, None] + e.T), obs=x.T)


def no_guide(*args, **kwargs):
    pass


def evaluate(loss, model, *args, guide=no_guide, gradient=True, **kwargs):
    guide = loss.register(model, guide)
    svi = SVI(model, guide, optax.sgd(0.1), loss)
    params = svi.get_params(svi.init(jax.random.key(0), *args, **kwargs))

    def value(params):
        return loss.loss(jax.random.key(1), params, model, guide, *args, **kwargs)

    return jax.jit(jax.value_and_grad(value) if gradient else value)(params)


def assert_same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


@pytest.mark.parametrize("mask", [True, points(ROWS, COLS, seed=4) > -0.5], ids=["all", "masked"])
@pytest.mark.parametrize("name", LISTED)
def test_nested_plates_are_one_event(name, mask):
    expected = evaluate(made(name), as_event, *DATA, mask=mask)
    assert_same(evaluate(made(name), rows_left, *DATA, mask=mask), expected)
    contract = "columns before rows" + ("" if mask is True else ", masked")
    if contract not in LISTED[name].exempt:
        assert_same(evaluate(made(name), rows_right, *DATA, mask=mask), expected)


SEEN = []


class Recorder(linen.Module):
    @linen.compact
    def __call__(self, values, *args, **kwargs):
        SEEN.append(values)
        total = sum(value.reshape(*values.batch_shape, -1).sum(-1) for value in values.values())
        return total * self.param("weight", linen.initializers.ones, ())


def look(model, *args, seed=0):
    SEEN.clear()
    loss = AdversarialDivergence(Recorder())
    params = {"discriminator$params": {"weight": jnp.ones(())}, "A": jnp.asarray(SCALE)}
    logits = loss.logits(jax.random.key(seed), params, model, no_guide, *args)
    return logits, list(SEEN)


def test_logits_and_arguments_are_those_of_the_data():
    def model(x, label, times, everywhere):
        with numpyro.plate("rows", ROWS, dim=-1), numpyro.plate("cols", COLS, dim=-2):
            numpyro.sample("x", dist.Delta(times + everywhere * scale()[:, None]), obs=x)

    args = DATA[0].T, points(ROWS, 4), jnp.arange(3.0)[:, None], points(COLS, ROWS)
    logits, seen = look(model, *args)
    assert logits.p.shape == logits.q.shape == (ROWS,)
    for values in seen:
        assert values["x"].shape == (ROWS, COLS)
        np.testing.assert_array_equal(values.arguments["everywhere"], args[3].T)
        assert values.arguments["label"] is args[1]
        assert values.arguments["times"] is args[2]


@pytest.mark.parametrize("dims", [(-2, -1), (-1, -2)])
def test_both_plates_may_subsample(dims):
    x, label = jnp.arange(200.0).reshape(20, 10), jnp.arange(20.0)
    x = x if dims[0] == -2 else x.T

    def model(x, label):
        rows = numpyro.plate("rows", 20, subsample_size=5, dim=dims[0])
        cols = numpyro.plate("cols", 10, subsample_size=4, dim=dims[1])
        with rows as i, cols as j:
            taken = x[i[:, None], j] if dims[0] == -2 else x[j[:, None], i]
            numpyro.sample("x", dist.Normal(jnp.zeros(taken.shape), 1.0), obs=taken)

    values = look(model, x, label)[1][0]
    assert values["x"].shape == (5, 4)
    np.testing.assert_array_equal(values.arguments["x"], values["x"])
    np.testing.assert_array_equal(values.arguments["label"], values["x"][:, 0] // 10)


def test_weights_are_those_of_the_data():
    weights = np.arange(1.0, ROWS + 1)

    def weighted(model, weights):
        def run(*args):
            with handlers.scale(scale=weights):
                model(*args)

        return run

    for name in ("MMD", "energy", "sliced", "KL R1"):
        expected = evaluate(made(name), weighted(as_event, weights), *DATA)
        left = evaluate(made(name), weighted(rows_left, weights[:, None]), *DATA)
        assert_same(left, expected)
        assert_same(evaluate(made(name), weighted(rows_right, weights), *DATA), expected)


def test_a_value_that_broadcasts_over_inner_plates_is_one_per_cell():
    def model(x, e):
        with numpyro.plate("rows", ROWS, dim=-2), numpyro.plate("cols", COLS, dim=-1):
            numpyro.sample("x", dist.Delta(e * scale()), obs=x)

    column = DATA[0][:, :1]
    whole = np.repeat(column, COLS, 1)
    assert_same(*(evaluate(EnergyDistance(), model, x, DATA[2]) for x in (column, whole)))


def test_a_guide_may_have_latents_of_inner_plates_alone():
    def model(x):
        rows, cols = (
            numpyro.plate("rows", ROWS, dim=-2),
            numpyro.plate("cols", COLS, dim=-1),
        )
        with cols:
            loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        with rows, cols:
            numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("cols", COLS, dim=-1):
            numpyro.sample("loc", dist.Delta(scale()))

    value, grads = evaluate(EnergyDistance(), model, DATA[0], guide=guide)
    assert np.isfinite(value)
    assert np.abs(grads["A"]).min() > 0


# --- pairs


def pair_model(x, z, e):
    with numpyro.plate("rows", ROWS, dim=-2):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("cols", COLS, dim=-1):
            b = numpyro.sample("b", dist.Normal(jnp.broadcast_to(a, (ROWS, COLS)), 1.0))
            numpyro.sample("x", dist.Normal(b * scale(), 1.0), obs=x)


def pair_event(x, z, e):
    with numpyro.plate("rows", ROWS):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        loc = jnp.broadcast_to(a[:, None], (ROWS, COLS))
        b = numpyro.sample("b", dist.Normal(loc, 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(b * scale(), 1.0).to_event(1), obs=x)


def pair_guides(density):
    def guide(x, z, e):
        m = numpyro.param("m", jnp.array([0.4, -0.3, 0.2]))
        with numpyro.plate("rows", ROWS, dim=-2):
            numpyro.sample("a", dist.Normal(m.sum(), 1.0))
            noise = dist.Normal(jnp.zeros((ROWS, COLS)), 1.0)
            with numpyro.plate("cols", COLS, dim=-1):
                fn = dist.Normal(m * x, 1.0)
                numpyro.sample("b", fn if density else _implicit(noise, m * x, ()))

    def event_guide(x, z, e):
        m = numpyro.param("m", jnp.array([0.4, -0.3, 0.2]))
        with numpyro.plate("rows", ROWS):
            numpyro.sample("a", dist.Normal(m.sum(), 1.0))
            noise = dist.Normal(jnp.zeros((ROWS, COLS)), 1.0).to_event(1)
            fn = dist.Normal(m * x, 1.0).to_event(1)
            numpyro.sample("b", fn if density else _implicit(noise, m * x, (COLS,)))

    return (pair_model, guide), (pair_event, event_guide)


def _implicit(noise, shift, event_shape):
    return ImplicitDistribution(lambda eps: eps + shift, noise, event_shape)


@pytest.mark.parametrize("divergence", [ReverseKL(), JSPi(0.3), KL()], ids=repr)
def test_pairs_of_nested_plates_are_pairs_of_data(divergence):
    def loss():
        return JointContrastELBO(concat_sites(MLPCritic([8]), "x", "a", "b"), divergence)

    pairs = pair_guides(density=False)
    assert_same(*(evaluate(loss(), model, *DATA, guide=guide) for model, guide in pairs))


def test_posterior_estimation_counts_the_outermost_plate():
    pairs = pair_guides(density=True)
    loss = JointContrastELBO(divergence=KL())
    assert_same(*(evaluate(loss, model, *DATA, guide=guide) for model, guide in pairs))


def test_a_pair_stands_for_the_data_and_not_for_the_cells_left_out():
    def model(x, guide=False):
        rows = numpyro.plate("rows", 20, subsample_size=5, dim=-2)
        cols = numpyro.plate("cols", 10, subsample_size=4, dim=-1)
        with rows as i, cols as j:
            b = numpyro.sample("b", dist.Normal(jnp.zeros((5, 4)), 1.0))
            if not guide:
                numpyro.sample("x", dist.Normal(b, 1.0), obs=x[i[:, None], j])

    class Constant(linen.Module):
        @linen.compact
        def __call__(self, values, *args, **kwargs):
            return jnp.full(values.batch_shape, 2.0) * self.param(
                "weight", linen.initializers.ones, ()
            )

    def guide(x):
        return model(x, guide=True)

    loss = JointContrastELBO(Constant())
    value = evaluate(loss, model, jnp.asarray(points(20, 10)), guide=guide, gradient=False)
    np.testing.assert_allclose(value, 20 * 2.0, rtol=1e-6)


# --- what cannot be decided


def _unplated(x):
    numpyro.sample("x", dist.Normal(jnp.broadcast_to(scale(), (ROWS, COLS)), 1.0), obs=x)


def _beside_a_plate(x):
    with numpyro.plate("rows", ROWS, dim=-2):
        _unplated(x)


def _two_outermost(x):
    with numpyro.plate("rows", ROWS):
        numpyro.sample("x", dist.Normal(scale()[0], 1.0), obs=x[:, 0])
    with numpyro.plate("others", ROWS):
        numpyro.sample("y", dist.Normal(scale()[0], 1.0), obs=x[:, 1])


def _another_order(x):
    rows, cols = numpyro.plate("rows", ROWS, dim=-2), numpyro.plate("cols", COLS, dim=-1)
    with rows, cols:
        numpyro.sample("x", dist.Normal(scale(), 1.0), obs=x)
    with cols, rows:
        numpyro.sample("y", dist.Normal(scale(), 1.0), obs=x)


def _outside(x):
    numpyro.sample("y", dist.Normal(scale()[0], 1.0), obs=x[0, 0])
    with numpyro.plate("rows", ROWS):
        numpyro.sample("x", dist.Normal(scale()[0], 1.0), obs=x[:, 0])


def _scaled_cells(x):
    rows, cols = numpyro.plate("rows", ROWS, dim=-2), numpyro.plate("cols", COLS, dim=-1)
    with rows, cols, handlers.scale(scale=jnp.ones((ROWS, COLS))):
        numpyro.sample("x", dist.Normal(scale(), 1.0), obs=x)


def _stack(x):
    with numpyro.plate_stack("cell", [ROWS, COLS]):
        numpyro.sample("x", dist.Normal(scale(), 1.0), obs=x)


REFUSED = {
    "stack": (_stack, r"'x': plate_stack\('cell', ...\) does not say .*Enter the plate over the"),
    "no plate": (_unplated, r"'x': its batch shape \(7, 3\) belongs to no plate.*to_event"),
    "beside": (_beside_a_plate, r"'x': .*\(7, 3\) belongs to the plate\(s\) \['rows'\] only in"),
    "two": (_two_outermost, r"'x' and 'y' .*outermost plate 'rows' for 'x' and .*'others' for 'y'"),
    "order": (_another_order, r"'x' and 'y' .*'rows' for 'x' and .*'cols' for 'y'.*to_event"),
    "outside": (_outside, r"'y' and 'x' .*in no plate, for 'y' and .*'rows' for 'x'"),
    "scale": (_scaled_cells, r"'x': a scale of shape \(7, 3\) differs within a datum.*mask"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decided_is_refused(name):
    model, message = REFUSED[name]
    for loss in (EnergyDistance(), AdversarialDivergence(Recorder())):
        with pytest.raises(ValueError, match=message):
            evaluate(loss, model, DATA[0])


def test_pairs_that_cannot_be_decided_are_refused():
    def model(x, guide=False):
        rows, cols = numpyro.plate("rows", ROWS, dim=-2), numpyro.plate("cols", COLS, dim=-1)
        with cols, rows:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        if not guide:
            with rows, cols:
                numpyro.sample("x", dist.Normal(z * scale(), 1.0), obs=x)

    loss = JointContrastELBO(Recorder())
    with pytest.raises(ValueError, match=r"'rows' for 'x' and .*'cols' for 'z'.*to_event"):
        evaluate(loss, model, DATA[0], guide=lambda x: model(x, guide=True))


def test_a_report_has_a_row_for_every_datum(tmp_path):
    loss = JointContrastELBO(concat_sites(MLPCritic([8]), "x", "a", "b"))
    model, guide = pair_guides(density=False)[0]
    svi = SVI(model, loss.register(model, guide), optax.sgd(0.1), loss)
    state = svi.init(jax.random.key(0), *DATA)
    found = report(tmp_path / "page.html", svi, state, *DATA, num_samples=2 * ROWS)
    assert found.data["x"].shape == (ROWS, COLS)
    assert found.samples["x"].shape == (2 * ROWS, COLS)
    assert found.latents["a"].shape == (2 * ROWS,)
    assert found.latents["b"].shape == (2 * ROWS, COLS)
