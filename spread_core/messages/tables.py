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
        f"{shortened(reason).rstrip('.')}. This is slower, not wrong. It is said once."
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


def no_joblib() -> str:
    return (
        "num_workers > 1 needs joblib, which the extra 'simulate' brings: "
        "pip install 'pyro-spread[simulate]'"
    )


def handlers_around(num_workers: object) -> str:
    return (
        f"simulate(..., num_workers={num_workers}) stands inside an effect handler, which acts in "
        "this process only and would not reach the workers. Put the handler round the model "
        "instead, as condition(model, data)."
    )


def not_of_one_run(site: str) -> str:
    return (
        f"a run among many has another distribution at site '{site}' than by itself. Index values "
        "from the right, as theta[..., 0], and take sums over the last axes only."
    )


def not_netcdf(path: object) -> str:
    return (
        f"path must end with '.nc', got '{path}': tables are written as netCDF. For zarr write "
        "simulations.to_arviz() with ArviZ afterwards."
    )


def not_ours(path: object) -> str:
    return (
        f"'{path}' is no table that simulate has written; it stays as it is. Choose another path."
    )


def other_run(path: object, what: str, stored: object, now: object) -> str:
    return (
        f"'{path}' holds simulations with {what}={stored}, this call has {what}={now}: they make "
        "no one table. Choose another path, or remove the file."
    )


def fewer(path: object, stored: int, wanted: int) -> str:
    return (
        f"'{path}' holds {stored} simulations, more than num_simulations={wanted}. Ask for "
        f"{stored}, and take some of them: simulate(...).take(slice({wanted}))."
    )


def changed(path: object, row: int, site: str, arguments: Sequence[str]) -> str:
    which = f" The arguments {list(arguments)} have." if arguments else ""
    return (
        f"run {row} of the model now draws something else at site '{site}' than '{path}' holds: "
        f"the model, its arguments or what it calls have changed.{which} Choose another path, or "
        "remove the file."
    )


def no_groups(where: str, found: Iterable[str]) -> str:
    return (
        f"{where} has neither a group 'prior' nor 'prior_predictive' to make a table of; it has "
        f"{sorted(found)}."
    )


def no_arviz_data(value: object) -> str:
    return (
        "from_arviz takes an InferenceData, a DataTree, a Dataset of xarray or the path of a "
        f"netCDF or zarr file, got {type(value).__name__}."
    )


def no_file(path: object) -> str:
    return f"there is no file '{path}' to read simulations from."


def subsampled(plate: str) -> str:
    return f"plate '{plate}' subsamples, and all runs would share one subsample."


def own_numbers() -> str:
    return "it draws random numbers of Python or NumPy, which would be the same in all runs."


def unbound_param(name: str) -> str:
    return (
        f"param '{name}' has no value, and would be initialised anew in every simulation. Bind it: "
        "simulate(substitute(model, data=params), ...)."
    )
