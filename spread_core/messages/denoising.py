# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages of denoise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spread_core.messages.general import shown


def bad_noise(noise: object) -> str:
    return (
        "denoise: noise must be a kernel such as GaussianNoise(0.3), or a dict from one site to "
        f"its kernel, got {shown(noise)}. Of noise of learned(...) pass what its method kernel "
        "returns."
    )


def moving_noise(name: str) -> str:
    return (
        f"denoise: the scale of {name}(...) is known at a step of a loss only. Give the kernel "
        "with the scale that y was drawn at."
    )


def one_source() -> str:
    return (
        "denoise needs either model and guide, as in denoise(y, noise, model, guide), or "
        "log_density, a function from y to the log density of noisy data up to a constant."
    )


def not_gaussian(kernel: str) -> str:
    return (
        f"denoise: Tweedie's formula is of Gaussian noise, not of {kernel}. Use GaussianNoise or "
        "LowRankGaussianNoise, or a guide and a model whose likelihood is a Delta."
    )


def level_unknown() -> str:
    return (
        "denoise: Tweedie's formula needs the level of every datum under MultiLevelNoise. Give "
        "level=, the multipliers at which y was drawn."
    )


def level_of_other_kernel(kernel: str) -> str:
    return (
        f"denoise: level= is that of MultiLevelNoise, and {kernel} has no levels. Leave it "
        "out, and give the kernel with the scale that y was drawn at."
    )


def level_of_which_site() -> str:
    return (
        "denoise: level= belongs to a site, whose name tells what guide or model ask for. Give it, "
        "as in denoise(y, {'x': kernel}, model, guide, level=level)."
    )


def level_not_given(name: str) -> str:
    return (
        f"denoise: model or guide ask for '{name}'. Give level=, the multipliers at which y was "
        "drawn."
    )


def levels_of_density(site: str) -> str:
    return (
        f"denoise: site '{site}' has a likelihood with a density, which under MultiLevelNoise is "
        "not denoised. Give the GaussianNoise at the level of y, or make the likelihood a Delta."
    )


def bad_log_density(shape: Sequence[int], y: Sequence[int]) -> str:
    return (
        f"denoise: log_density must give one number for every datum, got shape {tuple(shape)} for "
        f"y of shape {tuple(y)}."
    )


def which_site(observed: Iterable[str]) -> str:
    return (
        f"denoise: the model observes {sorted(observed)}. Say which site y belongs to, as in "
        "denoise(y, {'x': kernel}, model, guide)."
    )


def no_key() -> str:
    return "denoise draws from the guide: give rng_key= and params=, such as svi.get_params(state)."
