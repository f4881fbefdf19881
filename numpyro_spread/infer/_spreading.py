# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Pass data and model through the same noise, for the losses that score a likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.handlers import block, seed, substitute

from numpyro_spread._inputs import WANTED
from numpyro_spread.handlers import is_delta, site_of, spread
from numpyro_spread.infer._handed import (
    Handed,
    Watch,
    by_the_loss,
    draw_noise,
    draw_rows,
    is_told,
)
from numpyro_spread.infer._noise import declare_noise, kernels_of, kernels_with_params
from numpyro_spread.infer._noise_entropy import check_arguments, with_entropy
from numpyro_spread.infer._observation import sites_of_other_values
from numpyro_spread.infer._rows import PlatesAt, draw_indices, is_drawn_by_rows, on_rows
from numpyro_spread.infer._scan import Inside
from numpyro_spread.noise.base import BACKEND, SpreadNoise, is_concrete
from spread_core.arguments import Key, argument_name, get_argument
from spread_core.inputs import is_misplaced
from spread_core.messages import inputs, spreading
from spread_core.noise.handler import SpreadingShared, SpreadSitesInLoss
from spread_core.noise.levels import telling
from spread_core.nonfinite import NonFiniteError
from spread_core.patterns import key_of
from spread_core.use_of_data import Learned, use_of

_R = TypeVar("_R")


class Spreading(SpreadingShared):
    """Apply the noise of a loss: draw y ~ k(y | x) for the arguments, and spread the model."""

    _backend = BACKEND

    def check(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        guide: Callable[..., Any] | None = None,
    ) -> None:
        """
        Refuse wrong data, and levels that are not told; a callable ``noise`` declares its params.

        :raises ValueError: naming site and argument.
        """
        declare_noise(self.noise)
        # Predictive runs guides without data: then there is nothing to check.
        given = any(argument is not None for argument in (*args, *kwargs.values()))
        if is_told() or not self.noise or not given:
            return
        noise = kernels_of(self.noise, args, kwargs)
        self._located(model, noise, args, kwargs)
        self._asked(noise, args, kwargs, model, guide)

    @staticmethod
    def _check_array(site: str, argument: str, x: Any) -> None:
        if not isinstance(x, jax.Array | np.ndarray | np.number | float | int) or is_misplaced(x):
            raise ValueError(inputs.misplaced_argument(site, argument, x, WANTED))

    @staticmethod
    def _check_finite(site: str, argument: str, x: Any) -> None:
        # NumPy sees through jit where the data are captured, as svi.run captures them.
        if is_concrete(x) and not np.all(np.isfinite(np.asarray(x))):
            raise NonFiniteError(spreading.nonfinite_data(site, argument))

    def step(
        self,
        params: Mapping[str, Any],
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        guide: Callable[..., Any] | None = None,
    ) -> SpreadStep:
        """
        The noise of one step, to be drawn from once per particle.

        :param guide: asks for levels, as the model may, if it is known.
        :raises ValueError: if data cannot be spread, or noise has params that SVI does not know.
        """
        noise = kernels_with_params(self.noise, params, args, kwargs)
        located = self._located(model, noise, args, kwargs) if noise else {}
        asked = self._asked(noise, args, kwargs, model, guide) if guide is not None else set()
        return SpreadStep(noise, located, params, model, guide, args, kwargs, asked)

    def _look_for_events(self, step: SpreadStep) -> None:
        """
        A level has the batch of its site: the model shows its events before the guide runs.

        :raises Learned: if noise should have been drawn otherwise.
        """
        asked = step.use, step.located, step.asked, step.args, step.kwargs, step.model
        for guess in self._event_guesses(*asked):
            step.guess = step.guess or guess
            try:
                step.look(guess)
            except Learned:
                raise
            except Exception:  # what is wrong, the real run will tell
                continue

    def settled(
        self,
        params: Mapping[str, Any],
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        run: Callable[[SpreadStep], _R],
        guide: Callable[..., Any] | None = None,
    ) -> _R:
        """
        The result of ``run``, which draws noise and then runs the model.

        How to draw may depend on what the model does with its data. A run that shows it is broken
        off and made again, as if it had been known from the start.

        :param run: called with the step to draw from.
        :param guide: asks for levels, as the model may, if it is known.
        """
        while True:
            # Containers are copied, since a model may write to those of mutable sites.
            own = jax.tree.map(lambda leaf: leaf, dict(params))
            step = self.step(own, model, args, kwargs, guide)
            try:
                self._look_for_events(step)
                result = run(step)
            except Learned:
                continue
            step.use.complete = True
            return result

    def looked(
        self,
        params: Mapping[str, Any],
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        guide: Callable[..., Any] | None = None,
    ) -> SpreadStep:
        """
        The noise of a step that may run the guide alone: the model is looked at before.

        :param model: the model, which is traced where it matters how it observes its data.
        """

        def look(step: SpreadStep) -> SpreadStep:
            if not all(kernel._moves_with_data() for kernel in step.noise.values()):
                step.look()
            return step

        return self.settled(params, model, args, kwargs, look, guide)


