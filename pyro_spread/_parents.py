# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Private names of Pyro and torch that this package uses: an upgrade of either opens this file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.nn.module import PyroModule, _is_module_local_param_enabled
from pyro.optim import PyroOptim
from pyro.optim.optim import _get_state_dict, _load_state_dict
from pyro.optim.optim import is_scheduler as is_scheduler
from pyro.poutine.runtime import _PYRO_STACK
from torch.distributions import transforms
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map

_TABLES = ("_params", "_param_to_name", "_constraints")


# --- the param store


def stored_params() -> dict[str, torch.Tensor]:
    """The store's own dict from name to unconstrained tensor; a change of it changes the store."""
    params: dict[str, torch.Tensor] = pyro.get_param_store()._params
    return params


def store_place() -> tuple[dict[str, Any], tuple[str, ...]]:
    """Where the store keeps these dicts, which it replaces when it is cleared."""
    return vars(pyro.get_param_store()), _TABLES


def store_tables() -> dict[str, dict[Any, Any]]:
    """The dicts that make up the store, by name."""
    store = pyro.get_param_store()
    return {name: getattr(store, name) for name in _TABLES}


def foreign_params(module: PyroModule) -> list[str]:
    """Names under which the store has other params than those of a module."""
    if _is_module_local_param_enabled():  # then the store is not asked
        return []
    named = ((module._pyro_get_fullname(n), own) for n, own in module.named_parameters())
    stored = stored_params()
    return [name for name, own in named if stored.get(name, own) is not own]


def drop_foreign_params(module: PyroModule) -> None:
    """Take out of the store what has the names of a module's params, and is not theirs."""
    with module._pyro_context:  # which tells the names
        for name in foreign_params(module):
            del pyro.get_param_store()[name]


def constraint_of(name: str) -> Any:
    """The constraint of a param in the store."""
    return pyro.get_param_store()._constraints[name]


def name_of_param(param: torch.Tensor) -> str | None:
    """The first name that an unconstrained tensor has in the store; None if it is not there."""
    name: str | None = pyro.get_param_store()._param_to_name.get(param)
    return name


# --- effect handlers


def active_handlers(*but: type) -> list[Any]:
    """
    The handlers that are in effect, the outermost first.

    :param but: classes that are not wanted.
    """
    return [handler for handler in _PYRO_STACK if not isinstance(handler, but)]


def report_params(names: Iterable[str]) -> None:
    """
    Tell the handlers that list params, as SVI's does, which ones a step has used.

    A call of ``pyro.param`` for each takes longer than the optimiser.

    :param names: of the params.
    """
    store = pyro.get_param_store()
    for name in names:
        site = {"type": "param", "name": name, "value": store[name]}
        for handler in _PYRO_STACK:
            handler.trace.add_node(name, **site)


# --- optimisers


def optimiser_of(optim: PyroOptim, param: torch.Tensor) -> Any:
    """A new torch optimiser, or scheduler, of the kind that ``optim`` makes for ``param``."""
    return optim._get_optim(param)


def clipping_of(optim: PyroOptim, param: torch.Tensor) -> Callable[..., Any] | None:
    """What clips the gradient of ``param``, or None."""
    return optim._get_grad_clip(param)


def waiting_states(optim: PyroOptim) -> dict[str, Any]:
    """States that have been loaded and wait for the first step of their param; may be changed."""
    waiting: dict[str, Any] = optim._state_waiting_to_be_consumed
    return waiting


optimiser_state = _get_state_dict
load_optimiser_state = _load_state_dict


# --- tensors and distributions


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy many tensors at once."""
    torch._foreach_copy_(list(targets), list(sources))


#: As ``__torch_function__`` of a subclass: functions give plain tensors.
no_torch_function: Any = torch._C._disabled_torch_function_impl


def wrapper_tensor(cls: Any, like: torch.Tensor) -> Any:
    """A tensor of a subclass that looks like another one and holds no memory."""
    return torch.Tensor._make_wrapper_subclass(
        cls, like.shape, dtype=like.dtype, device=like.device
    )


def inverted(transform: Any) -> Any:
    """The transform whose inverse this one is; None if it is not an inverse."""
    return transform.inv if isinstance(transform, transforms._InverseTransform) else None


def mask_of(fn: Any) -> Any:
    """The mask of a ``MaskedDistribution``: a tensor or a bool."""
    return fn._mask


# --- graphs


def keeps_graph() -> bool:
    """Whether the backward pass that is running may be repeated; True where torch does not say."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())


#: Context manager inside ``make_fx``: what is computed in it is left out of the graph.
unrecorded = _disable_current_modes


def compile_options(options: Mapping[str, Any], on_cpu: bool) -> dict[str, Any]:
    """
    Options of ``torch.compile`` for a step that is always called with what it was compiled for.

    Its own question whether that is so takes as long as a small net. On the CPU its own draws take
    longer than PyTorch's, which are those of the step as it is.

    :param options: the user's.
    :param on_cpu: whether all tensors are there.
    """
    found, mode = dict(options), options.get("mode")
    if not hasattr(torch.compiler, "skip_all_guards_unsafe"):  # before torch 2.8
        return found
    settings: dict[str, Any] = {}
    if options.get("backend", "inductor") == "inductor":
        if mode is not None:  # which excludes other options
            own = torch._inductor.list_mode_options(found.pop("mode"), found.get("dynamic"))
            settings.update(own)
        if on_cpu:
            settings["fallback_random"] = True
    elif mode is not None:
        return found
    skip = torch.compiler.skip_all_guards_unsafe
    found["options"] = {"guard_filter_fn": skip, **settings, **(found.get("options") or {})}
    return found
