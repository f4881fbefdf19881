# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about tables of simulations, and about the runs that fill them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from spread_core.messages.general import shortened


def no_numbers(site: str, kind: object) -> str:
    return f"site '{site}' of the table must hold numbers, got an array of type {kind}."


def no_rows(site: str) -> str:
    return (
        f"site '{site}' of the table is a single number; values have the shape "
        "(num_simulations, ...)."
    )


def uneven(site: str, rows: int, first: str, others: int) -> str:
    return (
        f"site '{site}' of the table has {rows} rows, but '{first}' has {others}. A row is one run "
        "of the program: pass values of the same runs."
    )


def empty() -> str:
    return "the table is empty: it needs at least one site and one row."


def twice(site: str) -> str:
    return (
        f"site '{site}' is both in prior and in prior_predictive: latents belong to the former, "
        "data to the latter."
    )


def no_such_site(name: object, sites: Iterable[str]) -> str:
    return f"the table has no site '{name}'; it has {sorted(sites)}."


def unknown_sites(names: Iterable[str], sites: Iterable[str], where: str) -> str:
    return f"{where} names {sorted(names)}, but the sites are {sorted(sites)}."


def mask_shape(site: str, mask: Sequence[int], value: Sequence[int]) -> str:
    return (
        f"site '{site}': its mask has shape {tuple(mask)}, which is not the beginning of "
        f"{tuple(value)}, the shape of its values."
    )


def mask_kind(site: str, kind: object) -> str:
    return f"site '{site}': its mask must be of bools, got an array of type {kind}."


def bad_fraction(fraction: object, rows: int) -> str:
    return (
        f"fraction must be a number that leaves rows on both sides of the {rows} there are, got "
        f"{fraction}."
    )


def other_sites(row: int, sites: Iterable[str], first: Iterable[str]) -> str:
    return (
        f"run {row} of the model has the sites {sorted(sites)}, but earlier ones have "
        f"{sorted(first)}. A table needs the same sites in every run: draw those that are not "
        "needed too, and mask them."
    )


def other_shape(site: str, row: int, shape: Sequence[int], first: Sequence[int]) -> str:
    return (
        f"site '{site}' has shape {tuple(shape)} in run {row} of the model, but {tuple(first)} in "
        "earlier ones. A table needs one shape for all: pad to the largest, and mask the rest."
    )


def factor(site: str) -> str:
    return (
        f"site '{site}' is a factor: it changes the model's density but not its draws, so that "
        "simulations would ignore it. Write it as a distribution."
    )


def nothing_drawn() -> str:
    return "the model has no sample site, so that there is nothing to simulate."


def one_by_one(reason: object) -> str:
    return (
        "the model runs once for every simulation, since many runs cannot be one: "
        f"{shortened(reason)} This is slower, not wrong. It is said once."
    )


def failed_runs(counts: Mapping[str, int], raised: int, total: int, error: str) -> str:
    parts = [f"{count} NaN or inf at site '{site}'" for site, count in counts.items()]
    if raised:
        parts.insert(0, f"{raised} raised an error ({shortened(error)})")
    return (
        f"of {total} simulations some failed: {', '.join(parts)}. They stay in the table, are not "
        "`valid`, and are left out of training: what is learned is the posterior given that the "
        "simulator succeeds."
    )
