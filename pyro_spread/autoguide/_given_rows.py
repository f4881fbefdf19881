# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Draws and densities of an amortised guide given the rows of a table of simulations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pyro_spread.autoguide._walks import draws, log_prob


class GivenRows:
    """Methods of an amortised guide that take data from the rows of a table."""

    context: Any
    supports: Any
    columns_of: Any
    tensor: Any
    _drawn: Any

    @torch.no_grad()
    def sample_rows(self, table: Any, num_samples: int) -> dict[str, torch.Tensor]:
        """
        Draws given the data of every row of a table.

        :param table: the :class:`Simulations`.
        :param num_samples: draws for every row.
        :return: dict from site to values of shape (num_samples, rows) + shape of the site.
        """
        return draws(self, (num_samples, len(table)), *self._data_of(table), 1)

    @torch.no_grad()
    def log_prob_rows(self, table: Any, values: Mapping[str, Any]) -> torch.Tensor:
        """
        Log density of latents given the data of every row of a table, in nats.

        :param table: the :class:`Simulations`.
        :param values: dict from every latent to values of shape (num_samples, rows) + shape of the
            site.
        :return: of shape (num_samples, rows).
        """
        sizes, data, masks = self._data_of(table)
        latents = {n: torch.as_tensor(values[n]).to(self._drawn(n)) for n in self.supports}
        return log_prob(self, sizes, latents, data, masks, 1)

    def _data_of(self, table: Any) -> tuple[dict[str, int], dict[str, Any], dict[str, Any]]:
        """Sizes of plates, data and masks of the rows of a table."""
        _, columns, masks = self.columns_of(table)
        return (
            self.context.sizes(table.values),
            {name: self.tensor(value) for name, value in columns.items()},
            {key: torch.as_tensor(mask) for key, mask in masks.items()},
        )
