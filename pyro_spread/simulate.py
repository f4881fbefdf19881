# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulate from a model: many runs of it, forward, in one table."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.subsample_messenger import _Subsample
from pyro.util import get_rng_state, set_rng_state

from pyro_spread._inputs import takes_arrays
from pyro_spread._transaction import unchanged_buffers
from pyro_spread._typing import Args, Kwargs, Model, Site, Sites
from pyro_spread.infer._sites import is_computed
from pyro_spread.infer._two_sides import mask_at
from spread_analysis.simulations import Simulations
from spread_core.messages import tables
from spread_core.simulating import Run, Runs, as_table, run_all, stacked
from spread_core.validation import check_count

__all__ = ["Simulations", "simulate"]


@unchanged_buffers()
@torch.no_grad()
@takes_arrays
def simulate(
    model: Model,
    num_simulations: int,
    *args: Any,
    observed: str | Collection[str] | None = None,
    seed: int = 0,
    chunk_size: int = 1000,
    **kwargs: Any,
) -> Simulations:
    r"""
    Run a model forward many times: a table of its latents and data.

    Every latent is drawn from its prior, and observed sites are drawn, whatever the arguments hold.

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_spread import simulate
        >>> def model(x=None):
        ...     theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(theta, 0.5).expand([3]).to_event(1), obs=x)
        >>> simulate(model, 100, observed="x")
        Simulations(100 rows; latents theta (); data x (3,))

    :param model: the model, which can be run forward.
    :param num_simulations: how many runs.
    :param args: positional arguments of the model.
    :param observed: names of the sites that hold data; left out: those that the model observes at
        these arguments.
    :param seed: of all random numbers: the same table for the same seed.
    :param chunk_size: how many runs are made, and counted, at once.
    :param kwargs: keyword arguments of the model.
    :raises ValueError: if sites or their shapes differ from run to run, ``observed`` names no site,
        or the model has a factor; the message names the site.
    """
    check_count("num_simulations", num_simulations)
    check_count("chunk_size", chunk_size)
    program = _Program(model, args, kwargs, seed)
    with _own_stream():
        runs = run_all(program, num_simulations, chunk_size)
    return Simulations(*as_table(runs, observed))


class _Program:
    """A model at its arguments."""

    def __init__(self, model: Model, args: Args, kwargs: Kwargs, seed: int) -> None:
        self._model, self._args, self._kwargs, self._seed = model, args, kwargs, seed

    def __call__(self, start: int, stop: int) -> Runs:
        """Run it once for every number from ``start`` up to ``stop``."""
        return stacked([self._try(row) for row in range(start, stop)], start)

    def _try(self, row: int) -> Run | Exception:
        try:
            return self._run(row)
        except Exception as error:
            return error

    def _run(self, row: int) -> Run:
        sequence = np.random.SeedSequence([self._seed, row])
        pyro.set_rng_seed(int(sequence.generate_state(1)[0]))
        forward = poutine.uncondition(self._model)
        sites = _drawn(poutine.trace(forward).get_trace(*self._args, **self._kwargs).nodes)
        values = {name: _host(site["value"]) for name, site in sites.items()}
        masks = {name: _mask(name, site) for name, site in sites.items()}
        observed = tuple(n for n, s in sites.items() if s["infer"].get("was_observed"))
        return Run(values, {n: m for n, m in masks.items() if m is not None}, observed)


def _drawn(nodes: Sites) -> dict[str, Site]:
    """The latents and data of a run; no bookkeeping, and nothing that the model computes."""
    found = {}
    for name, site in nodes.items():
        if site["type"] != "sample" or isinstance(site["fn"], _Subsample):
            continue
        given = site["infer"].get("obs", site["value"] if site["is_observed"] else None)
        if isinstance(site["fn"], Unit):
            raise ValueError(tables.factor(name))
        if not is_computed(site, given):
            found[name] = site
    if not found:
        raise ValueError(tables.nothing_drawn())
    return found


def _host(value: torch.Tensor) -> Any:
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _mask(name: str, site: Site) -> Any:
    """Which elements count, in the shape of the batch if whole events do."""
    mask, event_dim = mask_at(name, site, site["value"]), site["fn"].event_dim
    if mask is None or not event_dim:
        return None if mask is None else mask.cpu().numpy()
    events = mask.flatten(mask.dim() - event_dim)
    whole = bool((events == events[..., :1]).all())
    return (events[..., 0] if whole else mask).cpu().numpy()


@contextmanager
def _own_stream() -> Iterator[None]:
    """Leave the random state as it was."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
