# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Monitor a critic during training, and warn once when its logits are no longer reliable."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

from spread_core.caller_warning import warn_user
from spread_core.messages import contrasts, players
from spread_core.stateful import Stateful
from spread_core.validation import as_count

# From here on sigmoid(-|logit|) is below 5e-5: the saturating generator loss has no gradient left.
SATURATED_LOGIT = 10.0
PERFECT_ACCURACY = 0.99
PERFECT_SATURATION = 0.9
# A critic that is right this often has seen nearly no draw whose logit it could get wrong: the
# logit's size is extrapolated. In the conjugate case z ~ N(0, 1), x = 5 ~ N(z, s²) the critic of
# the exact posterior, 14 nats from the prior at s = 0.1, is off by 5 nats.
LAGGING_ACCURACY = 0.98
#: Gap in nats up to which a reported value counts as right whatever its error; and for each datum:
#: subsampled plates stand for many, of which every critic leaves out a little.
GAP_TOLERANCE, GAP_PER_DATUM = 0.3, 0.1
# A gap that has fallen below this share of itself is closing. Chosen, as the patience, on 42 runs
# with Gaussian guides, frozen and trained, that were stopped at lengths of 1,000 to 3,000 steps: it
# warned of 316 of 324 gaps above a nat then, and of none of 149 below a tenth.
_CLOSING = 0.4
_MOST_BLOCKS = 40
_RECENT, _HARDLY_CLOSING = 8, 0.9


class SupportMismatchWarning(UserWarning):
    """Data and model have practically no common support, so the generator gets no gradient."""


class FalseEvidenceWarning(UserWarning):
    """The adversarial ELBO estimate may lie far above the evidence, since its critic lags."""


def is_suspicious(
    accuracy: float,
    saturated: float,
    accuracy_limit: float = PERFECT_ACCURACY,
    saturated_limit: float = PERFECT_SATURATION,
) -> bool:
    """Whether a critic separates data and model so well that the generator cannot learn from it."""
    return accuracy >= accuracy_limit and saturated >= saturated_limit


def _as_limit(value: float, name: str) -> float:
    if not 0.0 < value <= 1.0:
        raise ValueError(f"`{name}` must lie in (0, 1], got {value}.")
    return float(value)


class Monitor(Stateful):
    """
    Counts suspicious steps in a row and warns, once, when there are ``patience`` of them.

    :param patience: how many.
    """

    _remembers: ClassVar[tuple[str, ...]] = ("warned", "streak")
    #: What it warns by.
    category: type[UserWarning] = UserWarning

    def __init__(self, patience: int) -> None:
        self.patience = as_count(patience, "patience")
        self.warned = False
        #: Suspicious steps in a row, up to now.
        self.streak = 0

    def text(self) -> str:
        """What it warns of."""
        raise NotImplementedError

    def _count(self, suspicious: bool, stacklevel: int | None = None) -> bool:
        """
        Take in one step.

        :param suspicious: whether it is.
        :param stacklevel: frames up to the line that the warning names; None names the user's.
        """
        self.streak = self.streak + 1 if suspicious else 0
        return self._warn_if(self.streak >= self.patience, stacklevel)

    def _warn_if(self, condition: bool, stacklevel: int | None = None) -> bool:
        """Warn, unless that has been done; whether it was done now."""
        if self.warned or not condition:
            return False
        # Set before warning: under an "error" filter warn() raises and would repeat every step.
        self.warned = True
        if stacklevel is None:
            warn_user(self.text(), self.category)
        else:
            warnings.warn(self.text(), self.category, stacklevel=stacklevel + 2)
        return True


class SupportMismatchMonitor(Monitor):
    """Watch a critic during training and warn, once, when it has become perfect.

    A step is suspicious if the critic is right about nearly every sample with nearly all logits
    saturated. One such batch is chance; ``patience`` of them in a row are a support mismatch.

    :param patience: Consecutive suspicious steps before the warning, at least 1.
    :param accuracy_limit: Accuracy from which a step is suspicious.
    :param saturated_limit: Share of saturated logits, in size at least 10, from which it is.
    :raises ValueError: If ``patience`` is not a positive integer or a limit is not in (0, 1].

    >>> monitor = SupportMismatchMonitor(patience=2)
    >>> monitor.observe(accuracy=1.0, saturated=1.0), monitor.observe(accuracy=0.7, saturated=0.0)
    (False, False)
    """

    category = SupportMismatchWarning

    def __init__(
        self,
        patience: int = 20,
        accuracy_limit: float = PERFECT_ACCURACY,
        saturated_limit: float = PERFECT_SATURATION,
    ) -> None:
        super().__init__(patience)
        self.accuracy_limit = _as_limit(accuracy_limit, "accuracy_limit")
        self.saturated_limit = _as_limit(saturated_limit, "saturated_limit")

    def observe(self, accuracy: float, saturated: float, stacklevel: int = 2) -> bool:
        """
        Count one step; warn at the ``patience``-th suspicious one in a row.

        :param accuracy: Share of samples that the critic classifies correctly.
        :param saturated: Share of samples with a saturated logit.
        :param stacklevel: Frames up to the line that the warning names; 2 is the caller.
        :return: Whether this call issued the warning.
        """
        # NaN compares false: a diverged step ends the streak instead of counting as perfect.
        suspicious = is_suspicious(accuracy, saturated, self.accuracy_limit, self.saturated_limit)
        return self._count(suspicious, stacklevel)

    def text(self) -> str:
        """What it warns of."""
        return players.support_mismatch()


