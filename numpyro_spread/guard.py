# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A guard for an SVI: it takes no step that would end in NaN or inf."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from numpyro.optim import Minimize

from numpyro_spread import _parents
from numpyro_spread._guarded_loss import (
    Both,
    KeepsMutable,
    Seen,
    counters_on_error,
    is_skippable,
)
from numpyro_spread._host_calls import call_if
from numpyro_spread.noise.base import is_concrete
from spread_core.messages import guard as guard_messages
from spread_core.nonfinite import (
    GuardStatus,
    NonFiniteError,
    Told,
    check_guard,
    player_of,
)

# Lengths of a row of skipped steps that are warned of.
_TOLD = [10**power for power in range(1, 9)]
# What may be wrong with a param, in the order in which it is looked for.
_KINDS = (
    guard_messages.nonfinite_param,
    guard_messages.nonfinite_gradient,
    guard_messages.nonfinite_update,
)


class GuardState(NamedTuple):
    """The state of the optimiser under guard, and what the guard has counted."""

    guarded: Any
    skipped: jax.Array
    in_a_row: jax.Array
    good: jax.Array
    step_scale: jax.Array
    #: Which of the possible causes applied at the last bad step, and its loss.
    last: jax.Array
    last_loss: jax.Array


class FiniteGuard(_parents.NumPyroOptim):
    """An optimiser under guard: :func:`finite_guard`."""

    def __init__(
        self,
        guarded: _parents.NumPyroOptim,
        on_nonfinite: str,
        factor: float,
        recover_after: int,
        loss: Any,
    ) -> None:
        check_guard(on_nonfinite, factor, recover_after)
        if isinstance(guarded, Minimize):
            raise NotImplementedError(guard_messages.guard_minimize())
        if on_nonfinite == "reduce" and not guarded.update_with_value:
            name = type(guarded).__name__
            raise NotImplementedError(guard_messages.reduce_needs_optax(f"numpyro.optim.{name}"))
        #: The optimiser that makes the steps.
        self.guarded = guarded
        self.on_nonfinite = on_nonfinite
        self.factor = factor
        self.recover_after = int(recover_after)
        self.discriminator = getattr(loss, "name", "discriminator")
        self._seen = Seen(loss)
        #: Failed simulations that the loss noticed.
        self._told = vars(loss).setdefault("_told", Told()) if hasattr(loss, "__dict__") else Told()
        self._told.is_guarded = True

    def init(self, params: Any) -> Any:
        """State for these params."""
        zero = jnp.zeros((), jnp.int32)
        state = self.guarded.init(params)
        none = jnp.zeros(1 + 3 * len(jax.tree.leaves(params)), bool)
        return GuardState(state, zero, zero, zero, jnp.ones(()), none, jnp.zeros(()))

    def get_params(self, state: Any) -> Any:
        """The params in a state."""
        return self.guarded.get_params(self._checked(state).guarded)

    def update(self, g: Any, state: Any, value: Any = None) -> Any:
        """The state after a step along gradients ``g``, or as it was."""
        return self._guarded_update(g, state, value, None)[0]

    def eval_and_update(
        self,
        fn: Callable[[Any], tuple[Any, Any]],
        state: Any,
        forward_mode_differentiation: bool = False,
    ) -> tuple[tuple[Any, Any], Any]:
        """Loss, mutable state and the state after a step, or as it was."""
        value, aux, state, _ = self._guarded_step(fn, state, forward_mode_differentiation)
        return (value, aux), state

    def eval_and_stable_update(
        self,
        fn: Callable[[Any], tuple[Any, Any]],
        state: Any,
        forward_mode_differentiation: bool = False,
    ) -> tuple[tuple[Any, Any], Any]:
        """Like ``eval_and_update``, with a loss of NaN for a step that was not taken."""
        value, aux, state, is_good = self._guarded_step(fn, state, forward_mode_differentiation)
        return (jnp.where(is_good, value, jnp.nan), aux), state

    def _guarded_step(self, fn: Any, state: Any, forward_mode_differentiation: bool) -> Any:
        params = self.get_params(state)
        with counters_on_error(self._seen.loss):
            try:
                (value, aux), grads = _differentiate(fn, params, forward_mode_differentiation)
            except Exception as error:
                # Values are checked where they are concrete: compiled, this is a loss of NaN.
                is_compiled = not is_concrete(*jax.tree.leaves(params))
                skipped = not is_compiled and is_skippable(error)
                if not skipped:
                    raise
                if self.on_nonfinite == "raise":
                    self._blame_params(params, error)
                    raise
                value = jnp.full((), jnp.nan)
                grads = jax.tree.map(lambda param: jnp.full_like(param, jnp.nan), params)
                aux = self._seen.unchanged(params)
            state, aux, is_good = self._guarded_update(grads, state, value, aux)
        return value, aux, state, is_good

    def _blame_params(self, params: Any, error: Exception) -> None:
        """Name the params that are NaN or inf: what was computed from them comes after them."""
        bad = np.stack([np.asarray(each) for each in _nonfinite(params)])
        if bad.any():
            names = _names(params)
            causes = np.concatenate([bad, np.zeros(1 + 2 * len(names), bool)])
            said = _describe(causes, names, self.discriminator, float("nan"))
            raise NonFiniteError(said) from error

    def _guarded_update(self, grads: Any, state: Any, value: Any, aux: Any) -> tuple[Any, Any, Any]:
        state = self._checked(state)
        params = self.guarded.get_params(state.guarded)
        moved = self._shortened(
            params, self.guarded.update(grads, state.guarded, value=value), state.step_scale
        )
        causes = [
            *_nonfinite(params),
            jnp.zeros((), bool) if value is None else ~jnp.isfinite(value),
            *_nonfinite(grads),
            *_nonfinite(self.guarded.get_params(moved)),
        ]
        bad = jnp.stack(causes)
        is_good = ~bad.any()
        in_a_row = jnp.where(is_good, 0, state.in_a_row + 1)
        arguments = self._seen.take()
        number = jnp.asarray(jnp.nan if value is None else value, float)
        if self.on_nonfinite == "raise":
            one = self._raise_if(~is_good, bad, number, _names(params), arguments)
        else:
            one = self._warn_of_a_row(in_a_row, bad, number, _names(params))
        # What the step gives needs the call, so that it is made.
        is_good &= one == 1

        def chosen(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(is_good, a, b), new, old)

        good = jnp.where(is_good, state.good + 1, 0)
        factor = jnp.where(is_good, 1.0, self.factor if self.on_nonfinite == "reduce" else 1.0)
        grows = is_good & (good % self.recover_after == 0)
        scale = jnp.where(grows, state.step_scale / self.factor, state.step_scale * factor)
        failed, last = jnp.where(is_good, 0, 1).astype(jnp.int32), state.last_loss
        after = GuardState(
            chosen(moved, state.guarded),
            state.skipped + failed,
            in_a_row,
            good,
            jnp.minimum(scale, 1.0),
            jnp.where(is_good, state.last, bad),
            last if value is None else jnp.where(is_good, last, value).astype(last.dtype),
        )
        if isinstance(aux, Both):
            aux = None if aux.new is None else chosen(aux.new, aux.old)
        return after, aux, is_good

    def _raise_if(
        self, is_bad: Any, bad: Any, value: Any, names: list[str], arguments: dict[str, Any]
    ) -> jax.Array:
        bad_data = jnp.array([~jnp.isfinite(data).all() for data in arguments.values()], bool)

        def fail(bad: Any, value: Any, bad_data: Any) -> None:
            said = _describe(bad, names, self.discriminator, float(value))
            if np.any(bad_data) and not np.any(bad[: len(names)]):
                named = zip(arguments, bad_data, strict=True)
                culprits = [name for name, is_culprit in named if is_culprit]
                said = guard_messages.nonfinite_argument("NaN or inf", culprits, said)
            elif not np.any(bad[: len(names)]):
                # What the loss noticed before the guard.
                said, self._told.last = self._told.last or said, ""
            raise NonFiniteError(said)

        return call_if(is_bad, fail, bad, value, bad_data)

    def _warn_of_a_row(self, in_a_row: Any, bad: Any, value: Any, names: list[str]) -> jax.Array:
        def warn(in_a_row: Any, bad: Any, value: Any) -> None:
            said = _describe(bad, names, self.discriminator, float(value))
            warnings.warn(guard_messages.only_skipped(int(in_a_row), said), stacklevel=2)

        return call_if(jnp.isin(in_a_row, jnp.array(_TOLD)), warn, in_a_row, bad, value)

    def _shortened(self, params: Any, moved: Any, scale: Any) -> Any:
        if self.on_nonfinite != "reduce":
            return moved
        # What optax_to_numpyro keeps: a count, and params in addition to the state of optax.
        count, (new, state) = moved
        new = jax.tree.map(
            lambda a, b: jnp.where(scale == 1, b, a + (scale * (b - a)).astype(a.dtype)),
            params,
            new,
        )
        return count, (new, state)

    def _checked(self, state: Any) -> Any:
        if not isinstance(state, GuardState):
            raise ValueError(guard_messages.unguarded_state())
        return state


