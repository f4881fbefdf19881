# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Decide from a jaxpr whether noise is needed only for the rows that a plate takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import random
from jax.extend.core import Literal
from numpyro.primitives import Messenger, plate

from numpyro_spread import _parents
from numpyro_spread.infer._handed import draw_in
from numpyro_spread.infer._jaxpr import called_jaxpr
from numpyro_spread.noise import SpreadNoise
from spread_core.use_of_data import Learned

_R = TypeVar("_R")
# They leave the elements of an index as they are.
_KEPT = frozenset(
    [
        *("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type"),
        *("copy", "copy_p", "stop_gradient"),
    ]
)


class Label(NamedTuple):
    """What a variable is: full data, an index of a plate, or on the way from one to the other."""

    kind: str  # "data", "index", "index + size", "index < 0"
    name: Any


class PlatesAt(Messenger):
    """
    Plates take given indices instead of drawing them.

    :param fn: model or guide.
    :param indices: dict from plate to indices.
    """

    def __init__(self, fn: Callable[..., Any], indices: Mapping[str, jax.Array]) -> None:
        self._indices = indices
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Give a plate its indices, unless a handler inside decides them or seeds their draw."""
        decided = msg["value"] is not None or msg["kwargs"].get("rng_key") is not None
        if msg["type"] == "plate" and not decided:
            msg["value"] = self._indices.get(msg["name"])


def draw_indices(rng_key: jax.Array, plates: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """
    Indices as the plates would draw them.

    :param rng_key: random key.
    :param plates: dict from plate to its size and the number of elements it takes.
    """
    found = {}
    for key, (name, sizes) in zip(random.split(rng_key, len(plates)), plates.items(), strict=True):
        with _Seeded(key):
            found[name] = _parents.indices_of(plate(name, *sizes))
    return found


class _Seeded(Messenger):
    """Nothing outside hears of a plate, which draws with this key."""

    def __init__(self, rng_key: jax.Array) -> None:
        self._key = rng_key
        super().__init__()

    def process_message(self, msg: Any) -> None:
        msg["kwargs"]["rng_key"], msg["stop"] = self._key, True


def is_drawn_by_rows(
    kernel: SpreadNoise, x: Any, dim: int, taken: int, shape: tuple[int, ...] | None
) -> bool:
    """
    Whether noise on some rows is what noise on all would be there.

    :param kernel: the kernel.
    :param x: the clean values.
    :param dim: the dimension along which rows are counted.
    :param taken: their number.
    :param shape: the shape in which noise on x is drawn; None for its own.
    """
    if not isinstance(x, jax.Array) and not hasattr(x, "__array__"):
        return False
    x = jnp.asarray(x)
    if shape is not None and (dim != 0 or shape[0] != x.shape[0]):
        return False
    part = jax.ShapeDtypeStruct((*x.shape[:dim], taken, *x.shape[dim + 1 :]), x.dtype)
    shape = None if shape is None else (taken, *shape[1:])
    try:
        coupled = kernel._coupled_dims_of(x)
        placed = 0 if kernel._moves_with_data() else max(kernel._placed_dims(0), coupled)
        y = jax.eval_shape(lambda v: draw_in(shape, random.key(0), "", kernel, v), part)
    except (TypeError, ValueError):
        return False
    return x.ndim - dim > placed and (y.shape, y.dtype) == (part.shape, part.dtype)


def on_rows(
    run: Callable[[Any, Any], _R],
    data: Mapping[Any, Any],
    indices: Mapping[str, jax.Array],
    taken_by: Mapping[Any, tuple[str, int]],
) -> Callable[[Mapping[Any, jax.Array]], _R] | None:
    """
    ``run`` as a function of rows of its data; None if it does more with them than take those.

    It is traced once; where it takes rows of the data, it is given them.

    :param run: from data and indices to a result.
    :param data: dict of arrays, or of their shapes.
    :param indices: dict from plate to the indices that it takes.
    :param taken_by: dict from data to plate and dimension.
    """
    names, plates = list(data), list(indices)
    structures: list[Any] = []

    def flat(*values: jax.Array) -> Any:
        result = run(
            dict(zip(names, values[: len(names)], strict=True)),
            dict(zip(plates, values[len(names) :], strict=True)),
        )
        leaves, structure = jax.tree.flatten(result)
        structures.append(structure)
        return leaves

    try:
        closed = jax.make_jaxpr(flat)(*data.values(), *indices.values())
    except Learned:
        raise
    except Exception:  # what is wrong with a model shows again when it is run
        return None
    labels = [Label("data", taken_by[name]) for name in names]
    labels += [Label("index", name) for name in plates]
    outputs = _labels(closed.jaxpr, labels)
    if outputs is None or any(map(_is_data, outputs)):
        return None

    def of_rows(rows: Mapping[Any, jax.Array]) -> _R:
        inputs = [*(_Rows(rows[name]) for name in names), *indices.values()]
        return jax.tree.unflatten(structures[-1], _evaluate(closed.jaxpr, closed.consts, inputs))

    return of_rows


class _Rows(NamedTuple):
    """Stands for full data of which nothing but these rows is asked for."""

    taken: jax.Array


def _evaluate(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, some of whose inputs are :class:`_Rows`."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def value_of(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        values = [value_of(variable) for variable in equation.invars]
        if not any(isinstance(value, _Rows) for value in values):
            told = equation.primitive.get_bind_params(equation.params)
            # Before JAX 0.10 functions stood apart from the other params.
            functions, params = ([], told) if isinstance(told, dict) else told
            outputs = equation.primitive.bind(*functions, *values, **params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        elif equation.primitive.name == "gather":
            outputs = [values[0].taken.reshape(equation.outvars[0].aval.shape)]
        elif equation.primitive.name == "copy":
            outputs = values
        else:
            inner = called_jaxpr(equation)
            outputs = _evaluate(
                getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values
            )
        known.update(zip(equation.outvars, outputs, strict=True))
    return [value_of(variable) for variable in jaxpr.outvars]


def _is_data(label: Label | None) -> bool:
    return label is not None and label.kind == "data"


def _labels(jaxpr: Any, inputs: Sequence[Label | None]) -> list[Label | None] | None:
    """Labels of the outputs; None where data are not read by rows."""
    known: dict[Any, Label | None] = dict(zip(jaxpr.invars, inputs, strict=True))

    def label_of(variable: Any) -> Label | None:
        return None if isinstance(variable, Literal) else known.get(variable)

    for equation in jaxpr.eqns:
        labels = [label_of(variable) for variable in equation.invars]
        if any(label is not None for label in labels):
            outputs = _through(equation, labels)
            if outputs is None:
                return None
            known.update(zip(equation.outvars, outputs, strict=True))
    return [label_of(variable) for variable in jaxpr.outvars]


def _through(equation: Any, labels: list[Label | None]) -> list[Label | None] | None:
    name, first = equation.primitive.name, labels[0]
    plain: list[Label | None] = [None] * len(equation.outvars)
    inner = getattr(called_jaxpr(equation), "jaxpr", called_jaxpr(equation))
    if inner is not None and name not in ("scan", "while", "cond"):
        if len(inner.invars) == len(labels) and len(inner.outvars) == len(plain):
            return _labels(inner, labels)
    elif first is not None and _is_data(first) and name == "gather":
        plate_name, dim = first.name
        if labels[1:] == [Label("index", plate_name)] and _takes_rows(equation, dim):
            return plain
    elif name in _KEPT and len(labels) == 1 and not (_is_data(first) and name != "copy"):
        return [first]
    if any(_is_data(label) for label in labels):
        return None
    if first is None:
        return plain
    index = Label("index", first.name)
    against = equation.invars[1] if len(labels) > 1 else None
    if first == index and isinstance(against, Literal):
        if name == "add":
            return [Label("index + size", first.name)]
        if name == "lt" and against.val == 0:
            return [Label("index < 0", first.name)]
    # Indices are not negative: what this chooses between is the index and what nobody asks for.
    wrapped = [Label("index < 0", first.name), index, Label("index + size", first.name)]
    return [index] if name == "select_n" and labels == wrapped else plain


def _takes_rows(equation: Any, dim: int) -> bool:
    """Whether the result has the shape of the data, with what was taken instead of all."""
    numbers, shape = equation.params["dimension_numbers"], equation.invars[0].aval.shape
    sizes, out = equation.params["slice_sizes"], equation.outvars[0].aval.shape
    offset = tuple(d for d in range(len(out)) if d != dim)
    return (
        tuple(numbers.start_index_map) == (dim,)
        and tuple(numbers.collapsed_slice_dims) == (dim,)
        and tuple(numbers.offset_dims) == offset
        and tuple(sizes) == (*shape[:dim], 1, *shape[dim + 1 :])
        and not numbers.operand_batching_dims
    )
