# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Collect the state of an SVI for a checkpoint, and restore it."""

from __future__ import annotations

import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import random
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from numpyro_spread.guard import loss_of
from spread_core import checkpoint_checks as checks
from spread_core.bounds import describe
from spread_core.checkpoint_file import CheckpointReader, Codec
from spread_core.checkpoint_tree import MalformedError
from spread_core.messages import checkpoints

# By the names that safetensors gives them.
_DTYPES = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_KEY = "key:"
_WEAK = "weak"  # a type that gives way to others, as that of Python's numbers does


def codec() -> Codec:
    """How arrays become a file."""

    def dump(tensors: dict[str, Any], metadata: dict[str, str]) -> bytes:
        from safetensors.numpy import save

        return save(tensors, metadata)

    def load(data: bytes) -> dict[str, Any]:
        from safetensors import deserialize

        # safetensors.numpy knows no bfloat16.
        return {
            name: np.frombuffer(each["data"], jnp.dtype(_DTYPES[each["dtype"]])).reshape(
                each["shape"]
            )
            for name, each in deserialize(data)
        }

    return Codec("numpyro_spread", "numpyro", _to_tensor, _from_tensor, dump, load)


def _to_tensor(where: str, value: Any) -> tuple[str, np.ndarray] | None:
    kind = "numpy"
    if isinstance(value, jax.Array):
        kind = _WEAK if value.aval.weak_type else "jax"
        if value.is_deleted():
            raise ValueError(
                f"{where} cannot be saved: its buffer was donated to a later step. Save the "
                "newest state. Nothing was written"
            )
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            kind, value = f"{_KEY}{random.key_impl(value)}", random.key_data(value)
        if not value.is_fully_addressable and not value.is_fully_replicated:
            raise ValueError(
                f"{where} cannot be saved: parts of it lie on devices of other processes. Gather "
                "or replicate it first. Nothing was written"
            )
    elif isinstance(value, np.generic):
        kind = "scalar"
    elif not isinstance(value, np.ndarray):
        return None
    array = np.array(value, order="C")
    if array.dtype.name not in _DTYPES.values():
        raise TypeError(checkpoints.unsaved_dtype(where, array.dtype))
    return kind, array


def _from_tensor(kind: str, tensor: np.ndarray) -> Any:
    if kind in ("numpy", "scalar"):
        return tensor.copy() if kind == "numpy" else tensor[()]
    array = _Array(kind, tensor)
    if kind.startswith(_KEY):
        try:
            jax.eval_shape(array.key)
        except Exception as error:  # whatever JAX says of a key that is none
            raise MalformedError(f"there is no random key {array}: {error}") from error
    elif kind not in ("jax", _WEAK):
        raise MalformedError(f"there is no array of kind {kind!r}")
    return array


