# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about noise kernels and the distributions that they spread."""

from __future__ import annotations

from collections.abc import Sequence

from spread_core.messages.general import shown


def no_conditional(kernel: str) -> str:
    return (
        f"{kernel} does not implement conditional(x, event_dim), the distribution of y given x, "
        "which every noise kernel has to."
    )


def bad_positive(kernel: str, argument: str, value: object) -> str:
    return (
        f"{kernel}: {argument} must be positive and finite, got {shown(value)}. A learned "
        f"{argument} needs a positive constraint."
    )


def scale_misfit(kernel: str, scale: Sequence[int], x: Sequence[int], event_dim: int) -> str:
    event = f" with event shape {tuple(x)[len(x) - event_dim :]}" if event_dim else ""
    return (
        f"{kernel}: a scale of shape {tuple(scale)} does not fit a value of shape "
        f"{tuple(x)}{event}. Use a scalar scale, or one that broadcasts to the event shape."
    )


def parameters_misfit(kernel: str, shapes: Sequence[Sequence[int]]) -> str:
    listed = " and ".join(str(tuple(shape)) for shape in shapes)
    return f"{kernel}: parameters of shapes {listed} do not broadcast to one shape."


def event_dim_too_small(kernel: str, needed: int, event_dim: int) -> str:
    return (
        f"{kernel} couples the last {needed} dimension(s) of the value, but the event has only "
        f"{event_dim}. Declare them as event dimensions: .to_event({needed}) or "
        f"Delta(value, event_dim={needed})."
    )


def event_dim_too_large(kernel: str, event_dim: int, ndim: int) -> str:
    return f"{kernel}: event_dim={event_dim}, but the value has only {ndim} dimension(s)."


def factor_shape(shape: Sequence[int]) -> str:
    return (
        "LowRankGaussianNoise: factor must be a D x R matrix (covariance scale² I + factor "
        f"factorᵀ), got shape {tuple(shape)}."
    )


def low_rank_scale_shape(shape: Sequence[int], factor: Sequence[int]) -> str:
    return (
        "LowRankGaussianNoise: scale must be a scalar or a vector of the length of factor's first "
        f"dimension, got scale of shape {tuple(shape)} with factor of shape {tuple(factor)}."
    )


def factor_misfit(factor: Sequence[int], event: Sequence[int]) -> str:
    size = 1
    for length in event:
        size *= length
    return (
        f"LowRankGaussianNoise: factor of shape {tuple(factor)} does not fit the event shape "
        f"{tuple(event)}, which has {size} element(s). Its first dimension must be {size}."
    )


def bad_factor() -> str:
    return "LowRankGaussianNoise: factor contains NaN or inf."


def integer_under_continuous(kernel: str, dtype: object) -> str:
    return (
        f"{kernel} adds continuous noise, but the value has the integer type {dtype}. Convert the "
        "data (and the model's output) to floating point, or use ChannelNoise for class labels."
    )


def float_under_channel(dtype: object) -> str:
    return (
        f"ChannelNoise acts on class labels, but the value has the type {dtype}. Convert the "
        "labels to integers, or use a continuous kernel such as GaussianNoise."
    )


def label_out_of_range(num_classes: int, low: object, high: object) -> str:
    return (
        f"ChannelNoise: labels must lie in 0..{num_classes - 1}, got values from {low} to {high}. "
        "Use a channel with as many rows as there are classes."
    )


def other_classes(num_classes: int, found: int) -> str:
    return (
        f"ChannelNoise: labels must lie in 0..{num_classes - 1}, but the Categorical has {found} "
        "classes. Use a channel with as many rows as there are classes."
    )


def channel_shape(shape: Sequence[int]) -> str:
    return (
        "ChannelNoise: matrix must be square with P[i, j] = p(y=i | x=j), at least 2 x 2, got "
        f"shape {tuple(shape)}."
    )


def channel_not_stochastic(reason: str) -> str:
    return (
        f"ChannelNoise: matrix is not column-stochastic ({reason}). Every column is a distribution "
        "over y: entries in [0, 1] that sum to 1. A row-stochastic matrix needs transposing."
    )


def channel_singular(smallest: object) -> str:
    return (
        "ChannelNoise: matrix is singular (smallest singular value "
        f"{smallest}), so different distributions of x give the same distribution of y and the "
        "spread divergence cannot tell them apart. Keep more of the labels unflipped."
    )


def bad_flip(flip: object) -> str:
    return (
        f"ChannelNoise.symmetric: flip must lie in [0, 1), got {flip}. At flip = 1 the channel is "
        "singular: y no longer depends on x."
    )


def bad_num_classes(num_classes: object) -> str:
    return (
        f"ChannelNoise.symmetric: num_classes must be an integer of at least 2, got {num_classes}."
    )


