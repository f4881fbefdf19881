# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise at implicit guide sites: what is the same in both backends."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from spread_core.messages import general, semi_implicit
from spread_core.patterns import key_of, resolved


class ImplicitSites:
    """Which sites a run of the guide has, and which kernel each of them gets."""

    def _begin(self, kernels: Mapping[str, Any], supports: Mapping[str, Any]) -> None:
        self.kernels, self.supports = kernels, supports
        self._seen: set[str] = set()
        self._implicit: set[str] = set()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)  # type: ignore[misc]
        if exc_type is None:
            for site in resolved(self.kernels, self._implicit):
                if site not in self._seen:
                    raise ValueError(semi_implicit.semi_no_such_site(site, self._implicit))

    def _kernel_for(self, msg: Any, implicit: bool, plain_name: Callable[[Any], str]) -> Any:
        """
        The kernel of a site, None if it keeps its density; refuses those that cannot have one.

        :param msg: its message.
        :param implicit: whether its distribution is an implicit one.
        :param plain_name: what to call a distribution.
        """
        site = msg["name"]
        self._seen.add(site)
        if implicit:
            self._implicit.add(site)
        # Patterns stand for implicit sites only.
        key = key_of(self.kernels, site) if implicit or site in self.kernels else None
        if key is None:
            if implicit:
                raise ValueError(semi_implicit.semi_missing_kernel(site, self.kernels))
            return None
        if msg["is_observed"] or msg["value"] is not None:
            raise ValueError(semi_implicit.semi_fixed_site(site))
        if not implicit:
            raise ValueError(semi_implicit.semi_not_implicit(site, plain_name(msg["fn"])))
        return self.kernels[key]


class SiteNoiseShared:
    """The kernel of a site, in the unconstrained space of the site's support."""

    #: From a constraint to the bijection of all reals onto it.
    _bijection: ClassVar[Any]
    #: Sums a number of rightmost dims.
    _sum_rightmost: ClassVar[Any]

    def __init__(self, site: str, fn: Any, kernel: Any, support: Any) -> None:
        self.site, self.kernel, self.support = site, kernel, support
        self.event_dim = len(fn.event_shape)
        self.transform: Any = None
        if support is not None:
            try:
                self.transform = self._bijection(support)
            except NotImplementedError as error:
                message = semi_implicit.semi_no_bijection(site, support)
                raise NotImplementedError(message) from error
            self.event_dim += self.transform.domain.event_dim - self.transform.codomain.event_dim

    def to_support(self, u: Any) -> Any:
        """The image of an unconstrained value."""
        return u if self.transform is None else self.transform(u)

    def around(self, psi: Any) -> Any:
        """The kernel around unconstrained draws of shape sample + batch + event."""
        try:
            conditional = self.kernel(psi, self.event_dim)
        except (TypeError, ValueError) as error:
            raise type(error)(general.at_site(self.site, error)) from error
        got = (*conditional.batch_shape, *conditional.event_shape)
        if got != tuple(psi.shape):
            raise ValueError(semi_implicit.semi_kernel_shape(self.site, got, psi.shape))
        return conditional

    def log_jacobian(self, u: Any, z: Any) -> Any:
        """Of the map from u to z, summed over the event."""
        if self.transform is None:
            return 0.0
        surplus = self.event_dim - self.transform.domain.event_dim
        return self._sum_rightmost(self.transform.log_abs_det_jacobian(u, z), surplus)


def fixed_support(
    site: str,
    support: Any,
    event_dim: int,
    constraints: Any,
    bound_of: Callable[[Any], tuple[Any, bool] | None],
) -> Any:
    """
    A support with bounds that do not depend on batch elements; None for all reals.

    :param site: the site that has it.
    :param support: the constraint.
    :param event_dim: number of event dims of the site.
    :param constraints: the backend's module of constraints.
    :param bound_of: an attribute of a constraint as an array, and whether it is a constant; None if
        it is no array.
    :raises ValueError: if a bound is no constant or differs between elements of a batch.
    """
    if isinstance(support, constraints.independent):
        base = fixed_support(site, support.base_constraint, event_dim, constraints, bound_of)
        ndims = support.reinterpreted_batch_ndims
        return None if base is None else constraints.independent(base, ndims)
    if isinstance(support, type(constraints.real)):
        return None
    fixed = copy.copy(support)
    for name, value in vars(support).items():
        found = bound_of(value)
        if found is not None:
            bound, constant = found
            if constant:
                rows = bound.reshape(-1, *bound.shape[max(bound.ndim - event_dim, 0) :])
                constant = bool((rows == rows[:1]).all())
            if not constant:
                raise ValueError(semi_implicit.semi_moving_support(site))
            setattr(fixed, name, rows[0])
    return fixed
