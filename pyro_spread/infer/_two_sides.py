# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Samples of data and model: the observed values and the model's own draws at the same sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.subsample_messenger import _Subsample

from pyro_spread import _parents
from pyro_spread._inputs import observed_tensor
from pyro_spread.infer._datum import data_dims, data_plate, weight_of_data
from pyro_spread.infer._guards import is_finite
from pyro_spread.infer._invalid import Invalid
from pyro_spread.infer._noise import draw_told
from pyro_spread.infer._own_draws import refuse_own_draws
from pyro_spread.infer._plate_arguments import by_datum
from pyro_spread.infer._shared_latents import warn_of_shared_latents
from pyro_spread.infer._sites import is_computed, is_latent, is_learned, plain_name
from pyro_spread.noise import SpreadNoise
from pyro_spread.ratio.adapters import SiteValues
from spread_core.arguments import positional_names
from spread_core.datum import data_first, in_batch, masks_parts
from spread_core.messages import general, players, spreading
from spread_core.noise.levels import level_name, refuse_asking
from spread_core.nonfinite import NonFiniteError
from spread_core.patterns import resolved


class TwoSides(NamedTuple):
    """
    Samples of the data (P) and of the model (Q), after the noise, with weights or None.

    ``noise_left`` holds the kernels whose noise the loss has in closed form.
    """

    data: SiteValues
    model: SiteValues
    data_weights: torch.Tensor | None
    model_weights: torch.Tensor | None
    noise_left: dict[str, SpreadNoise]


