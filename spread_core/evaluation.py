# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What evaluation in both backends checks at the sites of model and guide, and sums over them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from spread_core.arguments import Key, argument_name, get_argument, locate_data
from spread_core.messages import players
from spread_core.paths import Where
from spread_core.typing import Args, Kwargs, Model, Site, Sites
from spread_core.validation import as_host

#: Returns which elements of a site no mask leaves out, given its name and the site.
Kept = Callable[[str, Site], Any]


def shared_dims(sites: Iterable[Site]) -> list[int]:
    """Dimensions of the vectorised plates around all sites, along which data come apart."""
    plates = [
        {(f.name, f.dim, f.size) for f in site["cond_indep_stack"] if f.dim is not None}
        for site in sites
    ]
    return sorted(dim for _, dim, _ in set.intersection(*plates))


def data_axes(site: Site, dims: Iterable[int]) -> list[int]:
    """The axes of a site's value along which data lie, negative, given their batch dimensions."""
    return [dim - site["fn"].event_dim for dim in dims]


def data_first(values: NDArray, axes: Sequence[int]) -> NDArray:
    """
    Make the axes along which data lie one, the first.

    :param values: an array.
    :param axes: these axes, negative.
    :return: shape (num_data, ...); one datum if there are no such axes.
    """
    moved = np.moveaxis(values, axes, range(len(axes)))
    return moved.reshape(-1, *moved.shape[len(axes) :])


def any_of_datum(kept: NDArray[np.bool_], axes: Sequence[int]) -> NDArray[np.bool_]:
    """
    Which data have an element that counts.

    :param kept: elements of a site that count, of shape batch + event.
    :param axes: axes along which data lie, negative.
    :return: shape of the data; true where a site has no elements, as that of a factor.
    """
    rest = tuple(axis for axis in range(-kept.ndim, 0) if axis not in axes)
    return np.asarray(kept.any(rest) if kept.size else (~kept).all(rest))


def observed_data(sites: Sites, dims: Sequence[int], kept: Kept) -> NDArray[np.bool_] | None:
    """Of which data anything is observed, in the shape of the data; None if of all."""
    observed: NDArray[np.bool_] = np.logical_or.reduce(
        [
            any_of_datum(np.asarray(kept(name, site)), data_axes(site, dims))
            for name, site in sites.items()
            if site["is_observed"]
        ]
    )
    return None if observed.all() else observed


def check_evidence(sites: Sites) -> None:
    """Refuse a model that observes nothing or scales a site."""
    if not any(site["is_observed"] for site in sites.values()):
        raise ValueError(
            "the model observes nothing, so there is no evidence to estimate. Give a site obs=."
        )
    for name, site in sites.items():
        if site["scale"] is not None and (as_host(site["scale"]) != 1).any():
            raise ValueError(
                f"site '{name}' is scaled, by a subsampling plate or a scale handler: what is "
                "estimated is the evidence of the data as they are. Pass the data of interest as "
                "arguments, without subsampling and scale."
            )


def continuous_latents(sites: Sites) -> list[str]:
    """Names of the latents; refuse a model that has none, or a discrete one."""
    latents = [name for name, site in sites.items() if not site["is_observed"]]
    if not latents:
        raise ValueError(
            f"the model has no latent site, only {sorted(sites)}: its log-likelihood is exact, no "
            "estimate is needed."
        )
    for name in latents:
        if sites[name]["fn"].support.is_discrete:
            raise NotImplementedError(
                f"site '{name}' is a discrete latent, along which annealing cannot move by "
                "gradients. Sum it out, as in a mixture distribution, or use "
                "importance_weighted_bound."
            )
    return latents


def check_densities(proposed: Sites, lacks_density: Callable[[Any, bool], bool]) -> None:
    """
    Refuse a guide with a site that has no density.

    :param proposed: the sites of the guide.
    :param lacks_density: whether a distribution has no density, given whether the guide has
        auxiliary draws.
    """
    # Deltas are fine as functions of auxiliary draws that have a density, as in AutoGuides.
    transformed = any(site["infer"].get("is_auxiliary") for site in proposed.values())
    for name, site in proposed.items():
        if lacks_density(site["fn"], transformed):
            raise ValueError(
                f"guide site '{name}' has no density, so it gives no importance weights. Use "
                "ais_log_likelihood(model, ...), which needs no guide."
            )


