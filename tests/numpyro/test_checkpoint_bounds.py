# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A param under other bounds is another param: the file says its constraint in full."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from forged import forge
from jax import random
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO

from numpyro_spread import CheckpointError, load_checkpoint, save_checkpoint

X = jnp.array(1.0)


def build(constraint, value=(0.6,), compiled=False):
    def model(x):
        a = numpyro.param("a", jnp.array(value), constraint=constraint)
        numpyro.sample("x", dist.Normal(a.sum(), 1.0), obs=x)

    svi = SVI(model, lambda x: None, optax.adam(0.1), Trace_ELBO())
    return svi, (jax.jit(svi.init) if compiled else svi.init)(random.key(0), X)


def interval(*bounds):
    return constraints.interval(*bounds)


CHANGED = {
    "upper": (interval(0.0, 1.0), interval(0.0, 10.0), "Interval.*=1.* Interval.*upper_bound=10"),
    "lower": (constraints.greater_than(0.0), constraints.greater_than(0.5), "bound=0.*bound=0.5"),
    "named": (constraints.positive, constraints.greater_than(0.5), "bound=0.*bound=0.5"),
    "transform": (constraints.positive, constraints.softplus_positive, "Positive.*Softplus"),
    "tensor": (
        interval(jnp.zeros(2), jnp.ones(2)),
        interval(jnp.zeros(2), jnp.array([1.0, 2.0])),
        r"upper_bound=\[1, 1\].*upper_bound=\[1, 2\]",
    ),
    "independent": (
        constraints.independent(interval(0.0, 1.0), 1),
        constraints.independent(interval(0.0, 2.0), 1),
        "base_constraint=Interval.*upper_bound=1.*upper_bound=2",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_other_bounds_are_refused(tmp_path, name):
    saved, live, match = CHANGED[name]
    save_checkpoint(tmp_path, *build(saved, (0.6, 0.7)), 1)
    with pytest.raises(
        CheckpointError, match=f"constraint of param 'a' is .*{match}.*as the saved"
    ):
        load_checkpoint(tmp_path, *build(live, (0.6, 0.7)))
    assert load_checkpoint(tmp_path, *build(saved, (0.6, 0.7)))[1].step == 1


def test_a_compiled_start_has_the_same_bounds(tmp_path):
    one = interval(0.0, 1.0)
    save_checkpoint(tmp_path, *build(one, compiled=True), 1)
    assert load_checkpoint(tmp_path, *build(one))[1].step == 1
    # Arrays as bounds leak out of it; stock code fails on the step after that, not before.
    save_checkpoint(tmp_path / "arrays", *build(interval(jnp.zeros(1), 1.0), compiled=True), 1)


def test_files_without_bounds_are_those_of_earlier_versions(tmp_path):
    file = save_checkpoint(tmp_path, *build(interval(0.0, 1.0)), 1)
    forge(file, lambda content: content["state"].pop("bounds"))
    assert load_checkpoint(tmp_path, *build(interval(0.0, 1.0)))[1].step == 1


@pytest.mark.parametrize("wrong", [3, {"constraint": 3}, {"constraint": {"is": "Interval"}}])
def test_bounds_that_are_none(tmp_path, wrong):
    svi, svi_state = build(interval(0.0, 1.0))
    file = save_checkpoint(tmp_path, svi, svi_state, 1)
    forge(file, lambda content: content["state"]["bounds"].update(a=wrong))
    with pytest.raises(CheckpointError, match="constraint of param 'a'"):
        load_checkpoint(tmp_path, svi, svi_state)


def test_bounds_that_say_more_than_there_is(tmp_path):
    svi, svi_state = build(interval(0.0, 1.0))
    file = save_checkpoint(tmp_path, svi, svi_state, 1)
    forge(file, lambda content: content["state"]["bounds"]["a"].update(more=3))
    with pytest.raises(CheckpointError, match="constraint of param 'a'"):
        load_checkpoint(tmp_path, svi, svi_state)
