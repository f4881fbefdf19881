# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Run a model forward many times, all runs at once where its plates allow it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.uncondition_messenger import UnconditionMessenger

from pyro_spread._typing import Args, Kwargs, Model, Site, Sites
from pyro_spread.distributions import ImplicitDistribution
from pyro_spread.infer._own_draws import refuse_own_draws
from pyro_spread.infer._sites import is_computed
from pyro_spread.infer._two_sides import mask_at
from spread_core.messages import tables
from spread_core.runs import NotOneRunError, Run, Runs, stacked

_PLATE = "_num_simulations"
# Streams of random numbers: of one run, of a chunk, of the look whether there can be chunks.
_ROW, _CHUNK, _LOOK = range(3)
_LOOKED_AT, _COMPARED = 3, (0, 2)
_MOST_FAILURES = 50


class ForwardRuns:
    """
    A model at its arguments, to be run many times.

    :param model: the model.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :param seed: of all random numbers.
    :param given: dict from sites that are not drawn to their values, row by row; beyond the last
        row it is repeated.
    """

    depends_on_chunk = True

    def __init__(
        self,
        model: Model,
        args: Args,
        kwargs: Kwargs,
        seed: int,
        given: Mapping[str, NDArray] | None = None,
    ) -> None:
        self._model, self._args, self._kwargs, self._seed = model, args, kwargs, seed
        self._given = dict(given or {})
        self.batched, self.chunk_size = True, 1
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._batch_dims: dict[str, int] = {}
        self._nesting = 0

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if "_elsewhere" not in state:  # else this is a copy, which goes on to another worker
            settings = torch.get_default_dtype(), pyro.settings.get("validate_poutine")
            state["_elsewhere"] = settings, pyro.get_param_store().get_state()
        return state

    def settle(self, num_threads: int) -> None:
        """
        Make another process what the one is from which this object comes.

        :param num_threads: how many threads a run may use.
        """
        (dtype, validates), store = self.__dict__["_elsewhere"]
        torch.set_num_threads(num_threads)
        torch.set_default_dtype(dtype)
        pyro.enable_validation(validates)
        pyro.get_param_store().set_state(store)

    @torch.no_grad()
    def __call__(self, start: int, stop: int) -> Runs:
        """
        The simulations from number ``start`` up to ``stop``.

        :raises NotOneRunError: if they were to be one run, and cannot be.
        """
        if not self.batched:
            return stacked([self._try(row) for row in range(start, stop)], start)
        if not self._shapes:
            self._look()
        try:
            sites = self._draw_many(self.chunk_size, _CHUNK, start)
            values = {name: self._rows(name, site["value"]) for name, site in sites.items()}
            masks = {name: self._mask(name, site) for name, site in sites.items()}
        except Exception as error:  # it may be the error of one run: the traceback stays here
            raise NotOneRunError(_said(error)) from None
        count = stop - start
        return Runs(
            {name: value[:count] for name, value in values.items()},
            {name: mask[:count] for name, mask in masks.items() if mask is not None},
            np.zeros(count, bool),
            _observed(sites),
        )

    def raise_at(self, row: int) -> None:
        """Let a run that fails raise its error."""
        self._draw(row)

    def cannot_batch(self) -> Exception | None:
        """
        Why many runs cannot be one; None if they can.

        Some are made at once, and then by themselves with the same draws: at every site the
        distributions must agree.
        """
        self._look()
        try:
            many = self._draw_many(_LOOKED_AT, _LOOK, 0)
            for row in _COMPARED:
                drawn = {n: self._of_one(n, s["value"], row) for n, s in many.items()}
                self._compare(self._draw(row, drawn), many, row)
        except Exception as error:
            return error if isinstance(error, NotOneRunError) else NotOneRunError(_said(error))
        return None

    def _look(self) -> None:
        """Find out shapes and plates."""
        for row in range(_MOST_FAILURES):
            run = self._try(row)
            if isinstance(run, Run):
                sites = self._draw(row)
                break
        else:
            sites = self._draw(0)
        self._shapes = {name: tuple(site["value"].shape) for name, site in sites.items()}
        self._batch_dims = {n: s["value"].dim() - s["fn"].event_dim for n, s in sites.items()}
        frames = [f for site in sites.values() for f in site["cond_indep_stack"] if f.vectorized]
        batches = [len(site["fn"].batch_shape) for site in sites.values()]
        self._nesting = max([0, *batches, *(-frame.dim for frame in frames)])

    def _compare(self, one: Sites, many: Sites, row: int) -> None:
        if one.keys() != many.keys():
            raise NotOneRunError(tables.other_sites(row, one, many))
        for name, site in one.items():
            if site["value"].shape != self._shapes[name]:
                shapes = site["value"].shape, self._shapes[name]
                raise NotOneRunError(tables.other_shape(name, row, *shapes))
            alone, among = _told(site["fn"], many[name]["fn"], row)
            values = site["value"], self._of_one(name, many[name]["value"], row)
            for left, right in [(alone, among), values]:
                same = left.numel() == right.numel() and torch.allclose(
                    left.flatten().double(), right.flatten().double(), 1e-3, 1e-4, equal_nan=True
                )
                if not same:
                    raise NotOneRunError(tables.not_of_one_run(name))

    def _try(self, row: int) -> Run | Exception:
        try:
            sites = self._draw(row)
            values = {name: _host(site["value"]) for name, site in sites.items()}
            masks = {name: _mask(name, site) for name, site in sites.items()}
        except Exception as error:
            return error
        kept = {name: mask for name, mask in masks.items() if mask is not None}
        return Run(values, kept, _observed(sites))

    @torch.no_grad()
    def _draw(self, row: int, drawn: dict[str, torch.Tensor] | None = None) -> dict[str, Site]:
        """One run, if need be with values that are drawn already."""
        self._set_seed(_ROW, row)
        forward = _Unconditioned()(self._model)
        given = {name: _of_row(value, row) for name, value in self._given.items()}
        if given or drawn is not None:
            forward = poutine.replay(forward, trace=_kept(given | (drawn or {})))
        sites = _drawn(poutine.trace(forward).get_trace(*self._args, **self._kwargs).nodes)
        # What the model itself has drawn at observed sites would be thrown away.
        observed = {name: sites[name] for name in _observed(sites)}
        refuse_own_draws(self._model, observed, self._args, self._kwargs)
        return sites

    @torch.no_grad()
    def _draw_many(self, count: int, stream: int, number: int) -> dict[str, Site]:
        """Many runs as one: an outermost plate counts them."""
        self._set_seed(stream, number)
        plate = pyro.plate(_PLATE, count, dim=-1 - self._nesting)
        rows = slice(number, number + count)
        given = {name: self._of_many(name, rows) for name in self._given}
        kept = poutine.replay(trace=_kept(given))
        with poutine.trace() as traced, kept, _Unconditioned(), plate:
            self._model(*self._args, **self._kwargs)
        nodes = traced.trace.nodes
        for name, site in nodes.items():
            fn = site["fn"]
            if isinstance(fn, _Subsample) and len(site["value"]) < fn.size:
                raise NotOneRunError(tables.subsampled(name))
        return _drawn(nodes)

    def _set_seed(self, stream: int, number: int) -> None:
        sequence = np.random.SeedSequence([self._seed, stream, number])
        pyro.set_rng_seed(int(sequence.generate_state(1)[0]))

    def _rows(self, name: str, value: torch.Tensor) -> NDArray:
        return _host(value).reshape(-1, *self._shape(name))

    def _of_one(self, name: str, value: torch.Tensor, row: int) -> torch.Tensor:
        return value[row].reshape(self._shape(name))

    def _of_many(self, name: str, rows: slice) -> torch.Tensor:
        """Given values as a batched run takes them: rows, dims of other plates, the site's."""
        if name not in self._shapes:
            raise NotOneRunError(tables.other_sites(0, [name], self._shapes))
        value = _of_row(self._given[name], np.arange(rows.start, rows.stop))
        between = self._nesting - self._batch_dims[name]
        return value.reshape(len(value), *[1] * between, *value.shape[1:])

    def log_prior(self, names: Collection[str], start: int, stop: int) -> NDArray:
        """
        Log density of given values at their sites, in nats, of shape (stop - start,).

        :param names: of the sites.
        :param start: number of the first row.
        :param stop: of the one after the last.
        :raises NotImplementedError: if a site has none.
        """
        if not self.batched:
            return np.array([self._density(self._draw(n), names, 1)[0] for n in range(start, stop)])
        if not self._shapes:
            self._look()
        count = stop - start
        return self._density(self._draw_many(count, _CHUNK, start), names, count)

    @torch.no_grad()
    def _density(self, sites: Sites, names: Collection[str], count: int) -> NDArray:
        total = np.zeros(count)
        for name in names:
            site = sites[name]
            each = site["fn"].log_prob(site["value"])
            if site["mask"] is not None:
                each = torch.where(torch.as_tensor(site["mask"]), each, 0.0)
            total += each.reshape(count, -1).sum(-1).double().cpu().numpy()
        return total

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise NotOneRunError(tables.other_sites(0, [name], self._shapes))
        return self._shapes[name]

    def _mask(self, name: str, site: Site) -> NDArray | None:
        mask = mask_at(name, site, site["value"])
        if mask is None:
            return None
        return _of_batch(mask.reshape(-1, *self._shape(name)), site["fn"].event_dim)


