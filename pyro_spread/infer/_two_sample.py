# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Discrepancies between two sets of samples, whose large kernel matrices are computed in blocks.

    >>> from pyro_spread import GaussianKernel
    >>> mmd2_unbiased(GaussianKernel(1.0), torch.zeros(2, 1), torch.ones(2, 1))
    tensor(0.7869)
    >>> energy_distance(torch.zeros(2, 1), torch.ones(2, 1))
    tensor(2.)
    >>> sliced_wasserstein(torch.zeros(2, 1), torch.full((3, 1), 2.0), torch.ones(1, 1))
    tensor(4.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from spread_core.math import two_sample
from spread_core.math.two_sample import sliced_wasserstein

__all__ = ["energy_distance", "mmd2_unbiased", "sliced_wasserstein"]


def _sum_of_blocks(
    rows: Callable[..., torch.Tensor], size: int, samples: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    def again(*block: Any) -> torch.Tensor:
        return checkpoint(rows, *block, use_reentrant=False, preserve_rng_state=False)

    return two_sample.sum_of_blocks(again, size, samples, weights)


mmd2_unbiased = partial(two_sample.mmd2_unbiased, sum_of_blocks=_sum_of_blocks)
energy_distance = partial(two_sample.energy_distance, sum_of_blocks=_sum_of_blocks)
