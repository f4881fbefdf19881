# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulate from a model: many runs of it, forward, in one table."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.util import get_rng_state, set_rng_state

from pyro_spread import _parents
from pyro_spread._forward_runs import ForwardRuns
from pyro_spread._inputs import ObservedArrays, takes_arrays
from pyro_spread._transaction import unchanged_buffers
from pyro_spread._typing import Model
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
    seed: int = 0,
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
    runs are one where the model's plates allow it; otherwise the model runs once for each, and a
    warning says why.

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_spread import simulate
        >>> def model(x=None):
        ...     theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        ...     loc = theta.unsqueeze(-1).expand(theta.shape + (3,))
        ...     pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)
        >>> simulate(model, 100, observed="x")
        Simulations(100 rows; latents theta (); data x (3,))

    :param model: the model, which can be run forward.
    :param num_simulations: how many runs.
    :param args: positional arguments of the model.
    :param num_workers: number of processes, which joblib starts. With 1 the work stays in this one,
        unless joblib's ``parallel_config`` names a backend, such as a dask or ray cluster.
    :param seed: of all random numbers: the same table for the same seed, whatever the workers do.
        Where many runs are one, it depends on ``chunk_size``.
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
        the model has a factor, or ``path`` holds simulations of something else; the message names
        it.
    :raises ImportError: if ``num_workers`` needs joblib, or ``path`` ArviZ, and it is missing.
    """
    options = Options(num_simulations, num_workers, seed, path, observed, chunk_size, progress_bar)
    return run_model(options, model, *args, **kwargs)


@unchanged_buffers()
@torch.no_grad()
@takes_arrays
def run_model(options: Options, model: Model, *args: Any, **kwargs: Any) -> Simulations:
    """
    Like :func:`simulate`; sites whose values ``options.given`` holds are not drawn.

    :param options: of the simulations.
    :param model: the model.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    """
    check_seed(options.seed)
    program = ForwardRuns(model, args, kwargs, options.seed, options.given)
    if uses_workers(options.num_workers) and _parents.active_handlers(ObservedArrays):
        raise ValueError(tables.handlers_around(options.num_workers))
    told, digests = describe_arguments(model, args, kwargs)
    note = {"package": "pyro_spread", "seed": int(options.seed), "arguments": told}
    with _own_stream():
        return simulate_all(program, options, note, digests)


@contextmanager
def _own_stream() -> Iterator[None]:
    """Leave the random state as it was."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
