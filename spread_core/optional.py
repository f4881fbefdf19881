# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Imports of what only the ``analysis`` extra brings, made by the functions that need it."""

from __future__ import annotations

import importlib
from typing import Any


def import_extra(module: str, caller: str) -> Any:
    """Import a module of the ``analysis`` extra.

    :param module: Dotted name, e.g. ``"sklearn.neighbors"``.
    :param caller: Public function that needs it, for the message.
    :raises ImportError: If the package is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.split(".")[0], module.split(".")[0])
        raise ImportError(
            f"`spread_analysis.{caller}` needs {package}: pip install 'pyro-spread[analysis]'"
        ) from error