class SpreadStep:
    """The kernels of one step, and what its particles were handed."""

    def __init__(
        self,
        noise: Mapping[str, SpreadNoise],
        located: Mapping[str, Key],
        params: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        asked: Collection[str] = (),
    ) -> None:
        self.noise, self.located, self.params = dict(noise), located, params
        self.model, self._guide, self.args, self.kwargs = model, guide, args, kwargs
        self.asked = asked
        #: Event dims of the sites whose levels are told, as long as they are not known.
        self.guess: dict[Key, int] = {}
        self._shapes: dict[str, jax.ShapeDtypeStruct] = {}
        self._suspects: dict[str, int] = {}
        shapes = {key: jnp.shape(get_argument(key, args, kwargs)) for key in located.values()}
        self.use = use_of(model, (tuple(located.items()), tuple(shapes.items())))
        self._told = self.noise, self.use, located, args, kwargs

    def draw(
        self, rng_key: jax.Array, guide: Callable[..., Any]
    ) -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], dict[str, Any], jax.Array]:
        """
        The spread model, the guide, arguments in which fresh y stand instead of x, and the key to
        go on with.

        :param rng_key: random key; it is passed on as it is where there is no noise.
        :param guide: the guide, maybe inside handlers.
        """
        if not self.noise:
            return self.model, guide, self.args, self.kwargs, rng_key
        handed, rng_key = self.hand(rng_key)
        told = self.tell(guide, handed)
        return self._spread(handed), told, handed.args, handed.kwargs, rng_key

    def tell(self, guide: Callable[..., Any], handed: Handed) -> Callable[..., Any]:
        """
        The guide, which is told the levels that it asks for.

        :param guide: the guide, maybe inside handlers.
        :param handed: what it is given.
        """
        told = telling(guide, handed.levels, guide if self._guide is None else self._guide)
        return told if told is guide else by_the_loss(told)

    def hand(
        self, rng_key: jax.Array, guess: Mapping[Key, int] | None = None
    ) -> tuple[Handed, jax.Array]:
        """
        Fresh y, to be put where x stands, and the key to go on with.

        :param rng_key: random key; it is passed on as it is where there is no noise.
        :param guess: event dims of the sites whose levels are told.
        """
        if not self.noise:
            return draw_noise(rng_key, *self._told), rng_key
        noise_key, rng_key = random.split(rng_key)
        return draw_noise(noise_key, *self._told, self.asked, guess or self.guess), rng_key

    def look(self, guess: Mapping[Key, int] | None = None) -> None:
        """
        Trace the model, to see how it observes what it was given.

        :param guess: event dims of the sites whose levels are told.
        :raises Learned: if noise should have been drawn otherwise.
        """

        def run(key: jax.Array) -> None:
            handed, key = self.hand(key, guess)
            told = telling(self.model, handed.levels)
            seen = substitute(Watch(told, handed), data=self.params)
            with block():
                seed(seen, key)(*handed.args, **handed.kwargs)

        jax.eval_shape(run, random.key(0))

    def run(
        self,
        rng_key: jax.Array,
        guide: Callable[..., Any],
        evaluate: Callable[[Any, Any, Any, Any, jax.Array], _R],
    ) -> _R:
        """
        Evaluate the spread model and the guide on fresh noise with ``evaluate``.

        Where plates subsample and nothing but their rows is read, noise is drawn for these alone.
        """
        taken_by = self._taken_by()
        if taken_by:
            plates = {name: self.use.plates[name] for name, _ in taken_by.values()}
            index_key, noise_key, key = random.split(rng_key, 3)
            indices = draw_indices(index_key, plates)

            def of_values(y: Mapping[Key, jax.Array], at: Mapping[str, jax.Array]) -> _R:
                handed = Handed(y, *self._told, {})
                sides = PlatesAt(self._spread(handed), at), PlatesAt(guide, at)
                return evaluate(*sides, handed.args, handed.kwargs, key)

            data = {key: get_argument(key, self.args, self.kwargs) for key in taken_by}
            on_rows_only = on_rows(of_values, data, indices, taken_by)
            if on_rows_only is not None:
                at = {key: indices[name] for key, (name, _) in taken_by.items()}
                return on_rows_only(draw_rows(noise_key, *self._told, at))
        return evaluate(*self.draw(rng_key, guide))

    def _taken_by(self) -> dict[Key, tuple[str, int]]:
        """Plate and dim by which rows of data are taken; empty unless that holds of all data."""
        found: dict[Key, tuple[str, int]] = {}
        if self.asked:  # the levels of rows that nobody knows yet cannot be told
            return found
        for site, key in self.located.items():
            x, dim = get_argument(key, self.args, self.kwargs), self.use.rows.get(key)
            kernel = self.use.kernel_at(key, self.noise[str(key_of(self.noise, site))])
            shape = self.use.layouts.get(key)
            if dim is None or kernel._is_played:  # whose clean values are needed too
                return {}
            length = jnp.shape(x)[dim]
            name = next((n for n, (size, _) in self.use.plates.items() if size == length), None)
            if name is None:
                return {}
            if not is_drawn_by_rows(kernel, x, dim, self.use.plates[name][1], shape):
                return {}
            found[key] = name, dim
        return found

    def _spread(self, handed: Handed) -> Callable[..., Any]:
        values = handed.values.items()
        self._shapes.update({s: jax.ShapeDtypeStruct(y.shape, y.dtype) for s, y in values})
        names = {site: argument_name(key, self.model) for site, key in self.located.items()}
        model = telling(self.model, handed.levels)
        spread_model = _LossSpread(Watch(model, handed), handed, names, self._suspects)
        return Inside(spread_model)

    def check_observed(self) -> None:
        """
        Make sure that the model observed what it was given; called after it was run.

        :raises ValueError: naming a site that did not.
        """
        if not self._suspects:
            return
        sources = {site: str(key_of(self.located, site)) for site in self._suspects}
        others = sites_of_other_values(
            self.model,
            {site: self._shapes[label] for site, label in sources.items()},
            {site: self.located[label] for site, label in sources.items()},
            self._suspects,
            self.params,
            self.args,
            self.kwargs,
        )
        if others:
            raise ValueError(spreading.observed_other_value(others[0]))


