# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A table of simulations: what many runs of one program drew at its sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spread_analysis.arviz_export import to_arviz
from spread_analysis.arviz_groups import FAILED, MASK, SITE, Column, label, read_groups
from spread_core.messages import tables
from spread_core.runs import finite_rows


class Simulations:
    """
    A table of simulations: every row is one run of a program, every column one of its sites.

    ``simulate`` makes it; :meth:`from_dict` and :meth:`from_arviz` take what somebody else has
    simulated. Rows of a run that failed are kept, since leaving them out changes what is learned;
    ``valid`` says which they are.

        >>> import numpy as np
        >>> theta = np.linspace(-1.0, 1.0, 100)
        >>> table = Simulations.from_dict({"theta": theta}, {"x": theta[:, None] + np.zeros(3)})
        >>> table
        Simulations(100 rows; latents theta (); data x (3,))
        >>> train, held_out = table.split(0.1, seed=0)
        >>> len(train), len(held_out)
        (90, 10)
        >>> table["x"].shape
        (100, 3)

    :param values: dict from site to its values, of shape (num_simulations, ...).
    :param observed: names of the sites that hold data; may be left out, then the model says it.
    :param masks: dict from site to which elements count: bools of shape (num_simulations, ...) that
        end with the site's batch, or with the whole site where parts of events are masked.
    :param failed: which runs raised an error, of shape (num_simulations,); NaN says it too.
    :raises ValueError: if there are no rows, or not as many at every site, or if something is not
        a number; the message names the site.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        observed: Sequence[str] = (),
        masks: Mapping[str, Any] | None = None,
        failed: Any = None,
    ) -> None:
        self._values = {site: _as_array(site, value) for site, value in values.items()}
        if not self._values or not len(next(iter(self._values.values()))):
            raise ValueError(tables.empty())
        first = next(iter(self._values))
        for site, value in self._values.items():
            if len(value) != len(self):
                raise ValueError(tables.uneven(site, len(value), first, len(self)))
        observed = (observed,) if isinstance(observed, str) else tuple(observed)
        self._check_names(observed, "observed")
        self._observed = tuple(site for site in self._values if site in observed)
        self._masks = {site: np.asarray(mask) for site, mask in (masks or {}).items()}
        self._check_names(self._masks, "masks")
        for site, mask in self._masks.items():
            shape = self._values[site].shape
            if mask.dtype != bool:
                raise ValueError(tables.mask_kind(site, mask.dtype))
            if mask.ndim < 1 or mask.shape != shape[: mask.ndim]:
                raise ValueError(tables.mask_shape(site, mask.shape, shape))
        self._failed = np.zeros(len(self), bool) if failed is None else np.asarray(failed, bool)
        if self._failed.shape != (len(self),):
            raise ValueError(tables.uneven("failed", self._failed.size, first, len(self)))

    def _check_names(self, names: Iterable[str], where: str) -> None:
        unknown = set(names) - self._values.keys()
        if unknown:
            raise ValueError(tables.unknown_sites(unknown, self._values, where))

    @property
    def values(self) -> dict[str, NDArray]:
        """Dict from site to its values, of shape (num_simulations, ...), in program order."""
        return dict(self._values)

    @property
    def masks(self) -> dict[str, NDArray]:
        """Dict from site to which elements count, of the sites that the program masks."""
        return dict(self._masks)

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the sites that hold data; empty if nobody has said it."""
        return self._observed

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the other sites."""
        return tuple(site for site in self._values if site not in self._observed)

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Which runs raised an error, of shape (num_simulations,); NaN and inf are not counted."""
        return self._failed

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Which rows are finite everywhere, of shape (num_simulations,); masks are left out."""
        good = ~self._failed
        for site, value in self._values.items():
            good = good & finite_rows(value, self._masks.get(site))
        return good

    def __getitem__(self, site: str) -> NDArray:
        try:
            return self._values[site]
        except KeyError:
            raise KeyError(tables.no_such_site(site, self._values)) from None

    def __contains__(self, site: object) -> bool:
        return site in self._values

    def __len__(self) -> int:
        return len(next(iter(self._values.values())))

    def __repr__(self) -> str:
        failed = len(self) - int(self.valid.sum())
        rows = f"{len(self)} rows" + (f", {failed} of them failed" if failed else "")
        parts = [rows]
        for kind, sites in (("latents", self.latents), ("data", self.observed)):
            if sites:
                shapes = ", ".join(f"{s} {self._values[s].shape[1:]}" for s in sites)
                parts.append(f"{kind if self.observed else 'sites'} {shapes}")
        return f"Simulations({'; '.join(parts)})"

    def take(self, rows: Any) -> Simulations:
        """
        The table of some of its rows.

        :param rows: their numbers, a slice, or a bool for every row.
        """
        chosen = rows if isinstance(rows, slice) else np.asarray(rows)
        return Simulations(
            {site: value[chosen] for site, value in self._values.items()},
            self._observed,
            {site: mask[chosen] for site, mask in self._masks.items()},
            self._failed[chosen],
        )

    def split(self, fraction: float = 0.1, seed: int = 0) -> tuple[Simulations, Simulations]:
        """
        Two tables, the second with a random part of the rows, to be held out of training.

        :param fraction: of the rows in the second one.
        :param seed: of NumPy's generator, which draws them.
        :return: the rows to train on and those to hold out, each in the order of the table.
        :raises ValueError: if one of them would be empty.
        """
        count = round(fraction * len(self))
        if not 0 < count < len(self):
            raise ValueError(tables.bad_fraction(fraction, len(self)))
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[count:])), self.take(np.sort(order[:count]))

    @classmethod
    def from_dict(
        cls, prior: Mapping[str, Any], prior_predictive: Mapping[str, Any] | None = None
    ) -> Simulations:
        """
        A table of simulations that somebody else has made.

        :param prior: dict from latent site to values of shape (num_simulations, ...): arrays or
            tensors. If it is the only one, it holds all sites, and the model says which are data.
        :param prior_predictive: dict from data site to values of the same runs.
        :raises ValueError: if a site is in both, or the table makes no sense; it is named.
        """
        data = {} if prior_predictive is None else prior_predictive
        for site in prior:
            if site in data:
                raise ValueError(tables.twice(site))
        return cls({**prior, **data}, tuple(data))

    @classmethod
    def from_arviz(cls, data: Any) -> Simulations:
        """
        A table out of ArviZ data: latents of the group ``prior``, data of ``prior_predictive``.

        :param data: an ``InferenceData``, a ``DataTree`` as of ArviZ 1, a ``Dataset`` of xarray
            (all sites in one, the model says which are data), or the path of a netCDF or zarr file
            of any of these, as ``simulate`` writes it. Chains follow one another.
        :raises ValueError: if it has neither of these groups, or the table makes no sense.
        :raises FileNotFoundError: if there is no such file.
        """
        groups = read_groups(data)
        stats = groups.get("sample_stats_prior", {})
        masks = {column.of: column.values for column in stats.values() if column.kind == MASK}
        failed = [column.values for column in stats.values() if column.kind == FAILED]
        columns = [groups.get(group, {}).values() for group in ("prior", "prior_predictive")]
        table = cls.from_dict(*({column.of: column.values for column in own} for own in columns))
        order = {column.of: column.number for own in columns for column in own}
        values = {site: table[site] for site in sorted(table.values, key=order.__getitem__)}
        flag = failed[0].astype(bool) if failed else None
        masks = {site: mask.astype(bool) for site, mask in masks.items()}
        return cls(values, table.observed, masks, flag)

    def to_arviz(self) -> Any:
        """
        The table as ArviZ data: groups ``prior`` (latents) and ``prior_predictive`` (data).

        Masks and failed runs, if there are any, are in ``sample_stats_prior``.

        :raises ImportError: if ArviZ is missing.
        """
        stats = {f"mask_{site}": mask for site, mask in self._masks.items()}
        if self._failed.any():
            stats["failed"] = self._failed
        data = to_arviz(
            prior={site: self._values[site] for site in self.latents},
            prior_predictive={site: self._values[site] for site in self.observed},
            sample_stats_prior=stats,
        )
        for number, site in enumerate(self._values):
            group = "prior_predictive" if site in self._observed else "prior"
            label(data, group, site, Column(site, SITE, number))
        for site in self._masks:
            label(data, "sample_stats_prior", f"mask_{site}", Column(site, MASK))
        if self._failed.any():
            label(data, "sample_stats_prior", "failed", Column("", FAILED))
        return data


def _as_array(site: str, value: Any) -> NDArray:
    if hasattr(value, "detach"):  # a torch tensor, maybe on a device and with a gradient
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(tables.no_numbers(site, array.dtype))
    if array.ndim == 0:
        raise ValueError(tables.no_rows(site))
    return array