class FalseEvidenceMonitor(Monitor):
    """Watch the critic of a contrast ELBO and warn, once, when its logits have become guesses.

    The critic's logit is the log-ratio of the guide to its contrast only where it sees draws of
    both. A step is suspicious if the critic is right about nearly all of them; ``patience`` of such
    steps in a row say that it sees no overlap, so that the size of its logit means little and the
    reported value may lie above the evidence.

    :param patience: Consecutive suspicious steps before the warning, at least 1.
    :param accuracy_limit: Accuracy from which a step is suspicious.
    :raises ValueError: If ``patience`` is not a positive integer or the limit is not in (0, 1].

    >>> monitor = FalseEvidenceMonitor(patience=2)
    >>> monitor.observe(accuracy=0.99), monitor.observe(accuracy=0.7)
    (False, False)
    """

    category = FalseEvidenceWarning

    def __init__(self, patience: int = 50, accuracy_limit: float = LAGGING_ACCURACY) -> None:
        super().__init__(patience)
        self.accuracy_limit = _as_limit(accuracy_limit, "accuracy_limit")

    def observe(self, accuracy: float, stacklevel: int = 2) -> bool:
        """
        Count one step; warn at the ``patience``-th suspicious one in a row.

        :param accuracy: Share of the guide's and the contrast's draws that the critic classifies
            correctly.
        :param stacklevel: Frames up to the line that the warning names; 2 is the caller.
        :return: Whether this call issued the warning.
        """
        return self._count(accuracy >= self.accuracy_limit, stacklevel)

    def text(self) -> str:
        """What it warns of."""
        return contrasts.false_evidence()


def gap_tolerance(num_data: float) -> float:
    """
    Gap in nats that does no harm.

    :param num_data: Number of data whose gaps are summed.

    >>> gap_tolerance(1), gap_tolerance(100)
    (0.3, 10.0)
    """
    return max(GAP_TOLERANCE, GAP_PER_DATUM * num_data)


