# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Documentation that the classes of both backends take from the class they share."""

from __future__ import annotations

import inspect
from typing import Any


class SharedDocs:
    """
    Base of the classes whose arguments, checks and documentation are the same in both backends.

    A backend's class derives from such a class. Its own docstring holds its first line, an example,
    and what is true in this backend only. The rest, such as formulas, references and ``:param``
    lines, stands in the shared class once and is appended: all that follows its first paragraph.
    ``:param`` lines of the backend's own come last.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if _is_shared(cls) or not cls.__doc__:
            return
        for base in cls.__bases__:
            if _is_shared(base) and base.__doc__:
                _, _, rest = inspect.cleandoc(base.__doc__).partition("\n\n")
                own, mark, params = inspect.cleandoc(cls.__doc__).partition("\n:param ")
                cls.__doc__ = f"{own.rstrip()}\n\n{rest.rstrip()}{mark}{params}".rstrip()


def _is_shared(cls: type) -> bool:
    return issubclass(cls, SharedDocs) and cls.__module__.startswith("spread_core.")
