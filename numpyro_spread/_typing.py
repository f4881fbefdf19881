# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Names of the types that signatures of this package share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from spread_core.typing import Args, Guide, Kwargs, Model, Site, Sites

__all__ = ["Args", "Guide", "Kwargs", "Model", "Params", "RngKey", "Site", "Sites"]

#: A random key, typed or of raw numbers.
RngKey = jax.Array
#: Values of param and mutable sites by name: arrays, or trees of them as nets have.
Params = Mapping[str, Any]
