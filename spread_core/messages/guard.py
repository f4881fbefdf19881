# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about steps that would have ended in NaN or inf."""

from __future__ import annotations

from collections.abc import Sequence

from spread_core.messages.general import shortened, shown

_NOTHING = "Nothing was changed."
_CURES = (
    "Lower the learning rate, clip the gradient, or let finite_guard(svi, on_nonfinite='skip' or "
    "'reduce') deal with single bad steps."
)


def nonfinite_logits(what: str, side: str) -> str:
    return (
        f"discriminator: its logits contain {what} at {side}, so that no player could learn from "
        f"this step. {_NOTHING} Lower the discriminator's learning rate, clip its gradient, or add "
        "a penalty such as R1()."
    )


def nonfinite_seen(what: str, site: str, player: str) -> str:
    return (
        f"site '{site}' of the {player}: the values that the discriminator is given contain {what}."
        f" {_NOTHING} {_CURES}"
    )


def nonfinite_param(what: str, param: str, player: str) -> str:
    return (
        f"param '{param}' of the {player} contains {what} already, before this step. {_NOTHING} "
        "Start it from finite values, or go back to a checkpoint; finite_guard(svi) stops the step "
        "that does this."
    )


def nonfinite_gradient(what: str, param: str, player: str) -> str:
    return (
        f"param '{param}' of the {player}: its gradient contains {what}. {_NOTHING} {_CURES} "
        "A frequent cause is a sqrt, log or norm of zero in the model, guide or critic."
    )


def nonfinite_update(what: str, param: str, player: str) -> str:
    return (
        f"param '{param}' of the {player}: the optimiser's step would have made it {what}, from a "
        f"finite gradient. {_NOTHING} Lower the {player}'s learning rate, or look at its schedule."
    )


def nonfinite_argument(what: str, arguments: list[str], led_to: object) -> str:
    return (
        f"the data: the model's argument(s) {arguments} contain {what}. {_NOTHING} Clean or impute "
        f"them first, or mask those entries out in the model. It led to: {brief(led_to)}"
    )


def nonfinite_inside(player: str, led_to: object) -> str:
    return f"NaN arose inside of the {player}. {_NOTHING} {_CURES} It led to: {brief(led_to)}"


def nonfinite_loss(what: str, gradients: Sequence[str] = ()) -> str:
    also = f", and so are gradients of {list(gradients)}" if gradients else ""
    return (
        f"the loss is {what}{also}. {_NOTHING} Look for a value outside of a distribution's "
        "support, for an observed Delta without noise, or for a scale of zero."
    )


def numeric_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {brief(error)} {_NOTHING} {_CURES}"


def only_skipped(in_a_row: int, last: str) -> str:
    return (
        f"finite_guard: the last {in_a_row} steps were all skipped, so that nothing is learned any "
        f"more. The last one: {last} Call finite_guard with on_nonfinite='raise' to stop where it "
        "happens. A model or simulator that returns NaN for part of its prior does so at every "
        "step: leave such rows out, mask them, or narrow the prior."
    )


def brief(text: object, most: int = 200) -> str:
    """The beginning of a foreign error's text, in one line and without the data."""
    line = shortened(str(text).partition("found invalid values")[0], most).rstrip(", ")
    return line.removesuffix("but").rstrip(", .") + "."


def not_guarded() -> str:
    return "this SVI has no guard: use svi = finite_guard(SVI(model, guide, optim, loss))."


def already_guarded() -> str:
    return "finite_guard: this SVI has a guard already; one is enough."


def no_svi(value: object, wanted: str) -> str:
    return (
        f"finite_guard: expected {wanted}, got {shown(value)}. Guard the SVI, not its optimiser: "
        "svi = finite_guard(SVI(model, guide, optim, loss))."
    )


def reduce_needs_optax(optim: str) -> str:
    return (
        "finite_guard: on_nonfinite='reduce' has to scale the optimiser's updates, which "
        f"{optim} does not tell. Use an optax optimiser, such as optax.adam, or 'skip'."
    )


def guard_minimize() -> str:
    return (
        "finite_guard: numpyro.optim.Minimize runs to the optimum within one step, so that there "
        "is no step to skip. Use a stochastic optimiser."
    )


def unguarded_state() -> str:
    return (
        "finite_guard: this SVIState was made by an SVI without the guard. Call init on the "
        "guarded SVI: fresh = svi.init(rng_key, *args). To keep what was trained before: state = "
        "state._replace(optim_state=fresh.optim_state._replace(guarded=state.optim_state))."
    )


def half_site(site: str) -> str:
    return (
        f"site '{site}' is sampled inside of the forward pass of a module, which autocast runs in "
        "16 bits; three digits are lost in a sum over data. Make that module a PyroModule, or pass "
        "it as the model or guide itself, not wrapped by a handler."
    )
