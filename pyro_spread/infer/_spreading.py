# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Pass data and model through the same noise, for the losses that score a likelihood."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions.transforms import ComposeTransform

from pyro_spread._inputs import WANTED
from pyro_spread._snapshot import StepSnapshot
from pyro_spread._transaction import looking
from pyro_spread.handlers import SpreadMessenger, is_delta
from pyro_spread.infer._guards import is_finite
from pyro_spread.infer._handed import Handed, Watch
from pyro_spread.infer._invalid import Invalid
from pyro_spread.infer._noise import Noise, kernels_of, register_noise
from pyro_spread.infer._noise_entropy import check_arguments, with_entropy
from pyro_spread.infer._observation import Places
from pyro_spread.infer._plate_arguments import is_index
from pyro_spread.infer._rows import NoisyRows
from pyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.arguments import Key, argument_name, get_argument
from spread_core.messages import inputs, spreading
from spread_core.noise.handler import SpreadingShared, SpreadSitesInLoss
from spread_core.noise.learnable import learned_of
from spread_core.noise.levels import telling
from spread_core.nonfinite import NonFiniteError
from spread_core.paths import Where
from spread_core.patterns import key_of
from spread_core.use_of_data import Learned, UseOfData, use_of

_R = TypeVar("_R")


class Spreading(SpreadingShared):
    """Apply the noise of a loss: draw y ~ k(y | x) for the arguments, and spread the model."""

    _backend = BACKEND

    def __init__(
        self,
        noise: Noise | None,
        data: Mapping[str, Where] | None,
        is_played: bool = False,
        is_telling: bool = False,
    ) -> None:
        super().__init__(noise, data, is_played, is_telling)
        self._places = Places()

    def modules(self) -> torch.nn.ModuleList:
        """What is learnable in the kernels."""
        kernels = {} if callable(self.noise) else self.noise
        return torch.nn.ModuleList(
            kernel if isinstance(kernel, torch.nn.Module) else _parameters(kernel)
            for kernel in kernels.values()
        )

    def locate(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Key]:
        """
        Where the data of every site are, after a check that they can be spread.

        :raises ValueError: naming site and argument.
        """
        return self._located(model, kernels_of(self.noise, args, kwargs), args, kwargs)

    @staticmethod
    def _check_array(site: str, argument: str, x: Any) -> None:
        if not isinstance(x, torch.Tensor):
            raise ValueError(inputs.misplaced_argument(site, argument, x, WANTED))

    @staticmethod
    def _check_finite(site: str, argument: str, x: Any) -> None:
        if not is_finite(x):
            raise NonFiniteError(spreading.nonfinite_data(site, argument))

    def settled(
        self,
        located: Mapping[str, Key],
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        run: Callable[[UseOfData], _R],
    ) -> _R:
        """
        The result of ``run``, which draws noise and then runs the model.

        How to draw may depend on how the model uses its data. If a run shows that noise must be
        drawn differently, it is stopped and repeated from the same random state.

        :param run: called with what is known; to be passed to :meth:`draw` or :meth:`hand`.
        """
        shapes = {key: _shape(get_argument(key, args, kwargs)) for key in located.values()}
        use = use_of(model, (tuple(located.items()), tuple(shapes.items())))
        if use.complete and self._is_free():
            return run(use)
        while True:
            before = StepSnapshot()
            before.keep_store()
            before.keep_random_state()
            try:
                with before:
                    result = run(use)
            except Learned:
                before.restore()
                continue
            use.complete = True
            return result

    def _is_free(self) -> bool:
        """Whether it does not matter to any kernel how sites observe their data."""
        kernels = self.noise.values() if isinstance(self.noise, Mapping) else ()
        return not callable(self.noise) and all(kernel._moves_with_data() for kernel in kernels)

    def hand(
        self,
        use: UseOfData,
        located: Mapping[str, Key],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        model: Callable[..., Any] | None = None,
        guide: Callable[..., Any] | None = None,
    ) -> Handed:
        """
        Fresh y, to replace x.

        :param model: may ask for levels.
        :param guide: may ask for levels.
        """
        # Kernels of a callable are made afresh for every particle: each has its own backward.
        noise = kernels_of(self.noise, args, kwargs)
        asked = self._asked(noise, args, kwargs, model, guide)
        # A level has the batch of its site: the model shows its events before the guide runs.
        guesses = self._event_guesses(use, located, asked, args, kwargs, model)
        for guess in guesses:
            try:
                self._look(Handed(noise, use, located, args, kwargs, asked, guess), model)
            except Learned:
                raise
            except Exception:  # what is wrong, the real run will tell
                continue
        return Handed(noise, use, located, args, kwargs, asked, *guesses[:1])

    def check_asking(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """
        Refuse a model or guide that asks for a level that it does not get.

        :raises ValueError: or NotImplementedError, naming the site.
        """
        self._asked(kernels_of(self.noise, args, kwargs), args, kwargs, model, guide)

    def _look(self, handed: Handed, model: Any) -> None:
        """
        Run the model without side effects, to see how it observes what it was given.

        :raises Learned: if noise should have been drawn otherwise.
        """
        with looking(), poutine.block(), torch.no_grad():
            Watch(handed)(telling(model, handed.levels))(*handed.args, **handed.kwargs)

    def draw(
        self,
        use: UseOfData,
        located: Mapping[str, Key],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """The spread model, the guide, and the arguments with fresh y instead of x."""
        handed = self.hand(use, located, args, kwargs, model, guide)
        if not handed.noise:
            return model, guide, args, kwargs
        names = {site: argument_name(key, model) for site, key in located.items()}
        told = self._with_params(telling(model, handed.levels))
        spread_model = _LossSpread(handed, names, self._places)(Watch(handed)(told))
        return spread_model, telling(guide, handed.levels), handed.args, handed.kwargs

    def _with_params(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """
        The model, which has the params of learned noise too: of traces without any, stock ELBOs
        compute no gradients.
        """
        if not learned_of(self.noise):
            return model

        def with_params(*args: Any, **kwargs: Any) -> Any:
            register_noise(self.noise)
            return model(*args, **kwargs)

        return with_params

    def noisy(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """
        The guide and the arguments with fresh y instead of x, for running the guide alone.

        :param model: the model, which is run where it matters how it observes its data.
        """
        located = self.locate(model, args, kwargs)

        def run(use: UseOfData) -> Handed:
            handed = self.hand(use, located, args, kwargs, model, guide)
            if not all(k._moves_with_data() for k in handed.noise.values()):
                self._look(handed, model)
            return handed

        handed = self.settled(located, model, args, kwargs, run)
        return telling(guide, handed.levels), handed.args, handed.kwargs


def started(traces: Iterator[Any]) -> Iterator[Any]:
    """The traces, of which the first has already been made."""
    first = next(traces)
    return itertools.chain([first], traces)


class _LossSpread(SpreadSitesInLoss, SpreadMessenger):
    """
    The spread handler inside a loss; it raises an error for anything that would score wrong values.
    """

    def __init__(self, handed: Handed, names: Mapping[str, str], places: Places) -> None:
        super().__init__(handed.noise)
        self._handed, self._names, self._places = handed, names, places
        self._indices: dict[str, torch.Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        super()._pyro_post_sample(msg)
        if isinstance(msg["fn"], _Subsample) and is_index(msg["value"]):
            self._indices[msg["name"]] = msg["value"]

    def _pyro_sample(self, msg: Any) -> None:
        site, fn = msg["name"], msg["fn"]
        if msg["is_observed"] and self._kernel_at(site) is not None and is_delta(fn, msg["value"]):
            draws, event_dim = fn.mean, len(fn.event_shape)
            Invalid({site: draws}, {site: range(-draws.dim(), -event_dim)}).refuse()
        super()._pyro_sample(msg)
        if site not in self._observed:
            return
        kernel = self._kernel_at(site)
        if kernel is None:
            if msg["mask"] is not False and is_delta(msg["fn"], msg["value"]):
                raise ValueError(spreading.unspread_delta(site, self.noise))
        elif not self._observes_handed(msg, kernel):
            raise ValueError(spreading.observed_other_value(site))
        elif kernel._is_played and torch.is_grad_enabled():
            label, given = str(key_of(self._names, site)), torch.as_tensor(msg["value"])
            handed, clean = (of[label] for of in (self._handed.values, self._handed.clean))
            own = self._taken(msg, handed), self._taken(msg, clean)
            check_arguments(site, given, handed, (self._handed.args, self._handed.kwargs))
            msg["fn"] = with_entropy(msg, kernel, *own)

    def _observes_handed(self, msg: Any, kernel: SpreadNoise) -> bool:
        site, value = msg["name"], torch.as_tensor(msg["value"])
        handed = self._handed_to(site, value.shape, self._names, self._handed.values)
        if msg["value"] is handed:
            return True
        event_dim = msg["fn"].event_dim
        taken = self._taken(msg, handed)
        if taken is not handed and self._places.observed(site, value, taken, kernel, event_dim):
            return True
        seen = handed.seen if isinstance(handed, NoisyRows) else handed
        return self._places.observed(site, value, seen, kernel, event_dim)

    def _taken(self, msg: Any, handed: torch.Tensor) -> torch.Tensor:
        """What the plates around a site take of the value that the model was given."""
        value = msg["value"]
        for frame in msg["cond_indep_stack"]:
            dim = frame.dim - msg["fn"].event_dim if frame.vectorized else 0
            indices = self._indices.get(frame.name)
            if indices is None or not -min(value.dim(), handed.dim()) <= dim < 0:
                continue
            if handed.shape[dim] == frame.full_size and value.shape[dim] == len(indices):
                handed = handed.index_select(dim, indices)
        return handed


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(getattr(x, "shape", ()))


def _parameters(kernel: SpreadNoise) -> torch.nn.Module:
    """A module of what is learnable in ``kernel``, the kernel and transform inside it included."""
    module = torch.nn.Module()
    for name, value in vars(kernel).items():
        if isinstance(value, (torch.nn.Parameter, torch.nn.Module)):
            setattr(module, name, value)
        elif isinstance(value, SpreadNoise):
            setattr(module, name, _parameters(value))
        elif isinstance(value, ComposeTransform):
            parts = (part for part in value.parts if isinstance(part, torch.nn.Module))
            setattr(module, name, torch.nn.ModuleList(parts))
    return module
