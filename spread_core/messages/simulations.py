# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about simulations that fail: draws of the model that are NaN or inf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

_NOTHING = "Nothing was changed."


def failed(
    counts: Mapping[str, int],
    total: int,
    may_exclude: bool = False,
    then: str = _NOTHING,
    what: str = "NaN or inf",
) -> str:
    site, count = next(iter(counts.items()))
    others = [other for other in counts if other != site]
    also = f" (as do draws at {others})" if others else ""
    exclude = ", or leave them out with exclude_invalid_x=True" if may_exclude else ""
    return (
        f"site '{site}' of the generator: {count} of {total} of the model's draws contain {what}"
        f"{also}. {then} If it is a simulator that fails for part of its prior, narrow the prior, "
        f"or let it return finite values there{exclude}; if it is a net, lower its learning rate."
    )


def unguarded(counts: Mapping[str, int], total: int, may_exclude: bool = False) -> str:
    then = "So is the loss; finite_guard(svi) keeps the params from becoming it."
    return failed(counts, total, may_exclude, then)


def left_out(counts: Mapping[str, int], total: int) -> str:
    sites = ", ".join(f"{count} at site '{site}'" for site, count in counts.items())
    return (
        f"of {total} simulations some are NaN or inf and were left out: {sites}. What is learned "
        "is the posterior given that the simulator succeeds. This is said once."
    )


def all_left_out(total: int) -> str:
    return (
        f"exclude_invalid_x=True leaves nothing: all {total} simulations of this step are NaN or "
        "inf. Nothing was changed. Simulate more at once, or narrow the prior."
    )


def exclude_without_forward() -> str:
    return (
        "exclude_invalid_x=True needs KL() and no discriminator: only there the model's "
        "simulations are looked at one by one, and may be left out."
    )


def guide_without_masks(site: str) -> str:
    return (
        f"site '{site}': the model masks some of its elements, but the guide's given(values) takes "
        "no masks, so that it would use what is masked. Let it take masks=None, a dict from site "
        "to which elements of its batch count."
    )


def masked_within_event(site: str) -> str:
    return (
        f"site '{site}': the model masks parts of an event, but the guide is told of whole "
        "elements of the batch only. Put a plate there instead of to_event."
    )


def no_such_data_site(told: str, site: str, drawn: Iterable[str]) -> str:
    return (
        f"{told} says that data are at site '{site}', but the model has no such sample site; it "
        f"draws {sorted(drawn)}. Let its data sites be among these."
    )


def no_table(got: object) -> str:
    return (
        f"simulations= takes a table of class Simulations, not {type(got).__name__}: make one with "
        "simulate(model, num_simulations), or with Simulations.from_dict(prior, prior_predictive)."
    )


def no_valid_row(total: int) -> str:
    return (
        f"simulations=: all {total} rows of the table contain NaN or inf, so there is nothing to "
        "train on."
    )


def rows_left_out(count: int, total: int) -> str:
    return (
        f"{count} of {total} rows of the table contain NaN or inf and are left out. What is "
        "learned is the posterior given that the simulator succeeds."
    )


def site_not_in_table(site: str, held: Iterable[str]) -> str:
    return (
        f"site '{site}' is needed to score the guide, but the table of simulations lacks it; it "
        f"holds {sorted(held)}. Add it, or take it out of the guide."
    )


def row_shape(site: str, got: Sequence[int], wanted: Sequence[int]) -> str:
    return (
        f"site '{site}': a row of the table of simulations has shape {tuple(got)}, but at these "
        f"arguments the model draws {tuple(wanted)}. Call it with arguments of the sizes that were "
        "simulated."
    )


def table_subsampled(site: str, plate: str) -> str:
    return (
        f"site '{site}' stands in plate '{plate}', which subsamples, and a table does not say "
        "which elements a row has. Simulate and train with the whole plate."
    )


def table_without_forward() -> str:
    return (
        "simulations= needs KL() and no discriminator: only there a step needs nothing but pairs "
        "that were simulated before."
    )


def vectorized_with_critic() -> str:
    return (
        "vectorize_particles=True needs KL() and no discriminator in Pyro: a discriminator takes "
        "its particles one after another. Leave it out, or put more data into a step."
    )


def not_bool(value: object) -> str:
    return f"vectorize_particles must be True or False in Pyro, got {value!r}."


def one_by_one(reason: str) -> str:
    return (
        f"vectorize_particles=True: particles are run one after another, because {reason}. The "
        "loss is right, but slow. This is said once."
    )


def particle_failed(error: BaseException) -> str:
    said = (str(error).splitlines() or [""])[0]
    return f"the program fails with a dimension for them ({type(error).__name__}: {said})"


def particle_differs(who: str, site: str) -> str:
    return (
        f"at site '{site}' of the {who} a particle alone is different from the same one among "
        "others. Index and reduce from the right, as in z[..., 0], x.shape[-1] and z.sum(-1)"
    )
