# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about values that are not arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from spread_core.messages.general import shortened


def misplaced_argument(site: str, argument: str, value: Any, wanted: str) -> str:
    got, way_out = _described(value)
    inside = ""
    if isinstance(value, dict) and value:
        way = f"{argument}.{shortened(str(next(iter(value))))}"
        inside = f" A way into a dict is written with a dot: data={{'{site}': '{way}'}}."
    return (
        f"site '{site}': the model argument '{argument}' is {got}, not {wanted}. {way_out}, or "
        f"name another argument with data={{'{site}': ...}}.{inside}"
    )


def misplaced_observation(site: str, value: Any, wanted: str) -> str:
    got, way_out = _described(value)
    return f"site '{site}': what the model observes is {got}, not {wanted}. {way_out}."


def computed_with(argument: str, value: Any, wanted: str, error: BaseException) -> str:
    got, way_out = _described(value)
    return (
        f"the model argument '{argument}' is {got}, not {wanted}. {way_out}, if model or guide "
        f"compute with it. It led to: {shortened(error)}"
    )


def _described(value: Any) -> tuple[str, str]:
    """Describe a value, and how to make an array of it."""
    kind = f"of type {type(value).__name__}"
    if isinstance(value, np.ma.MaskedArray):
        return kind, "Its mask would be lost: pass .filled(0), and mask in the model"
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        return f"{kind} and dtype {value.dtype}", "Pass numbers there"
    if isinstance(value, np.ndarray):
        return kind, "Pass numpy.asarray of it"
    if type(value).__module__.split(".")[0] == "pandas":
        return kind, "Its labels would be lost: pass .to_numpy()"
    if isinstance(value, list | tuple):
        return kind, "Pass one array there"
    return kind, "Pass the data itself there"
