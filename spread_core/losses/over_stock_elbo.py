# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Losses that evaluate a stock ELBO: what is the same in both backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from spread_core.loss_words import LossWords
from spread_core.messages import spreading
from spread_core.shared_docs import SharedDocs


@dataclass(frozen=True)
class StockELBOs:
    """
    The stock ELBOs of a backend, as a loss sees them.

    :param default: the one that is used if none is given.
    :param base: base class of all of them.
    :param base_name: where users find it.
    :param accepted: those that the loss can evaluate.
    :param refused: those that it cannot, and why.
    """

    default: Any
    base: Any
    base_name: str
    accepted: tuple[type, ...]
    refused: Mapping[type, str] = field(default_factory=dict)


class OverStockELBO(SharedDocs):
    """Base class of the losses that evaluate a stock ELBO."""

    #: What is reported.
    _value: ClassVar[str]
    #: Why an ELBO that nobody knows is refused.
    _unknown: ClassVar[str]
    _stock: ClassVar[StockELBOs]

    elbo: Any

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        return LossWords(type(self).__name__, self._value, is_sum=True)

    def _checked(self, elbo: Any) -> Any:
        """The ELBO to evaluate."""
        name, stock = type(self).__name__, self._stock
        if elbo is None:
            return stock.default()
        for refused, why in stock.refused.items():
            if isinstance(elbo, refused):
                raise NotImplementedError(spreading.elbo_refused(name, refused.__name__, why))
        if not isinstance(elbo, stock.base):
            raise TypeError(spreading.no_elbo(name, elbo, stock.base_name))
        if not isinstance(elbo, stock.accepted):
            why = f"{self._unknown} is not known. Subclass one of the stock ELBOs."
            raise NotImplementedError(spreading.elbo_refused(name, type(elbo).__name__, why))
        return elbo

    def _check_differentiable(self) -> None:
        """Refuse an ELBO that cannot be differentiated by the caller."""
        if not hasattr(self.elbo, "differentiable_loss"):
            name = type(self.elbo).__name__
            why = "it has no differentiable_loss. Use it through SVI, or another ELBO here."
            raise NotImplementedError(spreading.elbo_refused(type(self).__name__, name, why))
