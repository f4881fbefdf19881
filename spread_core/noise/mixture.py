# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The entropy of noisy data, from the mixture of the kernels of a mini-batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from spread_core.amortized.mixture import logsumexp
from spread_core.datum import data_first
from spread_core.math._arrays import Array
from spread_core.messages import learned


def check_batch(
    site: str, kernel: Any, value: Sequence[int], event_dim: int, frames: Sequence[Any], scale: Any
) -> int:
    """
    The dim of the only plate, whose elements are the data of a site.

    :param site: its name.
    :param kernel: that makes its noise.
    :param value: shape of what it observes.
    :param event_dim: its number of event dimensions.
    :param frames: its plates.
    :param scale: of its log density, None for one.
    :raises NotImplementedError: if it has other plates, dimensions or scales.
    """
    batch = value[: len(value) - event_dim]
    dims = [frame.dim for frame in frames]
    loose = [d for d in range(-len(batch), 0) if batch[d] != 1 and d not in dims]
    alone = len(dims) == 1 and dims[0] is not None and not loose and -dims[0] <= len(batch)
    shape = getattr(getattr(kernel, "scale", None), "shape", ())
    if not alone or batch[dims[0]] < 2 or len(shape) > max(event_dim, 1) or not event_dim:
        raise NotImplementedError(learned.mixture_of_batch(site, batch))
    if math.prod(np.shape(scale)) > 1:
        raise NotImplementedError(learned.mixture_of_masked(site))
    dim: int = dims[0]
    return dim


def check_leaves(
    site: str,
    value: Sequence[int],
    handed: Any,
    arguments: Any,
    leaves_of: Callable[..., Iterable[Any]],
) -> None:
    """
    Refuse arguments that may go with the data one by one, and are not the data: arrays with a dim
    of their number, and lists of that length.

    :param site: its name.
    :param value: shape of what it observes.
    :param handed: the noisy data, as the model was given them.
    :param arguments: positional and keyword arguments of the model.
    :param leaves_of: of a tree, with the argument ``is_leaf`` that the backends' functions have.
    :raises NotImplementedError: naming the shape.
    """
    size, in_all = (next((n for n in shape if n != 1), 0) for shape in (value, handed.shape))
    sizes = {size, in_all}
    args, kwargs = arguments
    given = [*args, *kwargs.values()]
    lists: list[Any] = []

    def look(value: Any) -> bool:
        if value is not given and isinstance(value, Sequence) and not isinstance(value, str):
            lists.append(value)
        return False

    for leaf in leaves_of(given, is_leaf=look):
        shape = tuple(getattr(leaf, "shape", ()))
        if leaf is not handed and not sizes.isdisjoint(shape):
            raise NotImplementedError(learned.mixture_of_argument(site, shape, size))
    for values in lists:
        holds = any(leaf is handed for leaf in leaves_of(values))
        if not holds and len(values) in sizes:
            raise NotImplementedError(learned.mixture_of_argument(site, (len(values),), size))


def log_mixture(kernel: Any, y: Array, x: Array, event_dim: int, dim: int) -> Array:
    r"""
    :math:`\log \frac1B \sum_j k(y_i \mid x_j)` for every datum, in the batch dims of y.

    :param kernel: the kernel.
    :param y: noisy values of a site, of shape batch + event.
    :param x: the clean ones, of the same shape.
    :param event_dim: number of event dimensions.
    :param dim: of the data in the batch, which has no other.
    """
    rows_y, rows_x = (data_first(value, event_dim, dim) for value in (y, x))
    shape = (rows_y.shape[0], *y.shape[len(y.shape) - event_dim :])
    rows_y, rows_x = rows_y.reshape(shape), rows_x.reshape(shape)
    log_k = kernel(rows_x, event_dim).log_prob(rows_y[:, None])
    log_p = logsumexp(log_k) - math.log(shape[0])
    return log_p.reshape((shape[0], *[1] * (-dim - 1)))
