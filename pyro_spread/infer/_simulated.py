# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What posterior estimation scores a guide at: runs of the model, or rows of a table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample

from pyro_spread import _parents
from pyro_spread._transaction import looking
from pyro_spread.infer._datum import data_dims, data_plate, frames_of, is_one
from pyro_spread.infer._invalid import Invalid
from pyro_spread.infer._own_draws import refuse_own_draws
from pyro_spread.infer._sites import batch_mask, is_latent
from pyro_spread.infer._two_sides import is_compared, mask_at
from spread_core.messages import players
from spread_core.messages import simulations as messages
from spread_core.remembered import Remembered
from spread_core.simulated import Table, check_names, known_data_sites

Sites = Mapping[str, Any]
#: Values and masks by site, of one row or of several.
Row = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


class Simulated(NamedTuple):
    """
    A run of the model, as far as a guide is scored at it.

    ``sites`` are those of the run, of which only plates and shapes are known for a row of a table,
    and ``observed`` those of them that are data; ``data``, ``masks`` and ``latents`` have values by
    site; ``indices`` are what plates have taken that subsample.
    """

    sites: Sites
    observed: Sites
    data: dict[str, torch.Tensor]
    masks: dict[str, torch.Tensor]
    latents: dict[str, torch.Tensor]
    indices: dict[str, torch.Tensor]


def simulate_once(
    model: Callable[..., Any],
    known: tuple[str, ...] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    among: Callable[[Any], Any] = lambda fn: fn,
) -> Simulated:
    """
    Run the model forward; what it observes is drawn.

    :param model: the model.
    :param known: names of the data sites; None if they are those that the model observes.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param among: wraps the model, to run many at once.
    :raises ValueError: if nothing is observed, or a data site is none of the model.
    """
    with torch.no_grad():
        sites = run_forward(among(model), args, kwargs)
    return as_simulated(sites, model, known, args, kwargs)


