# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A resumed run in Pyro is the run that was never stopped; what cannot be resumed is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro_runs import RUNS, X, adam, data, go, plain, start

from pyro_spread import (
    CheckpointError,
    finite_guard,
    guard_status,
    load_checkpoint,
    save_checkpoint,
)


def whole_state(svi, tmp_path):
    return save_checkpoint(tmp_path / "compared", svi, 0).read_bytes()


@pytest.mark.parametrize("name", RUNS)
def test_goes_on_as_if_it_had_never_stopped(name, tmp_path):
    svi = start(name)
    go(svi, name, 3)
    saved = save_checkpoint(tmp_path / "run", svi, 3, metadata={"epoch": (1, 2)})
    go(svi, name, 4)
    wanted = whole_state(svi, tmp_path)

    # As in a fresh process, whose random numbers are others, as is what begins with them.
    pyro.set_rng_seed(99)
    svi = start(name)
    checkpoint = load_checkpoint(tmp_path / "run", svi, data(name))
    assert (checkpoint.step, checkpoint.path) == (3, saved)
    assert checkpoint.metadata == {"epoch": (1, 2)}
    assert checkpoint.versions["torch"] == torch.__version__
    # Saved again before anything moves, it is the same file.
    assert save_checkpoint(tmp_path / "again", svi, 3, metadata={"epoch": (1, 2)}).read_bytes() == (
        saved.read_bytes()
    )
    go(svi, name, 4)
    assert whole_state(svi, tmp_path) == wanted

    # And after steps of the process, without arguments.
    load_checkpoint(saved, svi)
    go(svi, name, 4)
    assert whole_state(svi, tmp_path) == wanted


def test_what_a_guard_has_seen_is_kept(tmp_path):
    svi = finite_guard(plain(), "reduce")
    for x in (X, X * torch.nan, X):
        svi.step(x)
    save_checkpoint(tmp_path, svi, 3)
    seen = guard_status(svi)
    assert (seen.skipped, seen.step_scale) == (1, 0.5)
    pyro.clear_param_store()
    svi = finite_guard(plain(), "reduce")
    load_checkpoint(tmp_path, svi, X)
    assert guard_status(svi) == seen
    with pytest.raises(CheckpointError, match="optimizer"):
        load_checkpoint(tmp_path, plain())


def test_a_schedule_may_move_before_the_first_step(tmp_path):
    build = RUNS["stepped schedule"]
    svi = build()
    go(svi, "stepped schedule", 2)
    svi.step(X)
    save_checkpoint(tmp_path, svi, 3)
    svi.optim.step()
    svi.step(X)
    wanted = whole_state(svi, tmp_path)
    pyro.clear_param_store()
    svi = build()
    load_checkpoint(tmp_path, svi, X)
    svi.optim.step()
    svi.step(X)
    assert whole_state(svi, tmp_path) == wanted


def test_gradients_that_are_none_stay_none(tmp_path):
    # Adam moves a param with a gradient of zeros by its momentum, and leaves one without alone.
    def model(x, both):
        a, b = pyro.param("a", torch.tensor(0.0)), pyro.param("b", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(a + b if both else a + b.detach(), 1.0), obs=x)

    def build():
        pyro.clear_param_store()
        return SVI(model, lambda x, both: None, adam(), Trace_ELBO())

    for first in (True, False):
        svi = build()
        svi.step(X[0], first)
        saved = save_checkpoint(tmp_path, svi, 1)
        svi.step(X[0], False)
        wanted = pyro.param("b").item()
        assert (wanted != 0) == first
        svi = build()
        load_checkpoint(saved, svi, X[0], both=True)
        svi.step(X[0], False)
        assert pyro.param("b").item() == wanted


def test_params_keep_their_tensors(tmp_path):
    svi = start("two players")
    go(svi, "two players", 2)
    save_checkpoint(tmp_path, svi, 2)
    params = dict(pyro.get_param_store().named_parameters())
    load_checkpoint(tmp_path, svi)
    for name, param in pyro.get_param_store().named_parameters():
        assert param is params[name]
