# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about losses that compare samples, and their critics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from spread_core.messages.distributions import simulator_has_no_gradient
from spread_core.messages.general import at_site, shown


def bad_pi(pi: object) -> str:
    return f"pi is the share of data among the critic's samples and must lie in (0, 1), got {pi}."


def bad_choice(argument: str, value: object, choices: Iterable[str]) -> str:
    return f"{argument} must be one of {sorted(choices)}, got {shown(value)}."


def bad_range(argument: str, value: object, wanted: str) -> str:
    return f"{argument} must be {wanted}, got {shown(value)}."


def no_critic(value: object, wanted: str) -> str:
    return (
        f"discriminator must be {wanted}, called as discriminator(values, *args, **kwargs) -> "
        f"logits, got {shown(value)}. A plain net on features is adapted by concat_sites(net, 'x')."
    )


def stateful_critic(layer: str) -> str:
    return (
        f"discriminator contains {layer}, whose state would have to be carried from step to step, "
        "but only params are: it would stay as it is now, without a word. Use R1(), or "
        "MLPCritic(spectral_norm=True)."
    )


def pyro_module_critic() -> str:
    return (
        "discriminator is a PyroModule, whose params would be registered twice: by itself and by "
        "the loss. Use a plain torch.nn.Module."
    )


def stale_critic(name: str) -> str:
    return (
        f"the param store already holds the params of another discriminator under the name "
        f"'{name}', so that a stale critic would be trained. Call pyro.clear_param_store() before "
        f"a new run, or give this loss a name of its own: name='...'."
    )


def no_divergence(value: object) -> str:
    return f"divergence must be a Divergence such as JSPi(0.5), got {shown(value)}."


def no_such_value(name: str, sites: Iterable[str], arguments: Iterable[str]) -> str:
    is_level = name.endswith("_level")
    why = " This noise has no levels, or this loss tells none." if is_level else ""
    return (
        f"'{name}' is neither a site that is compared (they are "
        f"{sorted(sites)}) nor an argument of the model ({sorted(arguments)}).{why}"
    )


def feature_shape(name: str, shape: Sequence[int], batch: Sequence[int]) -> str:
    return (
        f"the value '{name}' of shape {tuple(shape)} does not begin with the plates' batch shape "
        f"{tuple(batch)}. Give it those dimensions, or write a critic that handles it."
    )


def logit_shape(got: Sequence[int], batch: Sequence[int]) -> str:
    return (
        f"the discriminator returned logits of shape {tuple(got)}, expected the plates' batch "
        f"shape {tuple(batch)}: one number per datum. Drop a trailing dimension of one, or use "
        "concat_sites."
    )


def net_output_shape(got: Sequence[int], batch: Sequence[int]) -> str:
    return (
        f"concat_sites: the net returned shape {tuple(got)} for features of batch shape "
        f"{tuple(batch)}, expected {tuple(batch)} or {(*batch, 1)}: one logit per datum."
    )


def critic_failed(shapes: Mapping[str, Sequence[int]], batch: Sequence[int]) -> str:
    each = ", ".join(f"'{site}' of shape {tuple(shape)}" for site, shape in shapes.items())
    return (
        f"The discriminator failed on {each}, with the plates' batch shape {tuple(batch)}. Does "
        "its first layer take values of that width?"
    )


def net_failed(widths: Mapping[str, int]) -> str:
    each = " + ".join(f"{width} of '{name}'" for name, width in widths.items())
    return (
        f"concat_sites gave its net {sum(widths.values())} features per datum: {each}. The net's "
        "first layer must take as many."
    )


def bounded_logits(layer: str) -> str:
    return (
        f"the discriminator ends in {layer}, whose values keep to a part of the real line, but a "
        "logit may be any number: the loss takes the sigmoid of it by itself. Leave that layer "
        "out."
    )


def logits_in_unit_interval() -> str:
    return (
        "for many steps all logits of the discriminator have been between 0 and 1, on both sides. "
        "Does it end in a sigmoid? A logit may be any number, and the loss takes the sigmoid of it "
        "by itself: leave that layer out. A discriminator without one has learned nothing yet."
    )


def clamped_estimate(value: float | None, upper: float) -> str:
    now = "" if value is None else f", now {value:.3g} nats,"
    return (
        f"the estimate of the divergence has been outside of its range for many steps{now} "
        f"and is reported as the nearest value in [0, {upper:.3g}]: the critic "
        "is worse than a constant one. Give it more steps (two_player(..., discriminator_steps=k)) "
        "or another learning rate, and look at critic_report(...)."
    )


