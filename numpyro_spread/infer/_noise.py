# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The argument ``noise`` of the losses: kernels by site, or a function that makes them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.handlers import seed, substitute, trace
from numpyro.primitives import Messenger

from numpyro_spread.noise import MultiLevelNoise
from numpyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.messages import general, moving, spreading
from spread_core.noise.moving import moving_kernels

Noise = Mapping[str, SpreadNoise] | Callable[..., Mapping[str, SpreadNoise]]


as_noise = BACKEND.as_noise
kernels_of = BACKEND.kernels_of


def kernels_with_params(
    noise: Noise, params: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """
    The kernels of this step, made with params that are given.

    :raises ValueError: if a callable ``noise`` has params that SVI does not know.
    """
    with trace() as sites, seed(rng_seed=0), substitute(data=params):
        kernels = kernels_of(noise, args, kwargs)
    unknown = {n: s["type"] for n, s in sites.items() if n not in params}
    if untrained := [name for name, kind in unknown.items() if kind == "param"]:
        raise ValueError(spreading.unregistered_params(untrained))
    if untold := [name for name, kind in unknown.items() if kind == "mutable"]:
        raise ValueError(moving.state_not_given(untold))
    return kernels


def kernels_now(
    noise: Noise, params: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The kernels of this step, where no noise is learned."""
    if callable(noise):
        return kernels_of(noise, args, kwargs)
    return kernels_with_params(noise, params, args, kwargs)


def declare_moves(noise: Noise) -> None:
    """Have SVI carry the states of the kernels that move from step to step."""
    for kernel in moving_kernels(noise).values():
        kernel._now()


def state_sites(noise: Noise) -> set[str]:
    """Names of the states of the kernels that move from step to step."""
    return {kernel._state_site for kernel in moving_kernels(noise).values()}


class RefuseMutable(Messenger):
    """
    No model or guide may have mutable state in here.

    :param own: names of the states of the noise.
    """

    def __init__(self, own: Collection[str]) -> None:
        self._own = own
        super().__init__()

    def process_message(self, msg: Any) -> None:
        """Refuse a mutable site."""
        if msg["type"] == "mutable" and msg["name"] not in self._own:
            raise NotImplementedError(general.at_site(msg["name"], moving.moving_mutable()))


def moved_on(method: Callable[..., Any]) -> Callable[..., Any]:
    """
    The method ``loss_with_mutable_state`` of a loss, whose noise may move from step to step.

    :param method: its result may tell the ``accuracy`` of a critic.
    """

    @functools.wraps(method)
    def wrapped(self: Any, rng_key: Any, param_map: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, rng_key, param_map, *args, **kwargs)
        state = dict(result["mutable_state"] or {})
        kernels: dict[str, Any] = moving_kernels(getattr(self, "noise", None))
        for kernel in kernels.values():
            site = kernel._state_site
            if site in param_map:
                state[site] = kernel._advanced(param_map[site], result.get("accuracy"))
        return {"loss": result["loss"], "mutable_state": state or None}

    return wrapped


def draw_at(rng_key: jax.Array, site: str, kernel: SpreadNoise, value: Any) -> jax.Array:
    """A noisy version of the value at ``site``, which errors name."""
    with _naming(site):
        return kernel.draw(rng_key, value)


def draw_told(
    rng_key: jax.Array, site: str, kernel: SpreadNoise, value: Any
) -> tuple[jax.Array, jax.Array | None]:
    """
    A noisy version of the value at ``site``, and the number of the level of every datum.

    :return: None for the number if the kernel has no levels.
    """
    if not isinstance(kernel, MultiLevelNoise):
        return draw_at(rng_key, site, kernel, value), None
    with _naming(site):
        return kernel.draw_told(rng_key, value)


def levels_at(kernel: MultiLevelNoise, index: jax.Array, like: jax.Array) -> jax.Array:
    """The levels of these numbers."""
    return jnp.asarray(kernel.levels, like.dtype)[index]


def level_told(
    kernel: SpreadNoise, index: jax.Array | None, y: jax.Array, event_dim: int
) -> jax.Array | None:
    """
    What the scale of every datum was multiplied by; None if it is always the same.

    :param kernel: the kernel of this step.
    :param index: the numbers of its levels, if it has several.
    :param y: noisy values of shape batch + event.
    :param event_dim: number of event dims.
    """
    level: Any = None
    if isinstance(kernel, MultiLevelNoise) and index is not None:
        level = levels_at(kernel, index, y)
    if kernel._moved_by is not None:
        shape = y.shape[: y.ndim - event_dim]
        factor = jnp.asarray(kernel._moved_by, y.dtype)
        level = jnp.broadcast_to(factor, shape) if level is None else factor * level
    return level


@contextmanager
def _naming(site: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(general.at_site(site, error)) from error
