# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The loss under a guard: its arguments, mutable state, counters and errors."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_spread._typing import RngKey
from numpyro_spread.noise.base import is_concrete
from spread_core.arguments import positional_names
from spread_core.nonfinite import is_about_numbers, root_cause
from spread_core.stateful import Stateful
from spread_core.typing import Args, Guide, Kwargs, Model


class Both(NamedTuple):
    """Mutable state after a step and before it."""

    new: Any
    old: Any


class Seen:
    """Arrays that the step is given, to be named if they are the cause, and its mutable state."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self._arguments: dict[str, Any] = {}
        #: What the loss was given by name, with mutable state as it was; None if there is none.
        self.before: dict[str, Any] | None = None

    def put(self, model: Model, args: Args, kwargs: Kwargs) -> None:
        named = dict(zip(positional_names(model), args, strict=False)) | kwargs
        self._arguments = {
            name: value
            for name, value in named.items()
            if isinstance(value, jax.Array | np.ndarray)
            and jnp.issubdtype(value.dtype, jnp.floating)
        }

    def unchanged(self, params: Any) -> Both | None:
        """Mutable state of a step that came to nothing."""
        if self.before is None:
            return None
        kept = {name: value for name, value in self.before.items() if name not in params}
        return Both(kept, kept)

    def take(self) -> dict[str, Any]:
        """Once: under jit they are of one trace only."""
        arguments, self._arguments = self._arguments, {}
        return arguments


class KeepsMutable:
    """A loss that returns the old mutable state in addition to the new one; otherwise unchanged."""

    def __init__(self, seen: Seen) -> None:
        self.guarded = seen.loss
        self._seen = seen

    def loss(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """Like that of the loss."""
        self._seen.put(model, args, kwargs)
        self._seen.before = None
        return self.guarded.loss(rng_key, param_map, model, guide, *args, **kwargs)

    def loss_with_mutable_state(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """Like that of the loss."""
        self._seen.put(model, args, kwargs)
        # A model may write to its containers.
        before = self._seen.before = jax.tree.map(lambda leaf: leaf, dict(param_map))
        result = self.guarded.loss_with_mutable_state(
            rng_key, param_map, model, guide, *args, **kwargs
        )
        new = result["mutable_state"]
        old = None if new is None else {name: before[name] for name in new}
        return {"loss": result["loss"], "mutable_state": Both(new, old)}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "guarded":
            raise AttributeError(name)
        return getattr(self.guarded, name)


@contextmanager
def counters_on_error(loss: Any) -> Iterator[None]:
    """Restore what a loss counts on the host if a step ends in an error."""
    state = loss.get_state() if isinstance(loss, Stateful) else None
    try:
        yield
    except BaseException:
        if state is not None:
            loss.set_state(state)
        raise


def is_skippable(error: BaseException) -> bool:
    """Whether an error of an eager step says of numbers what compiled code makes a loss of NaN."""
    root = root_cause(error)
    if is_about_numbers(root):
        return True
    if not str(root).startswith("Out-of-support values"):
        return False
    # A warning, which some turn into an error: values may be out of a support and finite.
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(root.__traceback__)]
    values = [names["value"] for names in frames if isinstance(names.get("value"), jax.Array)]
    value: Any = values[-1] if values else None
    while hasattr(value, "primal"):  # under differentiation
        value = value.primal
    return value is not None and is_concrete(value) and not bool(jnp.isfinite(value).all())
