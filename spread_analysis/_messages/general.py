# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What is said everywhere."""

from __future__ import annotations


def missing_extra(package: str, extra: str, cause: ImportError) -> str:
    return (
        f"{package} needs the extra '{extra}' ({cause}). "
        f"Install it with: pip install 'pyro-spread[{extra}]'"
    )


def at_site(site: str, message: object) -> str:
    return f"site '{site}': {message}"
