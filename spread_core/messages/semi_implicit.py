# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about ``SemiImplicitELBO`` and the kernels that give implicit guides a density."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spread_core.messages.general import shown


def semi_bad_noise(value: object) -> str:
    return (
        "SemiImplicitELBO: noise must be a dict from the name of an implicit guide site to a noise "
        f"kernel, such as {{'z': GaussianNoise(0.1)}}, got {shown(value)}."
    )


def semi_bad_num_mixture(value: object) -> str:
    return (
        f"SemiImplicitELBO: num_mixture must be an integer of at least 0, got {shown(value)}. "
        "It is the number of draws in the mixture beside the one that made the sample."
    )


def semi_discrete_kernel(kernel: str) -> str:
    return (
        f"{kernel} is a discrete kernel, but an implicit guide site is continuous and its density "
        "must be differentiable. Use a continuous kernel such as GaussianNoise(0.1)."
    )


def semi_no_such_site(site: str, implicit: Iterable[str]) -> str:
    return (
        f"noise names the site '{site}', but the guide has no sample site of that name. Its "
        f"implicit sites are {sorted(implicit)}."
    )


def semi_not_implicit(site: str, distribution: str) -> str:
    return (
        f"noise names the guide site '{site}', which is a {distribution} and no "
        "ImplicitDistribution: SemiImplicitELBO spreads implicit sites only, all others keep their "
        "own density. Drop it from noise."
    )


def semi_fixed_site(site: str) -> str:
    return (
        f"noise names the guide site '{site}', whose value is observed or set by a handler, so "
        "that the kernel cannot draw it. Drop obs= or the handler, or take the site out of noise "
        "and give it a density."
    )


def semi_missing_kernel(site: str, noise: Iterable[str]) -> str:
    return (
        f"guide site '{site}' is an ImplicitDistribution without a kernel, so it has no density; "
        f"noise has kernels for {sorted(noise)}. Add one, as in "
        f"SemiImplicitELBO({{'{site}': GaussianNoise(0.1)}}), or use PriorContrastELBO."
    )


def semi_kernel_shape(site: str, got: Sequence[int], wanted: Sequence[int]) -> str:
    return (
        f"guide site '{site}': its kernel turns a draw of shape {tuple(wanted)} into one of shape "
        f"{tuple(got)} (in unconstrained space, where the noise is added). Use a scale that "
        "broadcasts to the draw, and no transform that changes its shape."
    )


def semi_moving_support(site: str) -> str:
    return (
        f"site '{site}': the bounds of its support in the model depend on data, parameters or "
        "other latents, or differ between the elements of a plate. The noise is added in "
        "unconstrained space, which must be the same at every step. Sample it on a fixed support "
        "and move it in the model: u ~ Uniform(0, 1), z = low + (high - low) * u."
    )


def semi_no_bijection(site: str, support: object) -> str:
    return (
        f"site '{site}': no bijection from unconstrained space onto its support {support} in the "
        "model is known (a discrete one has none), so that no noise can be added there. Give the "
        "model's site a continuous support that biject_to knows."
    )


def semi_outside_support(site: str, support: object) -> str:
    return (
        f"guide site '{site}': fn of its ImplicitDistribution returned a value outside of the "
        f"interior of {support}, the support of the site in the model. End fn in a map onto it, "
        "such as exp or sigmoid, and keep it off the boundary."
    )


def semi_messenger_guide() -> str:
    return (
        "SemiImplicitELBO cannot use an AutoMessenger guide: it runs the model inside of itself, "
        "where the noise would meet the model's sites too. Write the guide as a function or "
        "AutoGuide."
    )