class EvidenceGapMonitor(Monitor):
    """Watch how far the critic of a contrast ELBO lags behind, in nats, and warn, once.

    It is told, now and then, by how much the reported value exceeded what the guide's own draws
    allow (:func:`~spread_core.math.own_density.own_log_density`). Looks are noisy, so the means of
    blocks of them count. Every critic lags at first, and most catch up. The warning comes when the
    gap has been there for half of all blocks, without closing: each third of that half is above
    :func:`gap_tolerance`, the last one by two standard errors, and that is no less than 0.4 of the
    first.

    :param patience: Blocks that the half must have at least, 3 or more.
    :param block: Looks in a block, at least 2.

    >>> monitor = EvidenceGapMonitor(patience=3, block=2)
    >>> monitor.observe(0.1), monitor.observe(-0.1), monitor.observe(float("nan"))
    (False, False, False)
    """

    category = FalseEvidenceWarning
    _remembers = ("warned", "blocks", "tolerance", "_looks", "_recent", "_means", "_errors")

    def __init__(self, patience: int = 7, block: int = 16) -> None:
        super().__init__(as_count(patience, "patience", 3))
        self.block = as_count(block, "block", 2)
        #: Gap in nats that does no harm.
        self.tolerance = GAP_TOLERANCE
        #: Blocks up to now.
        self.blocks = 0
        self._looks: list[float] = []
        self._recent: list[float] = []
        self._means: list[float] = []
        self._errors: list[float] = []

    def observe(self, gap: float, num_data: float = 1.0) -> bool:
        """
        Take in one look.

        :param gap: In nats; NaN if this step could not be looked at.
        :param num_data: Number of data whose gaps it sums.
        :return: Whether this call issued the warning.
        """
        if not gap > -math.inf:  # at the edge of a prior's support
            return False
        self.tolerance = gap_tolerance(num_data)
        # New lists, never changed ones: a step that is undone goes back to the old.
        self._looks = [*self._looks, float(gap)]
        self._recent = [*self._recent, float(gap)][-_RECENT:]
        if len(self._looks) < self.block:
            return False
        looks = [look for look in self._looks if look < math.inf]
        if 2 * len(looks) <= self.block:  # mostly inf: a guide that has collapsed
            looks = self._looks
        mean = sum(looks) / len(looks)
        square = sum((look - mean) ** 2 for look in looks)
        self._means = [*self._means, mean][-_MOST_BLOCKS:]
        error = math.sqrt(square / (len(looks) - 1) / len(looks))
        self._errors = [*self._errors, error][-_MOST_BLOCKS:]
        self._looks = []
        self.blocks += 1
        return self._warn_if(self.blocks >= self.patience and self._stays())

    def has_doubts(self) -> bool:
        """Whether the last looks speak of a gap that is not closing, or there are none yet."""
        half = len(self._recent) // 2
        if not half:
            return True
        before, after = sum(self._recent[:half]), sum(self._recent[-half:])
        return not after <= half * self.tolerance and after >= _HARDLY_CLOSING * before

    def _thirds(self) -> list[float]:
        """Means of the first, middle and last third of the later half of all blocks."""
        half = self._means[-max(self.patience, (self.blocks + 1) // 2) :]
        third = len(half) // 3
        parts = half[:third], half[third:-third], half[-third:]
        return [sum(part) / len(part) for part in parts]

    def _error(self) -> float:
        """The standard error of the last third."""
        count = len(self._means[-max(self.patience, (self.blocks + 1) // 2) :]) // 3
        return math.sqrt(sum(error**2 for error in self._errors[-count:])) / count

    def _stays(self) -> bool:
        """Whether there is a gap, and it is not closing."""
        first, middle, last = self._thirds()
        certain = not last <= self.tolerance + 2 * self._error()  # of inf the error is NaN
        return certain and min(first, middle) > self.tolerance and last >= _CLOSING * first

    def text(self) -> str:
        """What it warns of."""
        return contrasts.false_evidence_in_training(self._thirds()[-1], self._error())


class LogitRangeMonitor(Monitor):
    """Watch a critic during training and warn, once, when its logits look like probabilities.

    A step is suspicious if the logits of both sides differ, all lie in [0, 1], and one is above
    0.1: those of a critic that has learned little are near 0, its sigmoid is near 0.5.

    :param usual: The logit of a critic that cannot tell the sides apart. If that is a number
        between 0 and 1 itself, the logits must also be far from each other.
    :param patience: Consecutive suspicious steps before the warning, at least 1.

    >>> monitor = LogitRangeMonitor(patience=2)
    >>> monitor.observe(low=0.1, high=0.9), monitor.observe(low=-2.0, high=0.9)
    (False, False)
    """

    def __init__(self, usual: float = 0.0, patience: int = 50) -> None:
        super().__init__(patience)
        self.least = 0.5 if 0.0 < usual < 1.0 else 0.0

    def observe(self, low: float, high: float) -> bool:
        """
        Count one step; warn at the ``patience``-th suspicious one in a row.

        :param low: The least logit of both sides.
        :param high: The largest.
        :return: Whether this call issued the warning.
        """
        return self._count(bool(self.suspects(low, high)))

    def text(self) -> str:
        """What it warns of."""
        return players.logits_in_unit_interval()

    def suspects(self, low: Any, high: Any) -> Any:
        """Whether a step is suspicious; of arrays too."""
        return (low >= 0.0) & (high > 0.1) & (high <= 1.0) & (high - low > self.least)


class ClampMonitor(Monitor):
    """Watch an estimate that is reported within its range, and say, once, that it was outside.

    :param upper: The largest value of the divergence, in nats.
    :param patience: Consecutive steps outside before the warning, at least 1. A critic that starts
        next to its model may need a hundred steps to get inside.

    >>> monitor = ClampMonitor(upper=0.7, patience=2)
    >>> monitor.observe(-0.1), monitor.observe(0.1)
    (False, False)
    """

    def __init__(self, upper: float, patience: int = 200) -> None:
        super().__init__(patience)
        self.upper = upper
        self._value: float | None = None

    def observe(self, value: float) -> bool:
        """
        Count one step; warn at the ``patience``-th one outside in a row.

        :param value: The estimate as it is, in nats.
        :return: Whether this call issued the warning.
        """
        self._value = value
        return self._count(bool(self.suspects(value)))

    def text(self) -> str:
        """What it warns of."""
        return players.clamped_estimate(self._value, self.upper)

    def suspects(self, value: Any) -> Any:
        """Whether the range is left; of arrays too. Rounding does not count."""
        return (value < -1e-6) | (value > self.upper + 1e-6)
