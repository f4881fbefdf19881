# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about guides made from models."""

from __future__ import annotations

from collections.abc import Sequence

from spread_core.messages.general import shown


def discrete_latents(sites: Sequence[str], block: str) -> str:
    return (
        f"AutoImplicit covers continuous latents, but the site(s) {list(sites)} are discrete. Hide "
        f"them, AutoImplicit({block}(model, hide={list(sites)})), and enumerate them in an ELBO "
        "that does, give them a guide of their own, or sum them out in the model with a mixture "
        "distribution."
    )


def no_guide_latents() -> str:
    return (
        "AutoImplicit found no latent site in the model. Use an empty guide: "
        "lambda *args, **kwargs: None."
    )


def no_guide_density() -> str:
    return (
        "AutoImplicit has no density, so there is no posterior distribution to return and nothing "
        "to score. Draw from it with sample_posterior, median, quantiles or Predictive, and train "
        "it with PriorContrastELBO or SemiImplicitELBO."
    )


def no_guide_params(name: str) -> str:
    return (
        f"params hold none of AutoImplicit's for '{name}'. Hand over those of the trained guide: "
        "svi.get_params(svi_state)."
    )


def not_set_up() -> str:
    return (
        "AutoImplicit knows its sites once it has seen the model's arguments. Call "
        "guide(*args, **kwargs) first, with those of the model."
    )


def no_encoder(value: object, wanted: str) -> str:
    return (
        f"encoder must be {wanted}, called as encoder(*args, **kwargs) with the model's arguments, "
        f"got {shown(value)}."
    )


def nothing_to_amortise(sites: Sequence[str]) -> str:
    return (
        f"encoder is given, but no latent of the model is in a plate: {list(sites)} are global, "
        "with one posterior for all data. Leave encoder out, or put the plate around local latents."
    )


def encoder_features_type(plates: str, value: object) -> str:
    return (
        f"encoder must return an array of features, or a dict from plate names to arrays; for the "
        f"plates '{plates}' it returned {shown(value)}."
    )


def encoder_features_shape(
    plates: str, got: Sequence[int], batch: Sequence[int], dict_form: bool
) -> str:
    wanted = ", ".join([*map(str, batch), "number of features"])
    way_out = (
        ""
        if dict_form
        else " If latents in different plates need different features, return a dict: "
        f"{{'{plates}': ...}}."
    )
    return (
        f"encoder returned features of shape {tuple(got)} for the latents in the plates "
        f"'{plates}', expected ({wanted})."
    ) + way_out
