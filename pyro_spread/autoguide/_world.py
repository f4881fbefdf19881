# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What an amortised guide sees of its model: sites, data, what counts of them, plates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.util import site_is_subsample
from torch.distributions import biject_to, constraints

from pyro_spread import _parents
from pyro_spread._inputs import ObservedArrays, as_tensor, tensor_of
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.autoguide._conditional import close_gap, interval_of, unconstrained
from pyro_spread.infer._sites import combine_masks, is_computed, plain_name
from spread_core.amortized.context import Context
from spread_core.amortized.layout import Variable
from spread_core.math._arrays import is_tracing
from spread_core.messages import amortized as messages


class World:
    """
    What a call of the guide sees.

    :param values: data by site.
    :param masks: what counts of them, by group.
    :param frames: the plates of the model, by name.
    :param indices: which of their elements they have taken, by name.
    :param lead: number of leading dims of the data.
    """

    def __init__(
        self,
        values: dict[str, torch.Tensor],
        masks: dict[str, torch.Tensor],
        frames: dict[str, Any],
        indices: dict[str, torch.Tensor],
        lead: int,
    ) -> None:
        self.values, self.masks, self._frames, self._indices = values, masks, frames, indices
        self.lead = lead
        self.sizes = {name: frame.size for name, frame in frames.items()}

    def plates(self, created: Collection[str]) -> dict[str, pyro.plate]:
        """
        The plates, with the elements that the model has taken.

        :param created: names of those that are there already.
        """
        with poutine.block():  # the model's run has told of what they took
            return {
                name: pyro.plate(
                    name, f.full_size or f.size, dim=f.dim, subsample=self._indices.get(name)
                )
                for name, f in self._frames.items()
                if name not in created
            }


