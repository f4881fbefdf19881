# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What a loss says of the number that it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spread_core.monitors import Monitor

NOT_A_BOUND = "estimate, not a bound"


@dataclass(frozen=True)
class LossWords:
    """
    How to speak of a loss.

    :param name: its class.
    :param value: what it reports.
    :param unit: of that; empty where it has none.
    :param caution: what has to be said wherever the value is shown.
    :param is_divergence: whether zero is the least it can be.
    :param sides: whose samples the critic tells apart, those with label one first.
    :param is_classifier: whether the critic's outputs are logits of a classifier.
    :param pi: weight of the first side that the critic was trained with.
    :param is_sum: whether the value is a sum over the data, in nats.
    :param follows: what the model minimises instead, where that is something else; else empty.
    :param no_critic: why there is no critic where one may have been expected; else empty.
    """

    name: str
    value: str
    unit: str = "nats"
    caution: str = ""
    is_divergence: bool = False
    sides: tuple[str, str] = ("data", "model")
    is_classifier: bool = True
    pi: float = 0.5
    is_sum: bool = False
    follows: str = ""
    no_critic: str = ""

    @classmethod
    def of_class(cls, loss: type, is_sum: bool = False) -> LossWords:
        """Of a loss that says nothing about itself."""
        return cls(loss.__name__, f"loss of {loss.__name__}", is_sum=is_sum)

    @property
    def label(self) -> str:
        """What stands at an axis: the value with its unit and caution."""
        label = f"{self.value} ({self.unit})" if self.unit else self.value
        caution = self.caution or ("not what the model minimises" if self.follows else "")
        return f"{label}, {caution}" if caution else label


def divergence_name(divergence: Any) -> str:
    """The class of a divergence, with its pi where that is a choice of the user."""
    name = type(divergence).__name__
    return f"JSPi({float(divergence.pi):g})" if name == "JSPi" else name


class Described:
    """A loss that reports can ask about itself."""

    def describe(self) -> LossWords:
        """
        What the reported number is, and what is better; reports and progress bars ask.

        A loss that does not override this is called by the name of its class.
        """
        return LossWords.of_class(type(self))

    def monitors(self) -> list[Monitor]:
        """What watches the critic during training, and warns once."""
        return [value for value in vars(self).values() if isinstance(value, Monitor)]
