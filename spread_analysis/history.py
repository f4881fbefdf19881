# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""History: values recorded during a training run, for progress bars, logs and reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from spread_core.messages.general import shown
from spread_core.validation import FloatArray

# What a progress bar shows by default: the first two of these that there are.
_IN_A_BAR = ("divergence", "loss")


class History:
    """
    Numbers by name, each with the step at which it was taken.

    ``diagnose`` of either backend makes the numbers; a progress bar, TensorBoard and ``report``
    read them. Names need not be the same at every step.

    >>> history = History()
    >>> history.add(100, {"divergence": 0.5, "critic_accuracy": 0.9})
    >>> history.add(200, {"divergence": 0.25, "critic_accuracy": 0.75})
    >>> history.postfix()
    {'divergence': '0.25', 'critic_accuracy': '0.75'}
    >>> steps, values = history["divergence"]
    >>> steps.tolist(), values.tolist()
    ([100.0, 200.0], [0.5, 0.25])
    """

    def __init__(self) -> None:
        self._curves: dict[str, tuple[list[int], list[float]]] = {}
        self._last: dict[str, float] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """
        Add the numbers of one step.

        :param step: Number of steps taken, not less than at the last call.
        :param values: Number by name, such as what ``diagnose`` returns; NaN is kept as such.
        :raises ValueError: If a step is before one that was added earlier, or a value is not a
            number.
        """
        numbers = {}
        for name, value in values.items():
            try:
                numbers[str(name)] = float(value)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"History.add: '{name}' must be a number, got {shown(value)}."
                ) from error
            last = self._curves.get(str(name), ([], []))[0][-1:]
            if last and step < last[0]:
                raise ValueError(
                    f"History.add: '{name}' was taken in at step {last[0]} already, so step {step} "
                    "cannot follow. Count steps from the beginning of the run, and begin another "
                    "History for another run."
                )
        for name, number in numbers.items():
            steps, curve = self._curves.setdefault(name, ([], []))
            steps.append(int(step))
            curve.append(number)
        self._last = numbers

    def __getitem__(self, name: str) -> tuple[FloatArray, FloatArray]:
        """Steps and values of one name."""
        steps, values = self._curves[name]
        return np.asarray(steps, np.float64), np.asarray(values, np.float64)

    def __iter__(self) -> Iterator[str]:
        """Names, in the order in which they came."""
        return iter(self._curves)

    def __len__(self) -> int:
        return len(self._curves)

    @property
    def last(self) -> dict[str, float]:
        """The latest numbers, by name."""
        return dict(self._last)

    def postfix(self, *names: str, digits: int = 3) -> dict[str, str]:
        """
        The latest numbers as text, for ``tqdm``'s ``set_postfix``.

        :param names: Which; left out, the divergence estimate (the loss, where it is no
            divergence) and the accuracy of every critic.
        :param digits: Significant digits.
        """
        if not names:
            value = [name for name in _IN_A_BAR if name in self._last][:1]
            names = (*value, *(n for n in self._last if n.startswith("critic_accuracy")))
        return {name: f"{self._last[name]:.{digits}g}" for name in names if name in self._last}
