# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about NumPyro's scan and cond."""

from __future__ import annotations

_LOOP = "or write the steps as a Python loop"


def unknown(name: str) -> str:
    return (
        f"{name}: of NumPyro's control flow only scan and cond are known. Use one of them, {_LOOP}."
    )


def learned_inside(kind: str, name: str, is_scan: bool) -> str:
    where = "scan" if is_scan else "cond"
    return (
        f"{kind} '{name}' is declared in the body of {where}, where NumPyro keeps its first value "
        f"for ever. Declare it before the {where} and let the body use it, {_LOOP}."
    )


def nested() -> str:
    return f"scan inside scan: NumPyro does not support it. Use one scan over both, {_LOOP}."


def subsampled_inside(plate: str) -> str:
    return (
        f"plate '{plate}' in the body of scan draws another subsample at every step, so that no "
        f"series stays together. Hand over the series of a mini-batch, {_LOOP}."
    )


def transformed_inside(site: str) -> str:
    return (
        f"site '{site}': scan loses the time dimension of a transformed ImplicitDistribution. Put "
        f"the transform into its fn, {_LOOP}."
    )


def one_series(site: str) -> str:
    return (
        f"site '{site}' in scan stands in no plate: one series is one datum, and there is nothing "
        "to compare it with. Put the series into a plate inside of the body."
    )


def enumerated() -> str:
    return (
        "discrete latents of a scan or cond cannot be enumerated under a loss. Use another stock "
        f"ELBO than TraceEnum_ELBO, {_LOOP}."
    )
