# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
How an amortised guide is trained: one setting for every program, chosen once.

Every member of the ensemble has its own held-out rows. What is kept are, for every member and every
number of the latents, the params of the epoch with the least held-out loss; of a flow, for every
member. A net that gains less than one standard error over the regression that it started at is
dropped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from spread_core.amortized.layout import Group
from spread_core.amortized.masked import kept_latents, stand_ins
from spread_core.amortized.mixture import latent_features
from spread_core.amortized.regression import start
from spread_core.amortized.tails import reach
from spread_core.caller_warning import warn_user
from spread_core.math._arrays import Array, as_bool
from spread_core.messages import players
from spread_core.messages import training as texts
from spread_core.validation import check_count

_ONE = "one"
_LEAST_ROWS = 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """
    Of the optimisation.

    :param rows: number of rows to train on.
    :param elements: in the plates of a row, at most.
    :param patience: epochs without gain after which training stops.
    :param max_steps: most gradient steps; None for what :attr:`epochs` gives.
    :param epochs: passes through the rows over which the learning rate goes down.
    :param learning_rate: of Adam, at most.
    :param clip: gradients are cut to this, element by element.
    :param average: of the params' exponential average.
    :param warm_up: steps over which the learning rate goes up.
    """

    rows: int
    elements: int
    patience: int
    max_steps: int | None = None
    epochs: int = 80
    learning_rate: float = 5e-3
    clip: float = 0.5
    average: float = 0.99
    warm_up: int = 100

    @property
    def batch_size(self) -> int:
        """Rows in a step."""
        return max(1, min(200, self.rows // 20, max(20, 4000 // self.elements)))

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self.rows // self.batch_size

    @property
    def total(self) -> int:
        """Steps in all, at most."""
        return min(self.epochs * self.steps, self.max_steps or self.epochs * self.steps)

    def rate(self, step: Any, cos: Any, minimum: Any) -> Any:
        """
        Learning rate at a step.

        :param step: its number, from 0.
        :param cos: the backend's cosine.
        :param minimum: the backend's smaller of two numbers.
        """
        done = minimum(1.0, step / self.total)
        down = 0.02 + 0.98 * 0.5 * (1 + cos(math.pi * done))
        return self.learning_rate * minimum(1.0, (step + 1) / self.warm_up) * down


def check_numbers(patience: int, max_steps: int | None) -> None:
    """
    Refuse training that would be none.

    :param patience: epochs without gain after which it stops.
    :param max_steps: most gradient steps, or None.
    :raises ValueError: if one is not positive.
    """
    check_count("patience", patience)
    if max_steps is not None:
        check_count("max_steps", max_steps)


def check_observed(observed: str | Sequence[str] | None, sites: Sequence[str]) -> None:
    """
    Refuse other data sites than those that the guide conditions on.

    :param observed: name or names; None for those of the guide.
    :param sites: the guide's.
    :raises ValueError: if they differ.
    """
    names = (observed,) if isinstance(observed, str) else observed
    if names is not None and set(names) != set(sites):
        raise ValueError(texts.other_observed(tuple(names), sites))


def folds(
    valid: np.ndarray, members: int, validation: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    Rows to train on and rows held out, for every member others.

    :param valid: which rows can be used.
    :param members: M.
    :param validation: the part that is held out.
    :param seed: of the permutation.
    :return: of shapes (M, rows to train on) and (M, rows held out).
    :raises ValueError: if either would be empty.
    """
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(valid))
    if not 0 < validation < 1:
        raise ValueError(players.bad_range("validation", validation, "a number in (0, 1)"))
    held = max(1, round(validation * len(rows)))
    if len(rows) < 2 * held:
        raise ValueError(texts.too_few_rows(len(rows)))
    starts = [(k * held) % (len(rows) - held + 1) for k in range(members)]
    chosen = [np.arange(s, s + held) for s in starts]
    return (
        np.stack([np.delete(rows, places) for places in chosen]),
        np.stack([rows[places] for places in chosen]),
    )


def elements_of(rows: Mapping[str, tuple[Any, ...]]) -> int:
    """
    The most elements that plates have in a row.

    :param rows: what is trained on, by group.
    """
    return max(math.prod(np.shape(parts[0])[1:-1]) for parts in rows.values())


class Prepared(NamedTuple):
    """
    A table as a guide is trained on it.

    :param fitted: the standardisation.
    :param rows: standardised latents, inputs and features of every row, by group.
    :param starts: coefficients of the regressions, by group that has mixtures.
    :param valid: which rows can be used.
    """

    fitted: dict[str, Any]
    rows: Mapping[str, tuple[Any, ...]]
    starts: dict[str, np.ndarray]
    valid: np.ndarray


def prepared(guide: Any, table: Any) -> Prepared:
    """
    Standardise a table, and find the regressions to start from.

    :param guide: the guide, set up.
    :param table: the :class:`Simulations`.
    :raises ValueError: if the table lacks a site, or has values beyond the support of one, or too
        few rows.
    """
    valid = table.valid
    good = np.flatnonzero(valid)
    if len(good) < _LEAST_ROWS:
        raise ValueError(texts.too_few_rows(len(good)))
    columns = guide.columns_of(table)
    guide.check_supports(columns[0], table)
    of_good = [{name: value[good] for name, value in part.items()} for part in columns]
    guide.decide(*of_good)  # which leaves columns as they are: plates with masks stay plates
    fitted = guide.context.fit(*of_good)
    # Rows that failed stay where they are, as numbers that nothing looks at.
    rows = guide.prepare(
        fitted, *({name: _finite(value) for name, value in part.items()} for part in columns)
    )
    for group in guide.context.groups:
        kept = kept_latents(group, table.masks, guide.context.depth)
        if kept is not None:
            guide.context.check_masked(group)
            rows[group.key] = stand_ins(rows[group.key], kept)
    groups = [group for group in guide.context.groups if guide.has_mixtures(group)]
    starts = regressions(
        {group.key: tuple(part[good] for part in rows[group.key]) for group in groups},
        groups,
        {group.key: guide.ends(group, fitted) for group in groups},
        {g.key: fitted["inputs"][g.key]["columns"]["loc"].shape[0] for g in groups},
        {group.key: guide.size_before(group) for group in groups},
    )
    for group in guide.context.groups:  # after the regressions, which these are no intervals to
        t = rows[group.key][0][good]
        fitted["latents"][group.key]["reach"] = reach(t.reshape(-1, t.shape[-1]))
    return Prepared(fitted, rows, starts, valid)


def _finite(values: np.ndarray) -> np.ndarray:
    return values if values.dtype.kind == "b" else np.nan_to_num(values, posinf=0.0, neginf=0.0)


def regressions(
    rows: Mapping[str, tuple[Any, ...]],
    groups: Any,
    ends: Mapping[str, Any],
    columns: Mapping[str, int],
    before: Mapping[str, int],
) -> dict[str, np.ndarray]:
    """
    Where the conditionals of every group start, of shape (D, N + 2 D + 1, 2) by group.

    :param rows: t, inputs and features by group, NumPy's arrays.
    :param groups: the groups of latents.
    :param ends: standardised ends of their intervals.
    :param columns: how many numbers of the data each regression sees.
    :param before: how many latents of other groups each group sees.
    """
    found = {}
    for group in groups:
        t, features = (_flat(rows[group.key][number], rows[group.key]) for number in (0, 2))
        others = before[group.key]
        linear = np.zeros(features.shape[-1], bool)  # what is no power
        linear[: columns[group.key]] = True
        linear[linear.size - 2 * others : linear.size - others] = True
        known = np.asarray(latent_features(t))
        found[group.key] = start(t, features, known, linear, np.asarray(ends[group.key]))
        for variable, place in zip(group.variables, group.slices.values(), strict=True):
            if variable.num_classes:
                found[group.key][place] = 0.0
    return found


def _flat(x: Any, like: tuple[Any, ...]) -> np.ndarray:
    shape = np.broadcast_shapes(*(np.shape(part)[:-1] for part in like))
    wide = np.broadcast_to(np.asarray(x), (*shape, x.shape[-1]))
    return wide.reshape(math.prod(shape), x.shape[-1])


def merged(
    better: Mapping[str, Any],
    new: Mapping[str, Any],
    old: Mapping[str, Any],
    flows: Mapping[str, Mapping[str, int]],
) -> Any:
    """
    Params of each number, or of each site's flow, the new ones where they are better.

    :param better: bools of shape (M, D) by group.
    :param new: dicts of params of shape (M, D, ...) by group, (M, ...) for those of flows.
    :param old: alike.
    :param flows: the first number of a flow's site, by group and name of the param.
    """

    def choose(key: str, name: str, a: Array) -> Array:
        mask, place = better[key], flows[key].get(name)
        mask = mask if place is None else mask[:, place]
        wide = np.reshape(mask, (*mask.shape, *[1] * (len(a.shape) - len(mask.shape))))
        return array_namespace(a).where(as_bool(wide, a), a, old[key][name])

    return {
        key: {name: choose(key, name, leaf) for name, leaf in own.items()}
        for key, own in new.items()
    }


class Best:
    """
    The least held-out losses so far.

    :param first: held-out losses at the start, of shape (M, D) by group.
    :param patience: epochs without gain after which to stop.
    """

    def __init__(self, first: Mapping[str, np.ndarray], patience: int) -> None:
        self.least = self._last = {key: _or_inf(loss) for key, loss in first.items()}
        self.patience, self._since, self._first = patience, 0, self.loss

    @classmethod
    def of_one(cls, first: float, patience: int) -> Best:
        """
        Of a guide that is kept as a whole.

        :param first: its held-out loss at the start.
        :param patience: as for all.
        """
        return cls({_ONE: np.array([[first]])}, patience)

    def gains(self, loss: float) -> bool:
        """
        Whether the guide as a whole has gained.

        :param loss: its held-out loss.
        """
        return bool(self.update({_ONE: np.array([[loss]])})[_ONE])

    def update(self, losses: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """
        Which numbers of which members have gained.

        :param losses: held-out losses, of shape (M, D) by group.
        """
        losses = self._last = {key: _or_inf(loss) for key, loss in losses.items()}
        better = {key: loss < self.least[key] for key, loss in losses.items()}
        gain: Any = 0.0
        for key, loss in losses.items():
            with np.errstate(invalid="ignore"):  # what is never finite gains nothing
                gain = gain + np.where(better[key], self.least[key] - loss, 0.0).sum(1)
            self.least[key] = np.where(better[key], loss, self.least[key])
        self._since = 0 if np.any(gain > 1e-3) else self._since + 1
        return better

    def record(self, epochs: int) -> dict[str, Any]:
        """
        What is recorded of a training: epochs, losses held out at the start, if finite, and at the
        end.

        :param epochs: how many.
        """
        first = self._first if math.isfinite(self._first) else None
        return {"epochs": epochs, "first": first, "held_out": self.loss}

    def check(self, groups: Sequence[Group]) -> None:
        """
        Refuse members of which a held-out loss was never finite, as their params are untrained;
        warn of those that ended so.

        :param groups: of latents.
        :raises ValueError: naming the latents.
        """
        never = {key: ~np.isfinite(loss) for key, loss in self.least.items()}
        if names := _latents_where(never, groups):
            members = np.any([lost.any(1) for lost in never.values()], axis=0)
            raise ValueError(texts.never_finite(names, int(members.sum()), len(members)))
        if names := _latents_where(
            {key: np.isinf(loss) for key, loss in self._last.items()}, groups
        ):
            warn_user(texts.ended_in_nan(names))

    @property
    def is_done(self) -> bool:
        """Whether nothing was gained for too long."""
        return self._since >= self.patience

    @property
    def loss(self) -> float:
        """Held-out loss of a member's best, on average, in nats on the standardised scale."""
        return float(sum(loss.sum(1).mean() for loss in self.least.values()))


def _or_inf(losses: np.ndarray) -> np.ndarray:
    """Losses that are no numbers are worse than any."""
    return np.where(np.isfinite(losses), losses, np.inf)


def _latents_where(lost: Mapping[str, np.ndarray], groups: Sequence[Group]) -> list[str]:
    """The latents of which a number is lost; all, where they are judged together."""
    keys = {group.key for group in groups}
    if not keys >= lost.keys():
        return [n for g in groups for n in g.slices] if any(m.any() for m in lost.values()) else []
    return [n for g in groups for n, place in g.slices.items() if lost[g.key][:, place].any()]


def worth_it(
    gains: Mapping[str, np.ndarray], flows: Mapping[str, Mapping[str, int]]
) -> dict[str, np.ndarray]:
    """
    Which nets gain at least one standard error over where they started; flows, which start at no
    regression, all do.

    :param gains: of held-out rows, of shape (M, D, rows) by group.
    :param flows: the first number of a flow's site, by group and name of the param.
    """
    found = {}
    for key, gain in gains.items():
        # Over a start that was no number every gain is NaN or inf, and worth it.
        with np.errstate(invalid="ignore"):
            lost = gain.mean(-1) < gain.std(-1) / math.sqrt(gain.shape[-1])
        found[key] = ~lost
        found[key][:, list(flows.get(key, {}).values())] = True
    return found
