# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
What both backends say when something is wrong: each text names the site or argument and the way
out.

They stand here once, so that the two packages cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_DENSITY_FREE = (
    "AdversarialDivergence, MMD, EnergyDistance, SlicedWasserstein or WassersteinCritic for a "
    "model; PriorContrastELBO or JointContrastELBO for a guide"
)


def missing_extra(package: str, extra: str, cause: ImportError) -> str:
    return (
        f"{package} needs the extra '{extra}' ({cause}). "
        f"Install it with: pip install 'pyro-spread[{extra}]'"
    )


def at_site(site: str, message: object) -> str:
    return f"site '{site}': {message}"


# --- kernels -------------------------------------------------------------------------------------


def bad_positive(kernel: str, argument: str, value: object) -> str:
    return (
        f"{kernel}: {argument} must be positive and finite, got {value}. A learned {argument} "
        "needs a positive constraint."
    )


def scale_misfit(kernel: str, scale: Sequence[int], x: Sequence[int], event_dim: int) -> str:
    event = tuple(x)[len(x) - event_dim :]
    return (
        f"{kernel}: a scale of shape {tuple(scale)} does not fit a value of shape {tuple(x)} with "
        f"event shape {event}. Use a scalar scale, or one that broadcasts to the event shape."
    )


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
        f"expected a noise kernel such as GaussianNoise(0.3), got {value!r} of type "
        f"{type(value).__name__}."
    )


def not_a_transform(value: object, base: str) -> str:
    return (
        f"TransformedNoise: transform must be a {base}, got {value!r}. A plain function cannot say "
        "that it is injective; wrap it in a subclass that does."
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


# --- two-sample statistics -----------------------------------------------------------------------


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
        f"block_size must be a positive integer, the number of rows held at once, got {value!r}. "
        "Leave it out for one that fits."
    )


def bad_energy_power(value: object) -> str:
    return (
        f"energy_distance: beta must lie strictly between 0 and 2, got {value!r}. At beta = 2 only "
        "the means are compared; beta = 1 is the usual choice."
    )


def bad_order(value: object) -> str:
    return f"sliced_wasserstein: p must be a finite number of at least 1, got {value!r}."


def bad_directions(shape: Sequence[int], width: int) -> str:
    return (
        f"sliced_wasserstein: directions must be a nonempty matrix (number, {width}) of unit "
        f"vectors of the samples' {width} dimension(s), got shape {tuple(shape)}."
    )


# --- distributions -------------------------------------------------------------------------------


def implicit_has_no_density() -> str:
    return (
        "ImplicitDistribution can be sampled but has no density, so log_prob does not exist. Use a "
        f"loss that needs none: {_DENSITY_FREE}."
    )


def generator_has_no_density() -> str:
    return (
        "DeterministicGenerator has no likelihood: the log density of data is -inf almost "
        "everywhere. Use SpreadELBO({site: GaussianNoise(0.3)}), which spreads it, or a loss that "
        f"needs no density: {_DENSITY_FREE}."
    )


def implicit_output_shape(got: Sequence[int], expected: Sequence[int]) -> str:
    return (
        f"ImplicitDistribution: fn returned shape {tuple(got)}, expected {tuple(expected)} = "
        "sample + batch + event_shape. Check fn or event_shape."
    )


# --- divergences ---------------------------------------------------------------------------------


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


# --- handler and losses --------------------------------------------------------------------------


def bad_noise_argument(value: object) -> str:
    return (
        "noise must be a dict from the name of an observed site to a noise kernel, such as "
        f"{{'x': GaussianNoise(0.3)}}, got {value!r}."
    )


def unspread_delta(site: str, noise: Iterable[str]) -> str:
    return (
        f"site '{site}' is an observed Delta that no noise kernel covers: its log-likelihood is "
        f"-inf for almost all data. Noise has kernels for {sorted(noise)}; add one, as in "
        f"SpreadELBO({{'{site}': GaussianNoise(0.3)}}), or give the site a density."
    )


def no_such_site(site: str, observed: Iterable[str]) -> str:
    return (
        f"noise names the site '{site}', but the model has no sample site of that name. Its "
        f"observed sites are {sorted(observed)}."
    )


def site_not_observed(site: str, observed: Iterable[str]) -> str:
    return (
        f"noise names the site '{site}', which the model does not observe: only observed sites are "
        f"spread. Give it obs=, or drop it from noise. The observed sites are {sorted(observed)}."
    )


def conditioned_outside(site: str) -> str:
    return (
        f"site '{site}' was made observed by a handler outside of spread, which came too late to "
        "spread it. Put spread outermost: spread(condition(model, data), noise)."
    )


def value_misfit(value: Sequence[int], event: Sequence[int]) -> str:
    return (
        f"the observed value of shape {tuple(value)} does not have the event shape {tuple(event)} "
        "of its distribution, and broadcasting one to the other would count elements twice. "
        "Reshape the data, or change what the model generates."
    )


def already_spread(site: str) -> str:
    return (
        f"site '{site}' is spread already, by spread(...) around or inside the model. The loss "
        "spreads it itself: hand it the model as it is."
    )