def draw_sides(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    noise: Mapping[str, SpreadNoise],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    closed_form: Callable[[SpreadNoise, torch.Size], bool] | None = None,
) -> TwoSides:
    """
    Run the model once: its draws at observed sites are Q, the observed values are P.

    Global latents that the guide has are taken from it, all others from the prior.

    :param model: the model; its observed sites are compared.
    :param guide: empty, or over global latents.
    :param noise: dict from site to the kernel that both sides pass through, each with fresh noise.
    :param closed_form: whether the loss has the noise of a kernel on an event shape in closed form,
        so that it is not drawn; asked for sites without masks only.
    :raises ValueError: if sites, plates, masks and noise are inconsistent.
    :raises NotImplementedError: if no gradient can reach the model through its draws.
    """
    guide_trace = poutine.trace(guide or no_guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    trace = poutine.trace(poutine.uncondition(replayed)).get_trace(*args, **kwargs)
    observed = {n: s for n, s in trace.nodes.items() if is_compared(s)}
    if not observed:
        raise ValueError(players.nothing_observed())
    _check_sites(trace, guide_trace, observed)
    noise = resolved(noise, observed)
    refuse_asking(noise, args, kwargs, model, guide)
    dims = data_dims(observed)
    refuse_own_draws(model, observed, args, kwargs)
    warn_of_shared_latents(model, trace.nodes, observed, dims, guide_trace.nodes.keys())
    check_noise_sites(trace.nodes, observed, noise)
    left = {
        name: kernel
        for name, kernel in noise.items()
        if closed_form is not None
        and mask_at(name, observed[name], observed[name]["value"]) is None
        and closed_form(kernel, observed[name]["fn"].event_shape)
    }
    noise = {name: kernel for name, kernel in noise.items() if name not in left}
    data = Side(observed, noise, dims, lambda site: site["infer"]["obs"])
    model_side = Side(observed, noise, dims, lambda site: site["value"])
    for name, value in data.values.items():
        if not is_finite(value):
            raise NonFiniteError(players.nonfinite_value(name))
    check_draws(model_side)
    indices = {n: s["value"] for n, s in trace.nodes.items() if isinstance(s.get("fn"), _Subsample)}
    named = dict(zip(positional_names(model), args, strict=False)) | kwargs
    arguments = by_datum(named, observed, dims, indices, data.batch_shape)
    return TwoSides(
        SiteValues(data.values, data.batch_shape, arguments | data.levels),
        SiteValues(model_side.values, model_side.batch_shape, arguments | model_side.levels),
        data.weights,
        model_side.weights,
        left,
    )


def no_guide(*args: Any, **kwargs: Any) -> None:
    """The guide of a model all of whose latents come from the prior."""


def is_compared(site: Mapping[str, Any]) -> bool:
    """Whether a site of an unconditioned model was an observation."""
    if site["type"] != "sample" or not site["infer"].get("was_observed"):
        return False
    return not is_computed(site, site["infer"]["obs"])


def _check_sites(trace: Any, guide_trace: Any, observed: Mapping[str, Any]) -> None:
    # Those of inner plates alone are the same for all data, as global ones are.
    plates = set(map(data_plate, observed.values()))
    for name, site in guide_trace.nodes.items():
        if is_latent(site) and not site["infer"].get("is_auxiliary"):
            shared = {frame.name for frame in site["cond_indep_stack"]} & plates
            if shared:
                raise ValueError(players.local_guide_site(name, shared))
    for name, site in [*guide_trace.nodes.items(), *trace.nodes.items()]:
        if site["type"] != "sample":
            continue
        fn = site["fn"]
        if name in observed:
            if isinstance(fn, Unit):
                raise ValueError(players.factor_site(name))
            if not fn.has_rsample or not site["value"].is_floating_point():
                raise NotImplementedError(players.discrete_draw(name, plain_name(fn)))
        elif is_latent(site) and not fn.has_rsample and is_learned(fn):
            if site is trace.nodes.get(name) and name in guide_trace.nodes:
                continue  # not drawn here, but taken from the guide
            raise NotImplementedError(players.latent_without_gradient(name, plain_name(fn)))


def check_noise_sites(
    sites: Mapping[str, Any], observed: Mapping[str, Any], noise: Mapping[str, Any]
) -> None:
    """
    Refuse noise at sites that are not compared, and noise that would be learned.

    :raises ValueError: naming the site.
    """
    for name, kernel in noise.items():
        if name not in sites or sites[name]["type"] != "sample":
            raise ValueError(spreading.no_such_site(name, observed))
        if name not in observed:
            raise ValueError(spreading.site_not_observed(name, observed))
        if is_learned(kernel) and not kernel._is_played:
            raise ValueError(players.learned_noise(name))


class Side:
    """
    Samples of one side, with the dimension of the data in front and masked elements set to zero.
    """

    def __init__(
        self,
        observed: Mapping[str, Any],
        noise: Mapping[str, SpreadNoise],
        dims: Mapping[str, int | None],
        take: Callable[[Any], torch.Tensor],
    ) -> None:
        self.values: dict[str, torch.Tensor] = {}
        #: The level of every datum, by the name under which critics ask for it.
        self.levels: dict[str, torch.Tensor] = {}
        self.batch_shape = torch.Size()
        self.weights: torch.Tensor | None = None
        kept: torch.Tensor | None = None
        all_masked = True
        for name, site in observed.items():
            given, dim = torch.as_tensor(observed_tensor(name, take(site))), dims[name]
            value = in_batch(given, site, dim)
            if value is None:
                raise ValueError(
                    general.at_site(
                        name, spreading.value_misfit(given.shape, site["fn"].event_shape)
                    )
                )
            value, event_dim = value.to(site["value"].dtype), site["fn"].event_dim
            mask = mask_at(name, site, value)
            if name in noise:
                _refuse_masked_parts(name, noise[name], site)
                if mask is not None:  # what may be NaN there need not be a valid mean
                    value = torch.where(mask | value.isfinite(), value, torch.zeros_like(value))
                kernel = noise[name]._at_events(event_dim)
                value, level, _ = draw_told(name, kernel, value, event_dim)
                if level is not None:
                    self.levels[level_name(name)] = data_first(level, 0, dim)
                mask = mask_at(name, site, value)
            if mask is not None:
                value = torch.where(mask, value, torch.zeros_like(value))
                whole = data_first(mask, event_dim, dim)
                some = whole.reshape(*whole.shape[: 0 if dim is None else 1], -1).any(-1)
                kept = some if kept is None else kept | some
            all_masked = all_masked and mask is not None
            self.values[name] = data_first(value, event_dim, dim)
            self.batch_shape = self.values[name].shape[: 0 if dim is None else 1]
            self._weigh(name, site, dim)
        # A datum counts as long as one of its sites has something to show.
        if kept is not None and all_masked:
            weights = kept.to(next(iter(self.values.values())).dtype)
            self.weights = weights if self.weights is None else self.weights * weights
        if self.weights is not None and not bool((self.weights > 0).any()):
            raise ValueError(players.everything_masked())

    def _weigh(self, name: str, site: Mapping[str, Any], dim: int | None) -> None:
        # A number is the same for all data and cancels in the mean: plates that subsample.
        if not isinstance(site["scale"], torch.Tensor) or site["scale"].dim() == 0:
            return
        scale = weight_of_data(name, site, dim, self.batch_shape).to(self.values[name].dtype)
        self.weights = scale if self.weights is None else torch.maximum(self.weights, scale)


def check_draws(side: Side) -> None:
    """
    Refuse draws of the model that are NaN or inf.

    :raises NonFiniteError: naming the site and the number of data.
    """
    ndim = len(side.batch_shape)
    axes = {name: range(-v.dim(), ndim - v.dim()) for name, v in side.values.items()}
    Invalid(side.values, axes).refuse()


def mask_at(name: str, site: Mapping[str, Any], value: torch.Tensor) -> torch.Tensor | None:
    """Which elements of ``value`` count, in its shape; None if all do."""
    result: torch.Tensor | None = None
    for mask, event_dim in _masks(site):
        mask = torch.as_tensor(mask, device=value.device).bool()
        try:
            full = mask.reshape([*mask.shape, *[1] * event_dim]).expand(value.shape)
        except RuntimeError as error:
            raise ValueError(players.mask_misfit(name, mask.shape, value.shape)) from error
        result = full if result is None else result & full
    return result


def _masks(site: Mapping[str, Any]) -> Iterator[tuple[Any, int]]:
    """The masks around and inside of a distribution, and to how many event dims each belongs."""
    fn, found = site["fn"], [(site["mask"], site["fn"].event_dim)]
    while isinstance(getattr(fn, "base_dist", None), torch.distributions.Distribution):
        if isinstance(fn, MaskedDistribution):
            found.append((_parents.mask_of(fn), fn.event_dim))
        fn = fn.base_dist
    return ((mask, event_dim) for mask, event_dim in found if mask is not None and mask is not True)


def _refuse_masked_parts(name: str, kernel: SpreadNoise, site: Mapping[str, Any]) -> None:
    if not kernel._mixes_elements():
        return
    for mask, event_dim in _masks(site):
        if masks_parts(torch.as_tensor(mask).shape, site["fn"].event_dim - event_dim):
            raise NotImplementedError(players.masked_parts(name, type(kernel).__name__))
