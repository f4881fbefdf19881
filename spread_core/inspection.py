# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Detect calls that inspect the structure of a model instead of computing a density. Plain Python.
"""

from __future__ import annotations

import sys


def is_inspected(module: str) -> bool:
    """
    Whether the call comes from ``module``, which looks at what a log density depends on.

    Asked only where a density is refused: the parents' inspection has no other sign to go by.

    :param module: such as ``"pyro.infer.inspect"``.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
