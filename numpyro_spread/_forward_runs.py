# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Run a model forward many times, all runs at once where JAX can map over it."""

from __future__ import annotations

import logging
import os
import random as python_random
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpy.typing import NDArray
from numpyro.distributions import Unit
from numpyro.handlers import seed as seeded
from numpyro.handlers import substitute, trace
from numpyro.primitives import Messenger

from numpyro_spread._typing import Args, Kwargs, Model, RngKey, Site, Sites
from numpyro_spread.infer._own_draws import refuse_own_draws
from numpyro_spread.infer._scan import Unconditioned
from numpyro_spread.infer._two_sides import mask_at
from spread_core.messages import tables
from spread_core.runs import NotOneRunError, Run, Runs, stacked

_MOST_FAILURES = 50
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


class ForwardRuns:
    """
    A model at its arguments, to be run many times.

    Every run has a key of its own, so that what it draws does not depend on the others.

    :param model: the model.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :param key: of all random numbers.
    :param given: dict from sites that are not drawn to their values, row by row; beyond the last
        row it is repeated.
    """

    depends_on_chunk = False

    def __init__(
        self,
        model: Model,
        args: Args,
        kwargs: Kwargs,
        key: RngKey,
        given: Mapping[str, NDArray] | None = None,
    ) -> None:
        self._model, self._args, self._kwargs, self._key = model, args, kwargs, key
        self._given = dict(given or {})
        self.batched, self.chunk_size = True, 1
        self._many: Any = None
        self._scored: Any = None
        self._order: tuple[str, ...] = ()
        self._observed: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_many": None, "_scored": None}
        if "_elsewhere" not in state:  # else this is a copy, which goes on to another worker
            state["_elsewhere"] = bool(jax.config.read("jax_enable_x64"))
        if not isinstance(self._key, tuple):
            state["_key"] = np.asarray(random.key_data(self._key)), str(random.key_impl(self._key))
        return state

    def settle(self, num_threads: int) -> None:
        """
        Make another process what the one is from which this object comes.

        :param num_threads: how many threads a run may use.
        """
        # XLA reads it at its first use, and knows one thread or all.
        if num_threads == 1 and _ONE_THREAD not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}".strip()
        jax.config.update("jax_enable_x64", self.__dict__["_elsewhere"])

    def __call__(self, start: int, stop: int) -> Runs:
        """The simulations from number ``start`` up to ``stop``."""
        if self.batched:
            self._many = self._many or jax.jit(jax.vmap(self._draw))
            try:
                with _quiet():
                    rows = self._keys(start, self.chunk_size), self._rows(start, self.chunk_size)
                    values, masks = jax.device_get(self._many(*rows))
            except Exception:  # by themselves they have the same draws, and tell which it was
                pass
            else:
                count = stop - start
                return Runs(
                    {name: _host(values[name][:count]) for name in self._order},
                    {name: masks[name][:count] for name in self._order if name in masks},
                    np.zeros(count, bool),
                    self._observed,
                )
        return stacked([self._try(row) for row in range(start, stop)], start)

    def raise_at(self, row: int) -> None:
        """Let a run that fails raise its error."""
        self._draw(self._row_key(row), self._row(row))

    def cannot_batch(self) -> Exception | None:
        """Why many runs cannot be one; None if they can."""
        before = np.random.get_state(), python_random.getstate()
        try:
            jax.eval_shape(jax.vmap(self._draw), self._keys(0, 2), self._rows(0, 2))
        except Exception as error:
            if not any(isinstance(self._try(row), Run) for row in range(_MOST_FAILURES)):
                self.raise_at(0)
            return NotOneRunError(f"{type(error).__name__}: {error}")
        if not _same(before, (np.random.get_state(), python_random.getstate())):
            np.random.set_state(before[0])
            python_random.setstate(before[1])
            return NotOneRunError(tables.own_numbers())
        return None

    def _row_key(self, row: Any) -> RngKey:
        if isinstance(self._key, tuple):  # as it was sent to another process
            self._key = random.wrap_key_data(jnp.asarray(self._key[0]), impl=self._key[1])
        return random.fold_in(self._key, row)

    def _keys(self, start: int, count: int) -> jax.Array:
        # Always as many: another number would be compiled again.
        return jax.vmap(self._row_key)(jnp.arange(start, start + count))

    def _try(self, row: int) -> Run | Exception:
        key = self._row_key(row)
        _seed_others(key)
        try:
            with _quiet():
                values, masks = jax.device_get(self._draw(key, self._row(row)))
        except Exception as error:
            return error
        as_arrays = {name: _host(values[name]) for name in self._order}
        kept = {name: np.asarray(mask) for name, mask in masks.items()}
        return Run(as_arrays, kept, self._observed)

    def _row(self, row: Any) -> dict[str, NDArray]:
        """What is given of one row, or of several."""
        return {n: value[np.minimum(row, len(value) - 1)] for n, value in self._given.items()}

    def _rows(self, start: int, count: int) -> dict[str, NDArray]:
        return self._row(np.arange(start, start + count))

    def log_prior(self, names: Collection[str], start: int, stop: int) -> NDArray:
        """
        Log density of given values at their sites, in nats, of shape (stop - start,).

        :param names: of the sites, the same at every call.
        :param start: number of the first row.
        :param stop: of the one after the last.
        :raises NotImplementedError: if a site has none.
        """

        def density(rng_key: RngKey, given: Any) -> Any:
            sites = self._sites(rng_key, given)
            each = {n: sites[n]["fn"].log_prob(sites[n]["value"]).sum() for n in names}
            return jnp.stack(list(each.values())).sum()

        if self.batched:
            self._scored = self._scored or jax.jit(jax.vmap(density))
            rows = self._keys(start, self.chunk_size), self._rows(start, self.chunk_size)
            return np.asarray(self._scored(*rows)[: stop - start], float)
        numbers = range(start, stop)
        return np.array([float(density(self._row_key(n), self._row(n))) for n in numbers])

    def _sites(self, rng_key: RngKey, given: Any) -> Sites:
        forward = substitute(seeded(Unconditioned(self._model), rng_key), data=given)
        with _BoundParams():
            return _drawn(trace(forward).get_trace(*self._args, **self._kwargs))

    def _draw(self, rng_key: RngKey, given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """One run: values of its sites, and masks."""
        sites = self._sites(rng_key, given)
        self._order = tuple(sites)
        observed = {n: s for n, s in sites.items() if s["infer"].get("was_observed")}
        # What the model itself has drawn there would be thrown away.
        refuse_own_draws({}, self._model, observed, self._args, self._kwargs)
        self._observed = tuple(observed)
        masks = {name: _mask(name, site) for name, site in sites.items()}
        values = {name: jnp.asarray(site["value"]) for name, site in sites.items()}
        return values, {name: mask for name, mask in masks.items() if mask is not None}


class _BoundParams(Messenger):
    """Params must have values: a net that is drawn anew in every run is no model."""

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "param" or msg["value"] is not None:
            return
        initial = msg["args"][0] if msg["args"] else None
        if initial is None or callable(initial):
            raise ValueError(tables.unbound_param(msg["name"]))


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
    """Which elements count, in the shape of the batch if it leaves out whole events only."""
    shape, event_dim = jnp.shape(site["value"]), site["fn"].event_dim
    mask = mask_at(name, site, shape)
    if mask is None or not event_dim:
        return mask
    return mask[(..., *[0] * event_dim)] if _masks_events(site["fn"]) else mask


def _masks_events(fn: Any) -> bool:
    """Whether masks stand round whole events, and not inside."""
    event_dim = fn.event_dim
    while hasattr(fn, "base_dist"):
        if type(fn).__name__ == "MaskedDistribution" and fn.event_dim != event_dim:
            return False
        fn = fn.base_dist
    return True


def _host(value: Any) -> NDArray:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep JAX from printing a traceback for every callback that fails: failures are counted."""
    logger = logging.getLogger("jax._src.callback")
    was, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was


def _seed_others(key: RngKey) -> None:
    """Seed the generators that a simulator in Python may draw from."""
    words = [int(word) for word in np.asarray(random.key_data(key)).ravel()]
    number = int(np.random.SeedSequence(words).generate_state(1)[0])
    np.random.seed(number)
    python_random.seed(number)


def _same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other) and bool(np.array_equal(one[0][1], other[0][1]))
