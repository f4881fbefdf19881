# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulate from a model: many runs of it, forward, in one table."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.distributions import Unit
from numpyro.handlers import seed as seeded
from numpyro.handlers import trace

from numpyro_spread._inputs import takes_arrays
from numpyro_spread._typing import Args, Kwargs, Model, RngKey, Site, Sites
from numpyro_spread.infer._scan import Unconditioned
from numpyro_spread.infer._two_sides import mask_at
from spread_analysis.simulations import Simulations
from spread_core.caller_warning import warn_user
from spread_core.messages import tables
from spread_core.simulating import Run, Runs, as_table, run_all, stacked
from spread_core.validation import check_count

__all__ = ["Simulations", "simulate"]


@takes_arrays
def simulate(
    model: Model,
    num_simulations: int,
    *args: Any,
    observed: str | Collection[str] | None = None,
    seed: int | RngKey = 0,
    chunk_size: int = 1000,
    **kwargs: Any,
) -> Simulations:
    r"""
    Run a model forward many times: a table of its latents and data.

    Every latent is drawn from its prior, and observed sites are drawn, whatever the arguments hold.

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
    :param observed: names of the sites that hold data; left out: those that the model observes at
        these arguments.
    :param seed: of all random numbers, or a random key: the same table for the same seed.
    :param chunk_size: how many runs are made, and counted, at once.
    :param kwargs: keyword arguments of the model.
    :raises ValueError: if sites or their shapes differ from run to run, ``observed`` names no site,
        or the model has a factor; the message names the site.
    """
    check_count("num_simulations", num_simulations)
    check_count("chunk_size", chunk_size)
    key = random.key(seed) if isinstance(seed, int | np.integer) else seed
    program = _Program(model, args, kwargs, key, min(chunk_size, num_simulations))
    reason = program.cannot_batch()
    if reason is not None:
        warn_user(tables.one_by_one(reason))
        program.batched = False
    return Simulations(*as_table(run_all(program, num_simulations, chunk_size), observed))


class _Program:
    """A model at its arguments."""

    def __init__(
        self, model: Model, args: Args, kwargs: Kwargs, key: RngKey, chunk_size: int
    ) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        self._key, self._chunk_size = key, chunk_size
        #: Whether many runs are one.
        self.batched = True
        self._many: Any = None
        self._order: tuple[str, ...] = ()
        self._observed: tuple[str, ...] = ()

    def cannot_batch(self) -> Exception | None:
        """Why many runs cannot be one; None if they can."""
        try:
            jax.eval_shape(jax.vmap(self._draw), self._keys(0))
        except Exception as error:
            runs = (self._try(row) for row in range(self._chunk_size))
            if not any(isinstance(run, Run) for run in runs):
                raise self._try(0) from None  # type: ignore[misc]
            return error
        return None

    def __call__(self, start: int, stop: int) -> Runs:
        """Run it once for every number from ``start`` up to ``stop``."""
        if self.batched:
            self._many = self._many or jax.jit(jax.vmap(self._draw))
            try:
                values, masks = jax.device_get(self._many(self._keys(start)))
            except Exception:  # find out below which run it was
                pass
            else:
                count = stop - start
                return Runs(
                    {name: values[name][:count] for name in self._order},
                    {name: masks[name][:count] for name in self._order if name in masks},
                    np.zeros(count, bool),
                    self._observed,
                )
        return stacked([self._try(row) for row in range(start, stop)], start)

    def _keys(self, start: int) -> jax.Array:
        # Always as many: another number would be compiled again.
        rows = jnp.arange(start, start + self._chunk_size)
        return jax.vmap(lambda row: random.fold_in(self._key, row))(rows)

    def _try(self, row: int) -> Run | Exception:
        try:
            values, masks = jax.device_get(self._draw(random.fold_in(self._key, row)))
        except Exception as error:
            return error
        as_arrays = {name: np.asarray(values[name]) for name in self._order}
        kept = {name: np.asarray(mask) for name, mask in masks.items()}
        return Run(as_arrays, kept, self._observed)

    def _draw(self, rng_key: RngKey) -> tuple[dict[str, Any], dict[str, Any]]:
        """One run: values of its sites, and masks."""
        forward = seeded(Unconditioned(self._model), rng_key)
        sites = _drawn(trace(forward).get_trace(*self._args, **self._kwargs))
        self._order = tuple(sites)
        self._observed = tuple(n for n, s in sites.items() if s["infer"].get("was_observed"))
        masks = {name: _mask(name, site) for name, site in sites.items()}
        values = {name: jnp.asarray(site["value"]) for name, site in sites.items()}
        return values, {name: mask for name, mask in masks.items() if mask is not None}


def _drawn(sites: Sites) -> dict[str, Site]:
    """The latents and data of a run."""
    found = {name: site for name, site in sites.items() if site["type"] == "sample"}
    for name, site in found.items():
        if isinstance(site["fn"], Unit):
            raise ValueError(tables.factor(name))
    if not found:
        raise ValueError(tables.nothing_drawn())
    return found


def _mask(name: str, site: Site) -> Any:
    """Which elements count, in the shape of the batch if whole events do."""
    shape, event_dim = jnp.shape(site["value"]), site["fn"].event_dim
    mask = mask_at(name, site, shape)
    return mask if mask is None or not event_dim else mask[(..., *[0] * event_dim)]
