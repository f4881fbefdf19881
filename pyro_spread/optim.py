# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""two_player: combine several optimisers, one for each player, into one for SVI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim

from pyro_spread import _parents
from pyro_spread._together import move, moves_all_or_none
from pyro_spread._transaction import optimiser_step
from pyro_spread.infer._guards import critic_params, idle_critics, player
from spread_core.messages import learned, players
from spread_core.validation import check_count

_STEPS = "discriminator_steps_done"
_AVERAGES = "generator_averages"
_EXAMPLE = 'pyro.optim.Adam({"lr": 1e-3}), which makes those of torch.optim itself'


class Composite(PyroOptim):
    """An optimiser that delegates the steps to others, and keeps some state of its own."""

    def parts(self) -> dict[str, PyroOptim]:
        """The optimisers that it delegates to, by name."""
        raise NotImplementedError

    def own_state(self) -> dict[str, Any]:
        """The state of this optimiser itself, without that of its parts."""
        raise NotImplementedError

    def check_own_state(self, state: dict[str, Any]) -> None:
        """
        Raise an error for anything that :meth:`own_state` does not return.

        :raises ValueError: naming what is wrong; nothing is changed.
        """
        raise NotImplementedError

    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned."""
        raise NotImplementedError

    def moves_all_or_none(self, params: Iterable[torch.Tensor]) -> bool:
        """Whether a step cannot fail half way."""
        return False

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Advance the learning rate schedules of those parts that have one, all by one."""
        for optim in self.parts().values():
            if hasattr(optim, "step"):
                optim.step(*args, **kwargs)

    def get_state(self) -> dict[str, Any]:
        """State of all parts and of this optimiser, as a dict."""
        return {name: part.get_state() for name, part in self.parts().items()} | self.own_state()

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """
        Restore what :meth:`get_state` returned.

        :param state_dict: the state.
        :raises ValueError: if it is that of another optimiser; nothing is changed.
        """
        parts = self.parts()
        if missing := [name for name in {**parts, **self.own_state()} if name not in state_dict]:
            raise ValueError(
                f"{type(self).__name__}.set_state: the state has no {list(missing)}, and is "
                "that of another optimiser. Build it as the saved run did, with two_player "
                "and finite_guard where it had them."
            )
        for name, part in parts.items():
            part.set_state(state_dict[name])
        self.set_own_state({key: value for key, value in state_dict.items() if key not in parts})


