# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about the tables that amortised guides are trained on, and about their training."""

from __future__ import annotations

from collections.abc import Sequence

from spread_core.messages.general import shown


def never_finite(names: Sequence[str], lost: int, members: int) -> str:
    whom = "" if members == 1 else f" of {lost} of the {members} members of the ensemble"
    return (
        f"The held-out loss of latents {list(names)}{whom} was never finite, so that nothing was "
        "learned: look for simulations of these latents, or of the data, that are extreme, and for "
        "an embedding, a density or a loss of your own that makes NaN of them."
    )


def ended_in_nan(names: Sequence[str]) -> str:
    return (
        f"Training ended in NaN for latents {list(names)}, and the params from before are kept: "
        "lower the learning rate of optim, if it is yours, or look for extreme simulations."
    )


def outside_support(name: str, count: int, rows: int) -> str:
    return (
        f"Latent '{name}' lies outside of its support in {count} of {rows} simulations, where the "
        "model has no density. Leave them out: simulations.take(rows), or widen the prior."
    )


def too_few_rows(count: int) -> str:
    return (
        f"There are {count} simulations that did not fail, too few to train on and hold some out. "
        "Simulate some hundreds at least."
    )


def no_table(simulations: object) -> str:
    return (
        f"simulations must be a table, got {shown(simulations)}. Make it one: "
        "Simulations.from_dict(latents, data)."
    )


def table_shape(name: str, got: Sequence[int], expected: Sequence[int]) -> str:
    return (
        f"A row of the table has the shape {tuple(got)} at site '{name}', where the model draws "
        f"{tuple(expected)}; only the sizes of plates may differ."
    )


def other_observed(observed: Sequence[str], sites: Sequence[str]) -> str:
    return (
        f"observed names {list(observed)}, but the guide conditions on {list(sites)}. Leave "
        "observed out, or make the guide with it."
    )
