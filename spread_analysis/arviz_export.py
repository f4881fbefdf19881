# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Convert samples of either backend to ArviZ data, for ArviZ 0.x and 1.x."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spread_core.optional import import_extra
from spread_core.validation import as_count

Sites = Mapping[str, Any]

# Groups of one run share its draws; ArviZ pairs them draw by draw.
_RUNS = (
    ("posterior", "posterior_predictive", "sample_stats", "log_likelihood"),
    ("prior", "prior_predictive", "sample_stats_prior"),
)


def to_arviz(
    posterior: Sites | None = None,
    *,
    prior: Sites | None = None,
    posterior_predictive: Sites | None = None,
    prior_predictive: Sites | None = None,
    observed_data: Sites | None = None,
    sample_stats: Sites | None = None,
    log_likelihood: Sites | None = None,
    sample_stats_prior: Sites | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    num_chains: int = 1,
) -> Any:
    """
    Convert what ``Predictive``, a guide or an MCMC run of Pyro or NumPyro returns to ArviZ data.

    Values may be torch tensors, JAX arrays or anything that NumPy can read. Samples have the shape
    (num_samples, ...), observed data have none in front. The result is an ``InferenceData`` under
    ArviZ 0.x and a ``DataTree`` under 1.x; either goes into ``az.summary``, ``az.plot_pair`` and
    the rest. A ``DataTree`` takes no "/" in names: there a site "enc/z" is called "enc.z". ArviZ
    sees draws of a guide as one chain: its convergence diagnostics belong to MCMC, and say nothing
    about how good a guide is.

    :param posterior: dict from site to posterior samples, as of ``Predictive(guide, ...)`` or
        ``mcmc.get_samples()``.
    :param prior: dict from site to prior samples.
    :param posterior_predictive: dict from site to samples given the posterior's.
    :param prior_predictive: dict from site to samples given the prior's.
    :param observed_data: dict from site to data.
    :param sample_stats: dict from statistic to its values at the posterior samples, such as
        NumPyro's ``mcmc.get_extra_fields()``; a bool ``"diverging"`` marks divergences.
    :param log_likelihood: dict from observed site to log-likelihoods of its elements, in nats.
    :param sample_stats_prior: dict from statistic to its values at the prior samples.
    :param coords: dict from dimension to the labels along it.
    :param dims: dict from site to the names of the dimensions after the samples'.
    :param num_chains: chains that lie one after another in the posterior's samples, as in
        ``mcmc.get_samples()`` without ``group_by_chain``.
    :raises ValueError: if there is nothing to convert, numbers of samples disagree, or two sites
        would get the same name; the message names group and site.
    :raises ImportError: if ArviZ is missing.

        >>> import numpy as np
        >>> draws = np.random.default_rng(0).normal(size=(100, 2))
        >>> data = to_arviz({"z": draws}, observed_data={"x": [0.3, 0.1]}, dims={"z": ["code"]})
        >>> dict(data.posterior["z"].sizes)
        {'chain': 1, 'draw': 100, 'code': 2}
    """
    given = {
        "posterior": posterior,
        "posterior_predictive": posterior_predictive,
        "sample_stats": sample_stats,
        "log_likelihood": log_likelihood,
        "prior": prior,
        "prior_predictive": prior_predictive,
        "sample_stats_prior": sample_stats_prior,
        "observed_data": observed_data,
    }
    groups = {
        group: {site: _as_array(value, group, site) for site, value in sites.items()}
        for group, sites in given.items()
        if sites
    }
    if not groups:
        raise ValueError("`to_arviz` got nothing to convert: pass at least `posterior`.")
    chains = as_count(num_chains, "num_chains")
    for run in _RUNS:
        _check_draws({group: groups[group] for group in run if group in groups})
    for group in _RUNS[0]:
        groups.update(_in_chains(group, groups.get(group, {}), chains))
    for group in _RUNS[1]:
        groups.update(_in_chains(group, groups.get(group, {}), 1))  # independent draws

    arviz = import_extra("arviz", "to_arviz")
    if is_new(arviz):
        renamed = {group: _without_slashes(sites, group) for group, sites in groups.items()}
        dims = None if dims is None else _without_slashes(dims, "dims")
        return arviz.from_dict(renamed, coords=coords, dims=dims)
    return arviz.from_dict(**groups, coords=coords, dims=dims)


def is_new(arviz: Any) -> bool:
    """Whether this is ArviZ 1 or later, in which data are a ``DataTree``."""
    return int(arviz.__version__.split(".")[0]) >= 1


def _without_slashes(sites: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Sites by names that a ``DataTree`` takes: in it "/" leads from group to group."""
    renamed: dict[str, Any] = {}
    for site, value in sites.items():
        name = site.replace("/", ".")
        if name in renamed:
            raise ValueError(
                f"`{group}` has two sites that ArviZ would call '{name}', since it takes no '/' in "
                f"names. Rename '{site}'."
            )
        renamed[name] = value
    return renamed


def _as_array(value: Any, group: str, site: str) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor, maybe on a device and with a gradient
        value = value.detach().cpu()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"`{group}` of '{site}' must hold numbers, got an array of type {array.dtype}."
        )
    return array


def _check_draws(groups: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    first: tuple[str, str, int] | None = None
    for group, sites in groups.items():
        for site, array in sites.items():
            if array.ndim == 0:
                raise ValueError(
                    f"`{group}` of '{site}' is a single number; samples have the shape "
                    "(num_samples, ...)."
                )
            if first is None:
                first = (group, site, len(array))
            elif len(array) != first[2]:
                raise ValueError(
                    f"`{group}` of '{site}' has {len(array)} samples, but `{first[0]}` of "
                    f"'{first[1]}' has {first[2]}. Samples have the shape (num_samples, ...); pass "
                    "those of one run."
                )


def _in_chains(
    group: str, sites: Mapping[str, np.ndarray], num_chains: int
) -> dict[str, dict[str, np.ndarray]]:
    """The group with a leading dimension of chains, or nothing if it is empty."""
    chained = {}
    for site, array in sites.items():
        if len(array) % num_chains:
            raise ValueError(
                f"`{group}` of '{site}' has {len(array)} samples, which are no {num_chains} chains "
                "of equal length; see `num_chains`."
            )
        chained[site] = array.reshape(num_chains, -1, *array.shape[1:])
    return {group: chained} if chained else {}
