# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Samples of data and model: the observed values and the model's own draws at the same sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import random
from numpyro.distributions import Distribution, MaskedDistribution
from numpyro.handlers import replay, seed, substitute, trace

from numpyro_spread import _parents
from numpyro_spread._gradients import refuse_gradient
from numpyro_spread._inputs import observed_array
from numpyro_spread._pytree import widened
from numpyro_spread.infer._datum import data_dims, data_plate, weight_of_data
from numpyro_spread.infer._invalid import Invalid, note
from numpyro_spread.infer._noise import draw_told
from numpyro_spread.infer._own_draws import refuse_own_draws
from numpyro_spread.infer._plate_arguments import by_datum
from numpyro_spread.infer._scan import Inside, Unconditioned, is_scanned
from numpyro_spread.infer._shared_latents import warn_of_shared_latents
from numpyro_spread.infer._sites import plain_name
from numpyro_spread.noise import SpreadNoise
from numpyro_spread.noise.base import is_concrete
from numpyro_spread.ratio.adapters import SiteValues
from spread_core.arguments import positional_names
from spread_core.datum import data_first, in_batch, masks_parts
from spread_core.messages import control_flow, general, players, spreading
from spread_core.noise.levels import level_name, refuse_asking
from spread_core.nonfinite import NonFiniteError
from spread_core.patterns import resolved


class TwoSides(NamedTuple):
    """
    Samples of the data (P) and of the model (Q), after the noise, with weights or None.

    ``noise_left`` holds the kernels whose noise the loss has in closed form, ``mutable`` the new
    mutable state of model and guide.
    """

    data: SiteValues
    model: SiteValues
    data_weights: jax.Array | None
    model_weights: jax.Array | None
    noise_left: dict[str, SpreadNoise]
    mutable: dict[str, Any]


def _without_gradient(name: str, kernel: SpreadNoise) -> Any:
    refused: Any = refuse_gradient(kernel, ValueError(players.learned_noise(name)))
    # It is no field, which is all that comes through.
    return refused._changed(_moved_by=kernel._moved_by)


class Guarded(Inside):
    """Draws without a gradient are an error as soon as somebody asks for their gradient."""

    def visit(self, msg: Any, inside: bool) -> None:
        if msg["value"] is not None or msg["is_observed"]:
            return
        fn = msg["fn"]
        if isinstance(fn, Distribution) and not fn.has_rsample:
            is_data = msg["infer"].get("was_observed")
            say = players.discrete_draw if is_data else players.latent_without_gradient
            message = say(msg["name"], plain_name(fn))
            msg["fn"] = refuse_gradient(fn, NotImplementedError(message))


