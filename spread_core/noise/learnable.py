# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise with params among the noise of a loss."""

from __future__ import annotations

from typing import Any


class Learnable:
    """Base class of noise with params, which is no kernel but makes one at every step."""

    def _played(self) -> Any:
        """The kernel of a step."""
        raise NotImplementedError

    def _nets(self) -> tuple[Any, ...]:
        """Modules of the user's whose params are its own."""
        return ()


def learned_of(noise: Any) -> dict[str, Any]:
    """
    The learned noise by site or pattern, empty for a callable.

    :param noise: what :meth:`Backend.as_noise` returned.
    """
    if callable(noise):
        return {}
    return {name: kernel for name, kernel in noise.items() if isinstance(kernel, Learnable)}
