# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What is said of steps that cannot be compiled."""

from __future__ import annotations

_OR = "or leave this loss uncompiled"


def read_value(file: str, line: int) -> str:
    """A program goes another way for other values."""
    return (
        f'"{file}", line {line} reads the value of a tensor, but a compiled step goes the same '
        f"way whatever the values are. Use torch.where there, {_OR}."
    )


def size_of_values(file: str, line: int) -> str:
    """A program makes a tensor whose shape depends on values."""
    return (
        f'"{file}", line {line} makes a tensor whose shape depends on values, but a compiled step '
        f"has the same shapes whatever the values are. Multiply by a mask there, {_OR}."
    )


def iterated_subsample(plate: str) -> str:
    """The names of sites would depend on what a plate takes."""
    return (
        f"The plate {plate!r} is iterated over and takes other indices at every step, but a "
        f"compiled step has the same sites at every step. Vectorise it by `with`, {_OR}."
    )


def changes_params(name: str) -> str:
    """A step moves a param by itself, as a decaying baseline does."""
    return (
        f"The step itself changes {name!r} in the param store, which a compiled step would do only "
        f"once. Leave out what does so, such as a decaying baseline, {_OR}."
    )


def rebinds_buffers() -> str:
    """A net puts new tensors where its buffers were."""
    return (
        "The step puts a new tensor in the place of a buffer, which a compiled step would do only "
        f"once. Change buffers in place, as by copy_, {_OR}."
    )


def unknown_param(shape: tuple[int, ...]) -> str:
    """What a gradient is wanted for is not known as a parameter."""
    return (
        f"The loss depends on a tensor of shape {shape} that requires a gradient and is no "
        "parameter of model, guide or loss, nor in the param store under SVI: a compiled step "
        f"would not give it one. Register it, call requires_grad_(False) on it, {_OR}."
    )


def several_losses(name: str) -> str:
    """An ELBO that reports more than one number."""
    return f"compiled: {name} reports several losses, and a compiled step has one."


def other_randomness() -> str:
    """A program draws random numbers that the graph would hold as constants."""
    return (
        "The step draws from `numpy.random` or `random`, and a compiled step would repeat these "
        f"draws for ever. Draw with torch, {_OR}."
    )


def own_generator(file: str, line: int) -> str:
    """A program draws with a generator of its own."""
    return (
        f'"{file}", line {line} draws with a generator of its own, but a compiled step draws with '
        f"that of torch. Leave out `generator=` there and seed by pyro.set_rng_seed, {_OR}."
    )


def no_loss(loss: object) -> str:
    """What is to be compiled is no loss."""
    return (
        f"compiled takes a loss of this library or an ELBO of Pyro, not {type(loss).__name__}. "
        "Call it on the loss that you pass to SVI."
    )


def too_many_kinds(number: int) -> str:
    """Hardly a step is like one before it."""
    return (
        f"This compiled loss has met arguments of {number} kinds, and runs all others uncompiled. "
        "Pass numbers that change from step to step as tensors, and batches of few shapes."
    )


def second_backward() -> str:
    """The gradients of a step have gone to the params already."""
    return (
        "This is a second backward pass through one value of a compiled loss. Call the first one "
        "with retain_graph=True, or call the loss again."
    )


def several_ranks() -> str:
    """A compiled loss under data parallelism."""
    return (
        "A compiled loss does not communicate: in a process group of several ranks call "
        "`loss(model, guide)` without `compile()`."
    )
