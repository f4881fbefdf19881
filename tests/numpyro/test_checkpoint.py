# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A resumed run in NumPyro is the run that was never stopped; what cannot be resumed is refused."""

import dataclasses
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro_checkpointed
import optax
import pytest
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.svi import SVIState

from numpyro_spread import (
    CheckpointError,
    FalseEvidenceWarning,
    finite_guard,
    guard_status,
    load_checkpoint,
    save_checkpoint,
)
from numpyro_spread._checkpoint_state import codec
from numpyro_spread._host_calls import call_if
from spread_core.checkpoint_file import write
from spread_core.stateful import Stateful

X = jnp.linspace(-1.0, 2.0, 8)


def simple(x):
    loc = numpyro.param("loc", lambda key: random.normal(key))
    scale = numpyro.param("scale", jnp.ones(3), constraint=dist.constraints.positive)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(loc, scale.sum()), obs=x)


def no_guide(x):
    pass


def plain(optim=None, loss=None, model=simple):
    optim = numpyro.optim.Adam(lambda i: 0.1 * 0.9**i) if optim is None else optim
    return SVI(model, no_guide, optim, Trace_ELBO() if loss is None else loss)


RUNS = {
    "numpyro": lambda: (plain(), random.PRNGKey, X),
    "optax": lambda: (plain(optax.adamw(0.1)), lambda seed: random.key(seed, impl="rbg"), X),
    "two players": lambda: (*numpyro_checkpointed.gan(), jnp.ones((16, 2))),
    "annealed contrast": lambda: (*numpyro_checkpointed.contrast(), jnp.ones((16, 2))),
}


def go(update, state, x, steps):
    for _ in range(steps):
        state, _ = update(state, x)
    return state


# The slow one is also among the runs that are killed.
@pytest.mark.parametrize(
    "name",
    ["numpyro", "optax", "two players", pytest.param("annealed contrast", marks=pytest.mark.slow)],
)
def test_goes_on_as_if_it_had_never_stopped(name, tmp_path):
    svi, seed, x = RUNS[name]()
    update = jax.jit(svi.update)
    state = go(update, svi.init(seed(0), x), x, 3)
    saved = save_checkpoint(tmp_path, svi, state, 3, metadata={"epoch": (1, 2)})
    data = saved.read_bytes()

    # As in a fresh process, though under another key.
    again, checkpoint = load_checkpoint(tmp_path, svi, svi.init(seed(5), x))
    assert (checkpoint.step, checkpoint.path) == (3, saved)
    assert checkpoint.metadata == {"epoch": (1, 2)}
    assert checkpoint.versions["jax"] == jax.__version__
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype
        assert one.aval.weak_type == other.aval.weak_type
    copy = save_checkpoint(tmp_path, svi, again, 3, metadata={"epoch": (1, 2)})
    assert copy.read_bytes() == data
    ends = [save_checkpoint(tmp_path, svi, go(update, s, x, 3), 6) for s in (state, again)]
    assert ends[0].read_bytes() == ends[1].read_bytes() != data


def test_what_a_guard_has_seen_is_kept(tmp_path):
    svi = finite_guard(plain(optax.adam(0.1)), "reduce")
    state, update = svi.init(random.key(0), X), jax.jit(svi.update)
    for x in (X, X * jnp.nan, X):
        state, _ = update(state, x)
    save_checkpoint(tmp_path, svi, state, 3)
    seen = guard_status(svi, state)
    assert (seen.skipped, seen.step_scale) == (1, 0.5)
    svi = finite_guard(plain(optax.adam(0.1)), "reduce")
    again, _ = load_checkpoint(tmp_path, svi, svi.init(random.key(1), X))
    assert guard_status(svi, again) == seen
    bare = plain(optax.adam(0.1))
    with pytest.raises(CheckpointError, match="optimizer"):
        load_checkpoint(tmp_path, bare, bare.init(random.key(1), X))


@pytest.mark.parametrize(
    "dtype", ["bool", "bfloat16", "float16", "float32", "int8", "uint32", "complex64"]
)
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
def test_leaves_of_every_type(tmp_path, dtype, shape):
    leaf = jnp.ones(shape, dtype)
    state = SVIState({"leaf": leaf, "host": np.float64(2.5)}, None, random.key(0))
    svi = plain()
    save_checkpoint(tmp_path, svi, state, 1, metadata=np.arange(2))
    found, checkpoint = load_checkpoint(tmp_path, svi, state)
    assert found.optim_state["leaf"].dtype == leaf.dtype
    assert (found.optim_state["leaf"] == leaf).all()
    assert type(found.optim_state["host"]) is np.float64
    assert checkpoint.metadata.tolist() == [0, 1]


