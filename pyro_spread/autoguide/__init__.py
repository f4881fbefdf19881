# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Guides made from a model: without a density, or an amortised one with it."""

from pyro_spread.autoguide.amortized import AutoAmortized
from pyro_spread.autoguide.implicit import AutoImplicit

__all__ = ["AutoAmortized", "AutoImplicit"]
