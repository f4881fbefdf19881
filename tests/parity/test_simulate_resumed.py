# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulations that are written to a file: runs that go on, grow, or are refused."""

import re

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
import pyro
import pyro.distributions
import pytest
import torch

import numpyro_spread
import pyro_spread
from spread_analysis import Simulations

pytestmark = [
    pytest.mark.filterwarnings("ignore:the model runs once"),
    pytest.mark.filterwarnings("ignore:of .* simulations some failed"),
]
BACKENDS = {
    "pyro": (pyro_spread, pyro, pyro.distributions, torch),
    "numpyro": (numpyro_spread, numpyro, numpyro.distributions, jnp),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


class Calls:
    """Counts the runs, and stops the program at one of them."""

    def __init__(self, last=10**9):
        self.count, self.last = 0, last

    def __call__(self):
        self.count += 1
        if self.count > self.last:
            raise KeyboardInterrupt


def by_itself(backend, calls=lambda: None, loc=0.0):
    """A model that runs once for every simulation, and fails now and then."""
    _, ppl, dist, _ = backend

    def model(scale=1.0, x=None):
        calls()
        z = ppl.sample("enc/z", dist.Normal(loc, 1.0))
        if float(z) > 1:
            raise ArithmeticError("no")
        ppl.sample("x", dist.Normal(z, scale), obs=x)

    return model


def together(backend):
    _, ppl, dist, _ = backend

    def model(scales, x=None):
        z = ppl.sample("enc/z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(z[..., None], scales).to_event(1), obs=x)

    return model


def assert_same(one, other):
    assert list(one.values) == list(other.values)
    assert one.observed == other.observed
    for site, value in one.values.items():
        np.testing.assert_array_equal(value, other[site])
        assert value.dtype == other[site].dtype


def test_a_run_that_stops_goes_on_where_it_was(backend, tmp_path):
    path, options = tmp_path / "table.nc", {"observed": "x", "chunk_size": 10}
    unbroken = backend[0].simulate(by_itself(backend), 60, **options)
    calls = Calls(last=47)
    with pytest.raises(KeyboardInterrupt):
        backend[0].simulate(by_itself(backend, calls), 60, **options, path=path)
    assert not path.exists()
    parts = sorted(part.name for part in (tmp_path / "table.nc.parts").glob("*.nc"))
    assert len(parts) >= 2
    calls = Calls()
    table = backend[0].simulate(by_itself(backend, calls), 60, **options, path=path)
    assert calls.count <= 60 - 10 * len(parts) + 1  # one to see whether it is the same model
    assert_same(table, unbroken)
    assert not table.valid.all()
    assert [p.name for p in tmp_path.iterdir()] == ["table.nc"]
    assert_same(Simulations.from_arviz(path), unbroken)

    calls = Calls()
    assert_same(backend[0].simulate(by_itself(backend, calls), 60, **options, path=path), unbroken)
    assert calls.count == 1


def test_a_table_grows_as_if_it_had_been_made_at_once(backend, tmp_path):
    xp, path = backend[-1], tmp_path / "table.nc"
    for model, args in ((by_itself(backend), ()), (together(backend), (xp.ones(3),))):
        options = {"observed": "x", "chunk_size": 8}
        backend[0].simulate(model, 20, *args, **options, path=path)
        grown = backend[0].simulate(model, 45, *args, **options, path=path)
        assert_same(grown, backend[0].simulate(model, 45, *args, **options))
        assert len(Simulations.from_arviz(path)) == 45
        with pytest.raises(ValueError, match="holds 45 simulations, more than num_simulations=9"):
            backend[0].simulate(model, 9, *args, **options, path=path)
        path.unlink()


def test_chunks_may_have_another_size_where_runs_are_single(backend, tmp_path):
    path = tmp_path / "table.nc"
    model = by_itself(backend, Calls(last=40))
    with pytest.raises(KeyboardInterrupt):
        backend[0].simulate(model, 60, chunk_size=10, path=path)
    table = backend[0].simulate(by_itself(backend), 60, chunk_size=7, path=path)
    assert_same(table, backend[0].simulate(by_itself(backend), 60))


def test_what_differs_is_named(backend, tmp_path):
    path, model = tmp_path / "table.nc", by_itself(backend)

    def again(model=model, number=20, *args, **options):
        return backend[0].simulate(model, number, *args, path=path, **options)

    again()
    for call, message in (
        (lambda: again(seed=1), "with seed=0, this call has seed=1: they make no one table"),
        (lambda: again(scale=2.0), "arguments 'scale'=1.0, this call has arguments 'scale'=2.0"),
        (
            lambda: again(by_itself(backend, loc=0.1)),
            "run 0 of the model now draws something else at site 'enc/z' than",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    assert len(Simulations.from_arviz(path)) == 20  # it is as it was


def test_arrays_that_differ_are_named_where_they_matter(backend, tmp_path):
    path, xp = tmp_path / "table.nc", backend[-1]
    backend[0].simulate(together(backend), 20, xp.ones(3), path=path)
    message = r"draws something else at site 'x' .* The arguments \['scales'\] have\."
    with pytest.raises(ValueError, match=message):
        backend[0].simulate(together(backend), 20, 2 * xp.ones(3), path=path)
    message = r"arguments 'scales'=float64\[3\], this call has arguments 'scales'=float64\[2\]"
    with pytest.raises(ValueError, match=message):
        backend[0].simulate(together(backend), 20, xp.ones(2), path=path)


def test_a_simulator_with_random_numbers_of_its_own_goes_on(backend, tmp_path):
    _, ppl, dist, _ = backend
    rng = np.random.default_rng()

    def model():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Delta(z + float(rng.normal()) + 0 * float(z)))

    first = backend[0].simulate(model, 20, path=tmp_path / "table.nc")
    grown = backend[0].simulate(model, 30, path=tmp_path / "table.nc")
    np.testing.assert_array_equal(grown["x"][:20], first["x"])


def test_another_size_of_chunks_is_refused_where_pyro_draws_by_chunk(tmp_path):
    backend = BACKENDS["pyro"]
    args, path = (torch.ones(3),), tmp_path / "table.nc"
    pyro_spread.simulate(together(backend), 20, *args, path=path)
    with pytest.raises(ValueError, match="with chunk_size=1000, this call has chunk_size=5"):
        pyro_spread.simulate(together(backend), 40, *args, path=path, chunk_size=5)