class TwoPlayer(Composite):
    """Pyro optimisers, each for the params of one player; see :func:`two_player`."""

    def __init__(
        self,
        generator: PyroOptim,
        discriminator: PyroOptim | None,
        discriminator_steps: int,
        ema: float | None,
        name: str,
        noise: PyroOptim | None,
    ) -> None:
        if discriminator is None and noise is None:
            raise ValueError(learned.needs_two_players())
        given = {"generator": generator, "discriminator": discriminator, "noise": noise}
        #: The optimisers by role.
        self._roles: dict[str, PyroOptim] = {}
        for role, optim in given.items():
            if optim is None and role != "generator":
                continue
            if not isinstance(optim, PyroOptim) or isinstance(optim, TwoPlayer):
                raise TypeError(players.foreign_player(role, optim, "a Pyro optimiser", _EXAMPLE))
            other = next((name for name, own in self._roles.items() if own is optim), None)
            if other is not None:
                wanted = f"another object than the {other}'s, since each keeps state of its own"
                raise ValueError(players.bad_player(role, optim, wanted))
            self._roles[role] = optim
        check_count("two_player: discriminator_steps", discriminator_steps)
        if ema is not None and not 0 < ema < 1:
            raise ValueError(players.bad_range("two_player: ema", ema, "in (0, 1), or None"))
        self.generator = generator
        self.discriminator = discriminator
        self.noise = noise
        self.ema = ema
        #: Averages of the generator's unconstrained params by name, if ``ema`` is given.
        self.averages: dict[str, torch.Tensor] = {}
        self.discriminator_steps = int(discriminator_steps)
        self.name = name
        self._steps_done = 0

    def __call__(self, params: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        """
        One step of the discriminator, and at every k-th call one of the others: all or none.

        :param params: unconstrained params of all players.
        :raises ValueError: if a player has no params, or params no player.
        """
        params = list(params)
        with optimiser_step(self, params):
            self._move(self._split(params), *args, **kwargs)

    def _split(self, params: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        """The params of every player."""
        store = pyro.get_param_store()
        # Params that the model names too still belong to the critic.
        names = [str(critic_params.get(param) or store.param_name(param)) for param in params]
        split: dict[str, list[torch.Tensor]] = {"generator": [], "discriminator": [], "noise": []}
        for param, name in zip(params, names, strict=True):
            own = name.split("$$$")[0] == self.name
            critic_or_rest = "discriminator" if own else "generator"
            split["noise" if player(param) == "noise" else critic_or_rest].append(param)
        if self.discriminator is None:
            if split["discriminator"]:
                raise ValueError(learned.no_critic_to_move(self.name))
        elif not split["discriminator"] and self.name not in idle_critics.values():
            raise ValueError(players.unknown_player(self.name, names))
        if self.noise is None and split["noise"]:
            raise ValueError(learned.unmoved(critic_params[param] for param in split["noise"]))
        if self.noise is not None and not split["noise"]:
            raise ValueError(learned.no_player(names))
        return split

    def _move(self, split: dict[str, list[torch.Tensor]], *args: Any, **kwargs: Any) -> None:
        self._steps_done += 1
        is_turn = self._steps_done % self.discriminator_steps == 0
        for role in ("discriminator", "generator", "noise"):
            if role in self._roles and (is_turn or role == "discriminator"):
                move(self._roles[role], split[role], *args, **kwargs)
        if is_turn and self.ema is not None:
            self._average(split["generator"])

    def _average(self, params: Iterable[torch.Tensor]) -> None:
        # The start weighs little: the average follows closely until it is long enough.
        count = self._steps_done // self.discriminator_steps
        decay = min(self.ema or 0.0, (1 + count) / (10 + count))
        store = pyro.get_param_store()
        with torch.no_grad():
            for param in params:
                name = str(store.param_name(param))
                if name in self.averages:
                    self.averages[name].lerp_(param, 1 - decay)
                else:
                    self.averages[name] = param.detach().clone()

    def parts(self) -> dict[str, PyroOptim]:
        """
        All players.

        :meth:`step` advances all schedules by one, so that one of the generator counts the steps
        of the discriminator too; in NumPyro it counts its own.
        """
        return dict(self._roles)

    def moves_all_or_none(self, params: Iterable[torch.Tensor]) -> bool:
        """If so do all players, without clipping, which may fail when one has moved."""
        players = list(self._roles.values())
        if any(clip for player in players for clip in player.grad_clip.values()):
            return False
        # Those that no player has moved yet are in neither part.
        params = list(params)
        parts = [[p for p in params if p in player.optim_objs] for player in players]
        known = sum(map(len, parts)) == len(params)
        return known and all(map(moves_all_or_none, players, parts))

    def own_state(self) -> dict[str, Any]:
        """The count of steps, and the averages."""
        averages = {name: value.clone() for name, value in sorted(self.averages.items())}
        return {_STEPS: self._steps_done, _AVERAGES: averages}

    def check_own_state(self, state: dict[str, Any]) -> None:
        """Refuse another state, and averages of params that are not there."""
        averages = state.get(_AVERAGES)
        steps = state.get(_STEPS)
        if type(steps) is not int or steps < 0 or not isinstance(averages, dict):
            raise ValueError("two_player has another state")
        params = _parents.stored_params()
        for name, average in averages.items():
            known = name in params and isinstance(average, torch.Tensor)
            if not known or (average.shape, average.dtype) != (
                params[name].shape,
                params[name].dtype,
            ):
                raise ValueError(f"two_player: there is no param for the average of {name!r}")

    def set_own_state(self, state: dict[str, Any]) -> None:
        """Restore the count of steps and the averages."""
        self._steps_done = state[_STEPS]
        params = _parents.stored_params()
        self.averages = {
            name: value.to(params[name].device, copy=True) if name in params else value.clone()
            for name, value in state.get(_AVERAGES, {}).items()
        }


def two_player(
    generator: PyroOptim,
    discriminator: PyroOptim | None,
    discriminator_steps: int = 1,
    *,
    ema: float | None = None,
    name: str = "discriminator",
    noise: PyroOptim | None = None,
) -> TwoPlayer:
    """
    Combine two optimisers into one for SVI: one for the discriminator's params, one for all others.

    Each keeps its own learning rate, state, schedule and gradient clipping (``clip_args``).

        >>> import pyro
        >>> slow = pyro.optim.Adam({"lr": 1e-4, "betas": (0.5, 0.999)})
        >>> fast = pyro.optim.Adam({"lr": 4e-4}, {"clip_norm": 10.0})
        >>> optim = two_player(slow, fast, discriminator_steps=2)

    :param generator: a Pyro optimiser (any torch one through ``pyro.optim``) for all params except
        those of the others.
    :param discriminator: a Pyro optimiser for the discriminator's params; None, with ``noise``, for
        a loss without one.
    :param discriminator_steps: steps of the discriminator for each of the others, which move at
        every k-th call, with the gradient of that call.
    :param ema: decay per step of an exponential moving average of the generator's params, such as
        0.999, which averages out the oscillations of training; :func:`averaged_params` puts it in
        place.
    :param name: of the discriminator, as in the loss.
    :param noise: a Pyro optimiser for the params of learned noise, if the loss has any.
    :raises TypeError: if a player is not a Pyro optimiser.
    :raises ValueError: if two are one object, or a number is out of its range.
    """
    return TwoPlayer(generator, discriminator, discriminator_steps, ema, name, noise)


@contextmanager
def averaged_params(svi: SVI) -> Iterator[None]:
    """
    Use the averages kept by ``ema`` as the params of model and guide inside this context.

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import AdversarialDivergence, concat_sites
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         w = pyro.param("w", torch.tensor(0.0))
        ...         pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> pyro.clear_param_store()
        >>> adam = pyro.optim.Adam({"lr": 1e-2})
        >>> optim = two_player(adam, pyro.optim.Adam({"lr": 1e-2}), ema=0.999)
        >>> loss = AdversarialDivergence(concat_sites(torch.nn.Linear(1, 1)))
        >>> svi = SVI(model, lambda x: None, optim, loss)
        >>> losses = [svi.step(torch.ones(8)) for _ in range(3)]
        >>> with averaged_params(svi):
        ...     averaged = pyro.param("w").item()

    :param svi: an SVI whose optimiser is a :func:`two_player` with ``ema``.
    :raises ValueError: if it keeps no average, or has not moved yet.
    """
    optim = getattr(svi.optim, "guarded", svi.optim)
    averages = optim.averages if isinstance(optim, TwoPlayer) else {}
    if not averages:
        raise ValueError(players.no_average())
    kept = {}
    with torch.no_grad():
        for name, average in averages.items():
            param = _parents.stored_params()[name]
            kept[name] = param.clone()
            param.copy_(average)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                _parents.stored_params()[name].copy_(value)
