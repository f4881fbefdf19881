# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Check that a model observes the values it was given, by comparing all of the values."""

from __future__ import annotations

import math

import torch

from pyro_spread._recording import values_known
from pyro_spread.noise import SpreadNoise


class Places:
    """
    Where the values that a site observed stood among those that the model was given.

    A model takes the same places at every step, as a rule, and to look there again costs far less
    than to search. What is remembered decides nothing: where it does not hold, all is searched.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, torch.Tensor]] = {}

    def observed(
        self,
        site: str,
        value: torch.Tensor,
        handed: torch.Tensor,
        kernel: SpreadNoise,
        event_dim: int,
    ) -> bool:
        """
        Whether every element of ``value`` is one of the spread value: a reshape, a permutation or a
        subset of it, also with repeats.

        Where a kernel treats elements differently they must keep their places: only whole blocks,
        events as a rule, may be taken or permuted. Labels repeat: there only their counts tell.

        :param handed: what the model was given.
        """
        if not values_known():
            return True
        flat, whole = value.reshape(-1), handed.reshape(-1).to(value.dtype)
        if flat.shape == whole.shape and torch.equal(flat, whole):
            return True
        free = kernel._moves_with_data()
        if free and not value.is_floating_point():
            return _counts_fit(flat, whole)
        if free and _is_view(value, handed):
            return True
        placed = 0 if free else kernel._placed_dims(event_dim)
        width = math.prod(value.shape[max(0, value.dim() - placed) :]) if placed else 1
        if width == 0 or flat.numel() % width or whole.numel() % width:
            return False
        blocks, all_blocks = flat.reshape(-1, width), whole.reshape(-1, width)
        count, places = self._known.get(site, (0, None))
        fits = places is not None and count == len(all_blocks) and len(places) == len(blocks)
        if fits and torch.equal(all_blocks[places], blocks):
            return True
        places = _search(blocks, all_blocks)
        if places is None:
            return False
        self._known[site] = len(all_blocks), places
        return True


def _counts_fit(labels: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether no label is there more often than in ``whole``, or, among repeats, is new."""
    classes, counts = labels.unique(return_counts=True)
    if len(labels) > len(whole):
        return bool(torch.isin(classes, whole).all())
    available = (whole == classes[:, None]).sum(1)
    return bool((counts <= available).all())


def _is_view(value: torch.Tensor, handed: torch.Tensor) -> bool:
    """Whether ``value`` reads nothing but the memory of ``handed``, as slices and transposes do."""
    if value.dtype != handed.dtype or value.layout != torch.strided or value.is_neg():
        return False
    try:
        mine, theirs = value.untyped_storage(), handed.untyped_storage()
        own = theirs.nbytes() == handed.numel() * handed.element_size()
        return own and mine.data_ptr() == theirs.data_ptr()
    except (NotImplementedError, RuntimeError):  # tensors without a memory of their own
        return False


def _search(blocks: torch.Tensor, whole: torch.Tensor) -> torch.Tensor | None:
    """For every row of ``blocks`` the number of an equal row of ``whole``; None if one has none."""
    if not len(whole):
        return None
    # Continuous noise hardly ever repeats, so that the first element of a block tells which it is.
    first, order = whole[:, 0].sort()
    at = torch.searchsorted(first, blocks[:, 0].contiguous())
    places = order[at.clamp(max=len(order) - 1)]
    wrong = (whole[places] != blocks).any(1).nonzero()[:, 0]
    if blocks.shape[1] == 1:
        return None if len(wrong) else places
    for row in wrong.tolist():
        equal = (whole == blocks[row]).all(1).nonzero()
        if not len(equal):
            return None
        places[row] = equal[0, 0]
    return places