def nothing_observed() -> str:
    return (
        "the model observes no site, so there are no data to compare its draws with. Pass the data "
        "to the model and observe them with obs=."
    )


def factor_site(site: str) -> str:
    return (
        f"site '{site}' is a factor: it changes the model's density but not its draws, so a loss "
        "that compares draws would ignore it. Write it as a distribution, or use an ELBO."
    )


def discrete_draw(site: str, distribution: str) -> str:
    if distribution == "Simulator":
        return at_site(site, simulator_has_no_gradient())
    return (
        f"site '{site}': draws of {distribution} are discrete or not reparametrised, so no "
        "gradient reaches the model through them. Use a continuous relaxation (such as "
        "RelaxedOneHotCategorical), an ELBO, or make the value an argument of the model instead of "
        "a contrasted site."
    )


def latent_without_gradient(site: str, distribution: str) -> str:
    if distribution == "Simulator":
        return at_site(site, simulator_has_no_gradient())
    return (
        f"latent site '{site}': draws of {distribution} are not reparametrised, but its parameters "
        "are being learned: their gradient would silently be zero. Fix them, or use a continuous "
        "relaxation."
    )


def local_guide_site(site: str, plates: Iterable[str]) -> str:
    return (
        f"guide site '{site}' stands in the plate(s) {sorted(plates)} of the data, but the loss "
        "compares data with the model's own draws, whose local latents come from the prior. Use an "
        "empty guide, lambda *args: None; a guide over global latents may stay."
    )


def batch_mismatch(
    first: str,
    shape: Sequence[int],
    plate: str | None,
    second: str,
    other: Sequence[int],
    other_plate: str | None,
) -> str:
    return (
        f"sites '{first}' and '{second}' have batch shapes {tuple(shape)} and {tuple(other)}, "
        "which end in different plates, so that no critic can see them together: what counts the "
        f"data is {_counted_by(plate)} for '{first}' and {_counted_by(other_plate)} for "
        f"'{second}'. Enter one plate first for both, or make what belongs to one datum an event "
        "with .to_event(...)."
    )


def _counted_by(plate: str | None) -> str:
    return "the batch, in no plate," if plate is None else f"the outermost plate '{plate}'"


def undecided_batch(site: str, shape: Sequence[int], plates: Iterable[str]) -> str:
    plates = sorted(plates)
    known = f"belongs to the plate(s) {plates} only in part" if plates else "belongs to no plate"
    return (
        f"site '{site}': its batch shape {tuple(shape)} {known}, so that it cannot be told which "
        "dimension counts the data. Make those of one datum event dimensions with .to_event(...), "
        "and put the site in a plate over the data."
    )


def own_draw(site: str) -> str:
    return (
        f"site '{site}': what it observes changes with what the model draws, so that it is no data "
        "to compare draws with. Hand the data over as an argument of the model; the score of a "
        "draw, as by obs=z, belongs to a loss with a density, such as SpreadELBO."
    )


def learned_data(site: str) -> str:
    return (
        f"site '{site}': what it observes depends on params, which would move the data towards the "
        "model's draws. Observe the data themselves, or compute what is fixed before, outside of "
        "the model or with .detach()."
    )


def shared_draw(site: str, plate: str | None) -> str:
    where = "the batch of the data" if plate is None else f"the plate '{plate}' of the data"
    return (
        f"latent site '{site}' stands outside of {where} and comes from its prior: all draws of a "
        "step share one value of it, but are compared with the data as if each had its own. Put it "
        "into the guide, make it a param, or put it into the plate if every datum has one."
    )


def mask_misfit(site: str, mask: Sequence[int], value: Sequence[int]) -> str:
    return (
        f"site '{site}': a mask or scale of shape {tuple(mask)} does not fit the value of shape "
        f"{tuple(value)}."
    )


def masked_parts(site: str, kernel: str) -> str:
    return (
        f"site '{site}': its mask leaves out elements of an event, and {kernel} makes each noisy "
        "element of all elements, also those left out. Mask whole events, or use a kernel that "
        "takes elements one by one, such as GaussianNoise."
    )


def everything_masked() -> str:
    return "every datum is masked out or has weight zero, so there is nothing to compare."


def nonfinite_value(site: str) -> str:
    return (
        f"site '{site}': the observed data contain NaN or inf. Clean or impute them first, or mask "
        "those entries out in the model."
    )