def _of_row(values: NDArray, row: Any) -> torch.Tensor:
    return torch.as_tensor(np.array(values[np.minimum(row, len(values) - 1)]))


def _kept(values: Mapping[str, torch.Tensor]) -> poutine.Trace:
    """A trace of which a run takes its values."""
    kept = poutine.Trace()
    for name, value in values.items():
        kept.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
    return kept


def _told(alone: Any, among: Any, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers that tell a distribution, by itself and among many."""
    inner, outer = _innermost(alone), _innermost(among)
    if isinstance(inner, ImplicitDistribution):
        noise = outer.base_dist.sample()
        own = noise[row].reshape(inner.base_dist.shape())
        return inner.fn(own), outer.fn(noise)[row]
    if isinstance(inner, Delta):
        return inner.v, outer.v[row] if outer.v.dim() > inner.v.dim() else outer.v
    arguments = getattr(inner, "args", None)  # a black box
    if isinstance(arguments, tuple):
        return _flat(arguments), _flat([argument[row] for argument in outer.args])
    value = among.sample()
    own = value[row].reshape(alone.shape())
    return alone.log_prob(own), among.log_prob(value)[row]


def _innermost(fn: Any) -> Any:
    while isinstance(getattr(fn, "base_dist", None), torch.distributions.Distribution):
        if type(fn).__name__ not in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
            break
        fn = fn.base_dist
    return fn


def _flat(values: Any) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in values])


class _Unconditioned(UnconditionMessenger):
    """Have data drawn, and leave what the model computes: a plate would take it for many."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)


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


def _observed(sites: Sites) -> tuple[str, ...]:
    return tuple(n for n, s in sites.items() if s["infer"].get("was_observed"))


def _host(value: torch.Tensor) -> NDArray:
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _mask(name: str, site: Site) -> NDArray | None:
    mask = mask_at(name, site, site["value"])
    return None if mask is None else _of_batch(mask, site["fn"].event_dim)


def _of_batch(mask: torch.Tensor, event_dim: int) -> NDArray:
    """A mask in the shape of the batch, if it leaves out whole events only."""
    if not event_dim:
        return mask.cpu().numpy()
    events = mask.flatten(mask.dim() - event_dim)
    whole = bool((events == events[..., :1]).all())
    return (events[..., 0] if whole else mask).cpu().numpy()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
