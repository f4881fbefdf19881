# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""An amortised guide for other data than those at its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Given:
    """
    A guide that conditions on given values at its data sites.

    :param guide: the guide.
    :param values: dict from data site to value.
    :param masks: dict from data site to what counts of its batch.
    """

    def __init__(
        self, guide: Any, values: Mapping[str, Any], masks: Mapping[str, Any] | None
    ) -> None:
        self.guide, self.values, self.masks = guide, values, masks or {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The guide, with the model's arguments."""
        return self.guide.run_given(self.values, self.masks, args, kwargs)
