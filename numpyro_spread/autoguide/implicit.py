# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit: a guide without a density, made from the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import random
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import Predictive, init_to_sample
from numpyro.infer.autoguide import AutoGuide
from numpyro.primitives import Messenger

from numpyro_spread._implicit_sampler import AmortisedSampler, FreeSampler, location_and_scale
from numpyro_spread._inputs import as_array
from numpyro_spread._latent_sites import (
    bind_encoder,
    constrain,
    latent_of,
    refuse_features,
    select_features,
    unconstrain,
)
from numpyro_spread.autoguide._walks import HasQuantiles
from numpyro_spread.infer._scan import Inside
from spread_core.arguments import accepts
from spread_core.auto_implicit import AutoImplicitShared
from spread_core.inputs import converted
from spread_core.latents import LatentGroup, group_latents
from spread_core.messages import autoguide

Encoder = Callable[..., jax.Array | Mapping[str, jax.Array]]
Start = Callable[[jax.Array, str], tuple[jax.Array, jax.Array]]


class AutoImplicit(HasQuantiles, AutoImplicitShared, AutoGuide):
    """
    A guide over all continuous latents of a model that can be sampled but has no density.

        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro import handlers
        >>> def model():
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("x", dist.Normal(z**2, 0.3), obs=1.0)
        >>> guide = AutoImplicit(model)
        >>> sites = handlers.trace(handlers.seed(guide, jax.random.key(0))).get_trace()
        >>> params = {name: site["value"] for name, site in sites.items() if "auto_" in name}
        >>> guide.sample_posterior(jax.random.key(1), params, sample_shape=(5,))["z"].shape
        (5,)
    """

    def _parent_options(self, model: Any, prefix: str) -> dict[str, Any]:
        return {"model": model, "prefix": prefix, "init_loc_fn": init_to_sample}

    def _bind_encoder(self, encoder: Any) -> None:
        self._bound = bind_encoder(encoder)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
        """
        The guide, with the model's arguments.

        :return: dict from site to value.
        :raises ValueError: if the features do not have the plates' shape.
        """
        args, kwargs = converted((args, kwargs), as_array)
        self._prepare(args, kwargs)
        features = self._features(args, kwargs)
        plates = self._create_plates(*args, **kwargs)
        start = self._start(features, args, kwargs)
        scored = numpyro.get_mask() is not False
        result = {}
        for group in self._groups:
            sampler = self._sampler(group, features, start)
            with ExitStack() as stack:
                indices = {p.name: stack.enter_context(plates[p.name]) for p in group.plates}
                selected = select_features(group, features.get(group.key), plates, indices)
                infer = {
                    "is_auxiliary": True,
                    "_unconstrain": functools.partial(unconstrain, group, self._supports),
                    "_covers": group.names,
                }
                vectors = numpyro.sample(
                    self._site_name(group), sampler.distribution(selected), infer=infer
                )
                for name, unconstrained in group.split(vectors):
                    event_dim = self.prototype_trace[name]["fn"].event_dim
                    delta = constrain(self._supports[name], event_dim, unconstrained, scored)
                    result[name] = numpyro.sample(name, delta)
        return result

    def sample_posterior(
        self,
        rng_key: jax.Array,
        params: Mapping[str, Any],
        *args: Any,
        sample_shape: Sequence[int] = (),
        **kwargs: Any,
    ) -> dict[str, jax.Array]:
        """
        Draws of all latents, of all data even where plates subsample; with an encoder, of the data
        whose features it returns. The model's deterministic sites are among them where it can be
        called with these arguments and no plate subsamples; otherwise use ``Predictive``.

        :param rng_key: random key.
        :param params: params of model and guide.
        :param args: arguments of the model; those that the encoder needs suffice for the latents.
        :param sample_shape: shape of the draws.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to values of shape sample + shape of the site.
        """
        sample_shape = tuple(sample_shape)
        key, model_key = random.split(rng_key)
        draws = self._unconstrained_draws(key, params, sample_shape, args, kwargs)
        latents = {name: biject_to(self._supports[name])(draws[name]) for name in draws}
        sites = self.prototype_trace.items()
        deterministic = [name for name, site in sites if site["type"] == "deterministic"]
        if not deterministic or self._subsamples or not _takes_arguments(self.model, args, kwargs):
            return latents
        predictive = Predictive(
            self.model,
            latents,
            params=dict(params),
            return_sites=deterministic,
            batch_ndims=len(sample_shape),
        )
        return {**latents, **predictive(model_key, *args, **kwargs)}

    def quantiles(
        self, params: Mapping[str, Any], quantiles: Any, *args: Any, **kwargs: Any
    ) -> dict[str, jax.Array]:
        """
        Quantiles of all latents, taken in unconstrained space as other autoguides do, estimated
        from :attr:`num_quantile_draws` draws of a fixed key.

        :param params: params of model and guide.
        :param quantiles: probabilities.
        :param args: arguments of the model, for an encoder.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to quantiles, the probabilities in front.
        """
        sample_shape = (self.num_quantile_draws,)
        draws = self._unconstrained_draws(random.key(0), params, sample_shape, args, kwargs)
        result = {}
        for name, draw in draws.items():
            found = jnp.quantile(draw, jnp.asarray(quantiles), axis=0)
            result[name] = biject_to(self._supports[name])(found)
        return result

    def _prepare(self, args: Any, kwargs: Any) -> None:
        # What was set up inside a transformation holds its tracers, which do not outlive it.
        supports = self._supports if self.prototype_trace is not None else {}
        stale = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(supports))
        if self.prototype_trace is None or stale:
            self._setup_prototype(*args, **kwargs)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        # Not the parent's, which looks for a place of finite density: there may be none.
        with handlers.block():
            prototype = self._trace_model(numpyro.prng_key(), args, kwargs)
        sites = {
            name: site
            for name, site in prototype.items()
            if site["type"] == "sample" and not site["is_observed"]
        }
        discrete = [name for name, site in sites.items() if site["fn"].support.is_discrete]
        if discrete:
            raise ValueError(autoguide.discrete_latents(discrete, "numpyro.handlers.block"))
        if not sites:
            raise ValueError(autoguide.no_guide_latents())
        full_sizes = {
            name: site["args"][0] for name, site in prototype.items() if site["type"] == "plate"
        }
        self._groups = group_latents(
            latent_of(name, site, full_sizes) for name, site in sites.items()
        )
        self._supports = {name: site["fn"].support for name, site in sites.items()}
        if self.encoder is not None and not self._groups[-1].plates:
            raise ValueError(autoguide.nothing_to_amortise(list(sites)))
        frames = [frame for site in sites.values() for frame in site["cond_indep_stack"]]
        self._prototype_frames = {frame.name: frame for frame in frames}
        self._prototype_frame_full_sizes = {
            name: full_sizes[name] for name in self._prototype_frames
        }
        self._subsamples = any(
            frame.size != full_sizes[name] for name, frame in self._prototype_frames.items()
        )
        self.prototype_trace = prototype

    def _trace_model(self, rng_key: jax.Array, args: Any, kwargs: Any) -> Any:
        seeded = handlers.seed(Inside(self.model), rng_key)
        drawn = handlers.substitute(seeded, substitute_fn=self.init_loc_fn)
        return handlers.trace(drawn).get_trace(*args, **kwargs)

    def _prior_start(
        self, rng_key: jax.Array, amortised: Collection[str], args: Any, kwargs: Any
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """For every group, location and scale of draws in unconstrained space."""
        # NumPy's arrays cannot be indexed by what is traced, as a subsample is here.
        args, kwargs = jax.tree.map(_as_jax, (args, kwargs))

        def draw(key: jax.Array) -> list[jax.Array]:
            with handlers.block():
                sites = self._trace_model(key, args, kwargs)
            supports = {name: sites[name]["fn"].support for name in self._supports}
            values = {name: sites[name]["value"] for name in self._supports}
            return [unconstrain(group, supports, values) for group in self._groups]

        def start(keys: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
            draws = zip(self._groups, jax.vmap(draw)(keys), strict=True)
            return {g.key: location_and_scale(each, g, g.key in amortised) for g, each in draws}

        # Compiled, it skips what only the observed sites need.
        return jax.jit(start)(random.split(rng_key, self.init_samples))

    def _start(self, features: Mapping[str, Any], args: Any, kwargs: Any) -> Start:
        """
        Where each group starts, as a function of a random key: params that exist already do not
        ask, and those that do share one set of draws.
        """
        found: dict[str, tuple[jax.Array, jax.Array]] = {}

        def start(rng_key: jax.Array, key: str) -> tuple[jax.Array, jax.Array]:
            if not found:
                found.update(self._prior_start(rng_key, features.keys(), args, kwargs))
            return found[key]

        return start

    def _sampler(self, group: LatentGroup, features: Mapping[str, Any], start: Start) -> Any:
        def start_here(rng_key: jax.Array) -> tuple[jax.Array, jax.Array]:
            return start(rng_key, group.key)

        name, noise_size = f"{self.prefix}_{group.key}", group.noise_size(self.noise_dim)
        sampler: Any = AmortisedSampler if group.key in features else FreeSampler
        return sampler(name, group, noise_size, self.hidden, start_here, features.get(group.key))

    def _unconstrained_draws(
        self,
        rng_key: jax.Array,
        params: Mapping[str, Any],
        sample_shape: tuple[int, ...],
        args: Any,
        kwargs: Any,
    ) -> dict[str, jax.Array]:
        def start(rng_key: jax.Array, key: str) -> Any:
            raise KeyError(autoguide.no_guide_params(f"{self.prefix}_{key}"))

        draws: dict[str, jax.Array] = {}
        args, kwargs = converted((args, kwargs), as_array)
        with handlers.block(), handlers.seed(rng_seed=rng_key), handlers.substitute(data=params):
            self._prepare(args, kwargs)
            features = self._features(args, kwargs)
            for group in self._groups:
                sampler = self._sampler(group, features, start)
                implicit = sampler.distribution(features.get(group.key))
                vectors = implicit.sample(numpyro.prng_key(), sample_shape)
                draws.update(group.split(vectors, len(sample_shape)))
        return draws

    def _features(self, args: Any, kwargs: Any) -> dict[str, jax.Array]:
        """Features of every local group by its key; plates are made as large as they are."""
        if self.encoder is None:
            return {}
        output = self._encode(self.encoder, args, kwargs)
        features = {}
        for group in self._groups:
            if not group.plates:
                continue
            mine = output.get(group.key) if isinstance(output, Mapping) else output
            if not isinstance(mine, jax.Array | np.ndarray):
                raise TypeError(autoguide.encoder_features_type(group.key, mine))
            mine = jnp.asarray(mine)
            if not group.features_fit(mine.shape, {}):
                refuse_features(group, mine, {p.name: p.size for p in group.plates}, output)
            for plate in group.plates:
                size, full_size = plate.resized(mine.shape[plate.dim - 1])
                frame = self._prototype_frames[plate.name]
                self._prototype_frames[plate.name] = frame._replace(size=size)
                self._prototype_frame_full_sizes[plate.name] = full_size
            features[group.key] = mine
        return features

    def _encode(self, encoder: Encoder, args: Any, kwargs: Any) -> Any:
        bound, name = self._bound, f"{self.prefix}_encoder$params"
        if bound is None:
            return encoder(*args, **kwargs)

        params = numpyro.param(name, lambda key: bound.init_call(key, *args, **kwargs))
        return bound.call(params, *args, **kwargs)


def _as_jax(leaf: Any) -> Any:
    numeric = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc"
    return jnp.asarray(leaf) if numeric else leaf


def _takes_arguments(model: Any, args: Any, kwargs: Any) -> bool:
    while isinstance(model, Messenger) and model.fn is not None:
        model = model.fn
    return accepts(model, *args, **kwargs)
