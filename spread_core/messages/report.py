# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about diagnoses and reports of a training run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from spread_core.messages.general import shown


def history_value(name: str, value: object) -> str:
    return f"History.add: '{name}' must be a number, got {shown(value)}."


def history_order(name: str, step: int, last: int) -> str:
    return (
        f"History.add: '{name}' was taken in at step {last} already, so step {step} cannot follow. "
        "Count steps from the beginning of the run, and begin another History for another run."
    )


def report_no_loss(loss: object) -> str:
    return (
        f"the loss of this SVI is {shown(loss)}, which is no loss object: there is nothing to "
        "ask it. Make the SVI with loss=AdversarialDivergence(...) or any other loss or ELBO "
        "object."
    )


def report_no_data() -> str:
    return (
        "report: the model observes nothing with these arguments, so there are no data to compare "
        "its samples with. Pass the arguments that svi.step or svi.update gets, the data among "
        "them."
    )


def report_unknown_params(missing: Iterable[str], way_out: str) -> str:
    return f"there are no values for the params {sorted(missing)} of model and guide. {way_out}"


def report_losses(shape: Sequence[int]) -> str:
    return (
        "report: `losses` must be one number per step, a vector that is not empty; got the shape "
        f"{tuple(shape)}."
    )


def report_folder(path: object) -> str:
    return f"report: cannot write '{path}': its folder does not exist. Make it first."


def report_is_folder(path: object) -> str:
    return f"report: cannot write '{path}': it is a folder. Give the name of a file in it."


def report_unwritable(path: object, cause: object) -> str:
    return f"report: cannot write '{path}': {cause}."


def report_image_shape(shape: Sequence[int], sizes: Mapping[str, int]) -> str:
    return (
        f"report: image_shape={tuple(shape)} fits none of the observed sites, whose events have "
        f"the sizes {dict(sizes)}. It is (height, width), or with a channel axis of 1 or 3 in the "
        "first or last place."
    )


def report_history(history: object) -> str:
    return f"report: `history` must be a spread_analysis.History, or None; got {shown(history)}."


def report_no_local(datum: int) -> str:
    return (
        f"report: datum={datum}, but the guide has no latent of single data: what it draws is "
        "shared by all. Leave datum out."
    )


def report_datum(datum: int, count: int) -> str:
    return f"report: datum={datum} is not one of the {count} data: it counts from 0."
