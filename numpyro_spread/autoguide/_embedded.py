# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A module of the user's in front of a data site of an amortised guide."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import random

from numpyro_spread.ratio.binding import bind
from spread_core.amortized.embedding import Normal, dummy, leaf_name
from spread_core.amortized.layout import Variable
from spread_core.messages import embeddings as messages
from spread_core.messages.notes import noting

_ROWS = 3
_COUPLED = ("BatchNorm", "Dropout")


class OwnEmbedding:
    """
    The module, for every member of an ensemble. Modules that hold params start with these.

    :param module: takes (batch,) + shape of an element, and returns (batch, K); a module of
        equinox takes one element.
    :param variable: the site.
    :raises ValueError: if it returns another shape, or elements of a batch depend on each other.
    """

    def __init__(self, module: Any, variable: Variable) -> None:
        if part := _coupled_part(module):
            raise ValueError(messages.coupled_embedding(variable.name, part))
        self._site, self._bound = variable.name, bind(module)
        x = jnp.asarray(dummy(_ROWS, variable))
        self._example = x

        def made(key: jax.Array) -> Any:
            return self._bound.call_rows(self._bound.init_call(key, x), x)

        failed = noting(lambda: messages.embedding_failed(self._site, x.shape))
        with _without_chance(self._site), failed:
            self._empty = jax.eval_shape(self._start, random.key(0))
            found = jax.eval_shape(made, random.key(0))
        if self._bound.coupled:
            raise ValueError(messages.coupled_embedding(self._site, "batch normalisation"))
        shape = getattr(found, "shape", type(found).__name__)
        if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != _ROWS:
            raise ValueError(messages.embedding_shape(self._site, x.shape, shape))
        self.width: int = shape[1]

    def _start(self, key: jax.Array) -> Any:
        return self._bound.init_call(key, self._example)

    def initial(self, normal: Normal, members: int, key: jax.Array) -> dict[str, jax.Array]:
        """Params before any training, (M, ...) each."""
        trees = [self._start(each) for each in random.split(key, members)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        return dict(zip(self._names(), jax.tree.leaves(stacked), strict=True))

    def __call__(self, params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
        """Elements as the conditionals see them, (M, rows, K)."""
        leaves = [jnp.asarray(params[name]) for name in self._names()]
        own = jax.tree.unflatten(jax.tree.structure(self._empty), leaves)
        if not leaves:
            return jax.vmap(lambda rows: self._bound.call_rows(own, rows))(x)
        wide = jnp.broadcast_to(x, (len(leaves[0]), *x.shape[1:]))
        found: jax.Array = jax.vmap(self._bound.call_rows)(own, wide)
        return found

    def _names(self) -> list[str]:
        paths, _ = jax.tree.flatten_with_path(self._empty)
        keystr = jax.tree_util.keystr
        return [
            leaf_name(self._site, keystr(path, simple=True, separator="/")) for path, _ in paths
        ]


def _coupled_part(module: Any) -> str | None:
    """The layer of nnx or equinox that mixes a batch or draws; linen tells when it is called."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(module, nnx.Module):
        parts = [part for _, part in nnx.iter_graph(module)]
    else:
        parts = jax.tree.leaves(module, is_leaf=lambda part: type(part).__name__ in _COUPLED)
    for part in parts:
        name = type(part).__name__
        still = getattr(part, "deterministic", False) or getattr(part, "inference", False)
        rate = getattr(part, "rate", getattr(part, "p", 0))
        if name == "BatchNorm" or (name == "Dropout" and rate and not still):
            return name
    return None


@contextmanager
def _without_chance(site: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "InvalidRngError":
            raise ValueError(messages.coupled_embedding(site, "dropout")) from error
        raise


class HasEmbeddings:
    """What a guide of NumPyro does with its embeddings."""

    initial_embedding: Any

    def initial_embeddings(self, rng_key: jax.Array) -> dict[str, jax.Array]:
        """
        Params of the learned embeddings before any training; none without.

        :param rng_key: random key.
        """
        keys = (random.fold_in(rng_key, number) for number in itertools.count(1))
        found = self.initial_embedding(lambda shape: random.normal(next(keys), shape), rng_key)
        return {key: jnp.asarray(value) for key, value in found.items()}

    def _check_module(self, module: Any) -> None:
        if _coupled_part(module):
            return  # which is said with the name of the site
        try:
            bind(module)
        except TypeError:
            wanted = "a module of flax linen, flax nnx or equinox"
            raise TypeError(messages.no_embedding(module, wanted)) from None

    def _new_embedding(self, module: Any, variable: Variable) -> OwnEmbedding:
        return OwnEmbedding(module, variable)
