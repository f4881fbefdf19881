# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about diagnoses and reports of a training run."""

from __future__ import annotations

from collections.abc import Iterable


def no_data() -> str:
    return (
        "report: the model observes nothing with these arguments, so there are no data to compare "
        "its samples with. Pass the arguments that svi.step or svi.update gets, the data among "
        "them."
    )


def unknown_params(missing: Iterable[str], way_out: str) -> str:
    return f"there are no values for the params {sorted(missing)} of model and guide. {way_out}"
