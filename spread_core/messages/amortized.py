# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about amortised guides and posteriors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spread_core.messages.general import shown


def unknown_density(density: object) -> str:
    return (
        f"density must be 'mixture', 'nsf', 'maf' or a function that makes one, got "
        f"{shown(density)}."
    )


def made_density(density: object) -> str:
    return (
        f"density must be a function that makes a distribution for every site, got one that is "
        f"made: {type(density).__name__}. Pass its class, or functools.partial of that."
    )


def uneven_nets(hidden: Sequence[int]) -> str:
    return (
        f"The nets of flowjax have layers of one size, but hidden is {tuple(hidden)}. Repeat one "
        "number, as in hidden=(64, 64), or pass a function as density."
    )


def wrong_density(site: str, features: int, context: int, found: object) -> str:
    return (
        f"density must make a distribution of vectors of shape ({features},) for site '{site}', "
        f"given conditions of shape ({context},), and did not: {found}."
    )


def unwritten_option(names: Sequence[str]) -> str:
    given = ", ".join(f"{name}=..." for name in names)
    return (
        f"The posterior was saved without {list(names)} of its guide, which no file can hold. Pass "
        f"what it was made with again: load(path, model, {given})."
    )


def not_set_up() -> str:
    return (
        "AutoAmortized knows its sites once it has seen the model's arguments. Call "
        "guide(*args, **kwargs) first, with those of the model."
    )


def nothing_observed() -> str:
    return (
        "AutoAmortized needs data to condition on, but the model observes nothing at these "
        "arguments. Name the data sites: observed='x'."
    )


def no_data_site(name: str, sites: Iterable[str]) -> str:
    return f"observed names '{name}', which is no sample site of the model. It has {sorted(sites)}."


def no_latents() -> str:
    return (
        "AutoAmortized found no latent site in the model beside its data: there is no posterior "
        "to learn."
    )


def infinite_support(name: str, family: str) -> str:
    return (
        f"AutoAmortized has no density for the discrete latent '{name}' ({family}), whose support "
        "is not finite. Truncate it to finitely many values, or sum it out in the model."
    )


def support_moves(name: str) -> str:
    return (
        f"The support of latent '{name}' differs from run to run of the model, so that it depends "
        "on other latents. Sample it on a fixed support, such as the unit interval, and carry it "
        "over by a deterministic transformation."
    )


def discrete_vector(name: str, family: str) -> str:
    return (
        f"AutoAmortized has no density for the discrete latent '{name}' ({family}), whose values "
        "are vectors. Draw a number instead, as from a Categorical, and make the vector of it."
    )


def masked_now(names: Sequence[str]) -> str:
    return (
        f"The model masks data of {list(names)} at these arguments, but it masked nothing where "
        "AutoAmortized was set up. Set the guide up, and train it, with arguments that mask some."
    )


def no_data(name: str) -> str:
    return (
        f"The model observes no data at site '{name}' at these arguments. Pass the data in the "
        "argument that it takes them from."
    )


def missing_given(name: str, given: Iterable[str]) -> str:
    return f"Data site '{name}' lacks a value: given are those of {sorted(given)}."


def no_params(name: str) -> str:
    return (
        f"params hold none of AutoAmortized's at '{name}'. Hand over those of the trained guide: "
        "svi.get_params(svi_state)."
    )


def data_shape(name: str, got: Sequence[int], expected: Sequence[int]) -> str:
    return (
        f"The data of site '{name}' have the shape {tuple(got)}, but the guide was made for "
        f"{tuple(expected)}; only the sizes of plates may differ."
    )


def nonfinite_data(name: str) -> str:
    return (
        f"The data of site '{name}' hold NaN or inf, of which an amortised posterior knows "
        "nothing. Mask missing elements in the model."
    )


def empty_site(name: str) -> str:
    return (
        f"Site '{name}' has no elements at these arguments, of which nothing can be learned. Set "
        "the guide up with others, or leave the site out of the model."
    )


def what_to_train_on() -> str:
    return (
        "amortize needs either num_simulations, how often to run the model, or simulations, a "
        "table of runs made before; pass one of the two."
    )


def missing_site(name: str, held: Iterable[str]) -> str:
    return (
        f"The table of simulations lacks site '{name}' of the model; it holds {sorted(held)}. "
        "Simulate again, or rename the columns."
    )


def missing_value(name: str, given: Iterable[str]) -> str:
    return f"values lack latent site '{name}'; they hold {sorted(given)}."


def outside(p_value: float, sites: Sequence[str]) -> str:
    return (
        f"The data at {list(sites)} are unlike the simulations (p = {p_value:.2g} of as surprising "
        "a simulation): the model may be wrong, and the amortised posterior is extrapolating. "
        "Compare the data with posterior.to_arviz(...).prior_predictive."
    )


def no_density(reason: str) -> str:
    return (
        f"refine needs the model's density, which it lacks ({reason}). Use the draws as they are, "
        "and see posterior.check()."
    )


def masked_latents(names: list[str]) -> str:
    return (
        "refine goes by the model's density, which leaves out what is masked of its latents "
        f"{sorted(names)}. Use the draws as they are, or mask the data of these latents alone."
    )


def masked_and_pooled(names: Sequence[str], others: Sequence[str]) -> str:
    return (
        f"Latents {list(names)} are masked, and {list(others)}, in other plates, would see a "
        "summary of them that cannot tell which count. Mask the data of these latents alone."
    )