def finite_guard(
    svi: SVI, on_nonfinite: str = "raise", *, factor: float = 0.5, recover_after: int = 100
) -> SVI:
    """
    Guard the steps of an SVI: no step is taken that would end in NaN or inf.

    A step is good if the loss and all gradients are finite, and the params that it leads to; NaN in
    data or in the critic's logits shows in these. Of a bad one nothing stays but the random state:
    no player moves, the state of both optimisers and mutable state are as before, and the step is
    counted. What happens then is up to ``on_nonfinite``:

    - ``"raise"``: a :class:`NonFiniteError` names the param, its player and the way out. In
      compiled code, as in ``svi.run``, JAX raises it as a ``jax.errors.JaxRuntimeError`` whose
      message ends in ours, once the results are asked for; your own state is as it was;
    - ``"skip"``: training goes on, as by ``svi.stable_update``, which works too;
    - ``"reduce"``: the same, and the updates of both players are scaled by ``factor`` from then on;
      after every ``recover_after`` good steps the scale is divided by it again, up to 1.

    The loss may be any of this package or a stock one, and ``svi.update``, ``svi.run`` and their
    compiled forms stay as they are.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import GaussianNoise, SpreadELBO, finite_guard, guard_status
        >>> def model(x):
        ...     w = numpyro.param("w", 0.0)
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", dist.Delta(jnp.full(len(x), w)), obs=x)
        >>> loss = SpreadELBO({"x": GaussianNoise(0.5)})
        >>> svi = SVI(model, loss.register(model, lambda x: None), optax.adam(0.1), loss)
        >>> svi = finite_guard(svi, on_nonfinite="skip")
        >>> state = svi.init(jax.random.key(0), jnp.ones(8))
        >>> state, _ = jax.jit(svi.update)(state, jnp.full(8, jnp.nan))
        >>> guard_status(svi, state).skipped
        1

    It costs a selection over params and optimiser state per step. ``optax.apply_if_finite`` sees
    gradients only: it names no param, and keeps the new mutable state of a step that it skips.

    :param svi: the SVI, whose ``optim`` and ``loss`` are replaced; call its ``init`` after that.
    :param on_nonfinite: ``"raise"``, ``"skip"`` or ``"reduce"``.
    :param factor: of the updates after a bad step, in (0, 1).
    :param recover_after: good steps until they grow again.
    :return: the same SVI.
    :raises TypeError: if it is not an SVI.
    :raises ValueError: if it has a guard, or an argument is out of its range.
    :raises NotImplementedError: for ``numpyro.optim.Minimize``, and for ``"reduce"`` with an
        optimiser that is not one of optax.
    """
    if not isinstance(svi, SVI):
        raise TypeError(guard_messages.no_svi(svi, "a numpyro.infer.SVI"))
    if isinstance(svi.optim, FiniteGuard):
        raise ValueError(guard_messages.already_guarded())
    svi.optim = FiniteGuard(svi.optim, on_nonfinite, factor, recover_after, svi.loss)
    svi.loss = KeepsMutable(svi.optim._seen)
    return svi


