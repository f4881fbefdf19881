# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about checks of a posterior by simulation, and about observations nobody simulated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

PAGE = "the section 'The posterior fails its check' of the page 'When it does not train'"


def draws_shape(name: str, wanted: Sequence[int], got: Sequence[int]) -> str:
    return f"`{name}` must have shape (num_draws, {', '.join(map(str, wanted))}), got {tuple(got)}."


def at(site: str, error: object) -> str:
    return f"site '{site}': {error}"


def sites_differ(truths: Iterable[str], draws: Iterable[str]) -> str:
    return (
        f"`truths` and `draws` must hold the same sites, at least one, got {sorted(truths)} and "
        f"{sorted(draws)}."
    )


def numbers_of_draws(numbers: Sequence[int]) -> str:
    return f"`draws` must hold equally many draws of every site, got {list(numbers)}."


def numbers_of_simulations(numbers: Sequence[int]) -> str:
    return f"`truths` must hold equally many simulations of every site, got {list(numbers)}."


def nothing_to_rank(site: str, number: int) -> str:
    return (
        f"site '{site}' is masked in all {number} simulations, so that there is nothing to rank. "
        "Leave it out with sites=..., or the mask."
    )


def ranks_shape(dtype: object, shape: Sequence[int]) -> str:
    return f"`ranks` must be integers of shape (num_simulations,), got {dtype} of shape {shape}."


def ranks_range(limit: int, least: int, most: int) -> str:
    return f"`ranks` must lie in 0, ..., num_draws = {limit}, got {least} to {most}."


def one_per_simulation(name: str, shape: Sequence[int]) -> str:
    return f"`{name}` must have shape (num_simulations,), got {tuple(shape)}: sum over sites."


def rows_of(name: str, column: str, shape: Sequence[int]) -> str:
    return (
        f"`{name}` must have shape (num_simulations, {column}), got {tuple(shape)}. Flatten what "
        "follows the simulations, and put sites side by side."
    )


def not_a_number(name: str, count: int) -> str:
    return f"`{name}` must not hold NaN, but {count} of its entries are."


def not_finite(name: str, count: int) -> str:
    return (
        f"`{name}` must be finite, but {count} of its entries are not. Leave failed simulations "
        "out, and fill what is masked with 0."
    )


def number_of_rows(name: str, number: int, shape: Sequence[int]) -> str:
    return f"`{name}` must have one row for each of {number} simulations, got shape {tuple(shape)}."


def references_or_data() -> str:
    return "tarp: give `references`, or `data` for references that follow them, not both."


def references_shape(wanted: Sequence[int], got: Sequence[int]) -> str:
    return f"`references` must have the shape {tuple(wanted)} of `truths`, got {tuple(got)}."


def too_few(number: int, least: int) -> str:
    return (
        f"{number} simulations are too few for this check: it fits something to some of them and "
        f"tests the others, and needs at least {least}. Simulate more."
    )


def both_densities() -> str:
    return "give `log_prob_truth` and `log_prob_draws` both, or neither."


def few_draws(number: int, least: int) -> str:
    return (
        f"`draws` must hold at least {least} draws for each simulation, from which the classifier "
        f"learns, got {number}. Draw more."
    )


def not_the_constant(value: float, constant: float) -> str:
    return f"{value:.4g}, but all simulations have {constant:.4g}"


def not_whole(value: float) -> str:
    return f"{value:.4g}, but all simulations have whole numbers"


def beyond(value: float, low: float, high: float) -> str:
    return f"{value:.4g}, but simulations lie between {low:.4g} and {high:.4g}"


def level_out_of_reach(level: float, number: int) -> str:
    return (
        f"`level` {level:.3g} cannot be reached: with {number} simulations held out the least "
        f"p-value is {1 / (1 + number):.3g}. Fit to more simulations, or raise the level."
    )


def misspecified(p_value: float, number: int, columns: Mapping[str, str]) -> str:
    shown = [f"{name} is {text}" for name, text in list(columns.items())[:5]]
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    where = f" {'; '.join(shown)}{more}." if columns else ""
    return (
        "the observation lies outside of what the model simulates: of "
        f"{number} simulations held out, {round(p_value * (1 + number)) - 1} are as unusual "
        f"(p = {p_value:.2g}).{where} The posterior there is extrapolated by the guide. Check the "
        "units of the data and the order of the columns, widen the prior, or let the model say "
        "what it leaves out, as an error of measurement."
    )


def observation_size(got: int, wanted: int) -> str:
    return f"`observed` has {got} numbers, but each simulation has {wanted}."


def no_data() -> str:
    return "`data` must hold at least one site, got an empty dict."


def shape_of_ranks(mean: float, deviation: float) -> str:
    """What the ranks of a component say of the draws, from their moments; see ``moments``."""
    if abs(mean - 0.5) > 0.05 and abs(mean - 0.5) > abs(deviation - 1) / 4:
        word = "draws too low" if mean > 0.5 else "draws too high"
    elif abs(deviation - 1) > 0.03:
        word = "draws too narrow" if deviation > 1 else "draws too wide"
    else:
        return f"mean rank {mean:.2f}"
    return f"mean rank {mean:.2f}: {word}"


def check_passed(p_value: float, number: int) -> str:
    return (
        f"{number} held-out simulations do not tell the draws from the posterior (p = "
        f"{p_value:.2g})."
    )


def check_failed(p_value: float, number: int, seen: Sequence[str], ignores: bool) -> str:
    how = " The draws are those of the prior: the guide ignores the data." if ignores else ""
    return (
        f"the posterior fails its check on {number} held-out simulations (p = {p_value:.2g}): "
        f"{'; '.join(seen)}. Its draws are not those of the model's posterior."
        f"{how} Simulate more, train longer or use a more flexible density; see {PAGE}."
    )


def no_data_sites() -> str:
    return (
        "the model observes nothing at these arguments, so that the guide cannot be given the data "
        "of the table. Pass data of the right shape as arguments; their values do not matter."
    )


def lacks_site(site: str, sites: Iterable[str]) -> str:
    return (
        f"site '{site}': simulations= has no such site; it has {sorted(sites)}. Rename the table's "
        "columns to the names of the model's sites, or choose the latents to rank with sites=..."
    )


def lacks_mask(site: str) -> str:
    return (
        f"site '{site}': the model masks out other elements in every run, and simulations= does "
        "not say which. Make the table with simulate(), which records masks, or give it "
        f"masks={{'{site}': ...}}."
    )


def row_shape(site: str, row: Sequence[int], whole: Sequence[int], datum: Sequence[int]) -> str:
    one = "" if tuple(datum) == tuple(whole) else f", or {tuple(datum)} if a row is one datum"
    return (
        f"site '{site}': a row of simulations= has the shape {tuple(row)}, but the model's site "
        f"{tuple(whole)} at these arguments{one}. Pass arguments of the shape that the table was "
        "simulated with."
    )


def all_rows_failed(number: int) -> str:
    return f"all {number} rows of simulations= are NaN or inf, so that there is nothing to rank."
