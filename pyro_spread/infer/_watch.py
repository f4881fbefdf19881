# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Monitor whether the critic of a contrast ELBO keeps up."""

from __future__ import annotations

import torch

from spread_core.logits import Logits
from spread_core.monitors import FalseEvidenceMonitor, LogitRangeMonitor, Monitor
from spread_core.stateful import Stateful

_EVERY = 4


class LagWatch(Stateful):
    """
    Monitor the critic's logits during training, and warn once if they are no longer reliable.

    :param usual: the logit of a critic that cannot tell the sides apart.
    """

    _remembers = ("_monitor", "_seen")

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
            self._monitor.observe(float(logits.accuracy()))
