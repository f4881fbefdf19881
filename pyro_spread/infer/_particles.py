# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Whether particles of a program keep apart when they run at once, in an outermost plate.

A model that reads ``z[0]`` or ``z.sum()`` mixes them there, and no shape need tell. So before the
first step with arguments of these shapes, some particles are also run alone: their densities, and
what simulators make of one random number, have to be those that they had among the others.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, Unit

from pyro_spread._transaction import looking
from pyro_spread.infer._datum import frames_of
from pyro_spread.infer._fixed_random import FixedRandom
from pyro_spread.infer._posterior_estimation import Estimation, Particles, Scored
from pyro_spread.infer._simulated import (
    Row,
    Simulated,
    about_arguments,
    as_simulated,
    run_forward,
)
from pyro_spread.infer._sites import is_implicit, is_latent
from spread_core.messages import simulations as messages
from spread_core.nonfinite import NonFiniteError
from spread_core.remembered import Remembered
from spread_core.simulated import known_data_sites

# What has been found out, by guide, model and shapes of the arguments; None for one by one.
_found: Remembered[Remembered[dict[Any, Particles | None]]] = Remembered()
# So many that one branch for all is not right for each of them by chance.
_ALONE = 8


def at_once(estimation: Estimation, number: int, rows: Row | None) -> Particles | None:
    """
    The particles of a program, to be run at once; None if they have to be run one by one.

    Then a warning says why, once for every guide, model and shape of the arguments.

    :param estimation: model, guide and their arguments.
    :param number: of particles.
    :param rows: of a table, for as many particles.
    """
    by_model = _found.get(estimation.guide)
    if by_model is None:
        by_model = Remembered()
        _found.keep(estimation.guide, by_model)
    known = by_model.get(estimation.model)
    if known is None:
        known = {}
        by_model.keep(estimation.model, known)
    about = about_arguments(estimation.args, estimation.kwargs), number, rows is None
    if about in known:
        return known[about]
    try:
        known[about] = _tried(estimation, number, rows)
    except _NothingToSee:
        return None
    return known[about]


class _NothingToSee(Exception):  # noqa: N818, no error but news
    """All simulations that could be compared have failed."""


def _tried(estimation: Estimation, number: int, rows: Row | None) -> Particles | None:
    if estimation.told is not None:  # nothing is to be told of what is only looked at
        estimation = dataclasses.replace(estimation, told=_silent)
    with looking(), poutine.block(), torch.no_grad():
        run = estimation.simulated(None if rows is None else _row(rows, 0))
        single = estimation.score(run)
        if single is None:
            raise _NothingToSee
        particles = Particles(number, _depth(run, single), single.layout)
        try:
            differences = _differences(estimation, particles, run, rows)
            reason = next((messages.particle_differs(*where) for where in differences), None)
        except (NonFiniteError, _NothingToSee):
            raise
        except Exception as error:  # a program may fail in any way with one dim more
            reason = messages.particle_failed(error)
    if reason is None:
        return particles
    warnings.warn(messages.one_by_one(reason), stacklevel=2)
    return None


def _silent(*args: Any) -> None:
    """Instead of ``Told``."""


def _depth(run: Simulated, scored: Scored) -> int:
    """Number of batch dims of a single run."""
    sites = [*run.sites.values(), *scored.nodes.values()]
    drawn = [site for site in sites if hasattr(site.get("fn"), "batch_shape")]
    dims = [frame.dim for site in drawn for frame in frames_of(site) if frame.dim is not None]
    return max([*(len(site["fn"].batch_shape) for site in drawn), *(-dim for dim in dims), 0])


def _differences(
    estimation: Estimation, particles: Particles, single: Simulated, rows: Row | None
) -> Iterator[tuple[str, str]]:
    """Where a particle alone is not what it is among the others: model or guide, and the site."""
    many = estimation.simulated(rows, particles)
    if rows is None:
        with FixedRandom():
            sites = _rerun(estimation, particles, dict(_replayed(many)))
        many = _sorted(estimation, sites)
    tested = _finite(many, particles)
    with FixedRandom():
        scored = estimation.score(many, particles)
    for one in tested:
        if rows is not None:
            alone = estimation.simulated(_row(rows, one))
        else:
            own = {}
            for name, site in _replayed(many):
                shape = single.sites[name]["value"].shape
                value = site["value"][one] if is_latent(site) else site["value"]
                if value.numel() != shape.numel():
                    yield "model", name
                    return
                own[name] = {**site, "value": value.reshape(shape)}
            with FixedRandom():
                sites = _rerun(estimation, lambda fn: fn, own)
            alone = _sorted(estimation, sites)
            yield from (("model", n) for n in _unlike(many.sites, sites, one, particles))
        with FixedRandom():
            scored_alone = estimation.score(alone)
        assert scored is not None  # some data are finite
        assert scored_alone is not None
        found = _unlike(scored.sites, scored_alone.sites, one, particles)
        yield from (("guide", name) for name in found)


