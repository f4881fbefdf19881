# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Collect everything that a step of an SVI reads for a checkpoint, and restore it."""

from __future__ import annotations

import copy
import gc
import platform
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn

from pyro_spread import _optimiser_state as optimisers
from pyro_spread import _parents
from pyro_spread._called_modules import Called, called_by, each_call, note
from pyro_spread._reachable_modules import (
    Held,
    find_modules,
    held_beside_params,
    loss_of,
    unreached,
)
from pyro_spread._snapshot import StepSnapshot, random_state, set_random_state
from pyro_spread._unsaved_state import attributes, fit, refuse_unsaved, set_attributes
from spread_core.bounds import describe, same
from spread_core.checkpoint_checks import Commit, check_bounds, check_names, loss_state
from spread_core.checkpoint_file import CheckpointReader, Codec
from spread_core.checkpoint_tree import MalformedError
from spread_core.messages import checkpoints
from spread_core.typing import Args, Kwargs

_UNSAVED = (torch.complex128, torch.complex32)


def codec() -> Codec:
    def dump(tensors: dict[str, Any], metadata: dict[str, str]) -> bytes:
        from safetensors.torch import save

        return save(tensors, metadata)

    def load(data: bytes) -> dict[str, Any]:
        from safetensors.torch import load

        return load(data)

    return Codec("pyro_spread", "pyro", _to_tensor, _from_tensor, dump, load)


def _to_tensor(where: str, value: Any) -> tuple[str, torch.Tensor] | None:
    kind = "torch"
    if isinstance(value, np.ndarray | np.generic):
        kind = "numpy" if isinstance(value, np.ndarray) else "scalar"
        array = np.array(value, order="C")
        if array.dtype.kind not in "biufc" or array.dtype.itemsize > 8:
            raise TypeError(checkpoints.unsaved_dtype(where, array.dtype))
        value = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    if not isinstance(value, torch.Tensor):
        return None
    usual = value.layout is torch.strided and not value.is_quantized
    if not usual or nn.parameter.is_lazy(value) or value.dtype in _UNSAVED:
        dtype = value.dtype if usual else f"{value.layout} of {value.dtype}"
        raise TypeError(checkpoints.unsaved_dtype(where, dtype))
    # A copy, since safetensors refuses tensors that share memory.
    return kind, value.detach().to("cpu", copy=True).contiguous()


def _from_tensor(kind: str, tensor: torch.Tensor) -> Any:
    if kind == "torch":
        return tensor.clone()
    if kind not in ("numpy", "scalar") or tensor.dtype is torch.bfloat16:
        raise MalformedError(f"there is no array of kind {kind!r} and {tensor.dtype}")
    return tensor.numpy().copy() if kind == "numpy" else tensor.numpy()[()]


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
        "numpy": np.__version__,
    }


def classes(svi: SVI) -> dict[str, Any]:
    loss = loss_of(svi)
    name = type(loss).__name__ if hasattr(type(loss), "loss") else "function"
    return {"loss": name, "optimizer": optimisers.describe(svi.optim)}


def param_state(name: str) -> dict[str, Any]:
    param = _parents.stored_params()[name]
    grad = param.grad
    kept: Any = grad
    # Pyro leaves zeros behind each step, with which torch's optimisers do not do as with None.
    if grad is not None and not bool((grad.ne(0) | grad.signbit()).any()):
        kept = "zeros"
    constraint = _parents.constraint_of(name)
    return {
        "value": param,
        "constraint": _constraint(constraint),
        "bounds": describe(constraint, _array),
        "grad": kept,
    }


def _array(value: Any) -> np.ndarray | None:
    is_tensor = isinstance(value, torch.Tensor)
    return value.detach().cpu().double().numpy() if is_tensor else None


def _constraint(constraint: Any) -> str:
    base = getattr(constraint, "base_constraint", None)
    name = type(constraint).__name__
    return name if base is None else f"{name}({_constraint(base)})"


def held_state(held: Held) -> Any:
    return held.module.get_extra_state() if held.tensor is None else held.tensor


