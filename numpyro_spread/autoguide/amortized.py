# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoAmortized: an amortised posterior with a density, made from the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import random
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide

from numpyro_spread._inputs import as_array
from numpyro_spread.autoguide._conditional import ConditionalSite, interval_of, unconstrained
from numpyro_spread.autoguide._embedded import HasEmbeddings
from numpyro_spread.autoguide._flows import HasFlows
from numpyro_spread.autoguide._given_rows import GivenRows
from numpyro_spread.autoguide._walks import HasQuantiles, draws, log_prob
from numpyro_spread.autoguide._world import (
    World,
    created_plates,
    data_of,
    group_masks,
    is_data,
    latent_of,
    look,
    masked_latents,
    observed_value,
    simulated,
    traced,
)
from spread_core.amortized.context import Context
from spread_core.amortized.density import Conditional
from spread_core.amortized.guide import AutoAmortizedShared
from spread_core.amortized.layout import Group, Variable
from spread_core.amortized.mixture import initial
from spread_core.inputs import converted
from spread_core.messages import amortized as messages


class AutoAmortized(
    HasEmbeddings, HasFlows, HasQuantiles, GivenRows, AutoAmortizedShared, AutoGuide
):
    """
    An amortised posterior: a conditional density over all latents of a model, given its data.

        >>> import jax, numpyro, numpyro.distributions as dist, optax
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import KL, AutoAmortized, JointContrastELBO
        >>> def model(x=None):
        ...     z = numpyro.sample("z", dist.Uniform(-1.0, 1.0))
        ...     numpyro.sample("x", dist.Normal(z, 0.1), obs=x)
        >>> guide = AutoAmortized(model, observed="x")
        >>> sites = handlers.trace(handlers.seed(guide, jax.random.key(0))).get_trace(0.3)
        >>> params = {n: s["value"] for n, s in sites.items() if s["type"] == "param"}
        >>> draws = guide.sample_posterior(jax.random.key(1), params, 0.3, sample_shape=(5,))
        >>> draws["z"].shape
        (5,)

    As ``density``, a function takes a key and the numbers of features and of context of a site and
    returns a distribution of flowjax, or another pytree with methods
    ``sample(key, sample_shape, condition)`` and ``log_prob(x, condition)``, of vectors of shape
    (features,) given conditions of shape (context,).

    As an ``embedding``, a module of flax linen, flax nnx or equinox without batch normalisation and
    dropout; one of equinox takes a single element. Members of linen start apart, others with the
    params that the module holds.
    """

    def _parent_options(self, model: Any, prefix: str) -> dict[str, Any]:
        self._compiled: dict[Any, Any] = {}
        return {"model": model, "prefix": prefix}

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
        """
        The guide, with the model's arguments.

        :return: dict from site to value.
        :raises ValueError: if the model observes no data at these arguments.
        """
        return self.run_given(None, {}, args, kwargs)

    def run_given(
        self, values: Mapping[str, Any] | None, masks: Mapping[str, Any], args: Any, kwargs: Any
    ) -> dict[str, jax.Array]:
        """
        The guide for given data; see :meth:`given`.

        :param values: dict from data site to value; None takes those at the arguments.
        :param masks: dict from data site to what counts.
        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        args, kwargs = converted((args, kwargs), as_array)
        self._prepare(args, kwargs)
        self._decide(args, kwargs)
        params, are_new = self._params(args, kwargs)
        plates, indices = created_plates(self.create_plates, args, kwargs)
        # Data are those of the elements that the guide's own plates have taken.
        model = handlers.substitute(self.model, data=indices) if indices else self.model
        # SVI.init needs shapes only, and may have no data yet.
        world = look(model, self.context, values, masks, args, kwargs, not are_new)
        with handlers.substitute(data=world.indices):
            for name, (dim, size, full) in world.plates.items():
                if name not in plates:
                    plates[name] = numpyro.plate(name, full, dim=dim, subsample_size=size)
        result: dict[str, jax.Array] = {}

        def visit(group: Group, variable: Variable, conditional: Conditional) -> jax.Array:
            site = self.site(group, variable, conditional, world.sizes, ())
            with ExitStack() as stack:
                for name in variable.frames:
                    stack.enter_context(plates[name])
                value = result[variable.name] = numpyro.sample(variable.name, site)
            raw = unconstrained(variable, self.supports[variable.name], value)
            return variable.join(raw, self.context.depth)

        self.walk(params, world.values, world.masks, 0, visit)
        return result

    def data_sites(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """
        Names of the sites that the guide conditions on.

        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        self._prepare(args, kwargs)
        return tuple(v.name for group in self.context.data for v in group.variables)

    def observation(self, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        The data that the model observes at the arguments.

        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        :return: dict from data site to value, and masks by group.
        :raises ValueError: if it observes none.
        """
        world = self._world_outside(random.key(0), args, kwargs)
        return world.values, world.masks

    def masked_latents(self, *args: Any, **kwargs: Any) -> list[str]:
        """
        Latents of which not everything counts in the model's density at the arguments.

        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        return masked_latents(self.model, self.supports, args, kwargs)

    def sample_posterior(
        self,
        rng_key: jax.Array,
        params: Mapping[str, Any],
        *args: Any,
        sample_shape: Sequence[int] = (),
        **kwargs: Any,
    ) -> dict[str, jax.Array]:
        """
        Draws of all latents given the data at the arguments.

        :param rng_key: random key.
        :param params: params of the guide.
        :param args: arguments of the model, with the data in their place.
        :param sample_shape: shape of the draws.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to values of shape sample + shape of the site.
        """
        look_key, draw_key = random.split(rng_key)
        world = self._world_outside(look_key, args, kwargs)
        sizes, own = tuple(world.sizes.items()), self._own(params)
        draw = self._jit(draws, (0, 1, 2, 7))
        return draw(self, tuple(sample_shape), sizes, draw_key, own, world.values, world.masks)

    def log_prob(
        self, params: Mapping[str, Any], values: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> jax.Array:
        """
        Log density of latents given the data at the arguments, in nats; normalised.

        :param params: params of the guide.
        :param values: dict from every latent to values of shape sample + shape of the site.
        :param args: arguments of the model, with the data in their place.
        :param kwargs: keyword arguments of the model.
        :return: of shape sample.
        """
        world = self._world_outside(random.key(0), args, kwargs)
        latents = {}
        for name in self.supports:
            if name not in values:
                raise ValueError(messages.missing_value(name, values))
            latents[name] = jnp.asarray(values[name])
        sizes, own = tuple(world.sizes.items()), self._own(params)
        score = self._jit(log_prob, (0, 1, 6))
        return score(self, sizes, latents, own, world.values, world.masks)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled": {}, "_flows": {}}

    def _jit(self, fn: Callable[..., Any], static: tuple[int, ...]) -> Any:
        """``fn`` compiled, once for this guide."""
        if fn not in self._compiled:
            self._compiled[fn] = jax.jit(fn, static_argnums=static)
        return self._compiled[fn]

    def _own(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The guide's params among others."""
        names = [self.standardisation_name, *self.net_names]
        for name in names:
            if name not in params:
                raise KeyError(messages.no_params(name))
        return {name: params[name] for name in names}

    # What the guide knows of the model.

    def _prepare(self, args: Any, kwargs: Any) -> None:
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        with handlers.block():
            key = numpyro.prng_key()
            key = random.key(0) if key is None else key
            one, other = (traced(self.model, k, args, kwargs) for k in random.split(key))
        samples = {n: s for n, s in one.items() if s["type"] == "sample"}
        observed = self.observed
        if observed is None:
            observed = tuple(n for n, s in samples.items() if is_data(s))
        if not observed:
            raise ValueError(messages.nothing_observed())
        for name in observed:
            if name not in samples:
                raise ValueError(messages.no_data_site(name, samples))
        latents = {n: s for n, s in samples.items() if n not in observed and not s["is_observed"]}
        if not latents:
            raise ValueError(messages.no_latents())
        for name, site in latents.items():
            pair = jax.tree.leaves((site["fn"].support, other[name]["fn"].support))
            half = len(pair) // 2
            for a, b in zip(pair[:half], pair[half:], strict=True):
                if not np.array_equal(a, b):
                    raise ValueError(messages.support_moves(name))
        self.supports = {name: site["fn"].support for name, site in latents.items()}
        self._context = Context(
            [latent_of(name, site, self.truncates) for name, site in latents.items()],
            [data_of(name, samples[name]) for name in observed],
        )
        self._context.masked = frozenset(group_masks(self._context, samples, {}))
        self.prototype_trace = one

    def simulated(
        self, rng_key: jax.Array, num_runs: int, args: Any, kwargs: Any
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]:
        """
        Latents, unconstrained, data and masks of runs of the model.

        :param rng_key: random key.
        :param num_runs: number of runs, in front of every value.
        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        args, kwargs = converted((args, kwargs), as_array)
        return simulated(self.model, self.context, self.supports, rng_key, num_runs, args, kwargs)

    def _params(self, args: Any, kwargs: Any) -> tuple[dict[str, Any], bool]:
        """The guide's params, declared where they are not there yet, and whether they were not."""
        name, fitted = self.standardisation_name, []

        def fit(key: jax.Array) -> Any:
            fitted.append(self._fitted(key, args, kwargs))
            return fitted[0]

        found = {name: numpyro.param(name, fit)}
        for group in self.context.groups:

            def start(key: jax.Array, group: Group = group) -> Any:
                return self.initial_nets(key, found[name], group)

            found[self.params_name(group)] = numpyro.param(self.params_name(group), start)
        for own in self.learned_names:
            found[own] = numpyro.param(own, self.initial_embeddings)
        return found, bool(fitted)

    def initial_nets(self, rng_key: jax.Array, fitted: Any, group: Group) -> dict[str, Any]:
        """
        Params of a group's nets before any training.

        :param rng_key: random key.
        :param fitted: the standardisation.
        :param group: the group.
        """
        keys = iter(random.split(rng_key, 64))
        sizes = self._initial_sizes(fitted, group)
        params: dict[str, Any] = {}
        if self.has_mixtures(group):
            params = initial(lambda shape: random.normal(next(keys), shape), **sizes)
        for number, flow in enumerate(self.flows(group, sizes["inputs"]).values()):
            params |= flow.initial(random.fold_in(rng_key, number))
        return {key: jnp.asarray(value) for key, value in params.items()}

    def _decide(self, args: Any, kwargs: Any) -> None:
        """Find out in which plates elements differ, where nobody has yet."""
        if self.ordered_plates is not None:
            return
        runs: Any = ({}, {}, {})
        if self.exchangeable is None and self.context.depth:
            runs = self.simulated(random.key(0), 500, args, kwargs)
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(runs)):
                raise ValueError(messages.decide_outside_jit())
        self.decide(*runs)

    def _fitted(self, rng_key: jax.Array, args: Any, kwargs: Any) -> Any:
        simulated = self.simulated(rng_key, self.init_samples, args, kwargs)
        few = jax.tree.map(lambda x: np.ones((2, *x.shape[1:]), x.dtype), simulated)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.fitted(*few))
        return jax.pure_callback(self.fitted, shapes, *simulated)

    def drawn_shape(self, name: str) -> tuple[int, ...]:
        """
        The shape of what the model draws at a site.

        :param name: of the site.
        """
        return jnp.shape(observed_value(self.prototype_trace[name]))

    def unconstrained(self, variable: Variable, values: Any) -> np.ndarray:
        """
        Values of a latent as the conditionals take them.

        :param variable: the latent.
        :param values: of shape (simulations,) + shape of the site.
        :return: outside of the support NaN, or what lies outside alike.
        """
        value, support = jnp.asarray(values), self.supports[variable.name]
        found = unconstrained(variable, support, value)
        if variable.low is None and (ends := interval_of(support)) is not None:
            found = jnp.where((value < ends[0]) | (value > ends[1]), jnp.nan, found)
        return np.asarray(found)

    def fitted(self, latents: Any, data: Any, masks: Any) -> Any:
        """
        The standardisation that simulations give: nested dicts of arrays.

        :param latents: unconstrained values by site, of shape (simulations,) + site's.
        :param data: values by observed site, alike.
        :param masks: what counts of the data, by group.
        """
        host = jax.tree.map(np.asarray, (latents, data, masks))
        return self.context.fit(*host)

    def site(
        self,
        group: Group,
        variable: Variable,
        conditional: Conditional,
        sizes: Mapping[str, int],
        lead: tuple[int, ...],
    ) -> ConditionalSite:
        """
        The distribution of a latent.

        :param group: its group.
        :param variable: the latent.
        :param conditional: of its numbers.
        :param sizes: of plates by name.
        :param lead: dims of samples in front.
        """
        plates = [1] * self.context.depth
        for name, dim in group.dims.items():
            plates[dim] = sizes[name]
        support, event = self.supports[variable.name], self.prototype_trace[variable.name]["fn"]
        shape = (*lead, *plates)
        return ConditionalSite(conditional, support, shape, len(lead), event.event_shape)

    # What a call sees.

    def _world_outside(self, rng_key: jax.Array, args: Any, kwargs: Any) -> World:
        args, kwargs = converted((args, kwargs), as_array)
        with handlers.block(), handlers.seed(rng_seed=rng_key):
            self._prepare(args, kwargs)
            self._decide(args, kwargs)
            return look(self.model, self.context, None, {}, args, kwargs)