class _LossSpread(SpreadSitesInLoss, spread):
    """
    The spread handler inside a loss; it raises an error for anything that would score wrong values.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        handed: Handed,
        names: Mapping[str, str],
        suspects: dict[str, int],
    ) -> None:
        super().__init__(fn, handed.noise)
        self._handed, self._names = handed, names
        self._suspects = suspects
        self._indices: dict[str, tuple[int, jax.Array]] = {}

    def process_message(self, msg: Any) -> None:
        super().process_message(msg)
        if msg["type"] != "sample" or not msg["is_observed"]:
            return
        site = site_of(msg)
        kernel = self._kernel_at(site)
        if kernel is None:
            if is_delta(msg["fn"]):
                raise ValueError(spreading.unspread_delta(site, self.noise))
            return
        shape = jnp.shape(msg["value"])
        handed = self._handed_to(site, shape, self._names, self._handed.values)
        if not _is_same(msg["value"], handed):
            # Decided later, outside the transformations that the stock ELBO runs the model in.
            placed = 0 if kernel._moves_with_data() else kernel._placed_dims(msg["fn"].event_dim)
            width = math.prod(shape[max(0, len(shape) - placed) :]) if placed else 1
            self._suspects[site] = width
        if kernel._is_played:
            clean = self._handed.clean[str(key_of(self._names, site))]
            own = self._taken(msg, handed), self._taken(msg, jnp.asarray(clean))
            check_arguments(site, msg["value"], handed, (self._handed.args, self._handed.kwargs))
            msg["fn"] = with_entropy(site, msg, kernel, *own)

    def postprocess_message(self, msg: Any) -> None:
        super().postprocess_message(msg)
        if msg["type"] == "plate" and msg["value"] is not None:
            self._indices[msg["name"]] = msg["args"][0], msg["value"]

    def _taken(self, msg: Any, handed: jax.Array) -> jax.Array:
        """What the plates around a site take of the value that the model was given."""
        for frame in msg["cond_indep_stack"]:
            size, indices = self._indices.get(frame.name, (0, None))
            dim = frame.dim - msg["fn"].event_dim
            if indices is None or jnp.ndim(handed) < -dim or size == frame.size:
                continue
            if handed.shape[dim] == size and jnp.shape(msg["value"])[dim] == frame.size:
                handed = jnp.take(handed, indices, axis=dim)
        return handed


def _is_same(value: Any, handed: jax.Array) -> bool:
    if value is handed:
        return True
    if not is_concrete(value, handed):
        return False
    return np.array_equal(np.asarray(value), np.asarray(handed))