def guard_status(svi: SVI, svi_state: SVIState) -> GuardStatus:
    """
    How many steps the guard of an SVI has skipped, and why.

    :param svi: an SVI under :func:`finite_guard`.
    :param svi_state: its state.
    :return: a named tuple ``(skipped, in_a_row, step_scale, last)``.
    :raises ValueError: if it has no guard.
    """
    if not isinstance(svi.optim, FiniteGuard):
        raise ValueError(guard_messages.not_guarded())
    state = svi.optim._checked(svi_state.optim_state)
    names = _names(svi.optim.get_params(state))
    bad, text = np.asarray(state.last), ""
    if bad.any():
        text = _describe(bad, names, svi.optim.discriminator, float(state.last_loss))
    return GuardStatus(int(state.skipped), int(state.in_a_row), float(state.step_scale), text)


def _describe(bad: Any, names: list[str], discriminator: str, value: float) -> str:
    """Describe the causes: params, the loss, gradients, updates."""
    first, count = int(np.argmax(np.asarray(bad))), len(names)
    if first == count:
        gradients = [
            f"'{name}' of the {player_of(name, discriminator, '$')}"
            for name, is_bad in zip(names, bad[count + 1 : 2 * count + 1], strict=True)
            if is_bad
        ]
        return guard_messages.nonfinite_loss("inf" if np.isinf(value) else "NaN", gradients)
    kind, place = (0, first) if first < count else divmod(first - 1, count)
    name = names[place]
    return _KINDS[kind]("NaN or inf", name, player_of(name, discriminator, "$"))


def _names(params: Any) -> list[str]:
    """Names of all leaves of the params, such as ``decoder$params['layer']['bias']``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [f"{path[0].key}{jax.tree_util.keystr(path[1:])}" for path, _ in leaves]


def _nonfinite(tree: Any) -> list[jax.Array]:
    return [~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]


def _differentiate(fn: Any, params: Any, forward: bool) -> tuple[tuple[Any, Any], Any]:
    if not forward:
        return jax.value_and_grad(fn, has_aux=True)(params)

    def twice(params: Any) -> tuple[Any, tuple[Any, Any]]:
        value, aux = fn(params)
        return value, (value, aux)

    grads, both = jax.jacfwd(twice, has_aux=True)(params)
    return both, grads


def loss_of(svi: SVI) -> Any:
    """
    The loss of an SVI, looked up behind the guard if there is one.

    :param svi: the SVI.
    """
    return svi.loss.guarded if isinstance(svi.optim, FiniteGuard) else svi.loss
