# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""General messages."""

from __future__ import annotations

import math
import re
import reprlib

_MANY = 6
# Numbers in brackets, as arrays and lists are printed, from the length on at which they are cut.
_NUMBERS = re.compile(r"\[(?:nan|inf|True|False|[\[\]()\s\d.,+\-ej]){24,}(?:\]|$)")


def shortened(text: object, longest: int = 300) -> str:
    """
    The message of another library's error, shortened to one line without arrays.

    :param text: the error, or its text; what Pyro adds about shapes is left out.
    :param longest: number of characters.
    """
    line = " ".join(_NUMBERS.sub(_cut, str(text).partition("Trace Shapes:")[0]).split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def _cut(array: re.Match[str]) -> str:
    return "[... nan ...]" if "nan" in array[0] else "[...]"


def shown(value: object) -> str:
    """A user's value in a message: of arrays and other containers the type and size only."""
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if isinstance(shape, tuple) and math.prod(shape) > _MANY:
        return f"an array ({kind}) of shape {tuple(shape)}"
    if isinstance(value, list | tuple | dict | set) and len(value) > _MANY:
        return f"a {kind} of {len(value)}"
    return shortened(_SHORT.repr(value) if isinstance(value, list | tuple | dict) else repr(value))


class _Short(reprlib.Repr):
    """A short repr: the first elements of containers, and the shapes of arrays."""

    def repr_instance(self, x: object, level: int) -> str:
        return shown(x)


_SHORT = _Short()


def missing_extra(package: str, extra: str, cause: ImportError) -> str:
    return (
        f"{package} needs the extra '{extra}' ({cause}). "
        f"Install it with: pip install 'pyro-spread[{extra}]'"
    )


def at_site(site: str, message: object) -> str:
    return f"site '{site}': {shortened(message, 700)}"
