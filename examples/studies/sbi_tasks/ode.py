# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Many initial value problems of one kind at once, each with its own step size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.integrate import RK45

from spread_core.validation import FloatArray

# The pair of orders 5 and 4 of Dormand and Prince 1980, as SciPy has it.
_A, _B, _C, _E = RK45.A, RK45.B, RK45.C, RK45.E


def solve(
    slope: Callable[[FloatArray, FloatArray], FloatArray],
    start: FloatArray,
    parameters: FloatArray,
    times: FloatArray,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    max_steps: int = 100_000,
) -> FloatArray:
    """Solve ``dy/dt = slope(y, parameters)``, a row for every problem.

    ``scipy.integrate.solve_ivp`` has one step size, so that the stiffest of 10,000 rows would set
    it for all; called row by row it takes a hundred times as long.

    :param slope: From states ``(rows, num_states)`` and parameters ``(rows, ...)`` to slopes.
    :param start: The states at ``times[0]``, shape ``(num, num_states)``.
    :param parameters: Shape ``(num, ...)``.
    :param times: When to report, increasing.
    :param rtol: Relative error of a step.
    :param atol: Absolute error of a step.
    :param max_steps: Of the slowest row between two times.
    :return: Shape ``(num, len(times), num_states)``; NaN where a row needs more steps.
    """
    out = np.full((len(start), len(times), start.shape[1]), np.nan)
    out[:, 0] = start
    step = np.full(len(start), 1e-3 * (times[-1] - times[0]))
    for k in range(1, len(times)):
        y, left = out[:, k - 1].copy(), np.full(len(start), times[k] - times[k - 1])
        going = np.flatnonzero(np.isfinite(y).all(1))
        for _ in range(max_steps):
            if len(going) == 0:
                break
            h = np.minimum(step[going], left[going])
            new, error = _step(slope, y[going], parameters[going], h)
            scale = atol + rtol * np.maximum(np.abs(y[going]), np.abs(new))
            off = np.sqrt(np.square(error / scale).mean(1))
            off = np.where(np.isfinite(off), off, 1e10)  # too long by far
            fine = off <= 1
            y[going[fine]] = new[fine]
            left[going[fine]] -= h[fine]
            adapted = h * np.clip(0.9 * np.maximum(off, 1e-10) ** -0.2, 0.2, 5)
            # A step that only the next time cut short says nothing against the length before it.
            step[going] = np.where(
                fine & (h < step[going]), np.maximum(adapted, step[going]), adapted
            )
            ended = fine & (left[going] <= 1e-12 * (times[k] - times[k - 1]))
            out[going[ended], k] = y[going[ended]]
            going = going[~ended]
    return out


def _step(
    slope: Callable[[FloatArray, FloatArray], FloatArray],
    y: FloatArray,
    parameters: FloatArray,
    h: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """The state after a step, and an estimate of its error."""
    length = h[:, None]
    slopes = [slope(y, parameters)]
    for s in range(1, len(_C)):
        y_s = y + length * sum(a * k for a, k in zip(_A[s], slopes, strict=False))
        slopes.append(slope(y_s, parameters))
    new = y + length * sum(b * k for b, k in zip(_B, slopes, strict=True))
    slopes.append(slope(new, parameters))
    return new, length * sum(e * k for e, k in zip(_E, slopes, strict=True))
