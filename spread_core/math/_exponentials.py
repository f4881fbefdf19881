# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Exponentials that one large log-ratio does not turn into inf."""

from __future__ import annotations

from array_api_compat import array_namespace

from spread_core.math._arrays import Array

# exp(80) leaves room in float32 (whose largest number is near exp(88)) for the linear part below.
_EXP_LIMIT = 80.0


def exp(x: Array) -> Array:
    """
    The exponential of x, continued by its tangent above 80.

    There exp would soon overflow, and one such sample would turn a whole gradient into inf or NaN.
    The tangent keeps value and slope continuous, so that the sample still pulls.
    """
    xp = array_namespace(x)
    large = x > _EXP_LIMIT
    return xp.exp(xp.where(large, _EXP_LIMIT, x)) * xp.where(large, 1.0 + (x - _EXP_LIMIT), 1.0)


def expm1(x: Array) -> Array:
    """exp(x) - 1 with the digits of expm1 near 0 and the tangent of :func:`exp` above 80."""
    # Away from 0 nothing cancels in exp(x) - 1, whose slope is exact, while the slope of expm1 is
    # taken from 1 + expm1(x): nothing is left of it at x = -20.
    xp = array_namespace(x)
    near = abs(x) < 1.0
    return xp.where(near, xp.expm1(xp.where(near, x, 0.0)), exp(x) - 1.0)
