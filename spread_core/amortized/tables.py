# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Tables of simulations as an amortised guide sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spread_core.amortized.layout import Variable
from spread_core.math._arrays import Array
from spread_core.messages import amortized as messages
from spread_core.messages import training as texts


class ReadsTables:
    """A guide that is trained on tables."""

    context: Any
    told: Callable[..., dict[str, Any]]

    def columns_of(self, table: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """
        Latents, unconstrained, data, and masks by group, of a table of simulations.

        :param table: the :class:`Simulations`.
        :raises ValueError: if it lacks a site, or has it in another shape.
        """
        context = self.context
        latents: dict[str, Any] = {}
        data: dict[str, Any] = {}
        masks: dict[str, Any] = {}
        for group in [*context.groups, *context.data]:
            for variable in group.variables:
                if variable.name not in table:
                    raise ValueError(messages.missing_site(variable.name, table.values))
                self._check_row(variable, table[variable.name].shape[1:])
        for group in context.groups:
            for variable in group.variables:
                raw = self.unconstrained(variable, table[variable.name])
                latents[variable.name] = _within_numbers(raw)
        for group in context.data:
            for variable in group.variables:
                data[variable.name] = np.float32(table[variable.name])
                mask = table.masks.get(variable.name)
                if mask is not None:
                    plain = dataclasses.replace(variable, event_shape=())
                    own = plain.join(mask, context.depth, 1).all(-1)
                    masks[group.key] = own & masks.get(group.key, True)
        return latents, data, masks

    def _check_row(self, variable: Variable, got: tuple[int, ...]) -> None:
        expected = list(self.drawn_shape(variable.name))
        if len(got) == len(expected):
            for dim in variable.plates.values():
                axis = len(variable.batch_shape) + dim
                expected[axis] = got[axis]
        if list(got) != expected:
            raise ValueError(texts.table_shape(variable.name, got, expected))

    def drawn_shape(self, name: str) -> tuple[int, ...]:
        """
        The shape of what the model draws at a site.

        :param name: of the site.
        """
        raise NotImplementedError

    def check_supports(self, latents: Mapping[str, np.ndarray], table: Any) -> None:
        """
        Refuse simulations that did not fail, of which a latent lies outside of its support.

        :param latents: unconstrained values by site, as :meth:`columns_of` returns them.
        :param table: the :class:`Simulations`.
        :raises ValueError: naming the latent.
        """
        valid = table.valid
        for variable in self.context.latents:
            inside = _inside(variable, latents[variable.name], self.context.depth)[valid]
            mask = table.masks.get(variable.name)
            if mask is not None:
                wide = mask.reshape(*mask.shape, *[1] * (inside.ndim - mask.ndim))
                inside = inside | ~wide[valid]
            count = int((~inside.reshape(len(inside), -1).all(1)).sum())
            if count:
                raise ValueError(texts.outside_support(variable.name, count, len(inside)))

    def unconstrained(self, variable: Variable, values: Any) -> Any:
        """
        Values of a latent as the conditionals take them, as an array of NumPy.

        :param variable: the latent.
        :param values: of shape (simulations,) + shape of the site.
        """
        raise NotImplementedError

    def prepare(
        self,
        fitted: Mapping[str, Any],
        latents: Mapping[str, Array],
        data: Mapping[str, Array],
        masks: Mapping[str, Any],
    ) -> dict[str, tuple[Array, ...]]:
        """
        Simulations as the nets see them: standardised latents, inputs and features, by group; of
        embedded data what :meth:`told` returns.

        :param fitted: the standardisation.
        :param latents: unconstrained values by site, of shape (simulations,) + site's.
        :param data: values by observed site, alike.
        :param masks: what counts of the data, by group.
        """
        context = self.context
        scores = context.scores(fitted, data, 1)
        t = {
            g.key: context.standardise(g, fitted, g.join(latents, context.depth, 1))
            for g in context.groups
        }
        rows = {
            g.key: (
                t[g.key],
                *context.inputs(
                    g, fitted, context.described(g, fitted, scores, masks), context.before(g, t)
                ),
            )
            for g in context.groups
        }
        return rows | self.told(scores, masks)


def _inside(variable: Variable, raw: np.ndarray, depth: int) -> np.ndarray:
    """Which values are of the support, of shape (simulations,) + batch + event."""
    if variable.num_classes:
        return (raw >= 0) & (raw < variable.num_classes) & (raw == np.round(raw))
    if variable.low is None:
        return ~np.isnan(raw)
    vectors, (low, high) = variable.join(raw, depth, 1), variable.ends()
    rounding = 1e-5 * (high - low)
    return variable.split((vectors >= low - rounding) & (vectors <= high + rounding), 1)


def _within_numbers(values: np.ndarray) -> np.ndarray:
    """Infinite values, as log 0 of a draw too small for its type, at the end of the finite ones."""
    finite = np.isfinite(values)
    if np.isinf(values).any() and finite.any():
        return np.clip(values, values[finite].min(), values[finite].max())  # NaN stays
    return values
