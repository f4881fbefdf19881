# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Names of the types that signatures of this package share."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from spread_core.typing import Args, Guide, Kwargs, Model, Site, Sites

__all__ = ["Args", "Guide", "Kwargs", "Model", "Params", "Site", "Sites"]

#: Values of params by name.
Params = Mapping[str, torch.Tensor]
