# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Options of a guide in a file, which holds no functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spread_core.amortized.embedded import rebuilt_options
from spread_core.messages import amortized as messages


def written(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Options as a file can hold them: without functions, but with the names of those.

    :param options: of the guide.
    """
    unwritten = [name for name, value in options.items() if callable(value)]
    kept = {name: value for name, value in options.items() if name not in unwritten}
    return kept | {"unwritten": unwritten}


def completed(saved: Mapping[str, Any], density: Any, embedding: Any) -> dict[str, Any]:
    """
    Options of a guide, from a file and from whoever loads it.

    :param saved: as :func:`written` returned them.
    :param density: what the file lacks if it is a function; or None.
    :param embedding: what the file lacks if it has modules; or None.
    :raises ValueError: if one that the file lacks is not given.
    """
    saved, given = rebuilt_options(saved, embedding), {"density": density}
    unwritten = saved.get("unwritten", [])
    missing = [name for name in unwritten if given.get(name) is None]
    if missing:
        raise ValueError(messages.unwritten_option(missing))
    options = {name: value for name, value in saved.items() if name != "unwritten"}
    return options | {name: given[name] for name in unwritten}
