# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
r"""
Pooling by multi-head attention: a summary of the elements of plates, whatever their order.

Learned queries S ask all elements Z, and a small net goes over the answers (Set Transformer,
https://arxiv.org/abs/1810.00825, equations 6 to 8 and 11, without layer normalisation):

.. math:: H = S + \mathrm{Multihead}(S, Z, Z), \quad \mathrm{summary} = H + \mathrm{net}(H)

Each member of an ensemble has params of its own, (M, ...) each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from array_api_compat import array_namespace

from spread_core.amortized.mixture import silu
from spread_core.math._arrays import Array

_HEADS, _QUERIES, _DIM = 4, 3, 20

#: How many numbers the summary has.
WIDTH = _QUERIES * _DIM


def initial(
    normal: Callable[[tuple[int, ...]], Any], members: int, size: int, prefix: str
) -> dict[str, Any]:
    """
    Params before any training.

    :param normal: standard normal numbers of a shape.
    :param members: M.
    :param size: numbers of an element.
    :param prefix: begins their names.
    """

    def layer(rows: int, columns: int) -> Any:
        return normal((members, rows, columns)) * (1 / math.sqrt(rows))

    params = {
        "queries": normal((members, _QUERIES, _DIM)),
        "keys": layer(size, _DIM),
        "values": layer(size, _DIM),
        "out": layer(_DIM, _DIM),
        "weight": layer(_DIM, _DIM),
    }
    return {prefix + name: value for name, value in params.items()}


def attend(params: Mapping[str, Array], prefix: str, elements: Array, mask: Array | None) -> Array:
    """
    The summary, of shape (M,) + batch + (WIDTH,).

    :param params: among them those of :func:`initial`.
    :param prefix: begins their names.
    :param elements: of shape (M,) + batch + (elements, size); finite where masked, too.
    :param mask: which of them count, that broadcasts against (M,) + batch + (elements,); None for
        all. Where none counts the summary is that of an element of zeros.
    """
    xp = array_namespace(elements)
    queries, keys, values, out, weight = (
        params[prefix + name] for name in ("queries", "keys", "values", "out", "weight")
    )
    members, *batch, count, size = elements.shape
    flat = xp.reshape(elements, (members, -1, size))

    def heads(x: Array, rows: int) -> Array:  # (M, batch, heads, rows, numbers of a head)
        split = xp.reshape(x, (x.shape[0], -1, rows, _HEADS, _DIM // _HEADS))
        return xp.permute_dims(split, (0, 1, 3, 2, 4))

    q = heads(queries, _QUERIES)
    k, v = (heads(xp.matmul(flat, each), count) for each in (keys, values))
    logits = xp.matmul(q, xp.permute_dims(k, (0, 1, 2, 4, 3))) / math.sqrt(_DIM // _HEADS)
    if mask is not None:
        shape = (members, *batch, count)
        counts = xp.reshape(xp.broadcast_to(mask, shape), (members, -1, 1, 1, count))
        logits = xp.where(counts, logits, -1e9)
    shares = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    if mask is not None:
        shares = xp.where(counts, shares, 0.0)
    shares = shares / xp.clip(xp.sum(shares, axis=-1, keepdims=True), 1e-30, None)
    answers = xp.permute_dims(xp.matmul(shares, v), (0, 1, 3, 2, 4))
    answers = xp.reshape(answers, (members, -1, _DIM))
    h = xp.reshape(xp.matmul(answers, out), (members, -1, _QUERIES, _DIM)) + queries[:, None]
    h = xp.reshape(h, (members, -1, _DIM))
    h = h + silu(xp.matmul(h, weight))
    return xp.reshape(h, (members, *batch, WIDTH))
