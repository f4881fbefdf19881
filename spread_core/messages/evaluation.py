# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about evaluation that does not rely on a critic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def no_finite_likelihood(count: int, total: int) -> str:
    return (
        f"log p(x|z) is -inf or NaN at every prior draw for {count} of {total} data: such a model "
        "has no evidence to estimate. A deterministic output needs noise: evaluate "
        "spread(model, noise={'x': GaussianNoise(0.3)}) at data that went through the same noise."
    )


def density_free_guide(site: str) -> str:
    return (
        f"guide site '{site}' has no density, so it gives no importance weights. Use "
        "ais_log_likelihood(model, ...), which needs no guide."
    )


def scaled_site(site: str) -> str:
    return (
        f"site '{site}' is scaled, by a subsampling plate or a scale handler: what is estimated is "
        "the evidence of the data as they are. Pass the data of interest as arguments, without "
        "subsampling and scale."
    )


def masked_apart(site: str) -> str:
    return (
        f"site '{site}': model and guide mask different elements, so that some weights would lack "
        "one of the two densities. Mask the same elements of it in both, or pass the data of "
        "interest alone."
    )


def nothing_latent(sites: Iterable[str]) -> str:
    return (
        f"the model has no latent site, only {sorted(sites)}: its log-likelihood is exact, no "
        "estimate is needed."
    )


def no_evidence_sites() -> str:
    return "the model observes nothing, so there is no evidence to estimate. Give a site obs=."


def discrete_latent(site: str) -> str:
    return (
        f"site '{site}' is a discrete latent, along which annealing cannot move by gradients. Sum "
        "it out, as in a mixture distribution, or use importance_weighted_bound."
    )


def no_calibration_sites(wanted: Iterable[str], latents: Iterable[str]) -> str:
    return (
        f"sites={sorted(wanted)}: simulation-based calibration ranks sites that both model and "
        f"guide draw; those are {sorted(latents)}."
    )


def simulated_misfit(
    site: str, argument: str, simulated: Sequence[int], given: Sequence[int]
) -> str:
    return (
        f"site '{site}': the model simulates data of shape {tuple(simulated)}, but its argument "
        f"'{argument}' has the shape {tuple(given)}. The guide must get simulated data in place of "
        f"the real ones: name the argument that carries them with data={{'{site}': ...}}."
    )