def learned_noise(site: str) -> str:
    return (
        f"site '{site}': the noise kernel has learnable parameters, but a divergence is smallest "
        "under the largest noise, so that they cannot be learned by minimising it. Fix them, or "
        "anneal them through noise=lambda *args: {...}."
    )


def not_registered(name: str) -> str:
    return (
        f"the params '{name}$params' of the discriminator are unknown to SVI. Use "
        "SVI(model, loss.register(model, guide), optim, loss)."
    )


def coupled_critic() -> str:
    return (
        "update='one_pass' needs a critic that treats samples one by one, but in this one they "
        "move each other's logits, as under batch normalisation, attention over the batch or a "
        "mean over it. Use update='two_pass' (the default there), or another critic."
    )


def coupled_penalty() -> str:
    return (
        "a gradient penalty meets a critic whose samples move each other's logits, as under batch "
        "normalisation or a mean over the batch: it then bounds the slope of the sum of all "
        "logits, not that of each in its own sample. Use a critic that treats samples one by one, "
        "such as one with layer normalisation."
    )


def unequal_for_penalty(site: str, data: Sequence[int], model: Sequence[int]) -> str:
    return (
        f"site '{site}': the gradient penalty pairs every datum with a draw of the model, but "
        f"their shapes are {tuple(data)} and {tuple(model)}. Draw as many as there are data, or "
        "use R1."
    )


def unknown_player(name: str, names: Iterable[str]) -> str:
    return (
        f"two_player: no param belongs to the discriminator '{name}'; the params are "
        f"{sorted(names)}. Its loss must be one with a discriminator of that name, and in NumPyro "
        "the guide must go through loss.register(model, guide)."
    )


def bad_player(role: str, value: object, wanted: str) -> str:
    return f"two_player: {role} must be {wanted}, got {shown(value)}."


def foreign_player(role: str, value: object, wanted: str, example: str) -> str:
    kind = value if isinstance(value, type) else type(value)
    got = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, (int, float, str, type(None))) or got.startswith("builtins."):
        got = repr(value)
    return f"two_player: {role} must be {wanted}, got {got}. Use for example {example}."


def no_average() -> str:
    return (
        "there is no average of params: the optimiser must be two_player(..., ema=0.999), and have "
        "taken a step."
    )


def critic_size(critic: str, argument: str, value: object) -> str:
    return f"{critic}: {argument} must be a positive integer, got {shown(value)}."


def critic_sizes(critic: str, argument: str, value: object) -> str:
    wanted = {
        "hidden": "a tuple of positive integers such as (64, 64)",
        "channels": "a tuple of positive integers such as (64, 128)",
        "image_shape": "(H, W) or (C, H, W) in positive integers, such as (28, 28)",
    }
    return f"{critic}: {argument} must be {wanted[argument]}, got {shown(value)}."


def critic_activation(critic: str, value: object, example: str) -> str:
    return (
        f"{critic}: activation must be a function of one array, or a module, got {shown(value)}. "
        f"Pass for example {example}; a class has to be called first."
    )


def critic_features(critic: str, shape: Sequence[int], input_dim: int) -> str:
    return (
        f"{critic}: features of shape {tuple(shape)} do not have the last dimension "
        f"input_dim={input_dim}. Leave input_dim out, or check which sites the critic is given."
    )


def critic_image_misfit(shape: Sequence[int], image_shape: Sequence[int]) -> str:
    size = 1
    for length in image_shape:
        size *= length
    return (
        f"ConvCritic: features of shape {tuple(shape)} are not flat images of image_shape (C, H, "
        f"W) = {tuple(image_shape)}: the last dimension must be {size}. Change image_shape, or "
        "flatten the event dimensions of the image into one."
    )


def critic_image_too_small(image_shape: Sequence[int], channels: Sequence[int]) -> str:
    return (
        f"ConvCritic: channels={tuple(channels)} halve the image {len(channels)} times, which an "
        f"image_shape of {tuple(image_shape)} is too small for. Use fewer channels."
    )


def support_mismatch() -> str:
    return (
        "the critic tells data and model apart perfectly and its logits are saturated: the "
        "supports of data and model do not overlap, the divergence is stuck at its maximum and "
        "the generator's gradient vanishes. Spread both sides with noise, as in "
        'noise={"x": GaussianNoise(0.3)}, so that they overlap.'
    )
