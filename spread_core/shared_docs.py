# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Documentation that the classes of both backends take from the class they share."""

from __future__ import annotations

import inspect
import re
from typing import Any


class SharedDocs:
    """
    Base of the classes whose arguments, checks and documentation are the same in both backends.

    A backend's class derives from such a class. Its own docstring holds its first line, an example,
    and what is true in this backend only. All that follows the first paragraph of the shared class
    is put into it: the explanation after the example, references and ``:param`` lines at the end.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if _is_shared(cls) or not cls.__doc__:
            return
        for base in cls.__bases__:
            if _is_shared(base) and base.__doc__:
                own, shared = (inspect.cleandoc(doc) for doc in (cls.__doc__, base.__doc__))
                cls.__doc__ = _compose(own, shared)


def _is_shared(cls: type) -> bool:
    return issubclass(cls, SharedDocs) and cls.__module__.startswith("spread_core.")


def _compose(own: str, shared: str) -> str:
    (text, *own_end), (explanation, *shared_end) = _split(own), _split(shared)
    examples = [number for number, part in enumerate(text) if ">>>" in part]
    start = 1 + (examples[-1] if examples else 0)
    references, fields = (mine + ours for mine, ours in zip(shared_end, own_end, strict=True))
    parts = [*text[:start], *explanation[1:], *text[start:], *references]
    return "\n\n".join([*parts, "\n".join(fields)]).rstrip()


def _split(doc: str) -> tuple[list[str], list[str], list[str]]:
    """The paragraphs of a docstring, those of its references, and its fields such as ``:param``."""
    text: list[str] = []
    references: list[str] = []
    fields: list[str] = []
    into = text
    for part in doc.split("\n\n"):
        if re.match(r":(param|raises|return)", part):
            into = fields
        elif part.startswith("**References**"):
            into = references
        into.append(part)
    return text, references, fields
