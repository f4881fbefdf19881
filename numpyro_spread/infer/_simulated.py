# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What posterior estimation scores a guide at: runs of the model, or rows of a table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_spread.infer._datum import data_dims, data_plate, frames_of, is_one
from numpyro_spread.infer._guide_run import stop_gradient_tree
from numpyro_spread.infer._invalid import Invalid
from numpyro_spread.infer._joint_sides import is_latent, run_forward
from numpyro_spread.infer._own_draws import ABSTRACT, refuse_own_draws
from numpyro_spread.infer._sites import batch_mask
from numpyro_spread.infer._two_sides import is_compared, mask_at
from spread_core.messages import players
from spread_core.messages import simulations as messages
from spread_core.simulated import Table, check_names, known_data_sites

Sites = Mapping[str, Any]
#: Values and masks by site, of one row or of several.
Row = tuple[dict[str, Any], dict[str, Any]]


class Simulated(NamedTuple):
    """
    A run of the model, as far as a guide is scored at it.

    ``sites`` are those of the run, of which only plates and shapes are known for a row of a table,
    and ``observed`` those of them that are data; ``data``, ``masks`` and ``latents`` have values by
    site; ``indices`` are what plates have taken that subsample; ``mutable`` is new mutable state.
    """

    sites: Sites
    observed: Sites
    data: dict[str, Any]
    masks: dict[str, Any]
    latents: dict[str, Any]
    indices: dict[str, Any]
    mutable: dict[str, Any]


def simulate_once(
    rng_key: jax.Array,
    params: Mapping[str, Any],
    model: Callable[..., Any],
    known: tuple[str, ...] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Simulated:
    """
    Run the model forward; what it observes is drawn.

    :param rng_key: random key.
    :param params: values of param and mutable sites.
    :param model: the model.
    :param known: names of the data sites; None if they are those that the model observes.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :raises ValueError: if nothing is observed, or a data site is none of the model.
    """
    sites = run_forward(model, rng_key, stop_gradient_tree(params), {}, args, kwargs)
    observed = _observed(sites, known)
    held = {name: site for name, site in observed.items() if is_compared(site)}
    refuse_own_draws(stop_gradient_tree(params), model, held, args, kwargs)
    # A guide that reads its arguments does without: it looks for itself.
    masks = {n: batch_mask(n, s["fn"]) for n, s in observed.items() if known is not None}
    return Simulated(
        sites,
        observed,
        {name: lax.stop_gradient(site["value"]) for name, site in observed.items()},
        {name: mask for name, mask in masks.items() if mask is not None},
        {name: lax.stop_gradient(sites[name]["value"]) for name in _latents(sites, observed)},
        {n: s["value"] for n, s in sites.items() if s["type"] == "plate" and _subsamples(s)},
        {name: site["value"] for name, site in sites.items() if site["type"] == "mutable"},
    )


class Rows:
    """
    The rows of a table, as runs of a model that is not run.

    It is traced, to know its plates, and that the table has its sites in their shapes.

    :param table: the table.
    :param params: values of param and mutable sites.
    :param model: the model.
    :param guide: the guide.
    :param args: positional arguments of both.
    :param kwargs: keyword arguments of both.
    :raises ValueError: if the table has not what is needed, naming the site.
    """

    def __init__(
        self,
        table: Table,
        params: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._table = table
        self._sites = _looked(params, model, args, kwargs)
        known = known_data_sites(guide, args, kwargs)
        told = "the guide" if known is not None else "the table"
        masked = table.masks if known is not None else {}
        known = (table.observed or None) if known is None else known
        self._observed = _observed(self._sites, known, told)
        held = [n for n in _latents(self._sites, self._observed) if n in table.values]
        self._latents = held
        for name in (*self._observed, *held):
            for frame in frames_of(self._sites[name]):
                plate = self._sites.get(frame.name)
                if plate is not None and _subsamples(plate):
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
        shapes = {name: jnp.shape(self._sites[name]["value"]) for name in names}
        self._table.check_sites(shapes)

    def draw(self, rng_key: jax.Array, number: int) -> Row:
        """
        Rows at random, along the first axis of all values and masks; all rows in turn if it is
        their number.

        :param rng_key: random key.
        :param number: of rows.
        """
        table = self._table
        rows = jnp.arange(number)
        if number < table.size:
            rows = random.randint(rng_key, (number,), 0, table.size)
        values = {n: table.values[n][rows] for n in (*self._observed, *self._latents)}
        masks = {n: mask[rows] for n, mask in table.masks.items() if n in self._observed}
        return values, masks

    def run(self, row: Row) -> Simulated:
        """A row as a run of the model."""
        values, masks = row
        data = {name: values[name] for name in self._observed}
        latents = {name: values[name] for name in self._latents}
        return Simulated(self._sites, self._observed, data, masks, latents, {}, {})


def failed_simulations(simulated: Simulated) -> tuple[Invalid, dict[str, list[int]]]:
    """Data of a run that are NaN or inf, and the axes of its sites along which data lie."""
    plate, sites = data_plate(next(iter(simulated.observed.values()))), dict(simulated.observed)
    dims: dict[str, int | None] = dict.fromkeys(sites)
    if len({data_plate(site) for site in sites.values()}) == 1:
        here = (n for n in simulated.latents if data_plate(simulated.sites[n]) == plate)
        sites |= {name: simulated.sites[name] for name in here}
        dims = dict.fromkeys(sites) if is_one(sites) else data_dims(sites)
    axes = {n: [] if d is None else [d - sites[n]["fn"].event_dim] for n, d in dims.items()}
    shapes = {name: jnp.shape(value) for name, value in simulated.data.items()}
    masks = {n: mask_at(n, s, shapes[n]) for n, s in simulated.observed.items()}
    return Invalid(simulated.data, axes, masks), axes


def _observed(
    sites: Sites, known: tuple[str, ...] | None, told: str = "the guide"
) -> dict[str, Any]:
    """The data sites of a run: those that have been told, else what the model observes."""
    if known is not None:
        drawn = [name for name, site in sites.items() if site["type"] == "sample"]
        check_names(known, drawn, told)
        observed = {name: sites[name] for name in known}
    else:
        observed = {name: site for name, site in sites.items() if is_compared(site)}
    if not observed:
        raise ValueError(players.nothing_observed())
    return observed


def _latents(sites: Sites, observed: Sites) -> list[str]:
    return [n for n, site in sites.items() if is_latent(site) and n not in observed]


def _subsamples(plate: Mapping[str, Any]) -> bool:
    size, taken = plate["args"]
    return taken is not None and taken < size


def _looked(
    params: Mapping[str, Any], model: Callable[..., Any], args: Any, kwargs: Any
) -> dict[str, Any]:
    """The sites of a run of the model, for their plates and shapes."""
    sites: dict[str, Any] = {}

    def look(key: jax.Array) -> None:
        sites.update(run_forward(model, key, params, {}, args, kwargs))

    try:
        jax.eval_shape(look, random.key(0))
    except ABSTRACT:  # it asks for values, as a simulator in NumPy does
        with jax.ensure_compile_time_eval():
            look(random.key(0))
    return sites
