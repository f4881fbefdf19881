# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Autocast: nets compute in 16 bits; densities, kernels, logit losses and sums do not."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from pyro_spread.noise.base import widened
from spread_core.messages import guard
from spread_core.typing import Guide, Model

# A torch that knows no autocast for a device raises where it is asked about it.
_DEVICES = tuple(
    device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device)
)


def nets_in_half(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method ``(self, model, guide, *args, **kwargs)`` of a loss, with :func:`nets_only`."""

    @functools.wraps(method)
    def wrapped(self: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> Any:
        devices = [device for device in _DEVICES if torch.is_autocast_enabled(device)]
        if not devices:
            return method(self, model, guide, *args, **kwargs)
        with nets_only(devices, (model, guide)):
            return method(self, model, guide, *args, **kwargs)

    return wrapped


@contextmanager
def nets_only(devices: list[str], programs: tuple[Any, ...]) -> Iterator[None]:
    """
    Restrict autocast to the forward passes of modules, whose outputs are widened to float32.

    Three digits are enough for a net's activations, but not for a log density summed over data, the
    difference of two log-ratios or a squared distance as |x|² + |y|² - 2 x.y.

    :param devices: those with autocast enabled.
    :param programs: model and guide, which do not count as nets even if they are modules.
    """
    dtypes = {device: torch.get_autocast_dtype(device) for device in devices}
    thread, depth = threading.get_ident(), 0
    casts = ExitStack()

    def is_net(module: nn.Module) -> bool:
        # The hooks are the process's.
        if threading.get_ident() != thread or isinstance(module, PyroModule):
            return False
        return not any(module is program for program in programs)

    def enter(module: nn.Module, _: Any) -> None:
        nonlocal depth
        if is_net(module):
            if not depth:
                for device, dtype in dtypes.items():
                    # A cache would outlive a step of the optimiser, or forget the gradient of a
                    # weight first used without one.
                    casts.enter_context(torch.autocast(device, dtype, cache_enabled=False))
            depth += 1

    def leave(module: nn.Module, _: Any, output: Any) -> Any:
        nonlocal depth
        if not is_net(module):
            return None
        depth -= 1
        if depth:
            return None
        casts.close()
        return _widened(output)

    with ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        before = register_module_forward_pre_hook(enter)
        after = register_module_forward_hook(leave, always_call=True)
        try:
            with _NoSites(lambda: bool(depth) and threading.get_ident() == thread):
                yield
        finally:
            before.remove()
            after.remove()
            casts.close()


def _widened(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return widened(output)
    if isinstance(output, dict):
        return {key: _widened(value) for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*map(_widened, output))
    if isinstance(output, tuple | list):
        return type(output)(_widened(value) for value in output)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        wide = {field.name: _widened(getattr(output, field.name)) for field in _inits(output)}
        return dataclasses.replace(output, **wide)
    return output


def _inits(output: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(output) if field.init]


class _NoSites(Messenger):
    """Refuse sample statements inside what computes in 16 bits."""

    def __init__(self, is_inside: Callable[[], bool]) -> None:
        super().__init__()
        self._is_inside = is_inside

    def _pyro_sample(self, msg: Any) -> None:
        if self._is_inside() and not site_is_subsample(msg):
            raise ValueError(guard.half_site(msg["name"]))
