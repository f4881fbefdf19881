# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Data and model passed through the same noise, for the losses that score a likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions.transforms import ComposeTransform

from pyro_spread._inputs import WANTED
from pyro_spread.handlers import SpreadMessenger, is_delta
from pyro_spread.infer._guards import is_finite
from pyro_spread.infer._noise import Noise, as_noise, draw_at, kernels_of
from pyro_spread.infer._observation import observes
from pyro_spread.infer._plate_arguments import is_index
from pyro_spread.noise import SpreadNoise
from spread_analysis import _messages
from spread_analysis._arguments import (
    Key,
    argument_name,
    check_data_sites,
    get_argument,
    locate_data,
    replace_arguments,
)
from spread_analysis._messages import inputs
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

    def modules(self) -> torch.nn.ModuleList:
        """What is learnable in the kernels."""
        kernels = {} if callable(self.noise) else self.noise
        return torch.nn.ModuleList(_parameters(kernel) for kernel in kernels.values())

    def locate(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Key]:
        """
        Where the data of every site are, after a check that they can be spread.

        :raises ValueError: naming site and argument.
        """
        noise = kernels_of(self.noise, args, kwargs)
        located = locate_data(model, noise, args, kwargs, self.data)
        for site, key in located.items():
            _check_data(
                site, noise[site], argument_name(key, model), get_argument(key, args, kwargs)
            )
        return located

    def hand(
        self, located: Mapping[str, Key], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, torch.Tensor], dict[str, SpreadNoise]]:
        """
        Arguments in which fresh y stand instead of x, the y by site, and the kernels.

        :param located: from :meth:`locate`.
        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        # Kernels of a callable are made afresh for every particle: each has its own backward.
        noise = kernels_of(self.noise, args, kwargs)
        values: dict[Key, torch.Tensor] = {}
        for site, key in located.items():
            if key not in values:
                values[key] = draw_at(site, noise[site], get_argument(key, args, kwargs))
        handed = {site: values[key] for site, key in located.items()}
        return *replace_arguments(values, args, kwargs), handed, noise

    def draw(
        self,
        located: Mapping[str, Key],
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """
        The spread model, and arguments in which fresh y stand instead of x.

        :param located: from :meth:`locate`.
        :param model: the model.
        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        args, kwargs, handed, noise = self.hand(located, args, kwargs)
        return (_LossSpread(noise, handed)(model) if noise else model), args, kwargs


class _LossSpread(SpreadMessenger):
    """The spread handler as a loss uses it: whatever would score the wrong thing is an error."""

    def __init__(self, noise: Mapping[str, SpreadNoise], handed: Mapping[str, torch.Tensor]):
        super().__init__(noise)
        self._handed = handed
        self._indices: dict[str, torch.Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        super()._pyro_post_sample(msg)
        if isinstance(msg["fn"], _Subsample) and is_index(msg["value"]):
            self._indices[msg["name"]] = msg["value"]

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        site = msg["name"]
        if site not in self._observed:
            return
        if site not in self.noise:
            if msg["mask"] is not False and is_delta(msg["fn"], msg["value"]):
                raise ValueError(_messages.unspread_delta(site, self.noise))
        elif not self._observes_handed(msg):
            raise ValueError(_messages.observed_other_value(site))

    def _observes_handed(self, msg: Any) -> bool:
        value, handed = msg["value"], self._handed[msg["name"]]
        if value is handed:
            return True
        for frame in msg["cond_indep_stack"]:
            dim = frame.dim - msg["fn"].event_dim if frame.vectorized else 0
            indices = self._indices.get(frame.name)
            if indices is None or not -min(value.dim(), handed.dim()) <= dim < 0:
                continue
            if handed.shape[dim] == frame.full_size and value.shape[dim] == len(indices):
                handed = handed.index_select(dim, indices)
        width = msg["fn"].event_shape.numel()
        return observes(value, handed, self.noise[msg["name"]], width)

    def _check_complete(self) -> None:
        super()._check_complete()
        for site in self.noise:
            if site not in self._observed:
                raise ValueError(_messages.site_not_observed(site, self._observed))


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


def _check_data(site: str, kernel: SpreadNoise, argument: str, x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        raise ValueError(inputs.misplaced_argument(site, argument, x, WANTED))
    try:
        kernel.check_value(x)
    except (TypeError, ValueError) as error:
        raise type(error)(_messages.at_site(site, error)) from error
    if not is_finite(x):
        raise NonFiniteError(_messages.nonfinite_data(site, argument))