def nonfinite_data(site: str, argument: str) -> str:
    return (
        f"site '{site}': the model argument '{argument}' contains NaN or inf. Clean or impute the "
        "data first; entries that are to be ignored can be set to 0 and masked out in the model."
    )


def not_an_array(site: str, argument: str, got: str, wanted: str) -> str:
    return (
        f"site '{site}': the model argument '{argument}' is {got}, not {wanted}. Pass the data "
        f"itself there, or name another argument with data={{'{site}': ...}}."
    )


def observed_other_value(site: str) -> str:
    return (
        f"site '{site}': the model observes something other than the spread value it was handed. "
        "Its argument carries y = x + noise; observe that argument itself (or a reshape or subset "
        "of it), not clean data captured from outside and not a transformed copy: do preprocessing "
        "before the data go into SVI."
    )


def elbo_refused(name: str, why: str) -> str:
    return f"SpreadELBO cannot wrap {name}: {why}"


def no_elbo(value: object, base: str) -> str:
    return f"SpreadELBO: elbo must be an instance of {base}, such as Trace_ELBO(), got {value!r}."


def messenger_guide() -> str:
    return (
        "SpreadELBO cannot use an AutoMessenger guide: it runs its own copy of the model, which "
        "would stay unspread. Use an AutoGuide such as AutoNormal, or write the guide by hand."
    )


def jit_keyword_data(site: str, argument: str, elbo: str) -> str:
    return (
        f"site '{site}': {elbo} takes tensors by position only, but the data came by keyword, "
        f"'{argument}='. Pass them by position."
    )


def mutable_particles(num_particles: int) -> str:
    return (
        f"the model or guide has mutable state, and num_particles={num_particles} "
        "would give one new state per particle. Use num_particles=1."
    )


def unregistered_params(names: Iterable[str]) -> str:
    return (
        f"noise declares the param site(s) {sorted(names)}, which SVI does not know, so they would "
        "never be trained. Use SVI(model, loss.register(model, guide), optim, loss)."
    )


# --- ratios and adversarial losses ---------------------------------------------------------------


def bad_pi(pi: object) -> str:
    return f"pi is the share of data among the critic's samples and must lie in (0, 1), got {pi}."


def bad_choice(argument: str, value: object, choices: Iterable[str]) -> str:
    return f"{argument} must be one of {sorted(choices)}, got {value!r}."


def bad_range(argument: str, value: object, wanted: str) -> str:
    return f"{argument} must be {wanted}, got {value!r}."


def no_critic(value: object, wanted: str) -> str:
    return (
        f"discriminator must be {wanted}, called as discriminator(values, *args, **kwargs) -> "
        f"logits, got {value!r}. A plain net on features is adapted by concat_sites(net, 'x')."
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
    return f"divergence must be a Divergence such as JSPi(0.5), got {value!r}."


def no_such_value(name: str, sites: Iterable[str], arguments: Iterable[str]) -> str:
    return (
        f"'{name}' is neither a site that is compared (they are "
        f"{sorted(sites)}) nor an argument of the model ({sorted(arguments)})."
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
    return (
        f"site '{site}': draws of {distribution} are discrete or not reparametrised, so no "
        "gradient reaches the model through them. Use a continuous relaxation (such as "
        "RelaxedOneHotCategorical), an ELBO, or make the value an argument of the model instead of "
        "a contrasted site."
    )


def latent_without_gradient(site: str, distribution: str) -> str:
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


def batch_mismatch(first: str, shape: Sequence[int], second: str, other: Sequence[int]) -> str:
    return (
        f"sites '{first}' and '{second}' have batch shapes {tuple(shape)} and {tuple(other)}, "
        "which end in different plates, so that no critic can see them together."
    )


def mask_misfit(site: str, mask: Sequence[int], value: Sequence[int]) -> str:
    return (
        f"site '{site}': a mask or scale of shape {tuple(mask)} does not fit the value of shape "
        f"{tuple(value)}."
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
        "update='one_pass' needs a critic that treats samples one by one, but it contains batch "
        "normalisation. Use update='two_pass' (the default there), or another normalisation."
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
    return f"two_player: {role} must be {wanted}, got {value!r}."


# --- critics -------------------------------------------------------------------------------------


def critic_size(critic: str, argument: str, value: object) -> str:
    return f"{critic}: {argument} must be a positive integer, got {value!r}."


def critic_sizes(critic: str, argument: str, value: object) -> str:
    wanted = {
        "hidden": "a tuple of positive integers such as (64, 64)",
        "channels": "a tuple of positive integers such as (64, 128)",
        "image_shape": "(H, W) or (C, H, W) in positive integers, such as (28, 28)",
    }
    return f"{critic}: {argument} must be {wanted[argument]}, got {value!r}."


def critic_activation(critic: str, value: object, example: str) -> str:
    return (
        f"{critic}: activation must be a function of one array, or a module, got {value!r}. Pass "
        f"for example {example}; a class has to be called first."
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


# --- critic diagnostics --------------------------------------------------------------------------


def support_mismatch() -> str:
    return (
        "the critic tells data and model apart perfectly and its logits are saturated: the "
        "supports of data and model do not overlap, the divergence is stuck at its maximum and "
        "the generator's gradient vanishes. Spread both sides with noise, as in "
        'noise={"x": GaussianNoise(0.3)}, so that they overlap.'
    )
