# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Draws and densities of an amortised guide given the rows of a table of simulations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_spread.autoguide._walks import draws, log_prob


class GivenRows:
    """Methods of an amortised guide that take data from the rows of a table."""

    context: Any
    supports: Any
    columns_of: Any
    _jit: Any
    _own: Any

    def sample_rows(
        self, rng_key: jax.Array, params: Mapping[str, Any], table: Any, num_samples: int
    ) -> dict[str, jax.Array]:
        """
        Draws given the data of every row of a table.

        :param rng_key: random key.
        :param params: params of the guide.
        :param table: the :class:`Simulations`.
        :param num_samples: draws for every row.
        :return: dict from site to values of shape (num_samples, rows) + shape of the site.
        """
        _, data, masks = self.columns_of(table)
        sizes, lead = tuple(self.context.sizes(table.values).items()), (num_samples, len(table))
        draw = self._jit(draws, (0, 1, 2, 7))
        found: dict[str, jax.Array]
        found = draw(self, lead, sizes, rng_key, self._own(params), data, masks, 1)
        return found

    def log_prob_rows(
        self, params: Mapping[str, Any], table: Any, values: Mapping[str, Any]
    ) -> jax.Array:
        """
        Log density of latents given the data of every row of a table, in nats.

        :param params: params of the guide.
        :param table: the :class:`Simulations`.
        :param values: dict from every latent to values of shape (num_samples, rows) + shape of the
            site.
        :return: of shape (num_samples, rows).
        """
        _, data, masks = self.columns_of(table)
        sizes = tuple(self.context.sizes(table.values).items())
        latents = {name: jnp.asarray(values[name]) for name in self.supports}
        score = self._jit(log_prob, (0, 1, 6))
        found: jax.Array = score(self, sizes, latents, self._own(params), data, masks, 1)
        return found
