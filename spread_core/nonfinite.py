# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The error of a step that would have ended in NaN or inf, and what a guard has to tell."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from spread_core.messages import players, simulations
from spread_core.validation import check_count

# What torch, Pyro, JAX, NumPyro, NumPy, SciPy and our kernels say of such numbers.
_OF_NUMBERS = re.compile(
    r"(?<![-\w])(?:nans?|infs?)\b|\bno[nt][- ]?finite\b|\bmust be (?:positive and )?finite\b"
    r"|\bExpected parameter \w+ \(|\bgot invalid \w+ parameter"
    r"|\bmath domain error\b|elements of std >= 0|p_in >= 0 && p_in <= 1|invalid Poisson rate"
    r"|elements of input should be between 0 and 1",
    re.IGNORECASE,
)
ON_NONFINITE = ("raise", "skip", "reduce")


class NonFiniteError(ValueError):
    """
    NaN or inf in data, params, logits, gradients or the loss: the step was not taken.

    The message names the site or param and its player, and the way out.
    """


class InvalidSimulationsWarning(UserWarning):
    """Simulations are NaN or inf: they are left out if that was asked for, else the loss is NaN."""


class Told:
    """Says once that simulations have failed."""

    def __init__(self) -> None:
        self._is_told = False
        #: What there was to say of the last failures that were not left out.
        self.last = ""
        #: Whether there is a guard, which is the one to say it.
        self.is_guarded = False

    def __call__(
        self, counts: Mapping[str, int], total: int, left_out: bool = True, may: bool = False
    ) -> None:
        """
        Take in the failures of one step.

        :param counts: dict from site to number of failed simulations.
        :param total: number of simulations.
        :param left_out: whether they were left out.
        :param may: whether they may be.
        """
        self.last = "" if left_out else simulations.failed(counts, total, may)
        if not self._is_told and (left_out or not self.is_guarded):
            self._is_told = True
            said = simulations.unguarded(counts, total, may)
            if left_out:
                said = simulations.left_out(counts, total)
            warnings.warn(said, InvalidSimulationsWarning, stacklevel=2)


class GuardStatus(NamedTuple):
    """
    How many steps a guard has skipped, and why.

    :param skipped: number of steps that were not taken.
    :param in_a_row: how many of them were the last ones, without a good step in between.
    :param step_scale: factor on the updates of both players; 1 unless steps are reduced.
    :param last: what was wrong at the last skipped step, "" if there was none.
    """

    skipped: int
    in_a_row: int
    step_scale: float
    last: str


def find_nonfinite(error: BaseException | None) -> NonFiniteError | None:
    """
    The :class:`NonFiniteError` in the chain of causes of an error, or None.

    :param error: as it was caught; Pyro wraps what its sites raise.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, NonFiniteError):
            return error
        seen.add(id(error))
        error = error.__cause__
    return None


def root_cause(error: BaseException) -> BaseException:
    """The first error in the chain of causes: Pyro and losses wrap what their sites raise."""
    seen: set[int] = set()
    while error.__cause__ is not None and id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__
    return error


def is_about_numbers(error: BaseException) -> bool:
    """
    Whether an error says that numbers are NaN, inf or such that nothing can go on from them.

    Whether these raise or turn into a loss of NaN depends on validation, on compilation and on the
    routine that they reach first. Errors of a program, as of types and shapes, are not among them.

    :param error: the root of the chain of causes. Texts that are put around it name sites.
    """
    if isinstance(error, NonFiniteError | ArithmeticError):
        return True
    if any(base.__name__.endswith("LinAlgError") for base in type(error).__mro__):
        return True
    if isinstance(error, NotImplementedError | RecursionError):
        return False
    spoken = isinstance(error, ValueError | RuntimeError | Warning)
    return spoken and _OF_NUMBERS.search(str(error)) is not None


def is_worth_saying(in_a_row: int) -> bool:
    """Whether to warn after so many skipped steps without a good one: 10, 100, 1000 and so on."""
    return in_a_row >= 10 and str(in_a_row).strip("0") == "1"


def check_guard(on_nonfinite: object, factor: float, recover_after: object) -> None:
    """
    Refuse arguments of a guard that make no sense.

    :raises ValueError: naming the argument.
    """
    if on_nonfinite not in ON_NONFINITE:
        raise ValueError(players.bad_choice("on_nonfinite", on_nonfinite, ON_NONFINITE))
    if not 0 < factor < 1:
        raise ValueError(players.bad_range("finite_guard: factor", factor, "in (0, 1)"))
    check_count("finite_guard: recover_after", recover_after)


def player_of(param: str, discriminator: str, separator: str) -> str:
    """
    Whose a param is: "discriminator" or "generator".

    :param param: name of the param.
    :param discriminator: name of the discriminator.
    :param separator: what the backend puts between a module and its params.
    """
    return "discriminator" if param.split(separator)[0] == discriminator else "generator"