def test_double_precision(tmp_path):
    with jax.enable_x64(True):
        state = SVIState({"a": jnp.full(2, 0.1), "n": 2}, None, random.key(0))
        save_checkpoint(tmp_path, plain(), state, 1)
        found, _ = load_checkpoint(tmp_path, plain(), state)
        assert found.optim_state["a"].dtype == jnp.float64
        assert found.optim_state["a"][0] == 0.1
        assert found.optim_state["n"] == 2
    other = SVIState({"a": jnp.full(2, 0.1), "n": 2}, None, random.key(0))
    match = r"leaf .*'a'.* is float64\[2\] in the file, but float32\[2\] here.*jax_enable_x64"
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(tmp_path, plain(), other)


def test_arrays_go_where_the_others_are(tmp_path):
    state = SVIState({"a": jnp.ones(2)}, None, random.key(0))
    device = jax.devices()[0]
    save_checkpoint(tmp_path, plain(), state, 1)
    found, _ = load_checkpoint(tmp_path, plain(), jax.device_put(state, device))
    assert found.optim_state["a"].committed
    found, _ = load_checkpoint(tmp_path, plain(), state)
    assert not found.optim_state["a"].committed


def test_monitors_go_on(tmp_path):
    svi, seed, _ = RUNS["annealed contrast"]()
    state = SVIState({"a": jnp.ones(1)}, None, seed(0))
    svi.loss._monitor.streak = 49
    save_checkpoint(tmp_path, svi, state, 1)
    svi, _, _ = RUNS["annealed contrast"]()
    load_checkpoint(tmp_path, svi, state)
    assert svi.loss._monitor.streak == 49
    with pytest.warns(FalseEvidenceWarning):
        svi.loss._monitor.observe(1.0)


def test_waits_for_what_the_last_step_reports(tmp_path):
    class Slow(Stateful, Trace_ELBO):
        _remembers = ("reports",)
        reports = 0

        def loss_with_mutable_state(self, *args, **kwargs):
            result = super().loss_with_mutable_state(*args, **kwargs)
            result["loss"] *= call_if(result["loss"] > -jnp.inf, self.report)
            return result

        def report(self):
            time.sleep(0.2)
            self.reports += 1

    svi = plain(optax.adam(0.1), Slow())
    state, update = svi.init(random.key(0), X), jax.jit(svi.update)
    # JAX waits for short steps at once, unless what they need is still being computed.
    late = jax.jit(lambda x: lax.fori_loop(0, 300, lambda _, x: x @ x / 200, x)[0, :8])
    for _ in range(2):  # the first compiles
        state, _ = update(state, late(jnp.eye(200)))
    save_checkpoint(tmp_path, svi, state, 2)
    again = plain(optax.adam(0.1), Slow())
    load_checkpoint(tmp_path, again, again.init(random.key(0), X))
    assert again.loss.reports == 2


@pytest.fixture
def saved(tmp_path):
    svi = plain(optax.adam(0.1))
    return save_checkpoint(tmp_path, svi, svi.init(random.key(0), X), 3)


def other_params(x):
    numpyro.param("loc", 0.0)
    numpyro.param("new", 0.0)
    numpyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(1), obs=x)


def wider(x):
    numpyro.param("scale", jnp.ones(4), constraint=dist.constraints.positive)
    numpyro.param("loc", 0.0)
    numpyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("svi", "key", "match"),
    [
        (plain(optax.sgd(0.1)), random.key(0), r"other leaves than .* has 'optim_state.*count'"),
        (plain(optax.adamw(0.1)), random.key(0), r"structure .* but this SVI has"),
        (plain(optax.adam(0.1), model=other_params), random.key(0), r"lacks .*\['new'\]"),
        (
            plain(optax.adam(0.1), model=wider),
            random.key(0),
            r"leaf '.*\['scale'\]' is float32\[3\] in the file, but float32\[4\] here",
        ),
        (
            plain(optax.adam(0.1)),
            random.PRNGKey(0),
            r"'rng_key' is key:threefry2x32 of uint32\[2\] in the file, but uint32\[2\] here",
        ),
        (
            plain(optax.adam(0.1)),
            random.key(0, impl="rbg"),
            r"'rng_key' is key:.* of uint32\[2\] in the file, but key:rbg of uint32\[4\] here",
        ),
        (
            plain(optax.adam(0.1), numpyro.infer.TraceGraph_ELBO()),
            random.key(0),
            "with the loss Trace_ELBO, but this SVI has TraceGraph_ELBO",
        ),
    ],
    ids=["optimizer", "chain", "params", "shape", "old key", "other key", "loss"],
)
def test_another_run(saved, svi, key, match):
    state = svi.init(key, X)
    with pytest.raises(CheckpointError, match=match) as error:
        load_checkpoint(saved, svi, state)
    assert f"checkpoint {saved}" in str(error.value)
    assert "Nothing was loaded" in str(error.value)


