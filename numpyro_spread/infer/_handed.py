# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The noisy values that a model is handed, and a look at what it does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro.primitives import Messenger

from numpyro_spread.infer._noise import draw_at
from numpyro_spread.noise import SpreadNoise
from spread_analysis import _messages
from spread_analysis._arguments import Key, get_argument, replace_arguments
from spread_analysis._messages import spreading
from spread_analysis._patterns import key_of
from spread_analysis._use_of_data import UseOfData, layout


class Handed:
    """
    Fresh y for every argument that carries data, and the arguments with them in place.

    :param rng_key: random key.
    :param noise: dict from site or pattern to kernel.
    :param use: how the model uses its data; noise is drawn accordingly.
    :param located: dict from site or pattern to the place of its data.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param rows: dict from place to the indices that alone are read of it.
    """

    def __init__(
        self,
        rng_key: jax.Array,
        noise: Mapping[str, SpreadNoise],
        use: UseOfData,
        located: Mapping[str, Key],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rows: Mapping[Key, jax.Array],
    ) -> None:
        self.noise, self.use, self.located = noise, use, located
        self.shapes: dict[Key, tuple[int, ...]] = {}
        #: Arguments on which noise can be drawn only when the shape of the site is known.
        self.undrawn: dict[Key, ValueError] = {}
        y: dict[Key, Any] = {}
        keys = random.split(rng_key, max(1, len(located)))
        for (site, key), site_key in zip(located.items(), keys, strict=False):
            if key not in y:
                x = get_argument(key, args, kwargs)
                self.shapes[key] = jnp.shape(x)
                kernel = noise[str(key_of(noise, site))]
                y[key] = self._draw(site_key, site, key, kernel, x, rows.get(key))
        #: The y by site or pattern.
        self.values = {site: y[key] for site, key in located.items()}
        self.args, self.kwargs = replace_arguments(y, args, kwargs)

    def _draw(
        self,
        rng_key: jax.Array,
        site: str,
        key: Key,
        kernel: SpreadNoise,
        x: Any,
        rows: jax.Array | None,
    ) -> Any:
        layout = self.use.layouts.get(key)
        if rows is not None:
            dim = self.use.rows[key]
            part = jnp.take(jnp.asarray(x), rows, axis=dim)
            shape = None if layout is None else (len(rows), *layout[1:])
            here = (slice(None),) * dim + (rows,)
            return jnp.asarray(x).at[here].set(draw_in(shape, rng_key, site, kernel, part))
        try:
            return draw_in(layout, rng_key, site, kernel, x)
        except ValueError as error:
            if layout is not None or kernel._moves_with_data():
                raise
            self.undrawn[key] = error
            return jnp.asarray(x)


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


class Watch(Messenger):
    """
    Looks at what a model does with the values that it was handed.

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
        site = key_of(handed.located, msg["name"])
        if site is None or not (msg["is_observed"] or msg["infer"].get("was_observed")):
            return
        key, kernel = handed.located[site], handed.noise[str(key_of(handed.noise, site))]
        observed = msg["value"] if msg["is_observed"] else msg["infer"]["obs"]
        event = tuple(msg["fn"].event_shape)
        batch_dim = jnp.ndim(observed) - len(event) - getattr(kernel, "_added_dims", 0)
        value = (*jnp.shape(observed)[: max(0, batch_dim)], *event)  # in the coordinates of x
        drawn = handed.use.layouts.get(key, handed.shapes[key])
        if kernel._drawn_alike(drawn, value, len(event)):
            if key in handed.undrawn:
                raise handed.undrawn[key]
            return
        wanted = layout(handed.shapes[key], value, event)
        if wanted is not None and wanted != drawn and key not in handed.use.layouts:
            handed.use.see_layout(key, wanted)
        if key in handed.undrawn:
            raise handed.undrawn[key]
        try:
            kernel.spread(msg["fn"])  # its own refusal says more
        except (TypeError, ValueError, NotImplementedError) as error:
            raise type(error)(_messages.at_site(msg["name"], error)) from error
        kind = type(kernel).__name__
        raise ValueError(spreading.layout_misfit(msg["name"], kind, handed.shapes[key], value))
