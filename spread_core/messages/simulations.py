# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about simulations that fail: draws of the model that are NaN or inf."""

from __future__ import annotations

from collections.abc import Mapping

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
