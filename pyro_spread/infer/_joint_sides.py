# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Draw pairs of data and latents, from the guide and from the model run forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from pyro import poutine

from pyro_spread._transaction import looking
from pyro_spread.infer._datum import (
    data_dims,
    data_plate,
    frames_of,
    parts_left_out,
    weight_of_data,
)
from pyro_spread.infer._guards import is_finite
from pyro_spread.infer._own_draws import refuse_own_draws
from pyro_spread.infer._plate_arguments import by_datum
from pyro_spread.infer._shared_latents import warn_of_shared_latents
from pyro_spread.infer._sites import (
    is_computed,
    is_implicit,
    is_latent,
    lacks_gradient,
    plain_name,
)
from pyro_spread.infer._two_sides import (
    Side,
    check_draws,
    check_noise_sites,
    is_compared,
)
from pyro_spread.noise import SpreadNoise
from pyro_spread.ratio.adapters import SiteValues
from spread_core.arguments import positional_names
from spread_core.messages import contrasts, players
from spread_core.noise.levels import refuse_asking
from spread_core.nonfinite import NonFiniteError
from spread_core.patterns import resolved
from spread_core.remembered import Remembered

# A look at the model, which need not be taken at every step.
_known_plates: Remembered[frozenset[str]] = Remembered()


class JointSides(NamedTuple):
    """
    Pairs (x, z) of guide and model, after the noise, with weights or None.

    ``log_globals`` is log p - log q of the latents outside the plates of the data, in nats;
    ``scales`` is by how much each pair stands for more data.
    """

    guide: SiteValues
    model: SiteValues
    guide_weights: torch.Tensor | None
    model_weights: torch.Tensor | None
    log_globals: torch.Tensor
    global_sites: tuple[str, ...]
    scales: torch.Tensor


def draw_joint(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    noise: Mapping[str, SpreadNoise],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    watch: AbstractContextManager[Any] | None = None,
) -> JointSides:
    """
    Run guide and model once: data with the guide's latents, and the model's latents with their x.

    Latents of the guide outside the plates of the data are global: both sides share the guide's
    draws, and they keep their densities.

    :param model: the model.
    :param guide: the guide.
    :param noise: dict from observed site to the kernel that the model's draws pass through; what is
        observed has passed through it already.
    :param args: positional arguments of model and guide.
    :param kwargs: keyword arguments of both.
    :param watch: to be around the model, if any.
    :raises ValueError: if sites, plates, masks and noise are inconsistent.
    """
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    plates = data_plates(model, args, kwargs)
    drawn = {n: s for n, s in guide_trace.nodes.items() if is_latent(s)}
    shared = {n: s for n, s in drawn.items() if plates and not plates_of(s) & plates}
    # Leaves: what they do to the model's pairs is no part of the gradient, since the critic sees
    # them, but their prior's gradient is passed on below.
    leaves = {name: site["value"].detach().requires_grad_() for name, site in shared.items()}
    with torch.set_grad_enabled(torch.is_grad_enabled()), watch or nullcontext():
        trace = run_forward(model, guide_trace, leaves, args, kwargs)
    observed = {n: s for n, s in trace.nodes.items() if is_compared(s)}
    if not observed:
        raise ValueError(players.nothing_observed())
    refuse_own_draws(model, observed, args, kwargs)
    noise = resolved(noise, observed)
    refuse_asking(noise, args, kwargs, model, guide)
    check_noise_sites(trace.nodes, observed, noise)
    _check_learned(guide_trace, set(shared))
    _check_learned(trace, set(shared))
    local = {
        n: trace.nodes[n]
        for n in drawn
        if n not in shared and n in trace.nodes and is_latent(trace.nodes[n])
    }
    if not local:
        raise ValueError(contrasts.joint_no_latent(drawn))
    compared = observed | local
    dims = data_dims(compared)
    warn_of_shared_latents(model, trace.nodes, compared, dims, drawn)

    def of_guide(site: Any) -> torch.Tensor:
        return site["infer"]["obs"] if site["name"] in observed else drawn[site["name"]]["value"]

    guide_side = Side(compared, {}, dims, of_guide)
    model_side = Side(compared, noise, dims, lambda site: site["value"])
    for name in observed:
        if not is_finite(guide_side.values[name]):
            raise NonFiniteError(players.nonfinite_value(name))
    check_draws(model_side)
    indices = {
        n: s["value"] for t in (guide_trace, trace) for n, s in t.nodes.items() if _is_index(s)
    }
    named = dict(zip(positional_names(model), args, strict=False)) | kwargs
    batch = guide_side.batch_shape
    arguments = by_datum(named, compared, dims, indices, batch)
    for name, site in shared.items():
        arguments[name] = site["value"].expand(*batch, *site["value"].shape)
    like = next(iter(guide_side.values.values()))
    name, first = next(iter(local.items()))
    scale = weight_of_data(name, first, dims[name], batch).to(like) / parts_left_out(first)
    return JointSides(
        SiteValues(guide_side.values, batch, arguments),
        SiteValues(
            model_side.values,
            model_side.batch_shape,
            arguments | {name: arguments[name].detach() for name in shared},
        ),
        guide_side.weights,
        model_side.weights,
        _log_globals(guide_trace, trace, shared, leaves),
        tuple(shared),
        scale,
    )


