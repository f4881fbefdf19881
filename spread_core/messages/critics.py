# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about critics that are unrolled or no classifiers, and about sums of penalties."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spread_core.messages.general import shown


def unequal_pairs(data: Sequence[int], model: Sequence[int]) -> str:
    return (
        f"relativistic pairing sets every datum beside a draw of the model, but there are "
        f"{tuple(data)} data and {tuple(model)} draws. Draw as many as there are data, or use "
        "AdversarialDivergence."
    )


def bad_labels(value: object) -> str:
    return (
        f"labels must be three finite numbers, of draws, of data and the model's target, the first "
        f"two different, such as (0.0, 1.0, 1.0), got {shown(value)}."
    )


def unequal_turns(turns: Iterable[int]) -> str:
    return (
        f"penalties that are added must have their turn together, but every is {list(turns)}. Give "
        "all of them the same."
    )


def no_penalty(value: object) -> str:
    return f"only penalties such as R2() can be added to a penalty, got {shown(value)}."


def unrolled_in_one_pass() -> str:
    return (
        "update='one_pass' computes the generator's gradient at the critic as it is, but unroll=k "
        "asks for the gradient through k of its steps. Leave out one of the two."
    )


def diverged_ahead(steps: int, size: float) -> str:
    return (
        f"the critic's logits are NaN or inf after its {steps} unrolled steps of size {size:g}, "
        "while they are finite at its params as they are. Use a smaller unroll_step_size."
    )
