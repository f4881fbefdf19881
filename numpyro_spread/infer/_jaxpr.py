# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Find which inputs the outputs of a function depend on, from its jaxpr; nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.extend.core import Literal

_S = TypeVar("_S")
Names = frozenset[str]

# Where a primitive that calls another jaxpr keeps it.
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def sources_of(fn: Callable[..., Any], **inputs: Any) -> Any:
    """
    For every output of ``fn``, the names of the inputs that it depends on.

    Loops and branches are looked into: what one output of a scan depends on, others need not.

    :param fn: a function of ``inputs``, which are pytrees of arrays.
    :return: a pytree like that of the outputs, of frozen sets of names.
    """
    flat, structure = jax.tree.flatten(inputs)
    closed, shapes = jax.make_jaxpr(
        lambda *leaves: fn(**jax.tree.unflatten(structure, leaves)), return_shape=True
    )(*flat)
    names = [frozenset([name]) for name in sorted(inputs) for _ in jax.tree.leaves(inputs[name])]
    return jax.tree.unflatten(jax.tree.structure(shapes), _walk(closed.jaxpr, names))


def through_control_flow(
    equation: Any,
    sources: Sequence[_S],
    walk: Callable[[Any, list[_S]], list[_S]],
    join: Callable[[_S, _S], _S],
    control: Callable[[_S, _S], _S] = lambda source, _: source,
) -> list[_S]:
    """
    Which inputs the outputs of ``scan``, ``while`` or ``cond`` depend on.

    :param equation: of a jaxpr.
    :param sources: of its operands.
    :param walk: from a jaxpr and the sources of its inputs to those of its outputs.
    :param join: the source of what may be made of either of two; joining again changes nothing.
    :param control: the source of a value, given that of what decides on it.
    """
    kind, params = equation.primitive.name, equation.params
    if kind == "cond":
        which, *operands = sources
        branches = [walk(branch.jaxpr, operands) for branch in params["branches"]]
        joined = branches[0]
        for branch in branches[1:]:
            joined = [join(*pair) for pair in zip(joined, branch, strict=True)]
        return [control(source, which) for source in joined]
    if kind == "scan":
        body = params["jaxpr"].jaxpr
        # Told by shapes, since releases of JAX name the counts differently: only what is stacked
        # has one dimension more outside the body.
        num_carry = sum(
            not _is_stacked(*pair) for pair in zip(equation.outvars, body.outvars, strict=True)
        )
        stop = sum(
            not _is_stacked(*pair) for pair in zip(equation.invars, body.invars, strict=True)
        )
        start = stop - num_carry
        consts, carry, xs = sources[:start], list(sources[start:stop]), sources[stop:]
        while True:
            outputs = walk(body, [*consts, *carry, *xs])
            again = [join(*pair) for pair in zip(carry, outputs[: len(carry)], strict=True)]
            if again == carry:
                return [*carry, *outputs[len(carry) :]]
            carry = again
    start = params["cond_nconsts"]
    stop = start + params["body_nconsts"]
    tested, consts, carry = sources[:start], sources[start:stop], list(sources[stop:])
    while True:
        (goes_on,) = walk(params["cond_jaxpr"].jaxpr, [*tested, *carry])
        outputs = walk(params["body_jaxpr"].jaxpr, [*consts, *carry])
        again = [control(join(*pair), goes_on) for pair in zip(carry, outputs, strict=True)]
        if again == carry:
            return carry
        carry = again


def called_jaxpr(equation: Any) -> Any:
    """The jaxpr that a primitive calls, closed over its constants or not; None if it calls none."""
    return next((equation.params[key] for key in _CALLED if key in equation.params), None)


def _is_stacked(outside: Any, inside: Any) -> bool:
    return len(outside.aval.shape) > len(inside.aval.shape)


def _walk(jaxpr: Any, inputs: Sequence[Names]) -> list[Names]:
    known: dict[Any, Names] = dict(zip(jaxpr.invars, inputs, strict=True))

    def names_of(variable: Any) -> Names:
        return frozenset() if isinstance(variable, Literal) else known.get(variable, frozenset())

    for equation in jaxpr.eqns:
        outputs = _through(equation, [names_of(variable) for variable in equation.invars])
        known.update(zip(equation.outvars, outputs, strict=True))
    return [names_of(variable) for variable in jaxpr.outvars]


def _through(equation: Any, names: list[Names]) -> list[Names]:
    if equation.primitive.name in ("scan", "while", "cond"):
        return through_control_flow(equation, names, _walk, Names.union, Names.union)
    inner = called_jaxpr(equation)
    inner = getattr(inner, "jaxpr", inner)
    if inner is not None and len(inner.invars) == len(names):
        outputs = _walk(inner, names)
        if len(outputs) == len(equation.outvars):
            return outputs
    return [frozenset[str]().union(*names)] * len(equation.outvars)
