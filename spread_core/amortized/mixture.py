# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
r"""
Autoregressive mixtures of truncated Gaussians, on the array API.

.. math:: q(t \mid x) = \prod_i \frac1M \sum_m q_{mi}(t_i \mid t_{<i}, x)

Each conditional is a mixture of Gaussians, truncated exactly to the interval of its dimension, or a
categorical distribution. Its location and scale are linear in features of x and of the dimensions
before it; a net that belongs to this dimension and this member of the ensemble alone moves weights,
means and scales from there. Draws and densities are exact.

Shapes: M members, D dimensions, K components, V numbers and N features that describe the data.
Inputs have a leading axis of members, of size 1 where all members see the same, then any batch
dims, which broadcast against one another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from spread_core.amortized.flow import is_of_flow
from spread_core.math._arrays import Array, special, stop_gradient

#: In the place of infinity: its square is still a number.
FAR = 1e6

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Mixture(NamedTuple):
    """Log weights, means and log scales of the components, each (M, d) + batch + (K,)."""

    log_weights: Array
    means: Array
    log_scales: Array


def initial(
    normal: Callable[[tuple[int, ...]], Any],
    members: int,
    dims: int,
    inputs: int,
    features: int,
    hidden: Sequence[int],
    components: int,
    classes: int = 0,
) -> dict[str, Any]:
    """
    Params at which every conditional is close to a standard Gaussian.

    :param normal: standard normal numbers of a shape.
    :param members: M.
    :param dims: D.
    :param inputs: V.
    :param features: N.
    :param hidden: sizes of the hidden layers.
    :param components: K.
    :param classes: the largest number of classes of a discrete dimension.
    """

    def layer(rows: int, columns: int, gain: float = 1.0) -> Any:
        scale = gain / math.sqrt(max(rows, 1))
        return normal((members, dims, rows, columns)) * scale

    outputs = max(3 * components, classes)
    bias = np.zeros((members, dims, outputs), np.float32)
    # The first component is what the regression says, the others stand around it, light.
    others = components - 1
    bias[..., 1:components] = -2.5
    bias[..., components + 1 : 2 * components] = np.linspace(-1.15, 1.15, others) if others else 0
    bias[..., 2 * components + 1 : 3 * components] = -0.36
    params = {
        "linear": np.zeros((members, dims, features + 2 * dims + 1, 2), np.float32),
        "from_data": layer(inputs, hidden[0]),
        "from_latents": layer(dims, hidden[0]),
        "bias_0": 0.1 * normal((members, dims, hidden[0])),
        "out": layer(hidden[-1], outputs, 0.02),
        "out_bias": bias,
    }
    for number, (rows, columns) in enumerate(itertools.pairwise(hidden), start=1):
        params[f"weight_{number}"] = layer(rows, columns)
        params[f"bias_{number}"] = np.zeros((members, dims, columns), np.float32)
    return params


#: The params that weight decay may act on.
WEIGHTS = ("from_data", "from_latents", "weight_", "out")


def latent_features(t: Array) -> Array:
    """
    What the regression sees of latents: they and their squares.

    :param t: of shape batch + (D,), standardised.
    :return: of shape batch + (2 D,).
    """
    xp = array_namespace(t)
    c = xp.clip(t, -4, 4)
    return xp.concat([t, 0.7 * (c * c - 1)], axis=-1)


def data_features(v: Array, most: int = 30) -> Array:
    """
    What the regression sees of numbers that describe the data: they, their squares and cubes.

    :param v: of shape batch + (V,), standardised.
    :param most: of more numbers than this only themselves.
    :return: of shape batch + (N,).
    """
    if v.shape[-1] > most:
        return v
    xp = array_namespace(v)
    c = xp.clip(v, -4, 4)
    return xp.concat([v, c * c, c**3 - 3 * c], axis=-1)


def select(params: Mapping[str, Array], which: slice) -> dict[str, Array]:
    """
    The params of some dimensions, and which dimensions each of them sees: those before it.

    :param params: see :func:`initial`.
    :param which: the dimensions, d of them.
    :return: the params, and "sees" of shape (1, d, D).
    """
    xp = array_namespace(params["from_latents"])
    sees = xp.tril(xp.ones_like(params["from_latents"][:1, :, :, 0]), k=-1)
    own = {name: value[:, which] for name, value in params.items() if not is_of_flow(name)}
    return own | {"sees": sees[:, which]}


def outputs(
    params: Mapping[str, Array], t: Array, v: Array, features: Array
) -> tuple[Array, Array, Array]:
    """
    Location, log scale and the net's outputs of some dimensions.

    :param params: theirs, as :func:`select` gives them.
    :param t: standardised latents, (1 or M,) + batch + (D,); those of later dimensions are ignored.
    :param v: numbers that describe the data, (1 or M,) + batch + (V,).
    :param features: their features, (1 or M,) + batch + (N,).
    :return: of shapes (M, d) + batch, the same, and (M, d) + batch + (outputs,).
    """
    xp = array_namespace(t)
    t, v, features = same_ndim(t, v, features)
    dims = t.shape[-1]
    split = features.shape[-1]
    linear, sees = params["linear"], params["sees"][..., None]
    seen = xp.concat([sees, sees], axis=2)
    base = (
        _apply(features, linear[..., :split, :])
        + _apply(latent_features(t), linear[..., split : split + 2 * dims, :] * seen)
        + _over(linear[..., -1, :], t)
    )
    from_latents = params["from_latents"] * sees
    h = silu(_apply(v, params["from_data"]) + _apply(t, from_latents) + _over(params["bias_0"], t))
    number = 1
    while f"weight_{number}" in params:
        weight = params[f"weight_{number}"]
        new = silu(_apply_each(h, weight) + _over(params[f"bias_{number}"], t))
        h = h + new if h.shape[-1] == new.shape[-1] else new
        number += 1
    out = _apply_each(h, params["out"]) + _over(params["out_bias"], t)
    return base[..., 0], xp.clip(base[..., 1], -5, 3), out


def mixture(
    params: Mapping[str, Array], t: Array, v: Array, features: Array, components: int
) -> Mixture:
    """
    The conditionals of some continuous dimensions. Arguments as for :func:`outputs`.

    :param components: K.
    """
    xp = array_namespace(t)
    loc, log_scale, out = outputs(params, t, v, features)
    log_weights = log_softmax(out[..., :components])
    shift, stretch = (
        out[..., components : 2 * components],
        out[..., 2 * components : 3 * components],
    )
    means = loc[..., None] + xp.exp(log_scale)[..., None] * shift
    return Mixture(log_weights, means, log_scale[..., None] + xp.clip(stretch, -6, 2))


def log_density(found: Mixture, t: Array, low: Array, high: Array) -> Array:
    """
    Log density of each conditional, in nats.

    :param found: the conditionals of d dimensions.
    :param t: the latents there, (1 or M, d) + batch.
    :param low: lower ends of the intervals, that broadcast against t; -FAR for none.
    :param high: upper ends; FAR for none.
    :return: of shape (M, d) + batch.
    """
    xp = array_namespace(t)
    log_weights, means, log_scales = found
    inverse = xp.exp(-log_scales)
    e = (t[..., None] - means) * inverse
    inside = _log_mass((low[..., None] - means) * inverse, (high[..., None] - means) * inverse)
    top = logsumexp(log_weights - 0.5 * e * e - log_scales) - _HALF_LOG_2PI
    return top - logsumexp(log_weights + inside)


def draw(found: Mixture, choose: Array, place: Array, low: Any, high: Any) -> Array:
    """
    One draw of one dimension, all members mixed, with the gradient of implicit reparametrisation
    (Figurnov et al. 2018, arXiv:1805.08498): each conditional's distribution function is known.

    :param found: the conditional, (M, 1) + batch + (K,).
    :param choose: uniform numbers of shape batch, which choose the component.
    :param place: uniform numbers of shape batch, which place the draw in it.
    :param low: lower end of the interval, a number.
    :param high: upper end.
    :return: of shape batch.
    """
    xp = array_namespace(choose)
    ones = [1] * (len(choose.shape) + 3 - len(found.means.shape))
    found = Mixture(
        *(xp.reshape(part, (*part.shape[:2], *ones, *part.shape[2:])) for part in found)
    )
    log_weights, means, log_scales = (part[:, 0] for part in found)
    inverse = xp.exp(-log_scales)
    a, b = (low - means) * inverse, (high - means) * inverse
    mass = log_weights + _log_mass(a, b)
    # Component k of member m: its share of the member's truncated mixture, and 1/M.
    mass = mass - logsumexp(mass)[..., None] - math.log(mass.shape[0])
    flat = [
        xp.reshape(xp.moveaxis(stop_gradient(part), 0, -2), (*part.shape[1:-1], -1))
        for part in (mass, means, log_scales, a, b)
    ]
    weights = xp.exp(flat[0])
    ends = xp.cumulative_sum(weights, axis=-1)
    index = xp.sum(ends < choose[..., None] * ends[..., -1:], axis=-1)
    last = weights.shape[-1] - 1
    index = xp.clip(index, 0, last)[..., None]
    mean, log_scale, a_k, b_k = (_pick(part, index) for part in flat[1:])
    # Far to the right the distribution function is 1 to all digits: look from the other side.
    right = a_k > 0
    lower, upper = xp.where(right, -b_k, a_k), xp.where(right, -a_k, b_k)
    ndtr, ndtri = special(place).ndtr, special(place).ndtri
    below, above = ndtr(lower), ndtr(upper)
    least = 1e-37 if place.dtype == xp.float32 else 1e-300
    z = ndtri(xp.clip(below + place * (above - below), least, 1 - 1e-7))
    z = xp.clip(z, lower, upper)
    value = mean + xp.exp(log_scale) * xp.where(right, -z, z)
    value = xp.clip(value, low, high)
    log_prob = ensemble_mean(log_density(found, value[None, None], *_ends(low, high, value)))[0]
    # The distribution function at the draw, whose change with the params moves the draw.
    e = (value[..., None] - means) * inverse
    above_low = ndtr(xp.clip(e, -30, 30)) - ndtr(xp.clip(a, -30, 30))
    total = xp.exp(logsumexp(log_weights + _log_mass(a, b)))[..., None]
    reached = xp.mean(xp.sum(xp.exp(log_weights) * above_low / total, axis=-1), axis=0)
    slope = stop_gradient(xp.exp(xp.clip(log_prob, -30, 30)))
    return value - (reached - stop_gradient(reached)) / slope


def ensemble_mean(log_densities: Array) -> Array:
    """
    Log of the mean of the members' densities.

    :param log_densities: members in front.
    """
    xp = array_namespace(log_densities)
    size = log_densities.shape[0]
    if size == 1:
        return log_densities[0]
    return logsumexp(xp.moveaxis(log_densities, 0, -1)) - math.log(size)


def logsumexp(x: Array) -> Array:
    """
    Log of the sum of exponentials over the last axis.

    :param x: finite numbers.
    """
    xp = array_namespace(x)
    top = stop_gradient(xp.max(x, axis=-1, keepdims=True))
    return xp.log(xp.sum(xp.exp(x - top), axis=-1)) + top[..., 0]


def log_softmax(x: Array) -> Array:
    """
    Logits as log probabilities, over the last axis.

    :param x: finite numbers.
    """
    return x - logsumexp(x)[..., None]


def _log_mass(a: Array, b: Array) -> Array:
    """Log of the standard normal's mass between a and b, a < b."""
    xp = array_namespace(a)
    right = a > 0
    lower, upper = xp.where(right, -b, a), xp.where(right, -a, b)
    ndtr = special(a).ndtr
    return xp.log(xp.clip(ndtr(upper) - ndtr(lower), 1e-30, None))