def not_a_kernel(value: object) -> str:
    return (
        f"expected a noise kernel such as GaussianNoise(0.3), got {shown(value)} of type "
        f"{type(value).__name__}."
    )


def not_a_transform(value: object, base: str) -> str:
    return (
        f"TransformedNoise: transform must be a {base}, got {shown(value)}. A plain function "
        "cannot say that it is injective; wrap it in a subclass that does."
    )


def not_injective(transform: str, why: str) -> str:
    return (
        f"TransformedNoise: {transform} is not injective ({why}): two different models could "
        "spread to the same distribution. Use an invertible transform."
    )


def not_a_real_array(transform: str) -> str:
    return (
        f"TransformedNoise: the values of {transform} are not a real array, so that no noise can "
        "be added to them. Use a transform into real numbers."
    )


def transform_misfit(transform: str, shape: Sequence[int]) -> str:
    return (
        f"TransformedNoise: the parameters of {transform} do not fit a value of shape "
        f"{tuple(shape)}. They must broadcast to the event shape."
    )


def outside_domain(transform: str, domain: object) -> str:
    return (
        f"TransformedNoise: the value leaves the domain of {transform}, {domain}, outside of which "
        "it is not injective. Rescale the data, or use another transform."
    )


def no_characteristic_function(kernel: str) -> str:
    return (
        f"{kernel} is not stationary (y - x depends on x), so it has no characteristic function. "
        "It is valid because the map from p(x) to p(y) is invertible."
    )


def no_spread_rule(kernel: str, distribution: str) -> str:
    if distribution == "Simulator":
        return (
            f"{kernel} has no exact spread of Simulator, which has no density. JointContrastELBO "
            "takes noise around its draws: JointContrastELBO(divergence=KL(), noise={...})."
        )
    return (
        f"{kernel} has no exact spread of {distribution}. Exact are: Delta under every kernel; "
        "Normal and MultivariateNormal under the Gaussian kernels; Categorical under ChannelNoise; "
        "mixtures and Independent, Masked and Expanded wrappers of these. The way out: draw the "
        "value at a latent site and observe Delta(value), or write the noise into the model by "
        "hand."
    )


def delta_with_density(kernel: str) -> str:
    return (
        f"{kernel} cannot spread a Delta with a nonzero log_density: it is not a probability "
        "distribution. Put the factor on a site of its own."
    )


def levels_of_other_kernel(kernel: str) -> str:
    return (
        f"MultiLevelNoise: {kernel} is not a stationary kernel with a scale that levels multiply. "
        "Take GaussianNoise, LaplaceNoise, StudentTNoise, LogisticNoise or LowRankGaussianNoise, "
        "as in MultiLevelNoise(GaussianNoise(1.0), [0.1, 0.3, 1.0]); levels in the coordinates of "
        "a transform are TransformedNoise(transform, MultiLevelNoise(...))."
    )


def bad_levels(name: str, values: object) -> str:
    return (
        f"MultiLevelNoise: {name} must be one or more positive, finite numbers, got "
        f"{shown(values)}."
    )


def levels_and_weights(levels: int, weights: int) -> str:
    return f"MultiLevelNoise: {levels} level(s) need as many weights, got {weights}."


def told_misfit(levels: Sequence[int], batch: Sequence[int]) -> str:
    return (
        f"MultiLevelNoise: levels of shape {tuple(levels)} were told, which does not fit the "
        f"batch {tuple(batch)} of the site. A plate must not take part of the data inside the "
        "model then: pass the model the rows it takes, or let nobody ask for the level."
    )


def no_scale(kernel: str) -> str:
    return (
        f"{kernel} has no scale that a factor could multiply. Take GaussianNoise, LaplaceNoise, "
        "StudentTNoise, LogisticNoise or LowRankGaussianNoise, or MultiLevelNoise or "
        "TransformedNoise around one of them."
    )


def level_given(name: str) -> str:
    return (
        f"'{name}' is the level of the noise, which the loss draws, so the call must not give one. "
        "Leave it out, or rename the argument."
    )


def levels_untold(name: str) -> str:
    return (
        f"model or guide ask for '{name}', but this loss does not tell model or guide the level of "
        "the noise. Rename the argument, or use SpreadELBO."
    )


def no_level(name: str, kernel: str) -> str:
    return (
        f"model or guide ask for '{name}', but {kernel} has no level that could be told. Rename "
        "the argument, or take MultiLevelNoise or annealed(...), with no transform around levels."
    )


def level_of_pattern(name: str, pattern: str) -> str:
    return (
        f"model or guide ask for '{name}', but the site gets its noise by the pattern "
        f"'{pattern}', under which no level is told. Give the site a key of its own in noise, or "
        "rename the argument."
    )


def level_shared(name: str, site: str) -> str:
    return (
        f"model or guide ask for '{name}', but its data are those of site '{site}', whose noise "
        f"they get. Ask for '{site}_level'."
    )
