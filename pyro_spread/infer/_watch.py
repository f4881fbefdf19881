# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Monitor whether the critic of a contrast keeps up."""

from __future__ import annotations

from typing import ClassVar

import torch

from spread_core.logits import Logits
from spread_core.monitors import (
    EvidenceGapMonitor,
    FalseEvidenceMonitor,
    LogitRangeMonitor,
    Monitor,
)
from spread_core.stateful import Stateful

_EVERY, _GAP_EVERY = 4, 8


class LagWatch(Stateful):
    """
    Monitor the critic's logits during training, and warn once if they are no longer reliable.

    :param usual: the logit of a critic that cannot tell the sides apart.
    """

    _remembers: ClassVar[tuple[str, ...]] = ("_monitor", "_seen")

    def __init__(self, usual: float = 0.0) -> None:
        self._monitor = FalseEvidenceMonitor()
        self._range = LogitRangeMonitor(usual)
        self._seen = 0

    @property
    def monitors(self) -> list[Monitor]:
        """Those that it asks."""
        return [self._monitor, self._range]

    def __call__(self, logits: Logits) -> None:
        """
        Count one step.

        :param logits: of the guide (P) and of what it is contrasted with (Q).
        """
        self._seen += 1
        # Looking takes time: every step is looked at once one of them was amiss.
        if not (self._monitor.streak or self._range.streak) and self._seen % _EVERY:
            return
        with torch.no_grad():
            self._range.observe(*map(float, logits.range()))
            self._monitor.observe(float(logits.accuracy()) if self._may_lag() else 0.0)

    def _may_lag(self) -> bool:
        """Whether a critic that is always right is reason for doubt."""
        return True


class BiasWatch(LagWatch):
    """The same for a contrast that can say by how many nats its critics lag."""

    _remembers = (*LagWatch._remembers, "_gap", "_runs")

    def __init__(self) -> None:
        super().__init__()
        self._gap = EvidenceGapMonitor()
        self._runs = 0

    @property
    def monitors(self) -> list[Monitor]:
        """Those that it asks."""
        return [*super().monitors, self._gap]

    def is_due(self) -> bool:
        """Count one run, and say whether the gap is looked at in it."""
        self._runs += 1
        return self._runs % _GAP_EVERY == 0

    def _may_lag(self) -> bool:
        return self._gap.has_doubts()

    def look_at_gap(self, gap: torch.Tensor) -> None:
        """
        Take in a look at the gap.

        :param gap: of all critics, in nats, and in how many data; NaN where it was not looked at.
        """
        self._gap.observe(*gap.tolist())