def draw_sides(
    rng_key: jax.Array,
    params: Mapping[str, Any],
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    noise: Mapping[str, SpreadNoise],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    closed_form: Callable[[SpreadNoise, tuple[int, ...]], bool] | None = None,
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
    guide_key, model_key, data_key, draw_key = random.split(rng_key, 4)
    # Containers are copied, since a model may write to those of mutable sites.
    params = jax.tree.map(lambda leaf: leaf, dict(params))
    with trace() as guide_trace, Guarded():
        seed(substitute(guide or no_guide, data=params), guide_key)(*args, **kwargs)
    fixed = replay(substitute(model, data=params), trace=guide_trace)
    with trace() as sites, Guarded(), Unconditioned():
        seed(fixed, model_key)(*args, **kwargs)
    observed = {n: s for n, s in sites.items() if is_compared(s)}
    if not observed:
        raise ValueError(players.nothing_observed())
    _check_sites(guide_trace, observed)
    dims = data_dims(observed)
    for name, site in observed.items():
        if is_scanned(site) and dims[name] is None:
            raise ValueError(control_flow.one_series(name))
    refuse_own_draws(params, model, observed, args, kwargs)
    warn_of_shared_latents(model, sites, observed, dims, guide_trace.keys())
    noise = resolved(noise, observed)
    refuse_asking(noise, args, kwargs, model, guide)
    check_noise_sites(sites, observed, noise)
    noise = {
        name: kernel if kernel._is_played else _without_gradient(name, kernel)
        for name, kernel in noise.items()
    }
    left = {
        name: kernel
        for name, kernel in noise.items()
        if closed_form is not None
        and mask_at(name, observed[name], jnp.shape(observed[name]["value"])) is None
        and closed_form(kernel, observed[name]["fn"].event_shape)
    }
    noise = {name: kernel for name, kernel in noise.items() if name not in left}
    data = Side(data_key, observed, noise, dims, lambda site: site["infer"]["obs"])
    model_side = Side(draw_key, observed, noise, dims, lambda site: site["value"])
    for name, value in data.values.items():
        refuse_nonfinite(name, value)
    check_draws(model_side)
    named = dict(zip(positional_names(model), args, strict=False)) | kwargs
    arguments = by_datum(named, observed, dims, sites, data.batch_shape)
    return TwoSides(
        SiteValues(data.values, data.batch_shape, arguments | data.levels),
        SiteValues(model_side.values, model_side.batch_shape, arguments | model_side.levels),
        data.weights,
        model_side.weights,
        left,
        {
            name: site["value"]
            for name, site in [*guide_trace.items(), *sites.items()]
            if site["type"] == "mutable"
        },
    )


def no_guide(*args: Any, **kwargs: Any) -> None:
    """The guide of a model all of whose latents come from the prior."""


def is_compared(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and bool(site["infer"].get("was_observed"))


def _check_sites(guide_trace: Mapping[str, Any], observed: Mapping[str, Any]) -> None:
    # Those of inner plates alone are the same for all data, as global ones are.
    plates = set(map(data_plate, observed.values()))
    for name, site in guide_trace.items():
        if site["type"] == "sample" and not site["infer"].get("is_auxiliary"):
            shared = {frame.name for frame in site["cond_indep_stack"]} & plates
            if shared:
                raise ValueError(players.local_guide_site(name, shared))
    for name, site in observed.items():
        fn = site["fn"]
        if isinstance(fn, dist.Unit):
            raise ValueError(players.factor_site(name))
        floating = jnp.issubdtype(jnp.result_type(site["value"]), jnp.floating)
        if not fn.has_rsample or not floating:
            raise NotImplementedError(players.discrete_draw(name, plain_name(fn)))


def check_noise_sites(
    sites: Mapping[str, Any], observed: Mapping[str, Any], noise: Mapping[str, Any]
) -> None:
    for name in noise:
        if name not in sites or sites[name]["type"] != "sample":
            raise ValueError(spreading.no_such_site(name, observed))
        if name not in observed:
            raise ValueError(spreading.site_not_observed(name, observed))


class Side:
    """
    Samples of one side, with the dimension of the data in front and masked elements set to zero.
    """

    def __init__(
        self,
        rng_key: jax.Array,
        observed: Mapping[str, Any],
        noise: Mapping[str, SpreadNoise],
        dims: Mapping[str, int | None],
        take: Callable[[Any], Any],
    ) -> None:
        self.values: dict[str, jax.Array] = {}
        #: The level of every datum, by the name under which critics ask for it.
        self.levels: dict[str, jax.Array] = {}
        self.batch_shape: tuple[int, ...] = ()
        self.weights: jax.Array | None = None
        kept: jax.Array | None = None
        all_masked = True
        keys = random.split(rng_key, len(observed))
        for key, (name, site) in zip(keys, observed.items(), strict=True):
            given, dim = observed_array(name, take(site)), dims[name]
            event_dim, value = site["fn"].event_dim, in_batch(given, site, dim)
            if value is None:
                misfit = spreading.value_misfit(jnp.shape(given), site["fn"].event_shape)
                raise ValueError(general.at_site(name, misfit))
            # NumPy's arrays stay: they are concrete under jit too, where svi.run captures them.
            dtype = jnp.result_type(widened(site["value"]))
            value = value if jnp.result_type(value) == dtype else jnp.asarray(value, dtype)
            mask = mask_at(name, site, jnp.shape(value))
            if name in noise:
                _refuse_masked_parts(name, noise[name], site)
                if mask is not None:  # what may be NaN there need not be a valid mean
                    value = jnp.where(mask | jnp.isfinite(value), value, jnp.zeros((), dtype))
                kernel = noise[name]._at_events(event_dim)
                value, level, _ = draw_told(key, name, kernel, value, event_dim)
                if level is not None:
                    self.levels[level_name(name)] = data_first(level, 0, dim)
                mask = mask_at(name, site, jnp.shape(value))
            if mask is not None:
                value = jnp.where(mask, value, jnp.zeros((), dtype))
                whole = data_first(mask, event_dim, dim)
                some = whole.reshape(*whole.shape[: 0 if dim is None else 1], -1).any(-1)
                kept = some if kept is None else kept | some
            all_masked = all_masked and mask is not None
            self.values[name] = data_first(value, event_dim, dim)
            self.batch_shape = self.values[name].shape[: 0 if dim is None else 1]
            self._weigh(name, site, dim)
        # A datum counts as long as one of its sites has something to show.
        if kept is not None and all_masked:
            weights = kept.astype(next(iter(self.values.values())).dtype)
            self.weights = weights if self.weights is None else self.weights * weights
        known = self.weights is not None and is_concrete(self.weights)
        if known and not np.any(np.asarray(self.weights) > 0):
            raise ValueError(players.everything_masked())

    def _weigh(self, name: str, site: Mapping[str, Any], dim: int | None) -> None:
        # A number is the same for all data and cancels in the mean: plates that subsample.
        if site["scale"] is None or jnp.ndim(site["scale"]) == 0:
            return
        scale = weight_of_data(name, site, dim, self.batch_shape)
        scale = jnp.asarray(scale, self.values[name].dtype)
        self.weights = scale if self.weights is None else jnp.maximum(self.weights, scale)


def refuse_nonfinite(site: str, value: Any) -> None:
    """
    Refuse data that are NaN or inf, where they are known.

    :raises NonFiniteError: naming the site.
    """
    if is_concrete(value) and not np.all(np.isfinite(np.asarray(value))):
        raise NonFiniteError(players.nonfinite_value(site))


def check_draws(side: Side) -> None:
    """
    Refuse draws of the model that are NaN or inf; record them where they are not known yet.

    :raises NonFiniteError: naming the site and the number of data.
    """
    ndim = len(side.batch_shape)
    axes = {n: range(-jnp.ndim(v), ndim - jnp.ndim(v)) for n, v in side.values.items()}
    invalid = Invalid(side.values, axes)
    invalid.refuse()
    note(invalid.counts, invalid.total)


def mask_at(name: str, site: Mapping[str, Any], shape: tuple[int, ...]) -> jax.Array | None:
    """Which elements of a value of ``shape`` count; None if all do."""
    result = None
    for mask, event_dim in _masks(site):
        mask = jnp.asarray(mask, bool)
        try:
            full = jnp.broadcast_to(mask.reshape(*mask.shape, *[1] * event_dim), shape)
        except ValueError as error:
            raise ValueError(players.mask_misfit(name, mask.shape, shape)) from error
        result = full if result is None else result & full
    return result


def _masks(site: Mapping[str, Any]) -> Iterator[tuple[Any, int]]:
    """The masks around and inside of a distribution, and to how many event dims each belongs."""
    fn = site["fn"]
    while isinstance(fn, Distribution):
        mask = _parents.mask_of(fn) if isinstance(fn, MaskedDistribution) else None
        if mask is not None and mask is not True:
            yield mask, fn.event_dim
        fn = getattr(fn, "base_dist", None)


def _refuse_masked_parts(name: str, kernel: SpreadNoise, site: Mapping[str, Any]) -> None:
    if not kernel._mixes_elements():
        return
    for mask, event_dim in _masks(site):
        if masks_parts(jnp.shape(mask), site["fn"].event_dim - event_dim):
            raise NotImplementedError(players.masked_parts(name, type(kernel).__name__))
