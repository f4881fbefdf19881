# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What an amortised guide finds out about the plates of its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spread_core.amortized.context import Context
from spread_core.amortized.exchangeable import plates_told_apart, unlike_plates
from spread_core.amortized.heavy import heavy_sites
from spread_core.caller_warning import warn_user
from spread_core.messages import amortized as messages
from spread_core.validation import as_host

# Latents and data in plates whose elements differ are one vector up to this size.
_MOST_NUMBERS = 200


class HasPlates:
    """Which plates are alike, and which are one long vector each."""

    exchangeable: bool | None
    #: Plates whose elements differ: each is one long vector. None until it is known.
    ordered_plates: tuple[str, ...] | None
    _context: Context | None
    context: Any
    _embed: Any

    def structure(self) -> dict[str, list[str]]:
        """What the guide has found out about the model, for :meth:`set_structure`."""
        ordered = self.ordered_plates or ()
        context = self.context
        return {
            "ordered_plates": list(ordered),
            "masked": sorted(context.masked),
            "heavy": sorted(context.heavy),
        }

    def set_structure(self, structure: Mapping[str, Sequence[str]]) -> None:
        """
        Take over what another guide of the same model has found out.

        :param structure: as :meth:`structure` returns it.
        """
        self.ordered_plates = tuple(structure["ordered_plates"])
        self._context = self.context.without(self.ordered_plates)
        self.context.masked = frozenset(structure["masked"])
        self.context.heavy = frozenset(structure["heavy"])
        self._embed(self.context)

    def decide(
        self, latents: Mapping[str, Any], data: Mapping[str, Any], masks: Mapping[str, Any]
    ) -> None:
        """
        Find out in which plates elements differ, and which data in them have heavy tails, once.

        :param latents: unconstrained values of simulations by latent.
        :param data: values by observed site.
        :param masks: what counts of them, by group.
        """
        if self.ordered_plates is not None:
            return
        context = self.context
        context.heavy = frozenset(heavy_sites(context.data, data, masks, context.depth))
        groups = [*context.groups, *context.data]
        names = {name for group in groups for name in group.plates}
        masked = {name for g in context.data if g.key in masks for name in g.plates}
        if self.exchangeable is False and masked:
            raise ValueError(messages.masked_order(sorted(masked)))
        unlike = names if self.exchangeable is False else set()
        if self.exchangeable is None and names:
            whole = [group for group in context.data if group.key not in masks]
            host = {name: as_host(value) for name, value in {**latents, **data}.items()}
            unlike = unlike_plates(whole, host, context.depth)
            unlike |= plates_told_apart(context.groups, whole, host, context.depth)
            unlike -= masked
        told_apart = context.without(unlike)
        numbers = sum(g.size for g in [*told_apart.groups, *told_apart.data])
        if unlike and numbers > _MOST_NUMBERS and self.exchangeable is None:
            warn_user(messages.unlike_elements(sorted(unlike), numbers))
            unlike, told_apart = set(), context
        self.ordered_plates, self._context = tuple(sorted(unlike)), told_apart
        self._embed(told_apart)
