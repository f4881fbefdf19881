# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noisy values for the arguments of a model, and a check of how the model uses them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from pyro_spread._recording import values_known
from pyro_spread.infer._noise import draw_at, draw_told
from pyro_spread.infer._rows import NoisyRows
from pyro_spread.noise import MultiLevelNoise, SpreadNoise
from spread_core.arguments import Key, get_argument, replace_arguments
from spread_core.observations import check_observation, check_told
from spread_core.patterns import key_of
from spread_core.use_of_data import UseOfData


class Handed:
    """
    Fresh y for every argument that carries data, and the arguments with them in place.

    :param noise: dict from site or pattern to kernel.
    :param use: how the model uses its data; noise is drawn accordingly.
    :param located: dict from site or pattern to the place of its data.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param asked: sites whose levels somebody wants to know.
    :param guess: dict from place to event dims, for sites of which they are not known yet.
    """

    def __init__(
        self,
        noise: Mapping[str, SpreadNoise],
        use: UseOfData,
        located: Mapping[str, Key],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        asked: Collection[str] = (),
        guess: Mapping[Key, int] | None = None,
    ) -> None:
        self.noise, self.use, self.located = dict(noise), use, located
        #: The levels by site, as far as asked for.
        self.levels: dict[str, torch.Tensor] = {}
        self.shapes: dict[Key, tuple[int, ...]] = {}
        #: Arguments on which noise can be drawn only when the shape of the site is known.
        self.undrawn: dict[Key, ValueError] = {}
        y: dict[Key, torch.Tensor] = {}
        for site, key in located.items():
            if key not in y:
                x = get_argument(key, args, kwargs)
                self.shapes[key] = tuple(x.shape)
                kernel = use.kernel_at(key, noise[str(key_of(noise, site))])
                if site in asked:
                    event_dim = use.events[key] if key in use.events else (guess or {}).get(key, 0)
                    y[key] = self._draw_told(site, key, kernel._at_events(event_dim), x, event_dim)
                else:
                    y[key] = self._draw(site, key, kernel, x)
        check_told(asked, self.levels, located)
        #: The y by site or pattern.
        self.values = {site: y[key] for site, key in located.items()}
        #: The x by site or pattern.
        self.clean = {site: get_argument(key, args, kwargs) for site, key in located.items()}
        self.args, self.kwargs = replace_arguments(y, args, kwargs)

    def _draw(self, site: str, key: Key, kernel: SpreadNoise, x: torch.Tensor) -> torch.Tensor:
        layout = self.use.layouts.get(key)

        def draw(part: torch.Tensor) -> torch.Tensor:
            if layout is None:
                return draw_at(site, kernel, part)
            shape = (len(part), *layout[1:]) if rows else layout
            return draw_at(site, kernel, part.reshape(shape)).reshape(part.shape)

        dim = self.use.rows.get(key)
        rows = dim is not None and (layout is None or (dim == 0 and layout[:1] == x.shape[:1]))
        if dim is not None and rows and _is_drawn_by_rows(kernel, x, dim, draw):
            return NoisyRows(x, draw, dim)
        rows = False
        try:
            return draw(x)
        except ValueError as error:
            if layout is not None or kernel._moves_with_data():
                raise
            self.undrawn[key] = error
            return x

    def _draw_told(
        self, site: str, key: Key, kernel: SpreadNoise, x: torch.Tensor, event_dim: int
    ) -> torch.Tensor:
        laid = x.reshape(self.use.layouts.get(key, x.shape))
        y, level, index = draw_told(site, kernel, laid, event_dim)
        assert level is not None
        self.levels[site] = level
        if index is not None and isinstance(kernel, MultiLevelNoise):
            # ``one_hot`` of PyTorch reads the values, which breaks a compiled graph.
            numbers = torch.arange(len(kernel.levels), device=index.device)
            self.noise[site] = kernel._told((index[..., None] == numbers).to(y.dtype))
        return y.reshape(x.shape)


def _is_drawn_by_rows(
    kernel: SpreadNoise, x: torch.Tensor, dim: int, draw: Callable[[torch.Tensor], torch.Tensor]
) -> bool:
    """Whether rows of y can be drawn one by one, as constants in the place of those of x."""
    if not values_known():
        return False
    try:
        coupled = kernel._coupled_dims_of(x)
        placed = 0 if kernel._moves_with_data() else max(kernel._placed_dims(0), coupled)
        if x.dim() - dim <= placed:
            return False
        empty = x.narrow(dim, 0, 0)
        y = draw(empty)
    except (RuntimeError, ValueError):
        return False
    return y.shape == empty.shape and y.dtype == x.dtype and not y.requires_grad


class Watch(Messenger):
    """
    Check what a model does with the values that it was given.

    :param handed: these values.
    :raises Learned: in the model, if noise should have been drawn otherwise.
    """

    def __init__(self, handed: Handed) -> None:
        super().__init__()
        self._handed = handed

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            for error in self._handed.undrawn.values():
                raise error

    def _pyro_sample(self, msg: Any) -> None:
        handed, fn = self._handed, msg["fn"]
        if isinstance(fn, _Subsample):
            taken = fn.subsample_size if msg["value"] is None else len(msg["value"])
            if taken is not None and values_known():
                handed.use.see_plate(msg["name"], fn.size, taken, handed.shapes)
            return
        if msg["is_observed"]:
            check_observation(handed, msg["name"], fn, msg["value"])
        elif msg["infer"].get("was_observed"):
            check_observation(handed, msg["name"], fn, msg["infer"]["obs"])
