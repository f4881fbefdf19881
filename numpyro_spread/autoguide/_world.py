# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What an amortised guide sees of its model: sites, data, what counts of them, plates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import random
from numpyro import handlers
from numpyro.distributions import (
    Distribution,
    MaskedDistribution,
    Unit,
    biject_to,
)

from numpyro_spread import _parents
from numpyro_spread.autoguide._conditional import interval_of, unconstrained
from numpyro_spread.infer._scan import Inside, Unconditioned
from numpyro_spread.infer._sites import inside_wrappers, plain_name
from numpyro_spread.noise.base import is_concrete
from spread_core.amortized.context import Context
from spread_core.amortized.layout import Variable
from spread_core.messages import amortized as messages


class World:
    """
    What a call of the guide sees.

    :param values: data by site.
    :param masks: what counts of them, by group.
    :param plates: by name, dim, size and full size.
    :param indices: which elements plates that subsample have taken, by name.
    """

    def __init__(
        self,
        values: dict[str, jax.Array],
        masks: dict[str, Any],
        plates: dict[str, tuple[int, int, int]],
        indices: dict[str, jax.Array],
    ) -> None:
        self.values, self.masks, self.plates, self.indices = values, masks, plates, indices
        self.sizes = {name: size for name, (_, size, _) in plates.items()}


def traced(model: Any, rng_key: jax.Array, args: Any, kwargs: Any) -> Any:
    """
    The sites of a run of a model.

    :param model: the model.
    :param rng_key: random key.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    """
    return handlers.trace(handlers.seed(Inside(model), rng_key)).get_trace(*args, **kwargs)


def masked_latents(model: Any, names: Iterable[str], args: Any, kwargs: Any) -> list[str]:
    """
    Latents of which not everything counts in the model's density at the arguments.

    :param model: the model.
    :param names: of its latents.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    """
    with handlers.block():
        sites = traced(model, random.key(0), args, kwargs)
    masks = {name: _mask(sites[name]["fn"]) for name in names if name in sites}
    return [n for n, mask in masks.items() if mask is not None and not np.all(mask)]


def look(
    model: Any,
    context: Context,
    values: Mapping[str, Any] | None,
    masks: Mapping[str, Any],
    args: Any,
    kwargs: Any,
    needs_data: bool = True,
) -> World:
    """
    Data, masks and plates of a run of the model at the arguments.

    :param model: the model.
    :param context: its latents and data.
    :param values: dict from data site to value; None takes those at the arguments.
    :param masks: dict from data site to what counts.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param needs_data: whether the model has to observe data, not draw them.
    """
    key = numpyro.prng_key()
    key = random.key(0) if key is None else key
    given = model if values is None else handlers.condition(model, data=values)
    with handlers.block():
        sites = traced(given, key, args, kwargs)
    found: dict[str, jax.Array] = {}
    for group in context.data:
        for variable in group.variables:
            name = variable.name
            if values is not None:
                if name not in values:
                    raise ValueError(messages.missing_given(name, values))
                value = values[name]
            else:
                if name not in sites or (needs_data and not sites[name]["is_observed"]):
                    raise ValueError(messages.no_data(name))
                value = observed_value(sites[name])
                _check_finite(sites[name], value)
            value = jnp.asarray(value, jnp.result_type(float))
            _check_shape(variable, value)
            found[name] = value
    frames = {
        frame.name: frame
        for site in sites.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
    }
    full = {n: s["args"][0] for n, s in sites.items() if s["type"] == "plate"}
    plates = {n: (f.dim, f.size, full[n]) for n, f in frames.items()}
    indices = {n: sites[n]["value"] for n, (_, size, full) in plates.items() if size < full}
    return World(found, group_masks(context, sites, masks), plates, indices)


def simulated(
    model: Any,
    context: Context,
    supports: Mapping[str, Any],
    rng_key: jax.Array,
    num_runs: int,
    args: Any,
    kwargs: Any,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]:
    """
    Latents, unconstrained, data, and masks by group, of runs of the model, runs in front.

    :param model: the model.
    :param context: its latents and data.
    :param supports: of the latents.
    :param rng_key: random key.
    :param num_runs: number of runs.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    """

    def run(key: jax.Array) -> Any:
        with handlers.block():
            sites = traced(Unconditioned(model), key, args, kwargs)
        latents = {
            v.name: unconstrained(v, supports[v.name], sites[v.name]["value"])
            for group in context.groups
            for v in group.variables
        }
        data = {v.name: sites[v.name]["value"] for group in context.data for v in group.variables}
        return latents, data, group_masks(context, sites, {})

    found: tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]
    found = jax.jit(jax.vmap(run))(random.split(rng_key, num_runs))
    return found


def created_plates(
    create: Callable[..., Any] | None, args: Any, kwargs: Any
) -> tuple[dict[str, numpyro.plate], dict[str, jax.Array]]:
    """
    Plates of a guide that are not made after the model's, and what they have taken, by name.

    :param create: function of the model's arguments that returns them, if there is one.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    """
    if create is None:
        return {}, {}
    with handlers.trace() as made:
        plates = create(*args, **kwargs)
    plates = [plates] if isinstance(plates, numpyro.plate) else plates
    found = {plate.name: plate for plate in plates}
    return found, {name: made[name]["value"] for name in found}


