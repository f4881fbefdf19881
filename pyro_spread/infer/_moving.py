# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Count the steps of losses whose noise moves from step to step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch

from pyro_spread._recording import when_known

_STEPS = ("loss_and_grads", "differentiable_loss")
# Of the two methods that make a step one may call the other.
_counting: ContextVar[bool] = ContextVar("pyro_spread_counting", default=False)


def moved_on(method: Callable[..., Any]) -> Callable[..., Any]:
    """
    A method ``(self, model, guide, *args, **kwargs)`` of a loss, after which noise moves on if it
    made a step.

    :param method: the method.
    """
    if method.__name__ not in _STEPS:
        return method

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        moves = self._moves
        if not moves._remembered() or _counting.get() or not torch.is_grad_enabled():
            return method(self, *args, **kwargs)
        token = _counting.set(True)
        try:
            value = method(self, *args, **kwargs)
        finally:
            _counting.reset(token)
        when_known(moves.advance)
        return value

    return wrapped
