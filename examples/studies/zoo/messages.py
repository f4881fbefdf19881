# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about the results of the systems in the zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def samples_shape(row: str, got: Sequence[int], wanted: Sequence[int]) -> str:
    return f"{row}: samples must have shape {tuple(wanted)}, got {tuple(got)}."


def samples_range(row: str, low: float, high: float) -> str:
    return (
        f"{row}: samples must have pixels in [0, 1], got some from {low:.3g} to {high:.3g}: clip "
        "them, or divide counts by 16."
    )


def misplaced_log_likelihood(row: str, got: float | None, measure: str | None) -> str:
    if measure is None:
        return f"{row}: this row has no log-likelihood, got {got}; leave it None."
    return f"{row}: log_likelihood must be a number ({measure}), got None."


def no_results(path: object) -> str:
    return f"There are no results in {path}: run examples/zoo.py with this --output first."


def other_results(path: object, key: str, kept: object, wanted: object) -> str:
    return (
        f"{path} holds rows of another run ({key} {kept!r}, here {wanted!r}): leave --resume out "
        "to overwrite them, or choose another --output."
    )


def other_page(path: object) -> str:
    return (
        f"{path} has rows of other data or seeds, to which these cannot be added: run all systems, "
        "or with the options of that page."
    )


def failed_rows(errors: Mapping[str, str]) -> str:
    lines = "\n".join(f"  {row}: {error}" for row, error in errors.items())
    return f"These rows have failed:\n{lines}"