def data_plates(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> frozenset[str]:
    """Names of the plates that count what the model observes, from a run without side effects."""
    known = _known_plates.get(model)
    if known is not None:
        return known
    with looking(), poutine.block(), torch.no_grad():
        nodes = poutine.trace(model).get_trace(*args, **kwargs).nodes
    data = [s for s in nodes.values() if s["type"] == "sample" and s["is_observed"]]
    plates = [data_plate(s) for s in data if not is_computed(s, s["value"])]
    found = frozenset(plate for plate in plates if plate is not None)
    if data:  # a call without data says nothing of the next
        _known_plates.keep(model, found)
    return found


def plates_of(site: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(frame.name for frame in frames_of(site))


def _is_index(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and not is_latent(site) and not site["is_observed"]


def run_forward(
    model: Callable[..., Any],
    guide_trace: Any,
    leaves: Mapping[str, torch.Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The model's own draws, given the global latents and the subsamples of the guide."""
    kept = poutine.Trace()
    for name, site in guide_trace.nodes.items():
        if name in leaves or _is_index(site):
            value = leaves.get(name, site["value"])
            kept.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
    forward = poutine.uncondition(poutine.replay(model, trace=kept))
    return poutine.trace(forward).get_trace(*args, **kwargs)


def _check_learned(trace: Any, shared: set[str]) -> None:
    for name, site in trace.nodes.items():
        if name in shared or not (is_latent(site) or is_compared(site)):
            continue
        if lacks_gradient(site["fn"]):
            say = players.latent_without_gradient
            if is_compared(site):
                say = players.discrete_draw
            raise NotImplementedError(say(name, plain_name(site["fn"])))


def _log_globals(
    guide_trace: Any, trace: Any, shared: Mapping[str, Any], leaves: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Log p - log q of the global latents, with the gradient of both in the guide's draws."""
    total = torch.zeros(())
    for name, site in shared.items():
        if is_implicit(site["fn"]):
            raise ValueError(contrasts.joint_global_implicit(name))
        if not site["fn"].has_rsample:
            raise NotImplementedError(players.latent_without_gradient(name, plain_name(site["fn"])))
    if not shared:
        return total
    guide_trace.compute_log_prob(lambda name, site: name in shared)
    trace.compute_log_prob(lambda name, site: name in shared)
    for name in shared:
        total = total - guide_trace.nodes[name]["log_prob_sum"]
        if name in trace.nodes:
            total = total + trace.nodes[name]["log_prob_sum"]
    prior = sum(trace.nodes[n]["log_prob_sum"] for n in shared if n in trace.nodes)
    if torch.is_grad_enabled() and isinstance(prior, torch.Tensor) and prior.requires_grad:
        grads = torch.autograd.grad(
            prior, list(leaves.values()), retain_graph=True, allow_unused=True
        )
        for site, grad in zip(shared.values(), grads, strict=True):
            if grad is not None:
                pull = (grad * site["value"]).sum()
                total = total + (pull - pull.detach())
    return total
