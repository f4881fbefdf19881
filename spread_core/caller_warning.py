# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Warnings that name the user's own line, however deep in a step they are issued."""

from __future__ import annotations

import sys
import warnings

_LIBRARIES = {
    "pyro_spread", "numpyro_spread", "spread_core", "spread_analysis", "pyro", "numpyro", "torch",
    "jax", "jaxlib", "flax", "optax", "equinox", "contextlib", "functools",
}  # fmt: skip


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """
    Warn at the innermost line that does not belong to a library.

    :param message: what is said.
    :param category: of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _package(frame.f_globals) in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
