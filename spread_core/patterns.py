# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Keys of ``noise`` that stand for several sites, as ``"x_*"`` does; plain Python."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

_K = TypeVar("_K")


def is_pattern(key: str) -> bool:
    """Whether ``key`` may stand for other names than itself, in the manner of file names."""
    return any(sign in key for sign in "*?[")


def matches(key: str, name: str) -> bool:
    """Whether ``key`` is the name itself or a pattern that covers it."""
    return key == name or (is_pattern(key) and fnmatchcase(name, key))


def key_of(noise: Mapping[str, object], site: str) -> str | None:
    """
    The key of ``noise`` that covers a site: its own name, else a pattern; None if there is none.

    :param noise: dict from site or pattern to kernel.
    :param site: name of a site.
    :raises ValueError: if patterns with different kernels cover it.
    """
    if site in noise:
        return site
    keys = [key for key in noise if matches(key, site)]
    for other in keys[1:]:
        if noise[other] is not noise[keys[0]]:
            raise ValueError(
                f"site '{site}' is covered by several keys of noise with different kernels, "
                f"{sorted(keys)}. Give it a key of its own name, or make the patterns exclude "
                "each other."
            )
    return keys[0] if keys else None


def resolved(
    noise: Mapping[str, _K], sites: Collection[str], observed: Collection[str] | None = None
) -> dict[str, _K]:
    """
    ``noise`` with the sites that they cover instead of patterns.

    :param noise: dict from site or pattern to kernel.
    :param sites: the sites that patterns may stand for.
    :param observed: those that an error tells of; all of them if left out.
    :raises ValueError: if a pattern covers none, naming them.
    """
    if not any(is_pattern(key) for key in noise):
        return dict(noise)
    covered = {site: key for site in sites if (key := key_of(noise, site)) is not None}
    for key in noise:
        if is_pattern(key) and not any(matches(key, site) for site in sites):
            raise ValueError(
                f"noise has a kernel for sites named '{key}', but the model observes none of "
                "such a name. Its observed sites are "
                f"{sorted(sites if observed is None else observed)}."
            )
    plain = {key: kernel for key, kernel in noise.items() if not is_pattern(key)}
    return plain | {site: noise[key] for site, key in covered.items()}
