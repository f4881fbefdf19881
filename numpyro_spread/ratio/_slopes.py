# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Find which logits depend on which samples: from the jaxpr of a critic, or by derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from numpyro_spread.ratio.adapters import SiteValues
from spread_core.typing import Args, Kwargs

# Which dims count the samples, in their order: those of the batch, or one for all. None stands for
# what no sample has a part in.
_Dims = tuple[int, ...] | None

_ELEMENTWISE = {
    "abs", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
    "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "device_put", "div", "eq",
    "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow",
    "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "name", "ne", "neg",
    "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign", "sin",
    "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
}  # fmt: skip
_REDUCTIONS = {
    "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod",
    "reduce_sum",
}  # fmt: skip
_CALLS = {"checkpoint", "closed_call", "core_call", "custom_jvp_call", "jit", "pjit", "remat2"}


class _UnknownError(Exception):
    """Nobody knows what an operation does to the samples."""


def are_apart(judge: Callable[[SiteValues], jax.Array], values: SiteValues) -> bool:
    """
    Whether the jaxpr of a critic proves that every logit depends on its own sample alone.

    It is traced, nothing is computed. Every operation between must be known to keep samples apart.

    :param judge: from values to logits of the batch shape.
    :param values: of the sites.
    """
    batch = values.batch_shape
    if math.prod(batch) < 2:
        return True
    shapes = {n: jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)) for n, v in values.items()}
    try:
        closed = jax.make_jaxpr(lambda inputs: judge(values.replaced(inputs)))(shapes)
        starts: list[_Dims] = [tuple(range(len(batch)))] * len(closed.jaxpr.invars)
        (end,) = _follow(closed.jaxpr, starts, batch)
    except Exception:  # also where a critic decides by the values themselves
        return False
    return end is None or end == tuple(range(len(batch)))


def others_move(
    judge: Callable[[Any, SiteValues, Any, Any], jax.Array],
    params: Any,
    values: SiteValues,
    args: Args,
    kwargs: Kwargs,
) -> bool:
    """
    Whether some logit depends on another sample, at random numbers of the given shapes.

    Any two samples differ in some bit of their numbers: bit by bit, half of the logits are
    differentiated, and the samples of the other half looked at. Where nothing can be seen, yes.

    :param judge: from params, values and arguments to logits.
    :param params: of the critic.
    :param values: of the sites.
    :param args: arguments of the model.
    :param kwargs: keyword arguments of the model.
    """
    draw = np.random.default_rng(0)

    def stand_in(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype)

    try:
        with jax.ensure_compile_time_eval():
            params, inputs, arguments, args, kwargs = jax.tree.map(
                stand_in, (params, dict(values), values.arguments, args, kwargs)
            )
            fixed = {n: v for n, v in inputs.items() if not jnp.issubdtype(v.dtype, jnp.floating)}

            def logits_of(learned: Mapping[str, jax.Array]) -> jax.Array:
                shown = SiteValues({**fixed, **learned}, values.batch_shape, arguments)
                return judge(params, shown, args, kwargs)

            learned = {n: v for n, v in inputs.items() if n not in fixed}
            logits, pull_back = jax.vjp(logits_of, learned)
            count = logits.size
            index = np.arange(count)
            for bit in range((count - 1).bit_length()):
                for side in (0, 1):
                    asked = (index >> bit) & 1 == side
                    # Unequal numbers, so that no slopes cancel.
                    pull = np.where(asked, 1 + (index * 0.618) % 1, 0.0).reshape(logits.shape)
                    (grads,) = pull_back(jnp.asarray(pull, logits.dtype))
                    for grad in grads.values():
                        if not (np.asarray(grad).reshape(count, -1)[~asked] == 0).all():
                            return True
    except Exception:  # whatever a critic cannot do with such numbers, nothing was shown
        return True
    return False


def _follow(jaxpr: Any, starts: Sequence[_Dims], batch: tuple[int, ...]) -> list[_Dims]:
    known: dict[Any, _Dims] = dict(zip(jaxpr.invars, starts, strict=True))

    def dims_of(atom: Any) -> _Dims:
        return None if isinstance(atom, core.Literal) else known.get(atom)

    for eqn in jaxpr.eqns:
        given = [dims_of(atom) for atom in eqn.invars]
        if all(dims is None for dims in given):
            continue
        name, shapes = eqn.primitive.name, [jnp.shape(atom.aval) for atom in eqn.invars]
        if name in _CALLS:
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            found = _follow(getattr(inner, "jaxpr", inner), given, batch)
        else:
            shape = eqn.outvars[0].aval.shape
            one = _one(given) if name not in ("dot_general", "cond") else ()
            rule = _rule(name)
            found = [rule(eqn, one, given, shapes, shape, batch)] * len(eqn.outvars)
        for var, dims in zip(eqn.outvars, found, strict=True):
            known[var] = dims
    return [dims_of(atom) for atom in jaxpr.outvars]


def _one(given: Sequence[_Dims]) -> tuple[int, ...]:
    """The dims of the samples, which have to be the same in all arguments that have any."""
    found = {dims for dims in given if dims is not None}
    if len(found) > 1:
        raise _UnknownError
    return found.pop()


def _without(dims: tuple[int, ...], gone: Sequence[int]) -> tuple[int, ...]:
    if set(dims) & set(gone):
        raise _UnknownError
    return tuple(dim - sum(other < dim for other in gone) for dim in dims)