def check_masks(sites: Sites, proposed: Sites, kept: Kept) -> None:
    """Refuse model and guide that mask different elements of a site."""
    for name in proposed.keys() & sites.keys():
        if not np.array_equal(kept(name, sites[name]), kept(name, proposed[name])):
            raise ValueError(
                f"site '{name}': model and guide mask different elements, so that some weights "
                "would lack one of the two densities. Mask the same elements of it in both, or "
                "pass the data of interest alone."
            )


def per_datum(log_prob: Any, dims: Sequence[int]) -> Any:
    """Log densities of either backend, summed over all dimensions except those of the data."""
    rest = tuple(dim for dim in range(-log_prob.ndim, 0) if dim not in dims)
    return log_prob.sum(rest) if rest else log_prob


def prior_and_likelihood(
    sites: Sites,
    log_jacobians: Mapping[str, Any],
    dims: Sequence[int],
    log_prob: Callable[[Site], Any],
) -> tuple[Any, Any]:
    """
    Log prior of the unconstrained latents, and log-likelihood, per datum.

    :param log_jacobians: log volume of the change from unconstrained values, by latent.
    """
    prior: list[Any] = []
    likelihood: list[Any] = []
    for name, site in sites.items():
        terms = likelihood if site["is_observed"] else prior
        terms.append(per_datum(log_prob(site), dims))
        if name in log_jacobians:
            prior.append(per_datum(log_jacobians[name], dims))
    return sum(prior), sum(likelihood)


def log_weight(
    sites: Sites, proposed: Sites, dims: Sequence[int], log_prob: Callable[[Site], Any]
) -> Any:
    """Log importance weight per datum, from the sites of model and guide."""
    # A latent that the guide leaves out is proposed by its prior, which cancels.
    scored = [s for n, s in sites.items() if s["is_observed"] or n in proposed]
    weight = sum(per_datum(log_prob(site), dims) for site in scored)
    for site in proposed.values():
        weight = weight - per_datum(log_prob(site), dims)
    return weight


def locate_simulated(
    model: Model,
    observed: Sites,
    factor: type,
    args: Args,
    kwargs: Kwargs,
    data: Mapping[str, Where] | None,
) -> dict[str, Key]:
    """
    For every observed site, the argument in whose place the guide gets what the model simulates.

    :param observed: the observed sites, simulated.
    :param factor: the class of distributions that factors have, which cannot be simulated.
    :param data: dict from site to argument, from the user.
    :raises ValueError: naming a factor, or a site that does not fit its argument.
    """
    for name, site in observed.items():
        if isinstance(site["fn"], factor):
            raise ValueError(players.factor_site(name))
    located = locate_data(model, observed, args, kwargs, data)
    for name, key in located.items():
        simulated = observed[name]["value"].shape
        given = np.shape(get_argument(key, args, kwargs))
        if given != simulated:
            raise ValueError(
                f"site '{name}': the model simulates data of shape {tuple(simulated)}, but its "
                f"argument '{argument_name(key, model)}' has the shape {tuple(given)}. The guide "
                "must get simulated data in place of the real ones: name the argument that "
                f"carries them with data={{'{name}': ...}}."
            )
    return located


class GivenBySite(Protocol):
    """A guide that knows the data sites of its model, as ``AutoAmortized`` does."""

    def data_sites(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Names of the observed sites at these arguments."""

    def given(self, values: Mapping[str, Any]) -> Any:
        """A guide of the same signature that conditions on these values at its data sites."""


def knows_its_data(guide: Any) -> TypeGuard[GivenBySite]:
    """Whether a guide is given data by site, instead of in its arguments."""
    return callable(getattr(guide, "data_sites", None)) and callable(getattr(guide, "given", None))


def sites_to_rank(sites: Collection[str] | None, proposed: Sites, simulated: Sites) -> list[str]:
    """The latents that are ranked: those asked for, else all that model and guide share."""
    drawn = [name for name in proposed if name in simulated]
    wanted = drawn if sites is None else list(sites)
    if not wanted or not set(wanted) <= set(drawn):
        raise ValueError(
            f"sites={sorted(wanted)}: simulation-based calibration ranks sites that both model "
            f"and guide draw; those are {sorted(drawn)}."
        )
    return wanted
