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


def no_checkpoint(path: object) -> str:
    return (
        f"no checkpoint in {path}. save_checkpoint writes them there; "
        "a run that starts catches this FileNotFoundError and begins at step 0"
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


def bad_digest() -> str:
    return "damaged, its bytes do not give the SHA-256 checksum that it carries"


def foreign(what: str) -> str:
    return f"not a checkpoint of pyro-spread but {what}. Give a file that save_checkpoint wrote"


def dead_link(path: object) -> str:
    return f"{path} is a link whose target is not there. Mount or restore it, or remove the link"


def no_file() -> str:
    return "not a file but a folder, pipe or device. Move it away, or give the path of a file"


def two_savers(directory: object) -> str:
    return (
        f"another run or process saves its checkpoints in {directory} too, so that one would go on "
        "from the other's. Give each run, and each of its processes, a directory of its own"
    )


def newer_format(found: object, known: int) -> str:
    return (
        f"format version {found!r}, but this pyro-spread reads up to {known}. "
        "Upgrade pyro-spread to the version that wrote it"
    )


def other_backend(found: object, wanted: str) -> str:
    return (
        f"written by {found!r}, not {wanted}. Load it with the load_checkpoint of the package that "
        "wrote it"
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


def x64_hint() -> str:
    return "; if only the precision differs, set jax_enable_x64 as the saved run did"


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


def undeclared(cause: object) -> str:
    return (
        "the params are not declared yet, and declaring them failed "
        f"({type(cause).__name__}: {cause}). Give load_checkpoint the arguments of a step, as in "
        "load_checkpoint(directory, svi, batch), or take one step before"
    )


def late_params() -> str:
    return (
        "Give arguments under which the model declares them; params of another SVI in the same "
        "store have to be declared first, by its evaluate_loss. If the store still holds those "
        "of an earlier model, call pyro.clear_param_store() first"
    )


def other_state() -> str:
    return "Build model, guide and loss as the saved run did"


def nothing_declared() -> str:
    return "the param store is empty, so there is nothing to save: take one step of the SVI first"


def unnamed_params() -> str:
    return (
        "the optimiser moves params that are not in the param store, as with "
        "pyro.settings.set(module_local_params=True). Save such modules by torch, or switch it off"
    )


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


def deleted_array(where: str) -> str:
    return (
        f"{where} cannot be saved: its buffer was donated to a later step. Save the newest state. "
        "Nothing was written"
    )


def sharded_array(where: str) -> str:
    return (
        f"{where} cannot be saved: parts of it lie on devices of other processes. Gather or "
        "replicate it first. Nothing was written"
    )


def bad_step(step: object) -> str:
    return f"`step` must be an integer >= 0, got {step!r}"


def bad_keep(keep: object) -> str:
    return f"`keep` must be an integer >= 1, or None to keep all, got {keep!r}"


def no_svi(value: object, wanted: str) -> str:
    return f"`svi` must be a {wanted}, got {type(value).__name__}"


def no_svi_state(value: object) -> str:
    return (
        f"`svi_state` must be an SVIState, as svi.init and svi.update return, got "
        f"{type(value).__name__}"
    )


def other_versions(path: object, changes: Iterable[str]) -> str:
    return (
        f"checkpoint {path} was written with other library versions ({', '.join(changes)}). It is "
        "loaded, but the run may not go on bit for bit as it would have"
    )


def other_devices(path: object, found: int, live: int) -> str:
    return (
        f"checkpoint {path} has the random state of {found} CUDA devices, here are {live}. It is "
        "loaded, but the run will not go on bit for bit as it would have"
    )


def _listed(names: Collection[str], most: int = 4) -> str:
    shown = [f"'{name}'" for name in list(names)[:most]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
