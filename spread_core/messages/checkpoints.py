# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about runs that cannot be saved and files that cannot be resumed from."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any


def no_safetensors(extra: str) -> str:
    return (
        "checkpoints are written by safetensors, which is not installed. "
        f"Install it with: pip install 'pyro-spread[{extra}]'"
    )


def refused(path: object, why: str, others: Iterable[object] = ()) -> str:
    text = f"checkpoint {path}: {why}. Nothing was loaded and no file was changed"
    older = [str(other) for other in others]
    if older:
        text += "; an earlier one can be loaded by its path: " + ", ".join(older)
    return text


def truncated(size: int, wanted: int) -> str:
    return f"truncated, {size} of {wanted} bytes are there"


def trailing(size: int, wanted: int) -> str:
    return f"damaged, it has {size} bytes instead of {wanted}"


def damaged(what: object) -> str:
    return f"damaged, {what}"


def foreign(what: str) -> str:
    return f"not a checkpoint of pyro-spread but {what}. Give a file that save_checkpoint wrote"


def two_savers(directory: object) -> str:
    return (
        f"another run or process saves its checkpoints in {directory} too, so that one would go on "
        "from the other's. Give each run, and each of its processes, a directory of its own"
    )


def malformed(what: str) -> str:
    return f"malformed, {what}"


def other_class(what: str, found: object, live: object) -> str:
    text = (
        f"written with the {what} {found}, but this SVI has {live}. Build the SVI as the saved run "
        "did, or read single arrays with safetensors"
    )
    if ("guard" in str(found).lower()) != ("guard" in str(live).lower()):
        text += ". One of them is under finite_guard: load first, and guard the run after that"
    return text


def other_names(
    what: str, missing: Collection[str], unexpected: Collection[str], way_out: str
) -> str:
    parts = []
    if missing:
        parts.append(f"it lacks {_listed(missing)}")
    if unexpected:
        parts.append(f"it has {_listed(unexpected)}, unknown here")
    return f"other {what} than this SVI's: {'; '.join(parts)}. {way_out}"


def other_array(what: str, name: str, found: str, live: str) -> str:
    return (
        f"{what} '{name}' is {found} in the file, but {live} here. Build model, guide and loss as "
        "the saved run did"
    )


def other_bounds(name: str, found: str, live: str) -> str:
    if found == live:
        live = "one with other values"
    return (
        f"the constraint of param '{name}' is {found} in the file, but {live} here, under which "
        "its value would be another. Build model and guide as the saved run did"
    )


def not_taken_back(name: str) -> str:
    return (
        f"the optimiser of param '{name}' does not take its state back unchanged. Build it as the "
        "saved run did"
    )


def unusable_state(name: str, what: str) -> str:
    return f"the state for param '{name}' is none that its optimiser can step from ({what})"


def unsaved_optimiser(kind: str, where: str) -> str:
    return (
        f"the optimiser {kind} keeps state that its state_dict does not hold, so that it would be "
        f"lost: {where}. Give {kind} methods that return and take back all of it: state_dict and "
        "load_state_dict of a torch optimiser, get_state and set_state of a PyroOptim"
    )


def other_state() -> str:
    return "Build model, guide and loss as the saved run did"


def hidden_modules(names: Collection[str]) -> str:
    return (
        f"params {_listed(names)} belong to no module that model, guide and loss "
        "lead to, so that its buffers, such as running averages, would be lost. Pass it, as in "
        "modules={'net': net}; if the store still holds those of an earlier net, call "
        "pyro.clear_param_store() first"
    )


def unreached_modules(calls: Collection[tuple[str, Collection[str]]]) -> str:
    shown = [f"{module} ({_listed(names)})" for module, names in list(calls)[:2]]
    more = f" and {len(calls) - 2} more" if len(calls) > 2 else ""
    return (
        f"a step calls {', '.join(shown)}{more}, to which model, guide and loss do not lead, so "
        "that what it holds would be lost. Pass it to save_checkpoint and load_checkpoint, as in "
        "modules={'net': net}"
    )


def unknown_then(names: Collection[str]) -> str:
    return (
        f"the checkpoint is of a version that did not keep {_listed(names)}. The rest is loaded, "
        "but the run may not go on bit for bit as it would have"
    )


def unknown_now(names: Collection[str]) -> str:
    return (
        f"the checkpoint holds {_listed(names)}, to which model, guide and loss do not lead here. "
        "They were left out"
    )


def unencodable(where: str, value: Any) -> str:
    return (
        f"{where} cannot be saved: {type(value).__module__}.{type(value).__qualname__} is neither "
        f"an array nor a number, string, list, tuple or dict. Nothing was written"
    )


def unsaved_dtype(where: str, dtype: object) -> str:
    return (
        f"{where} cannot be saved: safetensors has no place for {dtype}. Convert it. "
        "Nothing was written"
    )


def no_svi(value: object, wanted: str) -> str:
    return f"`svi` must be a {wanted}, got {type(value).__name__}"


def other_versions(path: object, changes: Iterable[str]) -> str:
    return (
        f"checkpoint {path} was written with other library versions ({', '.join(changes)}). It is "
        "loaded, but the run may not go on bit for bit as it would have"
    )


def _listed(names: Collection[str], most: int = 4) -> str:
    shown = [f"'{name}'" for name in list(names)[:most]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
