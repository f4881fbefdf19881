# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulate from a model: many runs of it, forward, in one table."""

from __future__ import annotations

import os
import random as python_random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax import random

from numpyro_spread import _parents
from numpyro_spread._forward_runs import ForwardRuns
from numpyro_spread._inputs import ObservedArrays, takes_arrays
from numpyro_spread._typing import Model, RngKey
from spread_analysis.simulating import Options, simulate_all
from spread_analysis.simulations import Simulations
from spread_core.fingerprints import describe_arguments
from spread_core.messages import tables
from spread_core.validation import check_seed
from spread_core.workers import uses_workers

__all__ = ["Simulations", "simulate"]


def simulate(
    model: Model,
    num_simulations: int,
    *args: Any,
    num_workers: int = 1,
    seed: int | RngKey = 0,
    path: str | os.PathLike[str] | None = None,
    observed: str | Collection[str] | None = None,
    chunk_size: int | None = None,
    progress_bar: bool = True,
    **kwargs: Any,
) -> Simulations:
    r"""
    Run a model forward many times: a table of its latents and data.

    Every latent is drawn from its prior, and observed sites are drawn, whatever the arguments hold.
    A run that raises an error, as a simulator may, and one that draws NaN or inf, stays in the
    table as a row that is not ``valid``; one :class:`InvalidSimulationsWarning` counts them. Many
    runs are one where JAX can map over the model; otherwise the model runs once for each, and a
    warning says why.

        >>> import numpyro, numpyro.distributions as dist
        >>> from numpyro_spread import simulate
        >>> def model(x=None):
        ...     theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("x", dist.Normal(theta, 0.5).expand([3]).to_event(1), obs=x)
        >>> simulate(model, 100, observed="x")
        Simulations(100 rows; latents theta (); data x (3,))

    :param model: the model, which can be run forward.
    :param num_simulations: how many runs.
    :param args: positional arguments of the model.
    :param num_workers: number of processes, which joblib starts. With 1 the work stays in this one,
        unless joblib's ``parallel_config`` names a backend, such as a dask or ray cluster.
    :param seed: of all random numbers, or a random key: the same table for the same seed, whatever
        the workers and ``chunk_size``.
    :param path: of a netCDF file, ``"... .nc"``, that is to hold the table. Simulations are written
        chunk by chunk: the same call again goes on where a killed one was, and more simulations
        are added to those that are there.
    :param observed: names of the sites that hold data; left out: those that the model observes at
        these arguments.
    :param chunk_size: how many runs are made, and written, at once. Left out: 1000 where many runs
        are one, at most 100 otherwise.
    :param progress_bar: whether to show a progress bar, if it takes longer than a moment.
    :param kwargs: keyword arguments of the model.
    :raises ValueError: if sites or their shapes differ from run to run, ``observed`` names no site,
        the model has a factor or a param without a value, or ``path`` holds simulations of
        something else; the message names it.
    :raises ImportError: if ``num_workers`` needs joblib, or ``path`` ArviZ, and it is missing.
    """
    options = Options(num_simulations, num_workers, seed, path, observed, chunk_size, progress_bar)
    return run_model(options, model, *args, **kwargs)


@takes_arrays
def run_model(options: Options, model: Model, *args: Any, **kwargs: Any) -> Simulations:
    """
    Like :func:`simulate`; sites whose values ``options.given`` holds are not drawn.

    :param options: of the simulations.
    :param model: the model.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    """
    program = ForwardRuns(model, args, kwargs, key_of(options.seed), options.given)
    if uses_workers(options.num_workers) and _parents.active_handlers(ObservedArrays):
        raise ValueError(tables.handlers_around(options.num_workers))
    told, digests = describe_arguments(model, args, kwargs)
    note = {"package": "numpyro_spread", "seed": _told(options.seed), "arguments": told}
    with _own_stream():
        return simulate_all(program, options, note, digests)


def key_of(seed: int | RngKey) -> RngKey:
    """
    The random key of a seed, which may be one.

    :param seed: an integer or a random key.
    :raises TypeError: if it is neither.
    """
    if isinstance(seed, jax.Array | np.ndarray):
        return seed
    check_seed(seed, " or a random key")
    return random.key(seed)


def _told(seed: int | RngKey) -> int | list[int]:
    """A seed, as it is written to a file."""
    if isinstance(seed, int | np.integer):
        return int(seed)
    return [int(word) for word in np.asarray(random.key_data(seed)).ravel()]


@contextmanager
def _own_stream() -> Iterator[None]:
    """Leave the random states of Python and NumPy as they were."""
    state = np.random.get_state(), python_random.getstate()
    try:
        yield
    finally:
        np.random.set_state(state[0])
        python_random.setstate(state[1])
