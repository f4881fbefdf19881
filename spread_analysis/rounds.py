# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Rounds of simulating and training, each where the last one left the posterior's mass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spread_analysis.simulations import Simulations
from spread_core.amortized.truncation import TruncatedPrior
from spread_core.messages import amortized as messages
from spread_core.messages import training as texts
from spread_core.runs import Runs, joined
from spread_core.validation import check_count


def in_rounds(
    table: Simulations,
    numbers: list[int],
    seeds: list[int],
    truncated: TruncatedPrior,
    fit: Callable[[Simulations, int], Any],
    simulate: Callable[[Mapping[str, Any], int], Simulations],
) -> tuple[Simulations, list[dict[str, Any]]]:
    """
    Truncated sequential posterior estimation (Deistler et al. 2022, arXiv:2210.04815).

    Every round trains anew, on all simulations so far whose latents lie inside.

    :param table: the simulations of the first round.
    :param numbers: of simulations in every round.
    :param seeds: of every round.
    :param truncated: the prior, not truncated yet; it will be.
    :param fit: trains on a table in a round; returns the posterior at the observation.
    :param simulate: runs the model at latents, with a seed.
    :return: what the last round was trained on, and a record of every round.
    """
    record: list[dict[str, Any]] = [{"simulations": len(table), "used": len(table)}]
    first = table.take(np.flatnonzero(table.valid)[:1])
    truncated.prior.check({name: first[name] for name in table.observed})
    posterior = fit(table, 0)
    for number, (count, seed) in enumerate(zip(numbers[1:], seeds[1:], strict=True), 1):
        truncated.restrict(posterior, seed)
        latents, drawn = truncated.sample(count, seed)
        new = simulate(latents, seed)
        inside = truncated.contains({name: table[name] for name in latents})
        table = below(table.take(inside), new) if inside.any() else new
        record.append({"simulations": count, "used": len(table), **drawn})
        posterior = fit(table, number)
    return table, record


def below(first: Simulations, second: Simulations) -> Simulations:
    """
    The rows of two tables of one program.

    :param first: the upper ones.
    :param second: the lower ones.
    """
    runs = joined(
        [Runs(each.values, each.masks, each.failed, each.observed) for each in (first, second)]
    )
    return Simulations(runs.values, first.observed, runs.masks, runs.failed)


def inside_first(
    draws: Mapping[str, np.ndarray], inside: np.ndarray, number: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """
    The first draws of every row that lie inside, and others where there are too few.

    :param draws: dict from site to values of shape (draws, rows) + shape of the site.
    :param inside: of shape (draws, rows).
    :param number: how many to keep.
    :return: the draws, and their numbers, of shape (number, rows).
    """
    order = np.argsort(~inside, axis=0, kind="stable")[:number]
    columns = np.arange(inside.shape[1])
    return {name: np.asarray(value)[order, columns] for name, value in draws.items()}, order


def check_rounds(
    num_simulations: int | None, simulations: Any, rounds: int, x_observed: Any
) -> list[int]:
    """
    Simulations of every round.

    :param num_simulations: of all rounds.
    :param simulations: a table instead.
    :param rounds: how many.
    :param x_observed: the observation they are for.
    :raises ValueError: if these arguments do not go together.
    :raises TypeError: if the table is none.
    """
    if (num_simulations is None) == (simulations is None):
        raise ValueError(messages.what_to_train_on())
    if simulations is not None and not isinstance(simulations, Simulations):
        raise TypeError(texts.no_table(simulations))
    check_count("rounds", rounds)
    if rounds > 1 and x_observed is None:
        raise ValueError(messages.rounds_without_observation())
    if rounds == 1 and x_observed is not None:
        raise ValueError(messages.observation_without_rounds())
    if num_simulations is None:
        assert simulations is not None
        if rounds > 1:
            raise ValueError(messages.rounds_of_a_table())
        return [len(simulations)]
    check_count("num_simulations", num_simulations)
    return [num_simulations // rounds + (k < num_simulations % rounds) for k in range(rounds)]
