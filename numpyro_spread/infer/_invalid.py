# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulations that fail: which data of a run are NaN or inf, and how to leave them out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numpyro_spread._host_calls import call_if
from numpyro_spread.noise.base import is_concrete
from spread_core.messages import simulations
from spread_core.nonfinite import NonFiniteError, Told


class Invalid:
    """
    Which data of a run are NaN or inf; known when it runs, and at once only where it is concrete.

    :param values: dict from site to its draws.
    :param axes: dict from site to the axes, negative, along which its data lie; none if it is one
        datum.
    :param masks: dict from site to which elements of it count, None if all do.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        axes: Mapping[str, Sequence[int]],
        masks: Mapping[str, Any] | None = None,
    ) -> None:
        #: Which data are bad, by site.
        self.by_site: dict[str, Any] = {}
        self.total = 1
        for name, value in values.items():
            self.total = len(rows_first(value, axes[name]))
            if not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
                continue
            here: Any = jnp if isinstance(value, jax.Array) else np
            bad, mask = ~here.isfinite(value), (masks or {}).get(name)
            if mask is not None:
                bad = bad & mask
            self.by_site[name] = rows_first(bad, axes[name]).reshape(self.total, -1).any(-1)

    @property
    def rows(self) -> Any:
        """Which data are bad at any site."""
        none = jnp.zeros(self.total, bool)
        return functools.reduce(jnp.logical_or, self.by_site.values(), none)

    @property
    def counts(self) -> dict[str, Any]:
        """Number of bad data by site."""
        return {name: lax.stop_gradient(rows.sum()) for name, rows in self.by_site.items()}

    @property
    def none_good(self) -> Any:
        """Whether no datum is good."""
        return self.rows.all()

    def among(self, scored: Any) -> Invalid:
        """
        The bad data that are not masked where the data are used.

        :param scored: which data it has not masked.
        """
        left = Invalid({}, {})
        left.total = self.total
        left.by_site = {name: rows & scored for name, rows in self.by_site.items()}
        return left

    def refuse(self, may_exclude: bool = False) -> None:
        """
        Refuse bad data, as far as they are known now.

        :raises NonFiniteError: naming site and number.
        """
        if not is_concrete(*self.by_site.values()):
            return
        counts = {name: int(count) for name, count in self.counts.items() if int(count)}
        if counts:
            raise NonFiniteError(simulations.failed(counts, self.total, may_exclude))

    @contextmanager
    def blamed(self, may_exclude: bool = False) -> Iterator[None]:
        """
        Run a computation with the data; blame its errors on bad data, if there are any.

        :raises NonFiniteError: instead of its error, if there are bad data.
        """
        try:
            yield
        except Exception:
            self.refuse(may_exclude)
            raise

    def replaced(self, value: Any, axes: Sequence[int], otherwise: Any = 0.0) -> jax.Array:
        """
        ``value`` with a good datum instead of each bad one, so that it can be computed with.

        :param value: of a site.
        :param axes: along which its data lie.
        :param otherwise: what stands there if no datum is good.
        """
        rows = self.rows
        source = jnp.where(rows, jnp.argmin(rows), jnp.arange(self.total))
        front = tuple(range(len(axes)))
        shape = jnp.moveaxis(value, tuple(axes), front).shape
        copied = jnp.moveaxis(rows_first(value, axes)[source].reshape(shape), front, tuple(axes))
        return jnp.where(self.none_good, jnp.asarray(otherwise, copied.dtype), copied)

    def good(self, ndim: int, axes: Sequence[int], sizes: Sequence[int]) -> jax.Array:
        """
        Which data are good, to be broadcast to a value.

        :param ndim: number of dimensions of the value.
        :param axes: along which its data lie.
        :param sizes: of these axes.
        """
        shaped = (~self.rows).reshape(*sizes, *[1] * (ndim - len(axes)))
        return jnp.moveaxis(shaped, tuple(range(len(axes))), tuple(axes))


def rows_first(value: Any, axes: Sequence[int]) -> jax.Array:
    """
    ``value`` with its data in front, along one axis.

    :param value: of a site.
    :param axes: along which its data lie, negative.
    """
    moved = jnp.moveaxis(value, tuple(axes), tuple(range(len(axes))))
    size = int(np.prod(moved.shape[: len(axes)], dtype=int))
    return moved.reshape(size, *moved.shape[len(axes) :])


class Noted:
    """Numbers of bad data by site and of all data, noted in the runs of one call."""

    def __init__(self) -> None:
        self.counts: dict[str, Any] = {}
        self.total = 0
        self.left_out: bool | None = None

    def add(self, counts: Mapping[str, Any], total: int, left_out: bool | None) -> None:
        """Add one run."""
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        self.total += total
        self.left_out = left_out


_noted: ContextVar[Noted | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[Noted]:
    """Collects what :func:`note` is told inside the context, in this trace of JAX."""
    noted = Noted()
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def note(counts: Mapping[str, Any], total: int, left_out: bool | None = None) -> None:
    """
    Hand on how many data of a run are bad.

    :param counts: dict from site to their number.
    :param total: number of data.
    :param left_out: whether they have been left out, or None if that cannot be.
    """
    noted = _noted.get()
    if noted is not None:
        noted.add(counts, total, left_out)


def tells_of_failures(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method ``(self, rng_key, ...)`` of a loss that says once if simulations have failed."""

    @functools.wraps(method)
    def wrapped(self: Any, rng_key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        with noting() as noted:
            result = method(self, rng_key, *args, **kwargs)
        if noted.counts:
            told = vars(self).setdefault("_told", Told())
            names, total, left_out = list(noted.counts), noted.total, noted.left_out

            def tell(*counts: np.ndarray) -> None:
                seen = {n: int(c) for n, c in zip(names, counts, strict=True) if c}
                told(seen, total, bool(left_out), left_out is not None)

            numbers = [jnp.asarray(count, float) for count in noted.counts.values()]
            amiss = jnp.stack(numbers).sum() > 0
            loss = jnp.asarray(result["loss"])
            one = call_if(amiss, tell, *numbers).astype(loss.dtype)
            result = {**result, "loss": loss * one}
        return result

    return wrapped
