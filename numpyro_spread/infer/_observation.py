# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Did a model observe the values it was handed? Decided on its jaxpr, without computing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from jax.extend.core import Literal
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import init_to_feasible

from numpyro_spread.infer._jaxpr import through_control_flow
from spread_analysis._arguments import Key, replace_arguments

# Primitives whose first operand is the data and that only take, drop, repeat or reorder elements.
_MOVES = frozenset(
    [
        *("reshape", "squeeze", "expand_dims", "broadcast_in_dim"),
        *("slice", "dynamic_slice", "gather", "split"),
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
_REORDERS = frozenset(["transpose", "rev"])
_TAKES = frozenset(["slice", "dynamic_slice", "gather", "split"])
# Where a primitive that calls another jaxpr keeps it.
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def sites_of_other_values(
    model: Callable[..., Any],
    handed: Mapping[str, jax.ShapeDtypeStruct],
    located: Mapping[str, Key],
    suspects: Collection[str],
    free: Collection[str],
    params: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> list[str]:
    """
    Those of the ``suspects`` whose observed value is not made of the value handed to the model.

    The model is traced once more, abstractly, as a function of the handed values alone: reshapes,
    subsets and casts of them pass, anything computed from them and anything else does not.

    :param model: the model, unspread.
    :param handed: dict from spread site to the shape of its value.
    :param located: dict from spread site to the argument that carries its value.
    :param suspects: sites to decide on.
    :param free: sites whose elements may also be reordered within an event.
    :param params: values of param sites.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    """
    suspects = sorted(suspects)
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
        return [jnp.asarray(sample_sites[site]["value"]) for site in suspects]

    closed = jax.make_jaxpr(observed)(*shapes.values())
    others = []
    for index, site in enumerate(suspects):
        source = _sources(closed.jaxpr, list(shapes), site in free)[index]
        if source != located[site]:
            others.append(site)
    return others


def _sources(jaxpr: Any, inputs: Sequence[Key | None], free: bool) -> list[Key | None]:
    """For every output, the input that it is made of by moving elements alone, or None."""
    known: dict[Any, Key | None] = dict(zip(jaxpr.invars, inputs, strict=True))

    def source_of(variable: Any) -> Key | None:
        return None if isinstance(variable, Literal) else known.get(variable)

    for equation in jaxpr.eqns:
        sources = [source_of(variable) for variable in equation.invars]
        if any(source is not None for source in sources):
            outputs = _through(equation, sources, free)
            known.update(zip(equation.outvars, outputs, strict=True))
    return [source_of(variable) for variable in jaxpr.outvars]


def _through(equation: Any, sources: list[Key | None], free: bool) -> list[Key | None]:
    name, count = equation.primitive.name, len(equation.outvars)
    lost: list[Key | None] = [None] * count
    if name in ("scan", "while", "cond"):

        def walk(inner: Any, given: Sequence[Key | None]) -> list[Key | None]:
            return _sources(inner, given, free)

        return through_control_flow(equation, sources, walk, lambda a, b: a if a == b else None)
    inner = next((equation.params[key] for key in _INNER if key in equation.params), None)
    if inner is not None:
        inner = getattr(inner, "jaxpr", inner)
        if len(inner.invars) != len(sources) or len(inner.outvars) != count:
            return lost
        return _sources(inner, sources, free)
    if name == "convert_element_type":
        old, new = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
        kinds = (jnp.floating, jnp.integer)
        same = any(jnp.issubdtype(old, kind) and jnp.issubdtype(new, kind) for kind in kinds)
        return sources[:1] if same else lost
    if name in ("concatenate", "stack"):
        return [sources[0]] if len(set(sources)) == 1 else lost
    if name in _REORDERS and free:
        return sources[:1]
    if name in _MOVES and (free or name not in _TAKES or _whole_rows(equation)):
        return sources[:1] * count
    return lost


def _whole_rows(equation: Any) -> bool:
    """Whether the last dimension comes through whole, as a kernel with an event shape needs it."""
    operand = equation.invars[0].aval.shape
    if equation.primitive.name == "gather":
        taken = equation.params["slice_sizes"]
    else:
        taken = equation.outvars[0].aval.shape
    return bool(operand) and taken[-1:] == operand[-1:]
