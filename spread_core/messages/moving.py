# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about noise whose scale changes during training."""

from __future__ import annotations

from collections.abc import Iterable

from spread_core.messages.general import shown


def no_step(name: str, needs_critic: bool) -> str:
    noise = f"{{'x': {name}(GaussianNoise(1.0), ...)}}"
    loss = (
        f"AdversarialDivergence(critic, noise={noise})" if needs_critic else f"SpreadELBO({noise})"
    )
    return (
        f"the noise of {name}(...) has a scale only at a step of a loss. Give it to a loss as it "
        f"is, as in {loss}: outermost, and not from a callable, which makes kernels anew at every "
        "step. Elsewhere use the kernel inside it."
    )


def kept_by_a_loss(name: str) -> str:
    return (
        f"this noise of {name}(...) does not move: a loss moves a copy of its own. Ask that of the "
        "loss, as in loss.noise['x'].kernel()."
    )


def bad_schedule(schedule: object) -> str:
    return (
        "annealed: schedule must be a function from the number of steps done to a positive number, "
        f"such as lambda step: 0.99**step, got {shown(schedule)}."
    )


def nothing_to_move(name: str, noise: object) -> str:
    return (
        f"{name}: expected a noise kernel such as GaussianNoise(0.3), or a dict from site to "
        f"kernel, got {shown(noise)}. A callable noise computes its own scale, from an argument."
    )


def bad_factor(name: str, state: object, factor: object) -> str:
    return (
        f"{name}: at {shown(state)} the scale would be multiplied by {shown(factor)}; it must be "
        "one positive, finite number."
    )


def state_not_given(sites: Iterable[str]) -> str:
    return (
        f"the noise is at a step that params do not tell: {sorted(sites)} are missing. Use "
        "SVI(model, loss.register(model, guide), optim, loss). SVI.evaluate hands over params "
        "only: call loss.loss(key, svi.get_params(state) | state.mutable_state, svi.model, "
        "svi.guide, ...) instead."
    )


def moving_guide_noise(name: str, site: str) -> str:
    return (
        f"SemiImplicitELBO: site '{site}' has noise of {name}(...), but this noise is part of the "
        "guide, also outside of the loss. Learn its scale, by a callable noise that declares a "
        "param."
    )


def moving_mutable() -> str:
    return (
        "noise that moves under this ELBO, or with several particles, together with a model or "
        "guide that has mutable state (such as batch normalisation): the ELBO hands on no state. "
        "Use Trace_ELBO with num_particles=1."
    )


def no_critic() -> str:
    return (
        "noise of adaptive(...) follows the accuracy of a critic that tells noisy data from noisy "
        "draws: use it in AdversarialDivergence. Under other losses use annealed(noise, schedule)."
    )


def under_jit(name: str, elbo: str) -> str:
    return (
        f"noise of {name}(...) does not move under {elbo}, which would keep the scale of the first "
        "step. Use the stock ELBO without Jit, in compiled(loss)."
    )


def amortized(name: str) -> str:
    return (
        f"amortize: noise of {name}(...) changes its scale from step to step, and the losses held "
        "out after every epoch, which tell when to stop, are compared at one scale. Pass "
        "JointContrastELBO the kernel inside it, at the scale you want."
    )


def bad_accuracy(accuracy: object) -> str:
    return (
        f"adaptive: accuracy must lie between 0.5, which is chance, and 1, got {shown(accuracy)}."
    )


def bad_speed(speed: object) -> str:
    return f"adaptive: speed must be a positive number, got {shown(speed)}."


def bad_limits(limits: object) -> str:
    return (
        "adaptive: limits must be the least and the largest multiplier, with 1 between them, got "
        f"{shown(limits)}."
    )


def adaptive_ranks() -> str:
    return (
        "noise of adaptive(...) follows the accuracy on one process, and the ranks of a "
        "distributed run would get different scales. Use annealed(noise, schedule) there."
    )
