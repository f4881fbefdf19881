# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Notes added to errors of other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def noting(note: Callable[[], str]) -> Iterator[None]:
    """
    Add a note to whatever error comes out of this context; the innermost note stays alone.

    :param note: returns the text, where it is needed.
    """
    try:
        yield
    except Exception as error:
        if not getattr(error, "__notes__", None):
            error.add_note(note())
        raise
