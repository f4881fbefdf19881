# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Names of the types that signatures of both backends share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: A Pyro or NumPyro model, called with the arguments of a step.
Model = Callable[..., Any]
#: A guide, called with the same arguments as its model.
Guide = Callable[..., Any]
#: Positional arguments of model and guide, as a callee gets them.
Args = tuple[Any, ...]
#: Keyword arguments of model and guide.
Kwargs = dict[str, Any]
#: The message of one site in a trace.
Site = Mapping[str, Any]
#: The sites of a trace by name.
Sites = Mapping[str, Site]
