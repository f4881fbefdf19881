# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose scale moves from step to step: its state among the mutable state of a loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

from numpyro.primitives import Messenger

from spread_core.messages import general, moving
from spread_core.noise.moving import moving_kernels


def declare_moves(noise: Any) -> None:
    """Have SVI carry the states of the kernels that move from step to step."""
    for kernel in moving_kernels(noise).values():
        kernel._now()


def state_sites(noise: Any) -> set[str]:
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