def declare(reader: CheckpointReader, svi: SVI, args: Args, kwargs: Kwargs) -> None:
    """Take a step that changes nothing, so that params are in the store and layers have shapes."""
    called = Called()
    try:
        # As a step does it, since what is compiled or looked up at its first call draws numbers.
        with poutine.block(), each_call(called.add):
            svi.loss_and_grads(svi.model, svi.guide, *args, **kwargs)
    except Exception as error:
        raise reader.refuse(
            "the params are not declared yet, and declaring them failed "
            f"({type(error).__name__}: {error}). Give load_checkpoint the arguments of a step, as "
            "in load_checkpoint(directory, svi, batch), or take one step before"
        ) from error
    note(svi, called)


def prepare_params(reader: CheckpointReader) -> list[Commit]:
    """Check the params against those of the store; the returned functions put them in place."""
    saved, store = reader.part("params", dict), pyro.get_param_store()
    way_out = (
        "Give arguments under which the model declares them; params of another SVI in the same "
        "store have to be declared first, by its evaluate_loss. If the store still holds those "
        "of an earlier model, call pyro.clear_param_store() first"
    )
    check_names(reader, "params", saved, store.keys(), way_out)
    commits = []
    for name, param in store.named_parameters():
        state = saved[name] if isinstance(saved[name], dict) else {}
        value: Any = state.get("value")
        grad: Any = state.get("grad")
        _check_array(reader, "param", name, value, param)
        constraint = _constraint(_parents.constraint_of(name))
        if not same(state.get("constraint"), constraint):
            found, live = str(state.get("constraint")), constraint
            raise reader.refuse(checkpoints.other_array("constraint of", name, found, live))
        bounds = describe(_parents.constraint_of(name), _array)
        # Files of earlier versions do not have them.
        check_bounds(reader, name, state.get("bounds", bounds), bounds)
        if isinstance(grad, torch.Tensor):
            _check_array(reader, "gradient of", name, grad, param)
        elif not (grad is None or same(grad, "zeros")):
            raise reader.refuse(checkpoints.malformed(f"the gradient of '{name}' is no array"))
        commits.append(_put_param(param, value, grad))
    return commits


def _put_param(param: torch.Tensor, value: torch.Tensor, grad: Any) -> Commit:
    def commit() -> None:
        # In place: nets and optimisers hold this very tensor.
        with torch.no_grad():
            param.copy_(value)
        param.grad = torch.zeros_like(param) if isinstance(grad, str) else grad
        if isinstance(grad, torch.Tensor):
            param.grad = grad.to(param.device)

    return commit


def prepare_modules(
    reader: CheckpointReader, svi: SVI, modules: Mapping[str, nn.Module] | None
) -> list[Commit]:
    """Check what nets hold in addition to params; the returned functions put it in place."""
    saved, found = reader.part("modules", dict), find_modules(svi, modules)
    live = held_beside_params(found)
    check_called(svi, found, reader.refuse)
    further = reader.state.get("further_modules", [])
    if not isinstance(further, list) or not all(type(name) is str for name in further):
        raise reader.refuse(checkpoints.malformed("'further_modules' are no names"))
    # What only a wider walk finds: earlier versions did not keep it.
    mine = set(further_names(svi, modules, live))
    if "further_modules" not in reader.state and (lost := sorted(mine - saved.keys())):
        warnings.warn(checkpoints.unknown_then(lost), UserWarning, stacklevel=3)
        live = {name: held for name, held in live.items() if name not in lost}
    if gone := sorted((set(further) & saved.keys()) - live.keys()):
        warnings.warn(checkpoints.unknown_now(gone), UserWarning, stacklevel=3)
    names = [name for name in saved if name not in gone]
    way_out = checkpoints.other_state() + ", and give the same modules="
    check_names(reader, "buffers of nets", names, live, way_out)
    commits = []
    for key, held in live.items():
        if held.tensor is not None:
            _check_array(reader, "buffer", key, saved[key], held.tensor)
        commits.append(_put_held(held, saved[key]))
    return commits


def further_names(
    svi: SVI, modules: Mapping[str, nn.Module] | None, held: Collection[str]
) -> list[str]:
    """Which names of what nets hold the first versions of this package did not find."""
    narrow = held_beside_params(find_modules(svi, modules, wide=False))
    return [name for name in held if name not in narrow]


