# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Data and model passed through the same noise, for the losses that score a likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import random
from numpyro.handlers import seed, substitute, trace

from numpyro_spread.handlers import check_noise, is_delta, site_of, spread
from numpyro_spread.infer._noise import Noise, as_noise, draw_at, kernels_of
from numpyro_spread.infer._observation import sites_of_other_values
from numpyro_spread.infer._scan import Inside
from numpyro_spread.noise import SpreadNoise
from numpyro_spread.noise.base import is_concrete
from spread_analysis import _messages
from spread_analysis._arguments import (
    Key,
    argument_name,
    check_data_sites,
    get_argument,
    locate_data,
    replace_arguments,
)
from spread_analysis._nonfinite import NonFiniteError


class Spreading:
    """
    What a loss does to model and data: y ~ k(y | x) is handed on, and the model is spread.

    :param noise: dict from site to kernel, a callable that returns one, or None for no noise.
    :param data: dict from site to the model argument that carries its data.
    :raises TypeError: if noise is no such dict.
    :raises ValueError: if data names sites that have no kernel.
    """

    def __init__(self, noise: Noise | None, data: Mapping[str, str] | None) -> None:
        self.noise = as_noise(noise)
        self.data = dict(data or {})
        if isinstance(self.noise, Mapping):
            check_data_sites(self.data, self.noise)

    def check(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """
        Refuse wrong data; a callable ``noise`` declares its params.

        :raises ValueError: naming site and argument.
        """
        # Predictive runs guides without data: then there is nothing to check.
        if not self.noise or all(argument is None for argument in (*args, *kwargs.values())):
            return
        self.locate(model, kernels_of(self.noise, args, kwargs), args, kwargs)

    def locate(
        self,
        model: Callable[..., Any],
        noise: Mapping[str, SpreadNoise],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[str, Key]:
        """
        Where the data of every site are, after a check that they can be spread.

        :raises ValueError: naming site and argument.
        """
        located = locate_data(model, noise, args, kwargs, self.data)
        for site, key in located.items():
            _check_data(
                site, noise[site], argument_name(key, model), get_argument(key, args, kwargs)
            )
        return located

    def step(
        self,
        params: Mapping[str, Any],
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> SpreadStep:
        """
        The noise of one step, to be drawn from once per particle.

        :param params: values of param sites.
        :param model: the model.
        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        :raises ValueError: if data cannot be spread, or noise has params that SVI does not know.
        """
        noise = self._kernels(params, args, kwargs)
        located = self.locate(model, noise, args, kwargs) if noise else {}
        return SpreadStep(noise, located, params, model, args, kwargs)

    def _kernels(
        self, params: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, SpreadNoise]:
        if not callable(self.noise):
            return dict(self.noise)
        with trace() as sites, seed(rng_seed=0), substitute(data=params):
            noise = check_noise(self.noise(*args, **kwargs))
        unknown = [n for n, s in sites.items() if s["type"] == "param" and n not in params]
        if unknown:
            raise ValueError(_messages.unregistered_params(unknown))
        return noise


class SpreadStep:
    """The kernels of one step, and what its particles were handed."""

    def __init__(
        self,
        noise: Mapping[str, SpreadNoise],
        located: Mapping[str, Key],
        params: Mapping[str, Any],
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.noise, self._located, self._params = dict(noise), located, params
        self._model, self._args, self._kwargs = model, args, kwargs
        self._shapes: dict[str, jax.ShapeDtypeStruct] = {}
        self._suspects: set[str] = set()

    def draw(
        self, rng_key: jax.Array
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], jax.Array]:
        """
        The spread model, arguments in which fresh y stand instead of x, and the key to go on with.

        :param rng_key: random key; it is passed on as it is where there is no noise.
        """
        if not self.noise:
            return self._model, self._args, self._kwargs, rng_key
        handed, args, kwargs, rng_key = self.hand(rng_key)
        self._shapes.update({s: jax.ShapeDtypeStruct(y.shape, y.dtype) for s, y in handed.items()})
        spread_model = _LossSpread(self._model, self.noise, handed, self._suspects)
        return Inside(spread_model), args, kwargs, rng_key

    def hand(
        self, rng_key: jax.Array
    ) -> tuple[dict[str, jax.Array], tuple[Any, ...], dict[str, Any], jax.Array]:
        """
        Fresh y by site, arguments in which they stand instead of x, and the key to go on with.

        :param rng_key: random key; it is passed on as it is where there is no noise.
        """
        if not self.noise:
            return {}, self._args, self._kwargs, rng_key
        noise_key, rng_key = random.split(rng_key)
        values: dict[Key, jax.Array] = {}
        keys = random.split(noise_key, len(self._located))
        for (site, key), site_key in zip(self._located.items(), keys, strict=True):
            if key not in values:
                x = get_argument(key, self._args, self._kwargs)
                values[key] = draw_at(site_key, site, self.noise[site], x)
        handed = {site: values[key] for site, key in self._located.items()}
        return handed, *replace_arguments(values, self._args, self._kwargs), rng_key

    def check_observed(self) -> None:
        """
        Make sure that the model observed what it was handed; called after it was run.

        :raises ValueError: naming a site that did not.
        """
        if not self._suspects:
            return
        free = {site for site in self._suspects if self.noise[site]._moves_with_data()}
        others = sites_of_other_values(
            self._model,
            self._shapes,
            self._located,
            self._suspects,
            free,
            self._params,
            self._args,
            self._kwargs,
        )
        if others:
            raise ValueError(_messages.observed_other_value(others[0]))


class _LossSpread(spread):
    """The spread handler as a loss uses it: whatever would score the wrong thing is an error."""

    def __init__(
        self,
        fn: Callable[..., Any],
        noise: Mapping[str, SpreadNoise],
        handed: Mapping[str, jax.Array],
        suspects: set[str],
    ) -> None:
        super().__init__(fn, noise)
        self._handed = handed
        self._suspects = suspects

    def process_message(self, msg: Any) -> None:
        super().process_message(msg)
        if msg["type"] != "sample" or not msg["is_observed"]:
            return
        site = site_of(msg)
        if site not in self.noise:
            if is_delta(msg["fn"]):
                raise ValueError(_messages.unspread_delta(site, self.noise))
        elif not _is_same(msg["value"], self._handed[site]):
            # Decided later, outside of the transformations that the stock ELBO runs the model in.
            self._suspects.add(site)

    def _check_complete(self) -> None:
        super()._check_complete()
        for site in self.noise:
            if site not in self._observed:
                raise ValueError(_messages.site_not_observed(site, self._observed))


def _is_same(value: Any, handed: jax.Array) -> bool:
    if value is handed:
        return True
    if not is_concrete(value, handed):
        return False
    return np.array_equal(np.asarray(value), np.asarray(handed))


def _check_data(site: str, kernel: SpreadNoise, argument: str, x: Any) -> None:
    if not isinstance(x, jax.Array | np.ndarray | np.number | float | int):
        got = f"of type {type(x).__name__}"
        raise ValueError(_messages.not_an_array(site, argument, got, "an array"))
    try:
        kernel.check_value(x)
    except (TypeError, ValueError) as error:
        raise type(error)(_messages.at_site(site, error)) from error
    # NumPy sees through jit where the data are captured, as svi.run captures them.
    if is_concrete(x) and not np.all(np.isfinite(np.asarray(x))):
        raise NonFiniteError(_messages.nonfinite_data(site, argument))
