# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noisy values for the arguments of a model, and a check of how the model uses them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro.primitives import Messenger

from numpyro_spread.infer._noise import draw_at, draw_told
from numpyro_spread.noise import MultiLevelNoise, SpreadNoise
from spread_core.arguments import Key, get_argument, replace_arguments
from spread_core.observations import check_observation, check_told
from spread_core.patterns import key_of
from spread_core.use_of_data import UseOfData


class Handed:
    """
    A noisy y for every argument that carries data, and the arguments with them in place.

    :param y: dict from place to y.
    :param noise: dict from site or pattern to kernel.
    :param use: how the model uses its data.
    :param located: dict from site or pattern to the place of its data.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param undrawn: places where there is no noise yet, since the shape of the site must be known.
    :param levels: dict from site to level, as far as asked for.
    """

    def __init__(
        self,
        y: Mapping[Key, jax.Array],
        noise: Mapping[str, SpreadNoise],
        use: UseOfData,
        located: Mapping[str, Key],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        undrawn: Mapping[Key, ValueError],
        levels: Mapping[str, jax.Array] | None = None,
    ) -> None:
        self.levels = dict(levels or {})
        self.noise, self.use, self.located, self.undrawn = noise, use, located, undrawn
        self.shapes = {key: jnp.shape(get_argument(key, args, kwargs)) for key in y}
        #: The y by site or pattern.
        self.values = {site: y[key] for site, key in located.items()}
        #: The x by site or pattern.
        self.clean = {site: get_argument(key, args, kwargs) for site, key in located.items()}
        self.args, self.kwargs = replace_arguments(y, args, kwargs)


def draw_noise(
    rng_key: jax.Array,
    noise: Mapping[str, SpreadNoise],
    use: UseOfData,
    located: Mapping[str, Key],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    asked: Collection[str] = (),
    guess: Mapping[Key, int] | None = None,
) -> Handed:
    """
    Fresh y, to replace x.

    :param rng_key: random key.
    :param noise: dict from site or pattern to kernel.
    :param use: how the model uses its data; noise is drawn accordingly.
    :param located: dict from site or pattern to the place of its data.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param asked: sites whose levels somebody wants to know.
    :param guess: dict from place to event dims, for sites of which they are not known yet.
    """
    noise, levels = dict(noise), {}
    y: dict[Key, jax.Array] = {}
    undrawn: dict[Key, ValueError] = {}
    keys = random.split(rng_key, max(1, len(located)))
    for (site, key), site_key in zip(located.items(), keys, strict=False):
        if key in y:
            continue
        x = get_argument(key, args, kwargs)
        kernel = use.kernel_at(key, noise[str(key_of(noise, site))])
        shape = use.layouts.get(key)
        if site in asked:
            laid = jnp.reshape(x, jnp.shape(x) if shape is None else shape)
            event_dim = use.events[key] if key in use.events else (guess or {}).get(key, 0)
            kernel = kernel._at_events(event_dim)
            noisy, level, index = draw_told(site_key, site, kernel, laid, event_dim)
            assert level is not None
            y[key], levels[site] = noisy.reshape(jnp.shape(x)), level
            if index is not None and isinstance(kernel, MultiLevelNoise):
                one_hot = jax.nn.one_hot(index, len(kernel.levels), dtype=noisy.dtype)
                noise[site] = kernel._told(one_hot)
            continue
        try:
            y[key] = draw_in(shape, site_key, site, kernel, x)
        except ValueError as error:
            if shape is not None or kernel._moves_with_data():
                raise
            undrawn[key], y[key] = error, jnp.asarray(x)
    check_told(asked, levels, located)
    return Handed(y, noise, use, located, args, kwargs, undrawn, levels)


def draw_rows(
    rng_key: jax.Array,
    noise: Mapping[str, SpreadNoise],
    use: UseOfData,
    located: Mapping[str, Key],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    indices: Mapping[Key, jax.Array],
) -> dict[Key, jax.Array]:
    """
    Fresh rows of y, along the dims that plates subsample.

    :param rng_key: random key.
    :param noise: dict from site or pattern to kernel.
    :param use: how the model uses its data.
    :param located: dict from site or pattern to the place of its data.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param indices: dict from place to the rows to draw.
    """
    rows: dict[Key, jax.Array] = {}
    keys = random.split(rng_key, len(located))
    for (site, key), site_key in zip(located.items(), keys, strict=True):
        if key not in rows:
            x, index = jnp.asarray(get_argument(key, args, kwargs)), indices[key]
            shape = use.layouts.get(key)
            shape = None if shape is None else (len(index), *shape[1:])
            clean = jnp.take(x, index, axis=use.rows[key])
            kernel = use.kernel_at(key, noise[str(key_of(noise, site))])
            rows[key] = draw_in(shape, site_key, site, kernel, clean)
    return rows


def draw_in(
    shape: tuple[int, ...] | None, rng_key: jax.Array, site: str, kernel: SpreadNoise, x: Any
) -> jax.Array:
    """
    Noise on x, drawn as if it had another shape; None for its own.

    :param shape: with as many elements.
    :param rng_key: random key.
    :param site: named in errors.
    :param kernel: the kernel.
    :param x: the clean values.
    """
    if shape is None:
        return draw_at(rng_key, site, kernel, x)
    y = draw_at(rng_key, site, kernel, jnp.reshape(x, shape))
    return y.reshape(jnp.shape(x))


# Whether the loss calls the guide that ``register`` returned, with levels: all was checked before.
_told: ContextVar[bool] = ContextVar("numpyro_spread_told", default=False)


def by_the_loss(guide: Callable[..., Any]) -> Callable[..., Any]:
    """
    A guide that is told levels by the loss: they are no arguments of the user's.

    :param guide: the guide, which has them.
    """

    @functools.wraps(guide)
    def told(*args: Any, **kwargs: Any) -> Any:
        token = _told.set(True)
        try:
            return guide(*args, **kwargs)
        finally:
            _told.reset(token)

    return told


def is_told() -> bool:
    """Whether the guide is run that :func:`by_the_loss` returned."""
    return _told.get()


class Watch(Messenger):
    """
    Check what a model does with the values that it was given.

    :param fn: the model; without one, a context manager.
    :param handed: these values.
    :raises Learned: in the model, if noise should have been drawn otherwise.
    """

    def __init__(self, fn: Callable[..., Any] | None, handed: Handed) -> None:
        self._handed = handed
        super().__init__(fn)

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            for error in self._handed.undrawn.values():
                raise error

    def process_message(self, msg: Any) -> None:
        """Look at plates and at what sites observe."""
        handed = self._handed
        if msg["type"] == "plate":
            size, taken = msg["args"]
            value = msg["value"]
            taken = taken if value is None else len(value)
            if taken is not None:
                handed.use.see_plate(msg["name"], size, taken, handed.shapes)
            return
        if msg["type"] != "sample":
            return
        if msg["is_observed"]:
            check_observation(handed, msg["name"], msg["fn"], msg["value"])
        elif msg["infer"].get("was_observed"):
            check_observation(handed, msg["name"], msg["fn"], msg["infer"]["obs"])
