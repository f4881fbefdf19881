# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the losses check, and how they leave nothing behind when a step fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch


@contextmanager
def no_new_params_on_error() -> Iterator[None]:
    """Forget the params that a failing call has put into the store."""
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        yield
    except Exception:
        for name in set(store.keys()) - before:
            del store[name]
        raise


def is_finite(x: torch.Tensor) -> bool:
    """Whether ``x`` holds neither NaN nor inf; True where it is not known yet."""
    if not x.dtype.is_floating_point or torch._C._get_tracing_state():
        return True
    # One reduction finds NaN and inf; only a sum that overflowed has to be looked at again.
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())
