# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What both backends check of a checkpoint before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from spread_core.bounds import same, text
from spread_core.checkpoint_file import CheckpointReader
from spread_core.messages import checkpoints
from spread_core.stateful import Stateful, check_state

#: Puts one part of a checkpoint, which has been checked, in its place.
Commit = Callable[[], None]


def check_classes(reader: CheckpointReader, live: Mapping[str, Any]) -> None:
    """
    Refuse a file of an SVI with another loss or optimiser.

    :raises CheckpointError: naming both.
    """
    found = reader.part("classes", dict)
    for what, mine in live.items():
        if not same(found.get(what), mine):
            raise reader.refuse(checkpoints.other_class(what, found.get(what), mine))


def check_names(
    reader: CheckpointReader,
    what: str,
    saved: Collection[str],
    live: Collection[str],
    way_out: str = checkpoints.other_state(),
) -> None:
    """
    Refuse a file that has more than there is to restore, or less.

    :raises CheckpointError: with the names.
    """
    missing = [name for name in live if name not in saved]
    unexpected = [name for name in saved if name not in live]
    if missing or unexpected:
        raise reader.refuse(checkpoints.other_names(what, missing, unexpected, way_out))


def check_bounds(reader: CheckpointReader, name: str, found: Any, live: Any) -> None:
    """
    Refuse a param under another constraint.

    :raises CheckpointError: with the param and both constraints.
    """
    if not same(found, live):
        raise reader.refuse(checkpoints.other_bounds(name, text(found), text(live)))


def loss_state(loss: Any) -> Any:
    """The counters of a loss of any class."""
    return loss.get_state() if hasattr(loss, "get_state") else {}


def prepare_loss(reader: CheckpointReader, loss: Any) -> Commit:
    """Check the counters of a loss; the returned function puts them in place."""
    state = reader.part("loss", dict)
    try:
        if isinstance(loss, Stateful):
            check_state(loss, state)
    except ValueError as error:
        raise reader.refuse(checkpoints.malformed(str(error))) from error
    return lambda: loss.set_state(state) if hasattr(loss, "set_state") else None
