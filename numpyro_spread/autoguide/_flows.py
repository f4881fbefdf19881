# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Flows of flowjax, and other distributions that are pytrees, at sites of an amortised guide.

flowjax's own bridge to NumPyro stops gradients at the condition, so that a net before it would
never train; distributions are called here without it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import random

from spread_core.amortized.flow import leaf_name
from spread_core.amortized.flow_sites import Build, HasDensity
from spread_core.messages import amortized as messages
from spread_core.messages import general

T = TypeVar("T")


def named(density: str, hidden: Sequence[int]) -> Build:
    """
    What makes flowjax's flow of a name.

    :param density: the name.
    :param hidden: sizes of the hidden layers, all the same.
    :raises ValueError: if they differ.
    :raises ImportError: if flowjax is missing.
    """
    try:
        for module in ("flows", "bijections", "distributions"):
            importlib.import_module(f"flowjax.{module}")
    except ImportError as error:
        raise ImportError(general.missing_extra(f"density='{density}'", "flows", error)) from error
    if len(set(hidden)) > 1:
        raise ValueError(messages.uneven_nets(hidden))
    return functools.partial(_flow, density, hidden[0], len(hidden))


def _flow(density: str, width: int, depth: int, key: jax.Array, features: int, context: int) -> Any:
    """A flow of as many transforms, and splines of as many bins, as zuko's have."""
    flowjax = importlib.import_module("flowjax")
    splines = flowjax.bijections.RationalQuadraticSpline
    return flowjax.flows.masked_autoregressive_flow(
        key,
        base_dist=flowjax.distributions.StandardNormal((features,)),
        transformer=splines(knots=8, interval=5) if density == "nsf" else None,
        cond_dim=context,
        flow_layers=3,
        nn_width=width,
        nn_depth=depth,
    )


class HasFlows(HasDensity):
    """A guide whose sites may have flows."""

    def _builder(self, density: str) -> Build:
        return named(density, self.hidden)

    def _new_flow(self, build: Build, site: str, features: int, context: int) -> PytreeFlow:
        return PytreeFlow(build, site, features, context, self.ensemble)


class PytreeFlow:
    """
    The density of a site: a distribution that is a pytree, with params for every member.

    :param build: makes the distribution from a key and the numbers of features and of context.
    :param site: name of the site.
    :param features: length of the site's vectors.
    :param context: length of what they are conditioned on.
    :param members: M.
    :raises ValueError: if what is made is no distribution of such vectors.
    """

    has_rsample = True

    def __init__(self, build: Build, site: str, features: int, context: int, members: int) -> None:
        self._members = members
        self._make: Callable[[jax.Array], Any] = lambda key: build(key, features, context)
        # What is no param, such as the order of the latents in a layer, is the same every time.
        self._like = _known(lambda: self._make(random.key(0)))
        self._paths = list(_trained(self._like))
        self.names = [leaf_name(site, path) for path in self._paths]
        wrong = functools.partial(messages.wrong_density, site, features, context)
        try:
            shapes = jax.eval_shape(self._try, jnp.zeros((2, features)), jnp.zeros((2, context)))
        except Exception as error:
            raise ValueError(wrong(f"{type(error).__name__}: {error}")) from error
        found = tuple(part.shape for part in shapes)
        if found != ((2,), (2, features)):
            raise ValueError(wrong(f"of 2 contexts it gave densities and draws of shapes {found}"))

    def _try(self, t: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self._like.log_prob(t, context), self._like.sample(random.key(0), (), context)

    def initial(self, rng_key: jax.Array) -> dict[str, jax.Array]:
        """
        New params, (M, ...) each.

        :param rng_key: random key.
        """
        made = [_trained(self._make(key)) for key in random.split(rng_key, self._members)]
        return {
            name: jnp.stack([params[path] for params in made])
            for name, path in zip(self.names, self._paths, strict=True)
        }

    def log_prob(
        self, params: Mapping[str, jax.Array], t: jax.Array, context: jax.Array
    ) -> jax.Array:
        """
        Log density in nats, of shape (M,) + batch.

        :param params: of the group, (M, ...) each.
        :param t: standardised vectors, (1 or M,) + batch + (size,).
        :param context: what they are conditioned on, (1 or M,) + batch + (C,).
        """
        own, (t, context) = self._own(params), map(self._of_members, (t, context))
        return jax.vmap(lambda leaves, *rows: self._with(leaves).log_prob(*rows))(own, t, context)

    def draw(
        self, params: Mapping[str, jax.Array], context: jax.Array, choose: jax.Array, key: Any
    ) -> jax.Array:
        """
        Vectors of shape batch + (size,), each from one of the members.

        :param params: of the group, (M, ...) each.
        :param context: what they are conditioned on, (1 or M,) + batch + (C,).
        :param choose: uniform numbers of shape batch, which choose the member.
        :param key: random key.
        """

        def one(leaves: Any, key: jax.Array, context: jax.Array) -> jax.Array:
            found: jax.Array = self._with(leaves).sample(key, (), context)
            return found

        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):  # flowjax takes no old keys
            key = random.wrap_key_data(key)
        keys = random.split(key, self._members)
        each = jax.vmap(one)(self._own(params), keys, self._of_members(context))
        member = jnp.clip((choose * self._members).astype(int), 0, self._members - 1)
        return jnp.take_along_axis(each, member[None, ..., None], axis=0)[0]

    def _own(self, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        named = zip(self.names, self._paths, strict=True)
        return {path: params[name] for name, path in named}

    def _of_members(self, part: jax.Array) -> jax.Array:
        return jnp.broadcast_to(part, (self._members, *part.shape[1:]))

    def _with(self, leaves: Mapping[str, jax.Array]) -> Any:
        """The distribution with other params."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaves.get(jax.tree_util.keystr(path), leaf),
            self._like,
            is_leaf=_is_fixed,
        )


def _trained(made: Any) -> dict[str, jax.Array]:
    """Arrays of numbers by their path, but for what is marked as not to be trained."""
    leaves = jax.tree_util.tree_flatten_with_path(made, is_leaf=_is_fixed)[0]
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in leaves
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def _is_fixed(leaf: Any) -> bool:
    try:
        paramax = importlib.import_module("paramax")
    except ImportError:
        return False
    return isinstance(leaf, paramax.NonTrainable)


def _known(build: Callable[[], T]) -> T:
    """What a function builds, of known arrays also under jit: a thread has no trace of its own."""
    if not isinstance(jnp.zeros(()) + 1, jax.core.Tracer):
        return build()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(build).result()
