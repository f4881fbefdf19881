# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulations by several workers: the same table as by one, from any model and on a cluster."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import numpyro
import numpyro.distributions
import pyro
import pyro.distributions
import pytest
import torch

import numpyro_spread
import pyro_spread

pytestmark = [
    pytest.mark.filterwarnings("ignore:the model runs once"),
    pytest.mark.filterwarnings("ignore:of .* simulations some failed"),
]
PROGRAM = Path(__file__).parents[1] / "programs" / "simulated.py"
BACKENDS = {
    "pyro": (pyro_spread, pyro, pyro.distributions),
    "numpyro": (numpyro_spread, numpyro, numpyro.distributions),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


def by_itself(backend):
    _, ppl, dist = backend

    def model(x=None):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        if float(z) > 1:
            raise ArithmeticError("no")
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def together(backend):
    _, ppl, dist = backend

    def model(x=None):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def assert_same(one, other):
    for site, value in one.values.items():
        np.testing.assert_array_equal(value, other[site])
        assert value.dtype == other[site].dtype
    np.testing.assert_array_equal(one.failed, other.failed)


@pytest.mark.parametrize("kind", [by_itself, together])
def test_threads_take_turns(backend, kind):
    model, options = kind(backend), {"chunk_size": 7, "observed": "x"}
    alone = backend[0].simulate(model, 50, **options)
    with joblib.parallel_config("threading", n_jobs=3):
        assert_same(alone, backend[0].simulate(model, 50, **options))


def test_all_runs_that_fail_raise_their_own_error(backend):
    def model():
        backend[1].sample("z", backend[2].Normal(0.0, 1.0))
        raise ArithmeticError("the solver did not converge")

    with (
        joblib.parallel_config("threading", n_jobs=3),
        pytest.raises(ArithmeticError, match="the solver did not converge"),
    ):
        backend[0].simulate(model, 200, chunk_size=10)


def test_without_joblib_the_extra_is_named(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    backend[0].simulate(together(backend), 5)
    with pytest.raises(ImportError, match=r"brings: pip install 'pyro-spread\[simulate\]'"):
        backend[0].simulate(together(backend), 5, num_workers=2)


def test_a_handler_that_workers_would_not_see_is_refused(backend):
    handlers = pyro.poutine if backend[0] is pyro_spread else numpyro.handlers
    condition = handlers.condition(data={"z": torch.tensor(3.0).numpy()})
    message = r"num_workers=2\) stands inside an effect handler, which acts in this process only"
    with condition, pytest.raises(ValueError, match=message):
        backend[0].simulate(together(backend), 5, num_workers=2)


def test_numbers_of_workers_are_positive(backend):
    with pytest.raises(ValueError, match="num_workers must be a positive integer, got 0"):
        backend[0].simulate(together(backend), 5, num_workers=0)


def run(*arguments):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_processes_make_the_same_table_of_models_that_no_module_holds(name):
    assert run(name, "loky") == "the same\n" * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_a_dask_cluster_makes_the_same_table(name):
    # Not imported here: an example has the same name.
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("dask's distributed is not installed")
    assert run(name, "dask") == "the same\n" * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_a_killed_run_ends_as_one_that_was_never_killed(name, tmp_path):
    assert run(name, "killed", str(tmp_path)) == "the same\n"