def as_simulated(
    sites: Sites,
    model: Callable[..., Any],
    known: tuple[str, ...] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Simulated:
    """The sites of a forward run of the model, sorted; see :func:`simulate_once`."""
    observed = _observed(sites, known)
    held = {name: site for name, site in observed.items() if is_compared(site)}
    refuse_own_draws(model, held, args, kwargs)
    # A guide that reads its arguments does without: it looks for itself.
    masks = {n: batch_mask(n, s) for n, s in observed.items() if known is not None}
    return Simulated(
        sites,
        observed,
        {name: site["value"] for name, site in observed.items()},
        {name: mask for name, mask in masks.items() if mask is not None},
        {name: sites[name]["value"] for name in _latents(sites, observed)},
        {n: s["value"] for n, s in sites.items() if _subsamples(s.get("fn"))},
    )


def run_forward(fn: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """The sites of a model, with draws instead of observations."""
    return dict(poutine.trace(poutine.uncondition(fn)).get_trace(*args, **kwargs).nodes)


class Rows:
    """
    The rows of a table, as runs of a model that is not run.

    Once for every model and shape of its arguments it is, without side effects: to know its plates,
    and that the table has its sites in their shapes.

    :param table: the table.
    :param model: the model.
    :param guide: the guide.
    :param args: positional arguments of both.
    :param kwargs: keyword arguments of both.
    :raises ValueError: if the table has not what is needed, naming the site.
    """

    def __init__(
        self,
        table: Table,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._table = table
        self._sites = _looked(model, args, kwargs)
        known = known_data_sites(guide, args, kwargs)
        told = "the guide" if known is not None else "the table"
        masked = table.masks if known is not None else {}
        known = (table.observed or None) if known is None else known
        self._observed = _observed(self._sites, known, told)
        held = [n for n in _latents(self._sites, self._observed) if n in table.values]
        self._latents = held
        for name in (*self._observed, *held):
            for frame in frames_of(self._sites[name]):
                if frame.full_size is not None and frame.size < frame.full_size:
                    raise ValueError(messages.table_subsampled(name, frame.name))
        self.check(dict.fromkeys((*self._observed, *held)))
        for name in masked.keys() & self._observed.keys():
            if masked[name].ndim - 1 != len(self._sites[name]["fn"].batch_shape):
                raise ValueError(messages.masked_within_event(name))

    def check(self, names: Mapping[str, Any]) -> None:
        """
        Refuse sites of the model that the table has not, or not in their shapes.

        :param names: of the sites.
        """
        self._table.check_sites({name: self._sites[name]["shape"] for name in names})

    def draw(self, number: int) -> Row:
        """
        Rows at random, along the first dim of all values and masks; all rows in turn if it is their
        number.

        :param number: of rows.
        """
        table = self._table
        first = next(iter(table.values.values()))
        rows = torch.arange(number, device=first.device)
        if number < table.size:
            rows = torch.randint(table.size, (number,), device=first.device)
        values = {n: table.values[n][rows] for n in (*self._observed, *self._latents)}
        masks = {n: mask[rows] for n, mask in table.masks.items() if n in self._observed}
        return values, masks

    def run(self, row: Row, depth: int | None = None) -> Simulated:
        """
        A row as a run of the model.

        :param row: the row, or several with ``depth``.
        :param depth: how many batch dims there are behind that of the rows.
        """
        values, masks = row
        if depth is not None:
            values = {
                n: _behind(v, self._sites[n]["fn"].event_dim, depth) for n, v in row[0].items()
            }
            masks = {n: _behind(mask, 0, depth) for n, mask in row[1].items()}
        data = {name: values[name] for name in self._observed}
        latents = {name: values[name] for name in self._latents}
        return Simulated(self._sites, self._observed, data, masks, latents, {})


def in_turn(rows: Row | None, number: int) -> Iterator[Row | None]:
    """The rows one by one; None instead of each where there is no table."""
    for one in range(number):
        if rows is None:
            yield None
        else:
            values, masks = ({n: v[one] for n, v in part.items()} for part in rows)
            yield values, masks


def failed_simulations(simulated: Simulated) -> tuple[Invalid, dict[str, list[int]]]:
    """Data of a run that are NaN or inf, and the axes of its sites along which data lie."""
    plate, sites = data_plate(next(iter(simulated.observed.values()))), dict(simulated.observed)
    dims: dict[str, int | None] = dict.fromkeys(sites)
    if len({data_plate(site) for site in sites.values()}) == 1:
        here = (n for n in simulated.latents if data_plate(simulated.sites[n]) == plate)
        sites |= {name: simulated.sites[name] for name in here}
        dims = dict.fromkeys(sites) if is_one(sites) else data_dims(sites)
    axes = {n: [] if d is None else [d - sites[n]["fn"].event_dim] for n, d in dims.items()}
    return Invalid(simulated.data, axes, masks_of(simulated)), axes


def masks_of(simulated: Simulated) -> dict[str, torch.Tensor | None]:
    """Which elements of the data of a run count."""
    return {n: mask_at(n, s, simulated.data[n]) for n, s in simulated.observed.items()}


def _observed(
    sites: Sites, known: tuple[str, ...] | None, told: str = "the guide"
) -> dict[str, Any]:
    """The data sites of a run: those that have been told, else what the model observes."""
    if known is not None:
        drawn = [name for name, site in sites.items() if is_latent(site)]
        check_names(known, drawn, told)
        observed = {name: sites[name] for name in known}
    else:
        observed = {name: site for name, site in sites.items() if is_compared(site)}
    if not observed:
        raise ValueError(players.nothing_observed())
    return observed


def _latents(sites: Sites, observed: Sites) -> list[str]:
    drawn = [n for n, s in sites.items() if is_latent(s) and not is_compared(s)]
    return [name for name in drawn if name not in observed]


def _subsamples(fn: Any) -> bool:
    return isinstance(fn, _Subsample) and (fn.subsample_size or fn.size) < fn.size


def about_arguments(args: Any, kwargs: Any) -> tuple[Any, ...]:
    """What a run of a program depends on among its arguments, without the numbers in tensors."""
    leaves, structure = _parents.tree_flatten((args, kwargs))
    about: list[Any] = [str(structure)]
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            about.append((tuple(leaf.shape), leaf.dtype, leaf.device))
        else:
            known = isinstance(leaf, bool | int | float | str | None)
            about.append(leaf if known else type(leaf))
    return tuple(about)


def _behind(value: torch.Tensor, event_dim: int, depth: int) -> torch.Tensor:
    """``value`` of rows with batch dims of size one, until there are ``depth`` behind the rows."""
    missing = depth - (value.dim() - 1 - event_dim)
    return value.reshape(value.shape[:1] + (1,) * missing + value.shape[1:])


# What has been seen of models, by the shapes of their arguments.
_seen: Remembered[dict[Any, dict[str, Any]]] = Remembered()


def _looked(model: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """The sites of a run of the model, for their plates and shapes."""
    known = _seen.get(model)
    if known is None:
        known = {}
        _seen.keep(model, known)
    about = about_arguments(args, kwargs)
    if about not in known:
        with looking(), poutine.block(), torch.no_grad():
            sites = run_forward(model, args, kwargs)
        known[about] = {
            name: {**site, "shape": tuple(site["value"].shape), "value": None}
            for name, site in sites.items()
            if site["type"] == "sample"
        }
    return known[about]