def _elementwise(
    eqn: Any, one: Any, given: Any, shapes: Any, shape: Any, batch: Any
) -> tuple[int, ...]:
    for dims, before in zip(given, shapes, strict=True):
        if dims is None:
            continue
        if len(before) != len(shape) or any(before[dim] != shape[dim] for dim in dims):
            raise _UnknownError
    return tuple(one)


def _reduction(eqn: Any, one: Any, *_: Any) -> tuple[int, ...]:
    return _without(one, eqn.params["axes"])


def _over_dim(eqn: Any, one: Any, *_: Any) -> tuple[int, ...]:
    params = eqn.params
    if params.get("axis", params.get("dimension")) in one:
        raise _UnknownError
    return tuple(one)


def _squeeze(eqn: Any, one: Any, *_: Any) -> tuple[int, ...]:
    return _without(one, eqn.params["dimensions"])


def _reverse(eqn: Any, one: Any, *_: Any) -> tuple[int, ...]:
    if set(one) & set(eqn.params["dimensions"]):
        raise _UnknownError
    return tuple(one)


def _broadcast(
    eqn: Any, one: Any, given: Any, shapes: Any, shape: Any, batch: Any
) -> tuple[int, ...]:
    to = eqn.params["broadcast_dimensions"]
    if any(shapes[0][dim] != shape[to[dim]] for dim in one):
        raise _UnknownError
    return tuple(to[dim] for dim in one)


def _transpose(eqn: Any, one: Any, *_: Any) -> tuple[int, ...]:
    order = list(eqn.params["permutation"])
    return tuple(order.index(dim) for dim in one)


def _reshape(
    eqn: Any, one: Any, given: Any, shapes: Any, shape: Any, batch: Any
) -> tuple[int, ...]:
    (before,) = shapes[:1]
    if eqn.params.get("dimensions") is not None:
        raise _UnknownError
    kept = [dim for dim, size in enumerate(before) if size != 1]
    there = [dim for dim, size in enumerate(shape) if size != 1]
    same = [before[dim] for dim in kept] == [shape[dim] for dim in there]
    if same and set(one) <= set(kept):
        return tuple(there[kept.index(dim)] for dim in one)
    if tuple(one) != tuple(range(len(one))):
        raise _UnknownError
    # Row by row: each sample remains one block as long as the result begins with the batch.
    if shape[: len(batch)] == batch:
        return tuple(range(len(batch)))
    if shape[:1] == (math.prod(batch),):
        return (0,)
    raise _UnknownError


def _whole(eqn: Any, one: Any, given: Any, shapes: Any, shape: Any, batch: Any) -> tuple[int, ...]:
    """Slices and paddings that leave the samples alone."""
    config = eqn.params.get("padding_config")
    if any(shapes[0][dim] != shape[dim] for dim in one) or any(
        dims is not None for dims in given[1:]
    ):
        raise _UnknownError
    if config is not None and any(any(config[dim]) for dim in one):
        raise _UnknownError
    return tuple(one)


def _window(eqn: Any, one: Any, *_: Any) -> tuple[int, ...]:
    params = eqn.params
    for dim in one:
        if params["window_dimensions"][dim] != 1 or params["window_strides"][dim] != 1:
            raise _UnknownError
        if any(params["padding"][dim]):
            raise _UnknownError
    return tuple(one)


def _product(
    eqn: Any, one: Any, given: Any, shapes: Any, shape: Any, batch: Any
) -> tuple[int, ...]:
    contracted, together = eqn.params["dimension_numbers"]
    found = set()
    for side in (0, 1):
        dims = given[side]
        if dims is None:
            continue
        shared, gone = list(together[side]), set(contracted[side])
        free = [dim for dim in range(len(shapes[side])) if dim not in gone and dim not in shared]
        if set(dims) & gone or (given[1 - side] is not None and not set(dims) <= set(shared)):
            raise _UnknownError
        others = len(shapes[0]) - len(together[0]) - len(contracted[0]) if side else 0
        place = {dim: index for index, dim in enumerate(shared)}
        place |= {dim: len(shared) + others + index for index, dim in enumerate(free)}
        found.add(tuple(place[dim] for dim in dims))
    return _one(list(found))


def _convolution(eqn: Any, one: Any, given: Any, *_: Any) -> tuple[int, ...]:
    numbers = eqn.params["dimension_numbers"]
    if given[1] is not None or one != (numbers.lhs_spec[0],) or eqn.params["batch_group_count"] > 1:
        raise _UnknownError
    return (numbers.out_spec[0],)


def _branches(
    eqn: Any, one: Any, given: Any, shapes: Any, shape: Any, batch: Any
) -> tuple[int, ...]:
    if given[0] is not None or len(eqn.outvars) != 1:
        raise _UnknownError
    each = [_follow(branch.jaxpr, given[1:], batch)[0] for branch in eqn.params["branches"]]
    return _one(each)


_RULES: dict[str, Callable[..., tuple[int, ...]]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"), _over_dim),
    **dict.fromkeys(("concatenate", "sort"), _over_dim),
    **dict.fromkeys(("slice", "dynamic_slice", "pad"), _whole),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    "broadcast_in_dim": _broadcast,
    "cond": _branches,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "reshape": _reshape,
    "rev": _reverse,
    "squeeze": _squeeze,
    "transpose": _transpose,
}


def _rule(name: str) -> Callable[..., tuple[int, ...]]:
    if name not in _RULES:
        raise _UnknownError
    return _RULES[name]