def masked_rounds(names: list[str]) -> str:
    return (
        "rounds weigh draws by the prior's density, which leaves out what is masked of latents "
        f"{sorted(names)}. Use rounds=1, or mask the data of these latents alone."
    )


def bad_tail(pareto_k: float) -> str:
    return (
        f"Importance weights have a Pareto k of {pareto_k:.2f}, over 0.7: the amortised posterior "
        "lacks mass where the exact one has it, and the corrected draws are not to be trusted. "
        'Use refine(..., method="nuts"), or train on more simulations.'
    )


def refine_method(method: object) -> str:
    return f"method must be 'importance' or 'nuts', got {shown(method)}."


def cannot_simulate(reason: object) -> str:
    return (
        "check needs simulations that were not trained on, and the model makes none "
        f"({reason}). Pass some: check(simulations=held_out)."
    )


def unlike_elements(plates: Sequence[str], numbers: int) -> str:
    return (
        f"The elements of the plates {list(plates)} differ, but are too many ({numbers} numbers) "
        "to be told apart: other latents see their mean, spread and count, which makes the "
        "posterior wider than it need be. If what differs is a covariate, draw it at a site of "
        "its own in the same plate and name it in observed."
    )


def decide_outside_jit() -> str:
    return (
        "Whether the elements of plates are alike is found out from simulations, which cannot be "
        "looked at inside jit. Call the guide once outside, or pass exchangeable=True or False."
    )


def decided_otherwise(decided: Sequence[str], own: Sequence[str]) -> str:
    return (
        f"The params are of a guide that tells apart the elements of plates {list(decided)}, but "
        f"this one does so of {list(own)}. Call it first with the arguments that the other one was "
        "first called with, or pass exchangeable=True or False to both."
    )


def masked_order(plates: Sequence[str]) -> str:
    return (
        f"exchangeable=False makes one vector of the plates {list(plates)}, but the model masks "
        "some of their data, which a vector cannot lack. Leave exchangeable out."
    )


def other_sizes(sites: Sequence[str]) -> str:
    return (
        f"The data at {list(sites)} have other plate sizes, or other elements masked, than the "
        "simulations, all of which were alike in this: how the posterior depends on the number of "
        "elements was not learned. Draw the number in the model, mask the elements beyond it, and "
        "train again."
    )


def stranger(name: str) -> str:
    return (
        f"The param store holds '{name}' of another AutoAmortized, in whose place this one would "
        "not be trained. Call pyro.clear_param_store() before you make a new guide, or give this "
        "one another prefix."
    )


def rounds_without_observation() -> str:
    return (
        "rounds > 1 train for one observation: pass it as x_observed, or leave rounds out for a "
        "posterior for any data."
    )


def observation_without_rounds() -> str:
    return (
        "x_observed is used by rounds alone, of which there is one. Pass rounds=5, say, or leave "
        "x_observed out: the posterior is for any data."
    )


def rounds_of_a_table() -> str:
    return (
        "rounds > 1 choose where to simulate, which a table cannot tell: pass num_simulations, how "
        "often to run the model in all rounds together."
    )


def observed_by_site(sites: Iterable[str]) -> str:
    return f"x_observed must be a dict with a value for each of the data sites {list(sites)}."


def observed_sites(got: Iterable[str], sites: Iterable[str]) -> str:
    return f"x_observed must have the data sites {sorted(sites)}, but has {sorted(got)}."


def latents_after_data(name: str) -> str:
    return (
        f"Latent '{name}' depends on the data that the model draws before it. rounds > 1 draw "
        "latents first, and the data given them. Leave rounds out."
    )


def masks_differ(name: str) -> str:
    return (
        f"What the model masks at '{name}' depends on its latents, so that x_observed has no "
        "posterior of one size. Leave rounds out."
    )


def prior_without_density(acceptance: float, reason: str) -> str:
    return (
        f"Only {acceptance:.2g} of the prior lies where the last round's posterior has mass, and "
        f"it has no density to weight other draws by ({reason}). Use fewer rounds."
    )


def nothing_inside(number: int) -> str:
    return (
        f"None of {number} draws of the last round's posterior lies in the regions of all rounds. "
        "Use fewer rounds, or more simulations in each."
    )


def other_than_observed(sites: Iterable[str]) -> str:
    return (
        f"The data at {list(sites)} are not the x_observed that the rounds were for: beyond the "
        "latents that they left, this posterior has learned nothing. Train without rounds for a "
        "posterior for any data."
    )


def none_inside() -> str:
    return (
        "None of these simulations lies where the rounds have trained, which is all that check can "
        "judge. Leave simulations out."
    )


def other_loss(loss: object) -> str:
    return (
        f"loss must be a JointContrastELBO, got {shown(loss)}: simulations tell latents and data "
        "together, which other losses do not compare. Train with SVI, or leave loss out."
    )


def loss_with_critic() -> str:
    return (
        "A loss with a discriminator needs fresh runs of the model at every step, which a table "
        "of simulations is not. Leave the discriminator out, with divergence=KL(), or train with "
        "SVI."
    )


def other_guide(guide: object) -> str:
    return (
        f"guide must be an AutoAmortized, which reads its data from simulations and is drawn and "
        f"scored for any data; got {shown(guide)}. Train another guide with SVI and "
        "JointContrastELBO(divergence=KL(), simulations=table)."
    )