def test_a_damaged_file(saved):
    svi = plain(optax.adam(0.1))
    state = svi.init(random.key(0), X)
    newer = save_checkpoint(saved.parent, svi, state, 4)
    data = bytearray(newer.read_bytes())
    data[len(data) // 2] ^= 4
    newer.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"earlier one can be loaded by its path: {saved}"):
        load_checkpoint(saved.parent, svi, state)
    assert load_checkpoint(saved, svi, state)[1].step == 3


def test_no_checkpoint(tmp_path):
    svi = plain()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_checkpoint(tmp_path, svi, svi.init(random.key(0), X))


def test_a_donated_state(tmp_path):
    svi = plain()
    state = svi.init(random.key(0), X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jax.jit(svi.update, donate_argnums=0)(state, X)
    if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
        with pytest.raises(ValueError, match=r"was donated to a later step. Save the newest state"):
            save_checkpoint(tmp_path / "run", svi, state, 1)
        assert not (tmp_path / "run").exists()


def test_state_that_cannot_be_saved(tmp_path):
    svi = plain()
    for leaf, match in ((object(), "object is neither an array"), (jnp.ones(2, "int4"), "int4")):
        state = SVIState({"odd": leaf}, None, random.key(0))
        with pytest.raises(TypeError, match=f"leaves/.*'odd'.*{match}"):
            save_checkpoint(tmp_path / "run", svi, state, 1)
    assert not (tmp_path / "run").exists()


def test_arguments_are_checked(tmp_path):
    svi = plain()
    state = svi.init(random.key(0), X)
    with pytest.raises(TypeError, match=r"`svi` must be a numpyro.infer.SVI, got int"):
        save_checkpoint(tmp_path, 3, state, 1)
    with pytest.raises(TypeError, match=r"`svi_state` must be an SVIState, .* got dict"):
        save_checkpoint(tmp_path, svi, {}, 1)
    with pytest.raises(TypeError, match=r"`svi_state` must be an SVIState, .* got PjitFunction"):
        load_checkpoint(tmp_path, svi, jax.jit(len))


def test_versions_of_libraries(tmp_path, monkeypatch):
    svi = plain()
    state = svi.init(random.key(0), X)
    save_checkpoint(tmp_path, svi, state, 1)
    monkeypatch.setattr(numpyro, "__version__", "0.1")
    with pytest.warns(UserWarning, match=r"other library versions \(numpyro .*, now 0.1\)"):
        assert load_checkpoint(tmp_path, svi, state)[1].step == 1


def test_a_warning_that_is_an_error_comes_before_the_load(tmp_path, monkeypatch):
    svi = plain()
    state = svi.init(random.key(0), X)
    save_checkpoint(tmp_path, svi, state, 1)
    monkeypatch.setattr(numpyro, "__version__", "0.1")
    monkeypatch.setattr(svi.loss, "set_state", pytest.fail, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="other library versions"):
            load_checkpoint(tmp_path, svi, state)


@pytest.mark.parametrize(
    ("kind", "array", "match"),
    [
        ("nonsense", np.ones(2, np.float32), "there is no array of kind 'nonsense'"),
        ("key:nonsense", np.ones(2, np.uint32), "there is no random key key:nonsense"),
        ("key:threefry2x32", np.ones(2, np.float32), "there is no random key"),
        ("key:threefry2x32", np.ones(5, np.uint32), "there is no random key"),
    ],
)
def test_arrays_of_no_known_kind(tmp_path, kind, array, match):
    sealed = dataclasses.replace(codec(), to_tensor=lambda where, value: (kind, array))
    write(sealed, tmp_path, 1, {"leaves": X}, None, {}, None)
    svi = plain()
    with pytest.raises(CheckpointError, match=f"malformed, {match}"):
        load_checkpoint(tmp_path, svi, svi.init(random.key(0), X))


def test_a_guard_that_the_saved_run_did_not_have(tmp_path):
    svi = plain()
    save_checkpoint(tmp_path, svi, svi.init(random.key(0), X), 1)
    svi = finite_guard(plain())
    with pytest.raises(CheckpointError, match="load first, and guard the run after that"):
        load_checkpoint(tmp_path, svi, svi.init(random.key(0), X))
