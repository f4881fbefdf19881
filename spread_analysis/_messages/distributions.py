# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""About distributions without a density."""

from __future__ import annotations

from collections.abc import Sequence

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
        f"needs no density: {_DENSITY_FREE}."
    )


def implicit_output_shape(got: Sequence[int], expected: Sequence[int]) -> str:
    return (
        f"ImplicitDistribution: fn returned shape {tuple(got)}, expected {tuple(expected)} = "
        "sample + batch + event_shape. Check fn or event_shape."
    )
