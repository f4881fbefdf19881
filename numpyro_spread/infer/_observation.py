# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Check that a model observes the values it was given, from its jaxpr, without computing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from jax.extend.core import Literal
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import init_to_feasible

from numpyro_spread.infer._jaxpr import called_jaxpr, through_control_flow
from spread_core.arguments import Key, replace_arguments

# Primitives whose first operand is the data and that only take, drop, repeat or reorder elements.
_MOVES = frozenset(
    [
        *("reshape", "squeeze", "expand_dims", "broadcast_in_dim"),
        *("slice", "dynamic_slice", "gather", "split", "transpose", "rev", "tile"),
        *(
            "copy",
            "copy_p",
            "stop_gradient",
            "device_put",
            "sharding_constraint",
            "optimization_barrier",
        ),
    ]
)
# These hand on each of their operands.
_ONE_BY_ONE = frozenset(["optimization_barrier", "device_put", "copy", "copy_p"])
# What is computed from the data: it may not even decide which elements are taken.
_COMPUTED: Key = ("computed",)


def sites_of_other_values(
    model: Callable[..., Any],
    handed: Mapping[str, jax.ShapeDtypeStruct],
    located: Mapping[str, Key],
    suspects: Mapping[str, int],
    params: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> list[str]:
    """
    The ``suspects`` whose observed value does not depend on the value given to the model.

    The model is traced once more, abstractly, as a function of the handed values alone: reshapes,
    subsets and casts of them pass, anything computed from them and anything else does not.

    :param handed: dict from spread site to the shape of its value.
    :param located: dict from spread site to the argument that carries its value.
    :param suspects: dict from the sites to decide on to the number of successive elements that must
        stay together, since the kernel treats them differently: 1 if it does not.
    """
    sites = sorted(suspects)
    shapes = {located[site]: shape for site, shape in handed.items()}  # sites may share one

    def observed(*values: jax.Array) -> list[Any]:
        replaced = dict(zip(shapes, values, strict=True))
        new_args, new_kwargs = replace_arguments(replaced, args, kwargs)
        # Containers are copied, since a model may write to those of mutable sites.
        own_params = jax.tree.map(lambda leaf: leaf, dict(params))
        # Latents need shapes here, not draws: improper priors have none.
        feasible = substitute(
            seed(substitute(model, data=own_params), random.key(0)),
            substitute_fn=init_to_feasible,
        )
        sample_sites = trace(feasible).get_trace(*new_args, **new_kwargs)
        return [jnp.asarray(sample_sites[site]["value"]) for site in sites]

    closed = jax.make_jaxpr(observed)(*shapes.values())
    others = []
    for index, site in enumerate(sites):
        source = _sources(closed.jaxpr, list(shapes), suspects[site])[index]
        if source != located[site]:
            others.append(site)
    return others


def _sources(jaxpr: Any, inputs: Sequence[Key | None], width: int) -> list[Key | None]:
    """For every output, the input that it is made of by moving elements alone, or None."""
    known: dict[Any, Key | None] = dict(zip(jaxpr.invars, inputs, strict=True))

    def source_of(variable: Any) -> Key | None:
        return None if isinstance(variable, Literal) else known.get(variable)

    for equation in jaxpr.eqns:
        sources = [source_of(variable) for variable in equation.invars]
        if any(source is not None for source in sources):
            outputs = _through(equation, sources, width)
            known.update(zip(equation.outvars, outputs, strict=True))
    return [source_of(variable) for variable in jaxpr.outvars]


def _through(equation: Any, sources: list[Key | None], width: int) -> list[Key | None]:
    name, count = equation.primitive.name, len(equation.outvars)
    lost: list[Key | None] = [_COMPUTED] * count

    def walk(inner: Any, given: Sequence[Key | None]) -> list[Key | None]:
        return _sources(inner, given, width)

    if name in ("scan", "while", "cond"):
        return through_control_flow(
            equation,
            sources,
            walk,
            lambda one, other: one if one == other else _COMPUTED,
            lambda source, decides: source if decides is None else _COMPUTED,
        )
    inner = called_jaxpr(equation)
    if inner is not None:
        inner = getattr(inner, "jaxpr", inner)
        if len(inner.invars) != len(sources) or len(inner.outvars) != count:
            return lost
        return walk(inner, sources)
    if name == "convert_element_type":
        old, new = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
        kinds = (jnp.floating, jnp.integer)
        same = any(jnp.issubdtype(old, kind) and jnp.issubdtype(new, kind) for kind in kinds)
        return sources[:1] if same else lost
    if name in _ONE_BY_ONE and len(sources) == count:
        return sources
    if name in ("concatenate", "stack"):
        same = len(set(sources)) == 1 and _keeps_blocks(equation, width)
        return [sources[0]] if same else lost
    alone = all(source is None for source in sources[1:])
    if name in _MOVES and alone and _keeps_blocks(equation, width):
        return sources[:1] * count
    return lost


def _keeps_blocks(equation: Any, width: int) -> bool:
    """
    Whether blocks of ``width`` successive elements come through an operation whole.

    They are what the last dims hold: those must be taken whole and stay where they are.
    """
    if width == 1 or equation.primitive.name in ("reshape", "squeeze", "expand_dims"):
        return True
    name, params = equation.primitive.name, equation.params
    for operand in equation.invars[: None if name in ("concatenate", "stack") else 1]:
        shape = operand.aval.shape
        kept = next((n for n in range(len(shape) + 1) if _ends_in_blocks(shape, n, width)), None)
        if kept is None:
            return False
        first = len(shape) - kept  # of the dims that make up a block
        inside = set(range(first, len(shape)))
        for out in equation.outvars:
            taken = out.aval.shape
            if name == "gather":
                numbers = params["dimension_numbers"]
                moved = [*numbers.collapsed_slice_dims, *numbers.operand_batching_dims]
                ends = list(range(len(taken) - kept, len(taken)))
                whole = tuple(params["slice_sizes"][first:]) == shape[first:]
                if not whole or inside & set(moved):
                    return False
                if kept and list(numbers.offset_dims[-kept:]) != ends:
                    return False
            elif name in ("concatenate", "stack"):
                if params.get("dimension", params.get("axis", 0)) in inside:
                    return False
            elif name == "rev":
                if inside & set(params["dimensions"]):
                    return False
            elif name == "transpose":
                if list(params["permutation"][first:]) != list(range(first, len(shape))):
                    return False
            elif name == "broadcast_in_dim":
                ends = list(range(len(taken) - kept, len(taken)))
                if kept and list(params["broadcast_dimensions"][first:]) != ends:
                    return False
            if kept and name != "gather" and taken[-kept:] != shape[first:]:
                return False
    return True


def _ends_in_blocks(shape: tuple[int, ...], count: int, width: int) -> bool:
    """Whether the last ``count`` dims hold whole blocks."""
    size = math.prod(shape[len(shape) - count :])
    return size > 0 and size % width == 0
