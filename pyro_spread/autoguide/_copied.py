# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Copies of autoguides that need their model."""

from __future__ import annotations

import copy
from typing import Any

from pyro.infer.autoguide import AutoGuide


class KeepsModel(AutoGuide):
    """An autoguide whose copies and pickles know the model too, which the parent's forget."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"master": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> KeepsModel:
        memo[id(self.model)] = self.model  # the same one
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        result.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return result
