# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Sites of a scan as whole series: time is part of the event, right of the plates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from numpyro_spread.infer._scan import is_scanned


class Series(Distribution):
    """
    A distribution of a scan, its time in front of the event dims instead of the batch dims.

    :param fn: the distribution, of batch shape time + plates.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, fn: Distribution) -> None:
        self.fn = fn
        time, *batch = fn.batch_shape
        super().__init__(tuple(batch), (time, *fn.event_shape), validate_args=False)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws of shape sample + plates + time + event."""
        value = self.fn.sample(key, sample_shape)
        return time_last(value, len(self.batch_shape), len(sample_shape))


def whole(site: Mapping[str, Any]) -> Mapping[str, Any]:
    """A site of a trace, as a whole series if it comes out of a scan."""
    if not is_scanned(site):
        return site
    fn = Series(site["fn"])
    # What a plate of one element or none made broadcasts.
    value = jnp.broadcast_to(site["value"], site["fn"].shape())
    return {**site, "fn": fn, "value": time_last(value, len(fn.batch_shape))}


def time_last(value: Any, batch_ndim: int, time: int = 0) -> Any:
    """
    ``value`` with its time right of the plates.

    :param batch_ndim: number of dims of the plates, which stand right of the time.
    :param time: the dim of the time.
    """
    kind = jnp if isinstance(value, jax.Array) else np
    return kind.moveaxis(value, time, time + batch_ndim)