def on_device(tree: Any) -> Any:
    """
    What a reader has read, with arrays of JAX on the default device.

    :param tree: dicts and lists of arrays.
    """
    if isinstance(tree, dict):
        return {key: on_device(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [on_device(value) for value in tree]
    return tree.like(jnp.zeros(())) if isinstance(tree, _Array) else tree


class _Array:
    """An array of JAX that is not on its device yet."""

    def __init__(self, kind: str, value: np.ndarray) -> None:
        self.kind, self.value = kind, value

    def __str__(self) -> str:
        kind = f"{self.kind} of " if self.kind.startswith(_KEY) else ""
        return f"{kind}{self.value.dtype.name}{list(self.value.shape)}"

    def key(self) -> jax.Array:
        """The random keys of these words."""
        return random.wrap_key_data(jnp.array(self.value), impl=self.kind.removeprefix(_KEY))

    def like(self, live: Any) -> jax.Array:
        """On the device of ``live``."""
        array = jnp.array(self.value, copy=True)
        if self.kind == _WEAK:
            # Zeros of Python's own, since a number that is written into them does not harden them.
            zero = array.dtype.type(0).item()
            array = jnp.broadcast_to(jnp.asarray(zero), array.shape).at[...].set(array)
        elif self.kind != "jax":
            array = self.key()
        if getattr(live, "committed", False):
            return jax.device_put(array, live.sharding)
        return array


def versions() -> dict[str, str]:
    """Versions of the libraries that a step uses."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpyro": numpyro.__version__,
        "numpy": np.__version__,
    }


def classes(svi: SVI) -> dict[str, str]:
    """Classes of the parts of an SVI that the state does not show."""
    return {"loss": type(loss_of(svi)).__name__, "optimizer": type(svi.optim).__name__}


def nodes(svi_state: SVIState) -> list[list[str]]:
    """The containers of a state with their paths, as far as they have keys, in order."""
    found: list[list[str]] = []

    def visit(structure: Any, path: str) -> None:
        data = structure.node_data()
        if data is not None:
            found.append([path, data[0].__name__])
        for i, child in enumerate(structure.children()):
            visit(child, f"{path}/{i}")

    visit(jax.tree.structure(svi_state), "state")
    return found


def leaves(svi_state: SVIState) -> dict[str, Any]:
    """Leaves by their paths, all of them computed: what their step reports, it has reported."""
    found = {
        jax.tree_util.keystr(path).lstrip("."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(svi_state)
    }
    # What was donated to a later step is refused when the file is written.
    if not any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in found.values()):
        jax.block_until_ready(list(found.values()))
    return found


def bounds(svi: SVI) -> dict[str, Any]:
    """From params to what their constraints and transforms say, as far as the SVI knows them."""
    transforms: dict[str, Any] = getattr(svi.constrain_fn, "args", ({},))[0]
    return {
        name: {
            "constraint": describe(_constraint(transform), _array),
            "transform": describe(transform, _array),
        }
        for name, transform in transforms.items()
    }


def _constraint(transform: Any) -> Any:
    # Computed from its numbers, which have leaked if svi.init was compiled with arrays as bounds.
    try:
        return transform.codomain
    except Exception:
        return None


def _array(value: Any) -> np.ndarray | None:
    if isinstance(value, jax.core.Tracer) or not isinstance(value, jax.Array | np.ndarray):
        return None
    return np.asarray(value, np.float64)


def check_bounds(reader: CheckpointReader, svi: SVI) -> None:
    """
    Refuse params under another constraint.

    :raises CheckpointError: naming the param and both constraints.
    """
    live = bounds(svi)
    found = reader.part("bounds", dict) if "bounds" in reader.state else live
    for name in live.keys() & found.keys():
        saved = found[name]
        if not isinstance(saved, dict) or saved.keys() != live[name].keys():
            saved = {}
        for key, each in live[name].items():
            checks.check_bounds(reader, name, saved.get(key), each)


def restored(reader: CheckpointReader, like: SVIState) -> SVIState:
    """
    The state of the file.

    :raises CheckpointError: naming the first leaf that differs from those of ``like``.
    """
    saved, live = reader.part("leaves", dict), leaves(like)
    checks.check_names(reader, "leaves", saved, live)
    values = []
    for name, leaf in live.items():
        found, wanted = _describe(saved[name]), _describe(leaf)
        if found != wanted:
            text = checkpoints.other_array("leaf", name, found, wanted)
            if _is_precision(saved[name], leaf):
                text += "; if only the precision differs, set jax_enable_x64 as the saved run did"
            raise reader.refuse(text)
        values.append(saved[name].like(leaf) if isinstance(saved[name], _Array) else saved[name])
    # A state may also differ in what has no leaves, such as steps of an optimiser without state.
    found_nodes, live_nodes = reader.part("nodes", list), nodes(like)
    if not all(_is_node(node) for node in found_nodes):
        raise reader.refuse(checkpoints.malformed("its 'nodes' are not pairs of names"))
    if found_nodes != live_nodes:
        pairs = zip([*found_nodes, None], [*live_nodes, None], strict=False)
        first, second = next(pair for pair in pairs if pair[0] != pair[1])
        raise reader.refuse(checkpoints.other_class("structure", first, second))
    return jax.tree.unflatten(jax.tree.structure(like), values)


def _is_node(node: Any) -> bool:
    return isinstance(node, list) and [type(part) for part in node] == [str, str]


def _describe(leaf: Any) -> str:
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.eval_shape(random.key_data, leaf)
            return f"{_KEY}{random.key_impl(leaf)} of {data.dtype.name}{list(data.shape)}"
        return f"{leaf.dtype.name}{list(leaf.shape)}"
    if isinstance(leaf, np.ndarray | np.generic):
        return f"NumPy {leaf.dtype.name}{list(leaf.shape)}"
    return str(leaf) if isinstance(leaf, _Array) else type(leaf).__name__


def _is_precision(saved: Any, live: Any) -> bool:
    both = getattr(getattr(saved, "value", None), "shape", None) == getattr(live, "shape", ())
    pair = {str(saved).partition("[")[0], _describe(live).partition("[")[0]}
    return both and pair in ({"float32", "float64"}, {"int32", "int64"})