def _ends(low: Any, high: Any, like: Array) -> tuple[Array, Array]:
    xp = array_namespace(like)
    return xp.zeros_like(like) + low, xp.zeros_like(like) + high


def _pick(values: Array, index: Array) -> Array:
    xp = array_namespace(values)
    shape = np.broadcast_shapes(tuple(values.shape[:-1]), tuple(index.shape[:-1]))
    values = xp.broadcast_to(values, (*shape, values.shape[-1]))
    return xp.take_along_axis(values, xp.broadcast_to(index, (*shape, 1)), axis=-1)[..., 0]


def same_ndim(*arrays: Array, ndim: int = 0) -> list[Array]:
    """
    With dims of size 1 after the axis of members, so that batch dims stand below each other.

    :param arrays: of shape (1 or M,) + batch + (any,).
    :param ndim: how many dims they have at least.
    """
    most = max(ndim, *(len(x.shape) for x in arrays))
    ones = [[1] * (most - len(x.shape)) for x in arrays]
    return [
        array_namespace(x).reshape(x, (x.shape[0], *one, *x.shape[1:]))
        for x, one in zip(arrays, ones, strict=True)
    ]


def _apply(x: Array, weight: Array) -> Array:
    """Of (1 or M,) + batch + (i,) and (M, d, i, o): (M, d) + batch + (o,)."""
    xp = array_namespace(x)
    batch = x.shape[1:-1]
    # With the number of rows, since no columns would leave it open.
    rows = xp.reshape(x, (x.shape[0], 1, math.prod(batch), x.shape[-1]))
    result = xp.matmul(rows, weight)
    return xp.reshape(result, (*result.shape[:2], *batch, result.shape[-1]))


def _apply_each(h: Array, weight: Array) -> Array:
    """Of (M, d) + batch + (i,) and (M, d, i, o): (M, d) + batch + (o,)."""
    xp = array_namespace(h)
    rows = xp.reshape(h, (*h.shape[:2], -1, h.shape[-1]))
    result = xp.matmul(rows, weight)
    return xp.reshape(result, (*h.shape[:-1], result.shape[-1]))


def _over(bias: Array, like: Array) -> Array:
    """A bias (M, d, o) over the batch dims of (m,) + batch + (i,)."""
    ones = [1] * (len(like.shape) - 2)
    return array_namespace(bias).reshape(bias, (*bias.shape[:2], *ones, bias.shape[-1]))


def silu(x: Array) -> Array:
    """
    Each number times its logistic function.

    :param x: of any shape.
    """
    return 0.5 * x * (1 + array_namespace(x).tanh(0.5 * x))
