# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about the comparison of two samples: divergences, kernels, distances."""

from __future__ import annotations

from collections.abc import Sequence

from spread_core.messages.general import shown


def mixture_shape(kernel: str, argument: str, shape: Sequence[int]) -> str:
    return (
        f"{kernel}: {argument} must be a number, or a sequence of at least one for the mean over a "
        f"mixture, got shape {tuple(shape)}."
    )


def mixture_lengths(lengthscales: int, alphas: int) -> str:
    return (
        f"RationalQuadraticKernel: {lengthscales} lengthscales do not pair with {alphas} alphas. "
        "Give equally many of both, or one of either."
    )


def bad_variance(value: object) -> str:
    return (
        "convolved: variance must be a number or a vector, nonnegative and finite, got "
        f"{value}. It is the square of the noise's scale."
    )


def variance_width(variance: Sequence[int], width: int) -> str:
    return (
        f"convolved: a variance of shape {tuple(variance)} does not fit samples of {width} "
        f"dimension(s). Give one number, or {width}."
    )


def samples_type(name: str, got: object) -> str:
    return (
        f"{name} must be an array of the backend of a floating type, got {got}. Convert it to "
        "floating point; for class labels, use one-hot vectors."
    )


def samples_types_differ(x: object, y: object) -> str:
    return f"x and y must have one floating type, got {x} and {y}. Convert one of them."


def samples_shape(name: str, shape: Sequence[int]) -> str:
    return (
        f"{name} must be a matrix (number of samples, dimension), got shape {tuple(shape)}. "
        f"Flatten its event dimensions: {name}.reshape(len({name}), -1)."
    )


def samples_widths_differ(x: Sequence[int], y: Sequence[int]) -> str:
    return (
        f"x and y must be samples of one space, got shapes {tuple(x)} and {tuple(y)}, whose last "
        "dimensions differ."
    )


def too_few_samples(name: str, count: int) -> str:
    return (
        f"{name} holds {count} sample(s), but a two-sample statistic needs at least two of each "
        "set. Use a larger batch."
    )


def weights_shape(name: str, shape: Sequence[int], count: int) -> str:
    return (
        f"{name} must hold one weight for each of {count} samples, shape ({count},), got shape "
        f"{tuple(shape)}."
    )


def bad_weights(name: str) -> str:
    return (
        f"{name} must be nonnegative and finite, with at least two positive weights: samples of "
        "weight zero are left out."
    )


def bad_block_size(value: object) -> str:
    return (
        f"block_size must be a positive integer, the number of rows held at once, got "
        f"{shown(value)}. Leave it out for one that fits."
    )


def bad_energy_power(value: object) -> str:
    return (
        f"energy_distance: beta must lie strictly between 0 and 2, got {shown(value)}. At beta = 2 "
        "only the means are compared; beta = 1 is the usual choice."
    )


def bad_order(value: object) -> str:
    return f"sliced_wasserstein: p must be a finite number of at least 1, got {shown(value)}."


def bad_directions(shape: Sequence[int], width: int) -> str:
    return (
        f"sliced_wasserstein: directions must be a nonempty matrix (number, {width}) of unit "
        f"vectors of the samples' {width} dimension(s), got shape {tuple(shape)}."
    )


def not_floating(argument: str, wanted: str, got: str) -> str:
    return (
        f"{argument} must be a {wanted} of floating-point numbers, got {got}. Pass the critic's "
        "output as it is, and convert integers to floating point."
    )


def weights_type(argument: str, wanted: str, got: str) -> str:
    return f"{argument} must be a {wanted} (weights or a mask) or None, got {got}."


def weights_misfit(side: str, weights: Sequence[int], log_ratio: Sequence[int]) -> str:
    return (
        f"weights_{side} of shape {tuple(weights)} does not broadcast to the shape "
        f"{tuple(log_ratio)} of log_ratio_{side}. Give one weight per log-ratio."
    )


def prior_type(got: str) -> str:
    return (
        f"JSPi: pi must be a plain Python number, got {got}. It is a constant of the loss, not "
        "learned; convert it with float(pi)."
    )


def bad_prior(pi: object) -> str:
    return (
        f"JSPi: pi must lie strictly between 0 and 1, got {pi}. For the limits of the normalised "
        "divergence use KL() (pi -> 0) and ReverseKL() (pi -> 1)."
    )


def no_generator_loss() -> str:
    return (
        "TotalVariation has no generator loss: its gradient in the log-ratio is zero almost "
        "everywhere, so that a generator would not move. Train with SquaredHellinger() or "
        "JSPi(0.5) and use TotalVariation for estimation."
    )