def group_masks(context: Context, sites: Any, masks: Mapping[str, Any]) -> dict[str, Any]:
    """
    What counts of the data, by group; only of groups of which not everything does.

    :param context: latents and data of the model.
    :param sites: of a run of the model.
    :param masks: dict from data site to what counts instead.
    """
    found: dict[str, Any] = {}
    for group in context.data:
        for variable in group.variables:
            name = variable.name
            mask = masks.get(name) if name in masks else _mask(sites[name]["fn"])
            if mask is None:
                continue
            shape = sites[name]["fn"].batch_shape
            whole = jnp.broadcast_to(jnp.asarray(mask, bool), shape)
            plain = dataclasses.replace(variable, event_shape=())
            own = plain.join(whole, context.depth).all(-1)
            found[group.key] = own if group.key not in found else found[group.key] & own
    return found


def is_data(site: Any) -> bool:
    """
    Whether a site of a trace holds data.

    :param site: the site.
    """
    return site["is_observed"] and not isinstance(site["fn"], Unit)


def _mask(fn: Any) -> Any:
    """What counts of a batch; None for all of it."""
    inner, found = fn, None
    while isinstance(inner, Distribution):
        if isinstance(inner, MaskedDistribution) and inner.event_dim == fn.event_dim:
            mask = _parents.mask_of(inner)
            if mask is not True:
                found = mask if found is None else found & mask
        inner = getattr(inner, "base_dist", None)
    return found


def _plates(site: Any) -> dict[str, int]:
    return {frame.name: frame.dim for frame in site["cond_indep_stack"]}


def data_of(name: str, site: Any) -> Variable:
    """
    A data site as a variable.

    :param name: its name.
    :param site: the site.
    """
    shape = jnp.shape(observed_value(site))
    split = len(shape) - site["fn"].event_dim
    return Variable(name, shape[:split], shape[split:], _plates(site), _plates(site))


def observed_value(site: Any) -> Any:
    """
    The value of a site, as large as its distribution says.

    :param site: the site.
    :raises ValueError: if their shapes do not go together.
    """
    value, wanted = site["value"], site["fn"].shape()
    try:
        shape = np.broadcast_shapes(jnp.shape(value), wanted)
    except ValueError:
        raise ValueError(messages.data_shape(site["name"], jnp.shape(value), wanted)) from None
    if jnp.shape(value) == shape:  # what is known stays known under jit
        return value
    return jnp.broadcast_to(value, shape)


def latent_of(name: str, site: Any, truncate: bool = True) -> Variable:
    """
    A latent site as a variable.

    :param name: its name.
    :param site: the site.
    :param truncate: whether intervals are kept as they are, not mapped to the whole line.
    :raises ValueError: if it is discrete and its support is not known to be finite.
    """
    fn, value = site["fn"], site["value"]
    shape = jnp.shape(value)
    split = len(shape) - fn.event_dim
    batch, event, plates = shape[:split], shape[split:], _plates(site)
    support = fn.support
    if support.is_discrete:
        inner = inside_wrappers(fn)
        if inner.event_dim:
            raise ValueError(messages.discrete_vector(name, plain_name(fn)))
        try:
            classes = inner.enumerate_support(expand=False).reshape(-1)
        except NotImplementedError:
            raise ValueError(messages.infinite_support(name, plain_name(fn))) from None
        discrete = {"num_classes": len(classes), "first": int(classes[0])}
        return Variable(name, batch, event, plates, plates, **discrete)
    ends = interval_of(support) if truncate else None
    if ends is not None:
        low, high = map(np.asarray, ends)
        variable = Variable(name, batch, event, plates, plates, low, high)
        if variable.is_even:
            return variable
    raw = biject_to(fn.support).inv(value)
    return Variable(name, batch, jnp.shape(raw)[split:], plates, plates)


def _check_finite(site: Any, value: jax.Array) -> None:
    """Refuse data that hold NaN or inf where they count, as far as they are known."""
    mask = _mask(site["fn"])
    if not is_concrete(value, mask):
        return
    # With NumPy: under jit operations of JAX on known values give tracers too.
    ndim = jnp.ndim(value)
    event = tuple(range(ndim - site["fn"].event_dim, ndim))
    finite = np.isfinite(np.asarray(value)).all(event)
    if not (finite if mask is None else finite | ~np.asarray(mask, bool)).all():
        raise ValueError(messages.nonfinite_data(site["name"]))


def _check_shape(variable: Variable, value: jax.Array) -> None:
    """Refuse data whose shape differs in more than the sizes of plates."""
    expected = [*variable.batch_shape, *variable.event_shape]
    got = list(value.shape)
    if len(got) == len(expected):
        for dim in variable.plates.values():
            expected[len(variable.batch_shape) + dim] = got[len(variable.batch_shape) + dim]
    if got != expected:
        raise ValueError(messages.data_shape(variable.name, got, expected))
