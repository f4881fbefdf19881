# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The effect handler ``spread``, by itself and inside a loss: what is the same in both backends."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from spread_core.arguments import (
    Key,
    argument_name,
    check_data_sites,
    get_argument,
    locate_data,
)
from spread_core.messages import general, learned, spreading
from spread_core.noise.base import Backend
from spread_core.noise.levels import levels_asked_for, refuse_asking, telling
from spread_core.paths import Where
from spread_core.patterns import key_of, resolved
from spread_core.use_of_data import UseOfData


class SpreadSites:
    """Which sites a run of the model has, and which kernel each of them gets."""

    noise: Mapping[str, Any]

    @staticmethod
    def _as_value(value: Any, /) -> Any:
        """What a site observes, as an array."""
        return value

    def _begin(self, noise: Mapping[str, Any]) -> None:
        self.noise = noise
        self._keys: dict[str, str | None] = {}
        self._seen: set[str] = set()
        self._observed: set[str] = set()

    def __enter__(self) -> Any:
        self._seen, self._observed = set(), set()
        return super().__enter__()  # type: ignore[misc]

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)  # type: ignore[misc]
        if exc_type is None:
            self._check_complete()

    def _check_complete(self) -> None:
        for key in resolved(self.noise, self._seen, self._observed):
            if key not in self._seen:
                raise ValueError(spreading.no_such_site(key, self._observed))

    def _kernel_at(self, site: str) -> Any:
        """The kernel of a site, under its own name or a pattern; None if it has none."""
        if site not in self._keys:
            self._keys[site] = key_of(self.noise, site)
        key = self._keys[site]
        return None if key is None else self.noise[key]

    def _see(self, site: str, is_observed: bool) -> Any:
        """Note a site; its kernel if it is to be spread."""
        self._seen.add(site)
        if not is_observed:
            return None
        self._observed.add(site)
        return self._kernel_at(site)

    def _spread(self, msg: Any, site: str, kernel: Any, value: Any) -> None:
        """Spread the distribution of a site where a value is observed."""
        if msg["infer"].get("_spread"):
            raise ValueError(spreading.already_spread(site))
        try:
            value = self._as_value(value)
            kernel.check_value(value)
            msg["fn"] = kernel.spread(msg["fn"])
            event, shape = msg["fn"].event_shape, getattr(value, "shape", ())
            if shape[len(shape) - len(event) :] != event:
                raise ValueError(spreading.value_misfit(shape, event))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise type(error)(general.at_site(site, error)) from error
        # A copy: the dict belongs to the model, which may use it for several sites.
        msg["infer"] = {**msg["infer"], "_spread": True}

    def _check_too_late(self, site: str) -> None:
        """Refuse an observed site with a kernel that was not observed on the way in."""
        if site not in self._observed and self._kernel_at(site) is not None:
            raise ValueError(spreading.conditioned_outside(site))


class SpreadSitesInLoss(SpreadSites):
    """Inside a loss, where the model must observe, with a kernel, what it was given."""

    def _check_complete(self) -> None:
        super()._check_complete()
        kernels = resolved(self.noise, self._observed)
        for site, kernel in kernels.items():
            if site not in self._observed:
                raise ValueError(spreading.site_not_observed(site, self._observed))
            if kernel._is_played and len(self._observed) > 1:
                others = self._observed - {site}
                raise NotImplementedError(learned.mixture_of_one_site(site, others))

    def _handed_to(self, site: str, shape: Sequence[int], names: Any, values: Any) -> Any:
        """
        The value that the model was given for a site where it observes one.

        :param site: the site.
        :param shape: of what it observes.
        :param names: dict from site or pattern to the argument that carries its data.
        :param values: dict from site or pattern to noisy value.
        """
        label = key_of(names, site)
        if label is None:
            raise ValueError(spreading.no_handed_value(site, str(self._keys[site])))
        handed = values[label]
        if 0 in shape and 0 not in handed.shape:
            raise ValueError(spreading.empty_observation(site, names[label], shape))
        return handed


class SpreadingShared:
    """
    Apply the noise of a loss: draw y ~ k(y | x) for the arguments, and spread the model.

    :param noise: dict from site to kernel, a callable that returns one, or None for no noise.
    :param data: dict from site to the model argument that carries its data, or to a way into one.
    :param is_played: whether the loss knows what learned noise has to do.
    :param is_telling: whether it tells model and guide the levels that they ask for.
    :raises TypeError: if noise is not such a dict.
    :raises ValueError: if data names sites that have no kernel.
    """

    _backend: ClassVar[Backend]

    def __init__(
        self,
        noise: Any,
        data: Mapping[str, Where] | None,
        is_played: bool = False,
        is_telling: bool = False,
    ) -> None:
        self.noise, self._is_telling = self._backend.as_noise(noise, is_played), is_telling
        self.data = dict(data or {})
        if isinstance(self.noise, Mapping):
            check_data_sites(self.data, self.noise)

    def _located(
        self, model: Callable[..., Any], noise: Mapping[str, Any], args: Any, kwargs: Any
    ) -> dict[str, Key]:
        """Where the data of every site are, after a check that they can be spread."""
        located = locate_data(model, noise, args, kwargs, self.data)
        for site, key in located.items():
            kernel, x = noise[str(key_of(noise, site))], get_argument(key, args, kwargs)
            argument = argument_name(key, model)
            self._check_array(site, argument, x)
            try:
                kernel.check_value(x)
            except (TypeError, ValueError) as error:
                raise type(error)(general.at_site(site, error)) from error
            self._check_finite(site, argument, x)
        return located

    def _asked(
        self,
        noise: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *functions: Callable[..., Any] | None,
    ) -> set[str]:
        """
        The sites whose levels model or guide ask for.

        :raises NotImplementedError: if this loss does not tell them.
        """
        if not self._is_telling:
            refuse_asking(noise, args, kwargs, *functions)
            return set()
        return levels_asked_for(noise, args, kwargs, *functions)

    @staticmethod
    def _event_guesses(
        use: UseOfData,
        located: Mapping[str, Key],
        asked: Collection[str],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        model: Callable[..., Any] | None,
    ) -> list[dict[Key, int]]:
        """
        Event dims to try in a look at the model, the likeliest first; none if all are known.

        A model that asks for levels cannot run with those of another shape.
        """
        places = dict.fromkeys(key for site, key in located.items() if site in asked)
        keys = [key for key in places if key not in use.events]
        if not keys or model is None:
            return []
        ndims = [len(np.shape(get_argument(key, args, kwargs))) for key in keys]
        # One dim of plates is likelier than several, or none.
        dims = [[*range(max(0, ndim - 1), -1, -1), ndim][: ndim + 1] for ndim in ndims]
        tries = [dict(zip(keys, each, strict=True)) for each in itertools.product(*dims)]
        is_asking = telling(model, dict.fromkeys(asked)) is not model
        return tries if is_asking else tries[:1]

    @staticmethod
    def _check_array(site: str, argument: str, x: Any) -> None:
        """Refuse data that are no array of the backend."""
        raise NotImplementedError

    @staticmethod
    def _check_finite(site: str, argument: str, x: Any) -> None:
        """Refuse data that are NaN or inf."""
        raise NotImplementedError
