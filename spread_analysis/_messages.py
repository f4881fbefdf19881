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
        f"SpreadELBO: the model or guide has mutable state, and num_particles={num_particles} "
        "would give one new state per particle. Use num_particles=1."
    )


def unregistered_params(names: Iterable[str]) -> str:
    return (
        f"noise declares the param site(s) {sorted(names)}, which SVI does not know, so they would "
        "never be trained. Use SVI(model, loss.register(model, guide), optim, loss)."
    )