def _rerun(
    estimation: Estimation, among: Callable[[Any], Any], sites: Mapping[str, Any]
) -> dict[str, Any]:
    """The model with the values of some of its sites, and simulators with one random number."""
    kept = poutine.Trace()
    for name, site in sites.items():
        kept.add_node(name, **{**site, "name": name, "is_observed": False})
    drawn = poutine.replay(poutine.uncondition(among(estimation.model)), trace=kept)
    return run_forward(drawn, estimation.args, estimation.kwargs)


def _sorted(estimation: Estimation, sites: Mapping[str, Any]) -> Simulated:
    args, kwargs = estimation.args, estimation.kwargs
    known = known_data_sites(estimation.guide, args, kwargs)
    return as_simulated(sites, estimation.model, known, args, kwargs)


def _replayed(run: Simulated) -> Iterator[tuple[str, Any]]:
    """The sites whose draws are taken as they are: those with a density, or of a black box."""
    for name, site in run.sites.items():
        if name in run.indices or (is_latent(site) and not _is_computed(site)):
            yield name, site


def _is_computed(site: Mapping[str, Any]) -> bool:
    return isinstance(_inside(site["fn"]), Delta | Unit) or is_implicit(site["fn"])


def _inside(fn: Any) -> Any:
    while isinstance(getattr(fn, "base_dist", None), torch.distributions.Distribution):
        fn = fn.base_dist
    return fn


def _finite(many: Simulated, particles: Particles) -> list[int]:
    """Some particles whose data are finite, the first and the last of them included."""
    good = torch.ones(particles.number, dtype=torch.bool)
    for value in many.data.values():
        good &= torch.isfinite(value).reshape(particles.number, -1).all(-1).cpu()
    found = good.nonzero().flatten()
    if not len(found):
        raise _NothingToSee
    return sorted({int(found[i]) for i in torch.linspace(0, len(found) - 1, _ALONE).long()})


def _row(rows: Row, number: int) -> Row:
    values, masks = ({n: v[number] for n, v in part.items()} for part in rows)
    return values, masks


def _unlike(
    many: Mapping[str, Any], alone: Mapping[str, Any], one: int, particles: Particles
) -> Iterator[str]:
    """Names of sites at which a particle is not the same alone."""
    for name, site in many.items():
        if (not is_latent(site) and "log_prob" not in site) or isinstance(site["fn"], Unit):
            continue
        if name not in alone:
            yield name
            continue
        for whole, own in zip(_marks(site), _marks(alone[name]), strict=True):
            plain = whole.dim() == 0 or whole.shape[0] != particles.number
            if plain or not _equal(whole[one].reshape(-1), own.reshape(-1)):
                yield name
                break


def _marks(site: Mapping[str, Any]) -> list[torch.Tensor]:
    """What tells the distribution of a site from another one, batch dims first."""
    fn, value = site["fn"], site["value"]
    if "log_prob" in site:
        return [site["log_prob"]]
    box = getattr(_inside(fn), "args", None)
    if isinstance(box, tuple):  # of a black box, which draws by itself
        return list(box)
    if _is_computed(site):
        return [value]
    log_prob, mask = fn.log_prob(value), site["mask"]
    return [log_prob if mask is None else torch.where(torch.as_tensor(mask), log_prob, 0.0)]


def _equal(some: torch.Tensor, others: torch.Tensor) -> bool:
    if some.shape != others.shape:
        return False
    if not some.is_floating_point():
        return torch.equal(some, others)
    tolerance = 4 * torch.finfo(some.dtype).eps ** 0.5
    largest = (
        float(torch.where(torch.isfinite(others), others, 0.0).abs().amax()) if len(some) else 0
    )
    return torch.allclose(some, others, tolerance, tolerance * max(largest, 1e-3), equal_nan=True)
