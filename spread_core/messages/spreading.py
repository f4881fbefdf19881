# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages about the handler ``spread`` and the loss ``SpreadELBO``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spread_core.messages.general import shown


def bad_noise_argument(value: object) -> str:
    return (
        "noise must be a dict from the name of an observed site to a noise kernel, such as "
        f"{{'x': GaussianNoise(0.3)}}, got {shown(value)}."
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
        f"observed sites are {sorted(observed)}. Sites that are not there at every call take a "
        "pattern, as in {'x_*': kernel}, or a callable that returns the dict."
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


def observed_other_value(site: str) -> str:
    return (
        f"site '{site}': the model observes something other than the spread value it was handed. "
        "Its argument carries y = x + noise; observe that argument itself (or a reshape or subset "
        "of it), not clean data captured from outside and not a transformed copy: do preprocessing "
        "before the data go into SVI."
    )


def empty_observation(site: str, argument: str, shape: Sequence[int]) -> str:
    return (
        f"site '{site}': the model observes a value of shape {tuple(shape)}, which has no element. "
        f"Noise was added to its argument '{argument}'; if another one carries the data of the "
        f"site, name it: data={{'{site}': ...}}."
    )


def layout_misfit(site: str, kernel: str, argument: Sequence[int], value: Sequence[int]) -> str:
    return (
        f"site '{site}': {kernel} treats elements differently, but it cannot be told where those "
        f"of its argument, of shape {tuple(argument)}, stand in the observed value, of shape "
        f"{tuple(value)}. Hand over the data in the shape that the site observes, or use a scale "
        "of one number."
    )


def no_handed_value(site: str, key: str) -> str:
    return (
        f"site '{site}' is covered by noise['{key}'], but no argument carries its data: none has "
        f"its name. Say which one does: data={{'{key}': ...}}."
    )


def elbo_refused(loss: str, name: str, why: str) -> str:
    return f"{loss} cannot wrap {name}: {why}"


def no_elbo(loss: str, value: object, base: str) -> str:
    return f"{loss}: elbo must be an instance of {base}, such as Trace_ELBO(), got {shown(value)}."


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