def sites_of(
    model: Callable[..., Any], args: Any, kwargs: Any, hide: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
    """
    The sample sites of a run of a model, of which nobody outside knows.

    :param model: the model.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :param hide: which of its messages are hidden; all, left out.
    """
    traced = poutine.trace(ObservedArrays()(model))
    with unchanged_buffers(), poutine.block(hide_fn=hide or (lambda msg: True)):
        nodes = traced.get_trace(*args, **kwargs).nodes
    return {name: site for name, site in nodes.items() if site["type"] == "sample"}


def masked_latents(
    model: Callable[..., Any], names: Iterable[str], args: Any, kwargs: Any
) -> list[str]:
    """Of these latents of a model those of which its density leaves something out."""
    sites = sites_of(model, args, kwargs)
    masks = {name: _mask(sites[name]) for name in names if name in sites}
    return [n for n, mask in masks.items() if mask is not None and not torch.as_tensor(mask).all()]


def look(
    model: Callable[..., Any],
    context: Context,
    values: Mapping[str, Any] | None,
    masks: Mapping[str, Any],
    args: Any,
    kwargs: Any,
    like: torch.Tensor,
    created: Mapping[str, pyro.plate] | None,
) -> World:
    """
    Data, masks and plates of a run of the model at the arguments.

    :param model: the model.
    :param context: its latents and data.
    :param values: dict from data site to value; None takes those at the arguments.
    :param masks: dict from data site to what counts.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param like: says type and device of the data.
    :param created: plates that are there already; None to hide those of the model too.
    """
    variables = [v for group in context.data for v in group.variables]
    known = {name: plate.indices for name, plate in (created or {}).items()}
    if values is not None:
        for variable in variables:
            if variable.name not in values:
                raise ValueError(messages.missing_given(variable.name, values))
        values = {v.name: as_tensor(values[v.name]) for v in variables}
        # The model need not draw them again. It sees one of many particles.
        known |= {v.name: _one(v, values[v.name], context.depth) for v in variables}

    def hide(msg: Any) -> bool:
        return created is None or not site_is_subsample(msg) or msg["name"] in created

    sites = sites_of(poutine.condition(model, data=known), args, kwargs, hide)
    found: dict[str, tuple[torch.Tensor, int]] = {}
    for variable in variables:
        name = variable.name
        if name not in sites or not sites[name]["is_observed"]:
            raise ValueError(messages.no_data(name))
        value = observed_value(sites[name]) if values is None else tensor_of(values[name])
        found[name] = _checked(variable, value.to(like), context.depth)
        if values is None and found[name][1]:  # only particles have leading dims
            raise ValueError(messages.data_shape(name, value.shape, _shape(variable)))
        if values is None:
            _check_finite(sites[name], value)
    lead = max(ndim for _, ndim in found.values())
    level = {
        name: value.reshape((*[1] * (lead - ndim), *value.shape))
        for name, (value, ndim) in found.items()
    }
    frames = {
        frame.name: frame
        for site in sites.values()
        if not site_is_subsample(site)  # which stand in plates around the guide
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    }
    indices = {name: sites[name]["value"] for name in frames if name in sites}
    return World(level, group_masks(context, sites, masks), frames, indices, lead)


def simulated(
    model: Callable[..., Any],
    context: Context,
    supports: Mapping[str, Any],
    num_runs: int,
    args: Any,
    kwargs: Any,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """
    Latents, unconstrained, data, and masks by group, of runs of the model, runs in front.

    :param model: the model.
    :param context: its latents and data.
    :param supports: of the latents.
    :param num_runs: number of runs.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    """
    forward = poutine.uncondition(model)
    runs: list[tuple[dict[str, torch.Tensor], ...]] = []
    for _ in range(num_runs):
        sites = sites_of(forward, args, kwargs)
        latents = {
            v.name: unconstrained(v, supports[v.name], sites[v.name]["value"])
            for group in context.groups
            for v in group.variables
        }
        data = {v.name: sites[v.name]["value"] for group in context.data for v in group.variables}
        runs.append((latents, data, group_masks(context, sites, {})))
    latents, data, masks = (
        {key: torch.stack([run[key] for run in part]) for key in part[0]}
        for part in zip(*runs, strict=True)
    )
    return latents, data, masks


def created_plates(guide: Any, args: Any, kwargs: Any) -> dict[str, pyro.plate]:
    """
    Plates of a guide that are not made after the model's, by name.

    :param guide: the guide.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    """
    if guide.master is not None:
        return dict(guide.master().plates)
    plates = guide.create_plates(*args, **kwargs) if guide.create_plates else []
    plates = [plates] if isinstance(plates, pyro.plate) else plates
    return {plate.name: plate for plate in plates}


def group_masks(
    context: Context, sites: Mapping[str, Any], masks: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """
    What counts of the data, by group; only of groups of which not everything does.

    :param context: latents and data of the model.
    :param sites: of a run of the model.
    :param masks: dict from data site to what counts instead.
    """
    found: dict[str, torch.Tensor] = {}
    for group in context.data:
        for variable in group.variables:
            name = variable.name
            mask = masks[name] if name in masks else _mask(sites[name])
            if mask is None or mask is True:
                continue
            batch = sites[name]["fn"].batch_shape
            mask = tensor_of(mask).to(torch.bool)
            whole = mask.expand(torch.broadcast_shapes(mask.shape, batch))
            plain = dataclasses.replace(variable, event_shape=())
            whole, lead = close_gap(plain, whole, 0, context.depth)
            own = plain.join(whole, context.depth, lead).all(-1)
            found[group.key] = found[group.key] & own if group.key in found else own
    return found


def is_data(site: Any) -> bool:
    """
    Whether a site of a trace holds data: neither a draw nor a computed value nor a factor.

    :param site: the site.
    """
    if not site["is_observed"] or isinstance(site["fn"], Unit) or site_is_subsample(site):
        return False
    return not is_computed(site, site["value"])


def observed_value(site: Any) -> torch.Tensor:
    """
    The value of a site, as large as its distribution says.

    :param site: the site.
    :raises ValueError: if their shapes do not go together.
    """
    value, wanted = tensor_of(site["value"]), site["fn"].shape()
    try:
        shape = torch.broadcast_shapes(value.shape, wanted)
    except RuntimeError:
        raise ValueError(messages.data_shape(site["name"], value.shape, wanted)) from None
    return value.expand(shape)


def data_of(name: str, site: Any) -> Variable:
    """
    A data site as a variable.

    :param name: its name.
    :param site: the site.
    """
    shape = observed_value(site).shape
    split = len(shape) - site["fn"].event_dim
    return Variable(name, shape[:split], shape[split:], _plates(site), _plates(site))


def latent_of(name: str, site: Any, truncate: bool = True) -> Variable:
    """
    A latent site as a variable.

    :param name: its name.
    :param site: the site.
    :param truncate: whether intervals are kept as they are, not mapped to the whole line.
    :raises ValueError: if it is discrete and its support is not known to be finite.
    """
    fn, value = site["fn"], site["value"]
    split = value.dim() - fn.event_dim
    batch, event, plates = value.shape[:split], value.shape[split:], _plates(site)
    support = fn.support
    if support.is_discrete:
        first, classes = _classes(name, fn)
        return Variable(name, batch, event, plates, plates, num_classes=classes, first=first)
    ends = interval_of(support) if truncate else None
    if ends is not None:
        low, high = (np.asarray(torch.as_tensor(end).cpu()) for end in ends)
        variable = Variable(name, batch, event, plates, plates, low, high)
        if variable.is_even:
            return variable
    raw = biject_to(fn.support).inv(value)
    return Variable(name, batch, raw.shape[split:], plates, plates)


def same_support(one: Any, other: Any) -> bool:
    """
    Whether two supports are the same.

    :param one: a support, or part of one.
    :param other: likewise.
    """
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return bool(torch.equal(torch.as_tensor(one), torch.as_tensor(other)))
    if type(one) is not type(other):
        return False
    if isinstance(one, constraints.Constraint):
        return same_support(vars(one), vars(other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_support(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_support, one, other))
    return bool(one == other)


def like_numbers(sites: Iterable[Any]) -> torch.Tensor:
    """
    An empty tensor of the type and on the device that go with the values of all sites.

    :param sites: the sites.
    """
    values = [torch.as_tensor(site["value"]) for site in sites]
    floats = [value for value in values if value.is_floating_point()] or [torch.empty(0)]
    dtype = functools.reduce(torch.promote_types, [value.dtype for value in floats])
    return torch.empty(0, dtype=dtype, device=floats[0].device)


def _classes(name: str, fn: Any) -> tuple[int, int]:
    """The least value of a discrete distribution and the number of its values."""
    while isinstance(getattr(fn, "base_dist", None), torch.distributions.Distribution):
        fn = fn.base_dist
    if fn.event_dim:
        raise ValueError(messages.discrete_vector(name, plain_name(fn)))
    try:
        values = fn.enumerate_support(expand=False)
    except NotImplementedError:
        raise ValueError(messages.infinite_support(name, plain_name(fn))) from None
    return int(values.min()), len(values)


def _plates(site: Any) -> dict[str, int]:
    return {f.name: f.dim for f in site["cond_indep_stack"] if f.vectorized}


def _mask(site: Any) -> Any:
    """What counts of a batch; None for all of it."""
    fn, found = site["fn"], site["mask"]
    while isinstance(getattr(fn, "base_dist", None), torch.distributions.Distribution):
        if isinstance(fn, MaskedDistribution) and fn.event_dim == site["fn"].event_dim:
            found = combine_masks(found, _parents.mask_of(fn))
        fn = fn.base_dist
    return found


def _one(variable: Variable, value: torch.Tensor, depth: int) -> torch.Tensor:
    """The first of the values along the leading dims."""
    value, lead = close_gap(variable, tensor_of(value), len(variable.event_shape), depth)
    return value[(0,) * lead]


def _checked(variable: Variable, value: torch.Tensor, depth: int) -> tuple[torch.Tensor, int]:
    """
    Data and the number of their leading dims.

    :raises ValueError: if their shape differs in more than these and the sizes of plates.
    """
    expected, got = list(_shape(variable)), list(value.shape)
    if len(got) >= len(expected):
        value, lead = close_gap(variable, value, len(variable.event_shape), depth)
        got = list(value.shape)[lead:]
        for dim in variable.plates.values():
            axis = len(variable.batch_shape) + dim
            expected[axis] = got[axis]
        if got == expected:
            return value, lead
    raise ValueError(messages.data_shape(variable.name, got, expected))


def _shape(variable: Variable) -> tuple[int, ...]:
    return (*variable.batch_shape, *variable.event_shape)


def _check_finite(site: Any, value: torch.Tensor) -> None:
    """Refuse data that hold NaN or inf where they count."""
    if is_tracing(value):
        return
    finite = torch.isfinite(value)
    if finite.all():
        return
    mask = _mask(site)
    event = range(value.dim() - site["fn"].event_dim, value.dim())
    whole = finite.all(tuple(event)) if event else finite
    if mask is None or mask is True or not (whole | ~torch.as_tensor(mask)).all():
        raise ValueError(messages.nonfinite_data(site["name"]))
