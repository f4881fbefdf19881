# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Did a model observe the values it was handed? Decided on the values themselves."""

from __future__ import annotations

import torch

from pyro_spread.noise import SpreadNoise


def observes(value: torch.Tensor, handed: torch.Tensor, kernel: SpreadNoise, width: int) -> bool:
    """
    Whether ``value`` is the spread value, a reshape, a permutation or a subset of it.

    Where a kernel treats elements differently they must keep their places: only whole events, of
    ``width`` elements, may be taken or permuted.

    Continuous draws are almost surely unlike any clean value, so that a few elements tell. Labels
    repeat: there only values of the same number can be told apart, by their counts.
    """
    if torch._C._get_tracing_state():
        return True
    flat, whole = value.reshape(-1), handed.reshape(-1).to(value.dtype)
    if flat.shape == whole.shape:
        if torch.equal(flat, whole):
            return True
        if kernel._moves_with_data() and not value.is_floating_point():
            return torch.equal(flat.sort().values, whole.sort().values)
    if flat.numel() == 0:
        return True
    if not kernel._moves_with_data():
        width = width if width > 1 else value.shape[-1] if value.dim() else 1
        if flat.numel() % width or whole.numel() % width:
            return False
        rows, whole = flat.reshape(-1, width), whole.reshape(-1, width)
        some = rows[:: max(1, len(rows) // 16)]
        return all(bool((whole == row).all(-1).any()) for row in some)
    some = flat[:: max(1, flat.numel() // 16)]
    return bool(torch.isin(some, whole).all())
