# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about noise that is learned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spread_core.messages.general import shown


def no_constraint() -> str:
    return (
        "learned: noise that raises the divergence without a constraint vanishes, since less noise "
        "always tells data and model better apart: pass constraint='trace' or "
        "constraint='determinant'. To learn its mean and nothing else, pass mean=net."
    )


def bad_constraint(value: object, known: Sequence[str]) -> str:
    return f"learned: constraint must be one of {sorted(known)}, got {shown(value)}."


def other_kernel(kernel: str) -> str:
    return (
        f"learned() does not take {kernel}: use GaussianNoise, LaplaceNoise or LogisticNoise with "
        "a scale for each element, or LowRankGaussianNoise."
    )


def nothing_to_learn(kernel: str, constraint: str) -> str:
    return (
        f"learned: the single scale of this {kernel} is fixed by constraint='{constraint}', so "
        "that there is nothing to learn. Give it a scale for each element of the event, as an "
        "array of its shape. To learn the mean alone, pass mean=net without constraint."
    )


def bad_lipschitz(value: object) -> str:
    return (
        "learned: lipschitz bounds how far mean moves two points towards each other, and must lie "
        f"between 0 and 1, got {shown(value)}."
    )


def lipschitz_of_nothing() -> str:
    return "learned: lipschitz is the bound of a net: pass mean=net too, or leave lipschitz out."


def no_chain(net: object, wanted: str) -> str:
    return (
        f"learned: mean must be {wanted}, one after the other, since the Lipschitz constant of "
        f"other nets is not known; got {shown(net)}."
    )


def unknown_layer(number: int, layer: object, known: Iterable[str]) -> str:
    return (
        f"learned: layer {number} of mean, {shown(layer)}, has no known Lipschitz constant. Use "
        f"{', '.join(sorted(known))}."
    )


def no_dense_layer() -> str:
    return "learned: mean has no dense layer, and with it nothing to learn."


def mean_widths(number: int, inputs: int, given: int) -> str:
    return (
        f"learned: layer {number} of mean takes {inputs} numbers and gets {given}. The net must "
        "map the elements of an event to as many numbers."
    )


def mean_elsewhere(size: int, elements: int) -> str:
    return (
        f"learned: mean maps {size} numbers, but the kernel's own are for events of {elements} "
        "elements."
    )


def mean_misfit(size: int, event: Sequence[int]) -> str:
    return (
        f"noise of learned(..., mean=net): the net maps {size} numbers, which does not fit the "
        f"event shape {tuple(event)}. Declare the dimensions of a datum as event dimensions, "
        ".to_event(n), and give the net as many inputs and outputs as they have elements."
    )


def unrolled(steps: int) -> str:
    return (
        f"learned: with unroll={steps} the critic follows the model, and would have to follow the "
        "noise too, which is not offered. Leave unroll out, or use noise that is not learned."
    )


def zero_factor() -> str:
    return (
        "learned: a factor of zeros has no gradient, so that it would stay zero. Start from small "
        "random numbers."
    )


def bad_least(value: object, constraint: object) -> str:
    return (
        "learned: least is a share of the mean variance, between 0 and 1, which every element "
        f"keeps under constraint='trace'; got {shown(value)} under constraint='{constraint}'."
    )


def below_least(share: float) -> str:
    return (
        f"learned: under constraint='trace' every element keeps {share:g} of the mean variance, "
        "and some of these have no more than that. Start from scales that are more alike, or lower "
        "least."
    )


def unknown_numbers() -> str:
    return (
        "learned: the numbers of the kernel to start from are not known inside a compiled "
        "function. Make it outside, once."
    )


def learned_elsewhere() -> str:
    return (
        "noise made by learned() is played by AdversarialDivergence and SpreadELBO only; all else "
        "would move its params against their own gain, or not at all. Use one of these losses, "
        "with learned() in the dict that is its noise, or pass the kernel that it is now: its "
        "method kernel."
    )


def one_object_twice(first: str, second: str) -> str:
    return (
        f"sites '{first}' and '{second}' have the same object of learned(), whose params would be "
        "there twice. Give each its own, or both one entry under a pattern such as 'x_*'."
    )


def foreign_generator(generator: str) -> str:
    return (
        f"learned noise raises the divergence that the model lowers, but generator='{generator}' "
        "lowers something else. Use generator='divergence'."
    )


def stale(name: str) -> str:
    return (
        f"the param store already holds the params of other learned noise under the name '{name}'. "
        "Call pyro.clear_param_store() before a new run."
    )


def no_player(names: Iterable[str]) -> str:
    return (
        f"two_player: noise=... has nothing to move; the params are {sorted(names)}. Make the "
        "noise of the loss by learned(kernel, constraint=...), in NumPyro with "
        "loss.register(model, guide), or leave noise out."
    )


def unmoved(names: Iterable[str]) -> str:
    return (
        f"two_player: the learned noise {sorted(names)} has no optimiser, and the generator's is "
        "not meant for it. Pass two_player(..., noise=optim)."
    )


def no_critic_to_move(name: str) -> str:
    return (
        f"two_player: discriminator is None, but the discriminator '{name}' has params. Pass an "
        "optimiser for them."
    )


def needs_two_players() -> str:
    return (
        "two_player: without a discriminator it needs noise=..., an optimiser for learned noise. "
        "For params of one player pass SVI their optimiser itself."
    )


def mixture_of_one_site(site: str, others: Iterable[str]) -> str:
    return (
        f"site '{site}': under SpreadELBO learned noise needs the entropy of all noisy data, which "
        f"is known of one observed site only, and the model observes {sorted(others)} too. Use "
        "AdversarialDivergence, whose critic sees all of them."
    )


def mixture_of_argument(site: str, shape: Sequence[int], size: int) -> str:
    return (
        f"site '{site}': under SpreadELBO learned noise needs the entropy of the noisy data, but "
        f"an argument of shape {tuple(shape)} goes with the {size} data, given which it would be "
        "another one. Use AdversarialDivergence, whose critic sees the arguments."
    )


def mixture_of_batch(site: str, batch: Sequence[int]) -> str:
    return (
        f"site '{site}': under SpreadELBO learned noise needs one vectorised plate of at least two "
        f"data, in which each is one event, but the batch shape is {tuple(batch)}. Declare all "
        "other dimensions as event dimensions, .to_event(n)."
    )


def mixture_of_masked(site: str) -> str:
    return (
        f"site '{site}': under SpreadELBO learned noise takes neither masks nor a scale for each "
        "datum, since it compares all data of a batch. Leave the data out before, or use "
        "AdversarialDivergence."
    )


def mixture_moved(site: str) -> str:
    return (
        f"site '{site}': under SpreadELBO learned noise must find each noisy datum's own clean "
        "value, so the site has to observe its argument as it is, reshaped, or as its plate "
        "subsamples it. Reorder the data before the step."
    )


def mixture_under_jit(elbo: str) -> str:
    return (
        f"SpreadELBO: learned noise does not work under {elbo}, which would keep the params of the "
        "first step. Use the stock ELBO without Jit, in compiled(loss)."
    )


def mixture_of_shard() -> str:
    return (
        "SpreadELBO: learned noise compares all data of a batch, of which a process sees its own "
        "shard only. Train in one process, or use AdversarialDivergence."
    )