def check_called(
    svi: SVI, found: list[tuple[str, nn.Module]], refuse: Callable[[str], ValueError] = ValueError
) -> None:
    """
    Refuse modules that steps have called and that are not found, as far as steps were seen.

    :raises ValueError: naming the module.
    """
    if unreached(found, called_by(svi, loss_of(svi))):
        gc.collect()  # modules that a step made for itself and that only the collector still knows
    if calls := unreached(found, called_by(svi, loss_of(svi))):
        named = [(repr(module).partition("\n")[0][:80], names) for module, names in calls]
        raise refuse(checkpoints.unreached_modules(named))


def _put_held(held: Held, value: Any) -> Commit:
    def commit() -> None:
        if held.tensor is None:
            held.module.set_extra_state(value)
        else:
            with torch.no_grad():
                held.tensor.copy_(value)

    return commit


def check_optimiser(svi: SVI) -> None:
    """
    Refuse an optimiser whose state would not be whole in a file.

    :raises ValueError: naming the class and what would be lost.
    """
    before = random_state()
    try:
        refuse_unsaved(svi.optim)
    finally:
        set_random_state(before)


def prepare_optimiser(reader: CheckpointReader, svi: SVI, strict: bool) -> Commit:
    """Check the states of the optimisers; the returned functions put them in place."""
    state = reader.part("optimizer", dict)
    try:
        return optimisers.prepare(svi.optim, state, strict)
    except Exception as error:  # torch says anything of a state that is none
        raise reader.refuse(checkpoints.malformed(f"optimizer: {error}")) from error


def prepare_attributes(reader: CheckpointReader, svi: SVI) -> Commit:
    """Check what the user's own classes of optimisers keep in addition to torch's state."""
    saved = reader.state.get("optimizer_attributes", {})  # earlier versions do not write it
    before = copy.deepcopy(attributes(svi.optim))
    if not fit(saved, before):
        what = "attributes of the optimiser are of other types"
        raise reader.refuse(checkpoints.malformed(what))
    return lambda: set_attributes(svi.optim, saved)


def prepare_random(reader: CheckpointReader) -> Commit:
    """Check the random states by trying them out; the returned functions put them in place."""
    state, before = reader.part("random", dict), random_state()
    try:
        set_random_state(state)
    except Exception as error:
        raise reader.refuse(checkpoints.malformed(f"random state: {error}")) from error
    finally:
        set_random_state(before)
    live = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (found := len(state["cuda"] or [])) > live:
        message = (
            f"checkpoint {reader.path} has the random state of {found} CUDA devices, here are "
            f"{live}. It is loaded, but the run will not go on bit for bit as it would have"
        )
        warnings.warn(message, UserWarning, stacklevel=3)
    return lambda: set_random_state(state)


def _check_array(
    reader: CheckpointReader, what: str, name: str, saved: Any, live: torch.Tensor
) -> None:
    found, wanted = (_describe(value) for value in (saved, live))
    if found != wanted:
        raise reader.refuse(checkpoints.other_array(what, name, found, wanted))


def _describe(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def snapshot(svi: SVI, modules: Mapping[str, nn.Module] | None) -> StepSnapshot:
    """A copy of what declaring params changes, to restore it if the load fails."""
    before, loss, found = StepSnapshot(), loss_of(svi), find_modules(svi, modules)
    params = [
        *_parents.stored_params().values(),
        *(param for _, net in found for param in net.parameters()),
    ]
    params = [p for p in dict.fromkeys(params) if not nn.parameter.is_lazy(p)]
    before.keep_store()
    before.keep_optimiser(svi.optim, params)
    before.keep_grads(params)
    for part in dict.fromkeys(part for _, net in found for part in net.modules()):
        before.keep_buffers(part)
    for held in held_beside_params(found).values():
        if held.tensor is None:
            extra = copy.deepcopy(held_state(held))
            before.undo_by(held.module.set_extra_state, extra)
    if hasattr(loss, "set_state"):
        before.undo_by(loss.set_state, loss_state(loss))
    before.keep_random_state()
    return before
