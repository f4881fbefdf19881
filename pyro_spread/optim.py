# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""two_player: combine two optimisers, one for each player, into one for SVI."""

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
from pyro_spread.infer._guards import critic_params, idle_critics
from spread_core.messages import players
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
    """Two Pyro optimisers, each for the params of one player; see :func:`two_player`."""

    def __init__(
        self,
        generator: PyroOptim,
        discriminator: PyroOptim,
        discriminator_steps: int,
        ema: float | None,
        name: str,
    ) -> None:
        for role, optim in (("generator", generator), ("discriminator", discriminator)):
            if not isinstance(optim, PyroOptim) or isinstance(optim, TwoPlayer):
                raise TypeError(players.foreign_player(role, optim, "a Pyro optimiser", _EXAMPLE))
        if generator is discriminator:
            wanted = "another object than the generator's, since each keeps state of its own"
            raise ValueError(players.bad_player("discriminator", discriminator, wanted))
        check_count("two_player: discriminator_steps", discriminator_steps)
        if ema is not None and not 0 < ema < 1:
            raise ValueError(players.bad_range("two_player: ema", ema, "in (0, 1), or None"))
        self.generator = generator
        self.discriminator = discriminator
        self.ema = ema
        #: Averages of the generator's unconstrained params by name, if ``ema`` is given.
        self.averages: dict[str, torch.Tensor] = {}
        self.discriminator_steps = int(discriminator_steps)
        self.name = name
        self._steps_done = 0

    def __call__(self, params: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        """
        One step of the discriminator, and at every k-th call one of the generator: both or none.

        :param params: unconstrained params of both players.
        :raises ValueError: if none of them is the discriminator's.
        """
        store = pyro.get_param_store()
        params = list(params)
        # Params that the model names too still belong to the critic.
        names = [critic_params.get(param) or store.param_name(param) for param in params]
        mine = [str(name).split("$$$")[0] == self.name for name in names]
        if not any(mine) and self.name not in idle_critics.values():
            raise ValueError(players.unknown_player(self.name, map(str, names)))
        with optimiser_step(self, params):
            self._move(params, mine, *args, **kwargs)

    def _move(
        self, params: list[torch.Tensor], mine: list[bool], *args: Any, **kwargs: Any
    ) -> None:
        self._steps_done += 1
        critic = [param for param, is_critic in zip(params, mine, strict=True) if is_critic]
        move(self.discriminator, critic, *args, **kwargs)
        if self._steps_done % self.discriminator_steps == 0:
            rest = [param for param, is_critic in zip(params, mine, strict=True) if not is_critic]
            move(self.generator, rest, *args, **kwargs)
            if self.ema is not None:
                self._average(rest)

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
        Both players.

        :meth:`step` advances both schedules by one, so that one of the generator counts the steps
        of the discriminator too; in NumPyro it counts its own.
        """
        return {"generator": self.generator, "discriminator": self.discriminator}

    def moves_all_or_none(self, params: Iterable[torch.Tensor]) -> bool:
        """If so do both players, without clipping, which may fail when one has moved."""
        players = (self.generator, self.discriminator)
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
    discriminator: PyroOptim,
    discriminator_steps: int = 1,
    *,
    ema: float | None = None,
    name: str = "discriminator",
) -> TwoPlayer:
    """
    Combine two optimisers into one for SVI: one for the discriminator's params, one for all others.

    Each keeps its own learning rate, state, schedule and gradient clipping (``clip_args``).

        >>> import pyro
        >>> slow = pyro.optim.Adam({"lr": 1e-4, "betas": (0.5, 0.999)})
        >>> fast = pyro.optim.Adam({"lr": 4e-4}, {"clip_norm": 10.0})
        >>> optim = two_player(slow, fast, discriminator_steps=2)

    :param generator: a Pyro optimiser (any torch one through ``pyro.optim``) for all params except
        the discriminator's.
    :param discriminator: a Pyro optimiser for the discriminator's params.
    :param discriminator_steps: steps of the discriminator for each of the generator, which moves
        at every k-th call, with the gradient of that call.
    :param ema: decay per step of an exponential moving average of the generator's params, such as
        0.999, which averages out the oscillations of training; :func:`averaged_params` puts it in
        place.
    :param name: of the discriminator, as in the loss.
    :raises TypeError: if a player is not a Pyro optimiser.
    :raises ValueError: if both are one object, or a number is out of its range.
    """
    return TwoPlayer(generator, discriminator, discriminator_steps, ema, name)


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
