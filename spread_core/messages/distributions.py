# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about distributions without a density."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from spread_core.messages.general import shortened, shown

_DENSITY_FREE = (
    "AdversarialDivergence, MMD, EnergyDistance, SlicedWasserstein or WassersteinCritic for a "
    "model; PriorContrastELBO or JointContrastELBO for a guide"
)
_WRITE_SIMULATOR = "Write Simulator(fn, *args, event_shape=(2,))"


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


def check_event_shape(value: object, name: str = "ImplicitDistribution") -> None:
    """
    Raise an error for anything that is not the shape of one value.

    :param value: what the user gave.
    :param name: of the distribution.
    :raises TypeError: if it is no sequence of sizes.
    """
    sizes = value if isinstance(value, Sequence) and not isinstance(value, str) else None
    if sizes is None or not all(isinstance(size, Integral) for size in sizes):
        example = f"({value},)" if isinstance(value, Integral) else "(2,)"
        raise TypeError(
            f"{name}: event_shape must be a tuple of sizes, such as "
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


def simulator_has_no_density() -> str:
    return (
        "Simulator can be sampled but has no density, so log_prob does not exist. Use amortize, or "
        "JointContrastELBO, which need simulations only: with divergence=KL() for a guide that has "
        "a density, with a discriminator for one that has none."
    )


def simulator_has_no_gradient() -> str:
    return (
        "Simulator: no gradient passes through a black box in NumPy, so that what is before it "
        "cannot be learned through its draws. Train a guide alone, by amortize or "
        "JointContrastELBO(divergence=KL()); or write the simulator in the backend's own "
        "operations, as an ImplicitDistribution."
    )


def simulator_fn(value: object) -> str:
    return (
        "Simulator: fn must be callable, from a numpy.random.Generator and NumPy arrays to an "
        f"array, got {shown(value)}. {_WRITE_SIMULATOR}."
    )


def simulator_needs_args() -> str:
    return (
        "Simulator: fn needs at least one array, which tells how many runs there are. If it takes "
        "none, give it a constant: Simulator(lambda rng, zero: ..., 0.0, event_shape=(2,))."
    )


def simulator_arg(number: int, value: object) -> str:
    return (
        f"Simulator: argument {number} after fn must be an array of numbers, got {shown(value)}. "
        "Bind other options: functools.partial(fn, option=...)."
    )


def simulator_vectorized(value: object) -> str:
    return (
        f"Simulator: vectorized must be True or False, got {shown(value)}. Arguments of fn come "
        "before the keywords."
    )


def simulator_event_dims(value: object, count: int) -> str:
    return (
        f"Simulator: arg_event_dims must be a nonnegative integer, or one for each of the {count} "
        f"argument(s) of fn, got {shown(value)}. It says how many rightmost dims of an argument "
        "belong to one run: 1 for a vector."
    )


def simulator_too_few_dims(number: int, shape: Sequence[int], event_dim: int) -> str:
    return (
        f"Simulator: argument {number} after fn has shape {tuple(shape)}, fewer dims than "
        f"arg_event_dims={event_dim} says belong to one run."
    )


def simulator_batches(shapes: Sequence[Sequence[int]], event_dims: Sequence[int]) -> str:
    each = ", ".join(str(tuple(shape)) for shape in shapes)
    return (
        f"Simulator: arguments of shapes {each} do not broadcast with arg_event_dims="
        f"{tuple(event_dims)}, which says how many rightmost dims belong to one run. For a vector "
        "per run write arg_event_dims=1, or one number for each argument."
    )


def simulator_shape(
    got: Sequence[int], expected: Sequence[int], inputs: Sequence[Sequence[int]], vectorized: bool
) -> str:
    given = ", ".join(str(tuple(shape)) for shape in inputs)
    if not vectorized:
        return (
            f"Simulator: fn returned shape {tuple(got)}, expected {tuple(expected)} = event_shape, "
            f"for one run, from arguments of shape {given}. It must be the same in every run. If "
            "fn takes many runs at once, write vectorized=True."
        )
    hint = ""
    if tuple(got) == tuple(expected)[1:]:
        hint = " If fn takes one run at a time, write vectorized=False."
    return (
        f"Simulator: fn returned shape {tuple(got)}, expected {tuple(expected)} = (number of runs, "
        f"*event_shape), from arguments of shape {given}. It must be the same in every call. Check "
        f"fn or event_shape.{hint}"
    )


def simulator_result(got: str, inputs: Sequence[Sequence[int]]) -> str:
    given = ", ".join(str(tuple(shape)) for shape in inputs)
    return (
        f"Simulator: fn must return an array of real numbers, got {shortened(got)}, from arguments "
        f"of shape {given}. Of complex numbers return real and imaginary parts side by side; for a "
        "run that failed return NaN."
    )


def simulator_traced() -> str:
    return (
        "Simulator: torch.jit.trace and compiled steps would record the draws of one call as "
        "constants. Draw outside of what is traced, or leave the loss uncompiled."
    )
