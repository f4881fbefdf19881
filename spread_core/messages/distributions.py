# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about distributions without a density."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from spread_core.messages.general import shown

_DENSITY_FREE = (
    "AdversarialDivergence, MMD, EnergyDistance, SlicedWasserstein or WassersteinCritic for a "
    "model; PriorContrastELBO or JointContrastELBO for a guide"
)


def implicit_has_no_density() -> str:
    return (
        "ImplicitDistribution can be sampled but has no density, so log_prob does not exist. Use a "
        f"loss that needs none: {_DENSITY_FREE}."
    )


def generator_has_no_density() -> str:
    return (
        "DeterministicGenerator has no likelihood: the log density of data is -inf almost "
        "everywhere. Use SpreadELBO({site: GaussianNoise(0.3)}), which spreads it, or a loss that "
        f"needs no density: {_DENSITY_FREE}. An autoguide that looks for a start of finite density "
        "takes the spread model: AutoNormal(spread(model, noise))."
    )


def implicit_fn(value: object) -> str:
    return (
        "ImplicitDistribution: fn must be callable, from noise to values, got "
        f"{shown(value)}. Write ImplicitDistribution(fn, base_dist, event_shape)."
    )


def implicit_base(value: object, package: str) -> str:
    return (
        f"ImplicitDistribution: base_dist must be a {package}.distributions.Distribution, that of "
        f"the noise, got {shown(value)}. Write for example Normal(loc, 1.0).to_event(1): its draws "
        "are what fn gets."
    )


def check_event_shape(value: object) -> None:
    """
    Raise an error for anything that is not the shape of one value.

    :raises TypeError: if it is no sequence of sizes.
    """
    sizes = value if isinstance(value, Sequence) and not isinstance(value, str) else None
    if sizes is None or not all(isinstance(size, Integral) for size in sizes):
        example = f"({value},)" if isinstance(value, Integral) else "(2,)"
        raise TypeError(
            "ImplicitDistribution: event_shape must be a tuple of sizes, such as "
            f"{example} for a vector or () for a number, got {shown(value)}."
        )


def implicit_rsample() -> str:
    return (
        "ImplicitDistribution: has_rsample_ would exchange the gradient through its draws for one "
        "of a density, which it has not. Draws have a gradient if those of base_dist have."
    )


def implicit_output_shape(got: Sequence[int], expected: Sequence[int]) -> str:
    return (
        f"ImplicitDistribution: fn returned shape {tuple(got)}, expected {tuple(expected)} = "
        "sample + batch + event_shape. Check fn or event_shape."
    )
