# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel that is a mixture of one kernel at several scales."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from spread_core.arguments import positional_names
from spread_core.messages import general
from spread_core.messages import noise as messages
from spread_core.noise.base import Kernel, broadcast
from spread_core.patterns import key_of
from spread_core.remembered import Remembered

_SUFFIX = "_level"
_known_keywords: Remembered[frozenset[str]] = Remembered()


class MultiLevel(Kernel[Any, Any, Any]):
    r"""
    Spread noise at several levels: every datum gets one level, and the kernel at that scale.

    The density is :math:`k(y \mid x) = \sum_l w_l\, k_l(y \mid x)`, where :math:`k_l` is ``kernel``
    with its scale multiplied by ``levels[l]``. The level belongs to the datum: one for the whole
    event of a site, not one per element. The characteristic function
    :math:`\sum_l w_l\, \phi(l\, \omega)` is a sum of positive numbers, so the spread divergence is
    zero only at equality [1, section 3.1], and large levels see what small ones do not: supports
    that are far apart [2]. ``spread`` is exact wherever it is for ``kernel``.

    A guide, model or critic may ask for the level of each datum, by the name of the site and
    ``_level``. A guide or model under ``SpreadELBO`` asks by an argument of that name, as in ``def
    guide(x, x_level=None)``; outside of this loss nobody fills it in. It gets the multiplier of
    every datum, of the site's batch shape: the level, times the multiplier of ``annealed`` or
    ``adaptive`` around this kernel. Then the likelihood is that at the known level, and the
    divergence is :math:`\sum_l w_l D[\tilde p_l \| \tilde q_l]`, of (y, level) jointly, instead of
    the divergence of the mixtures. The critic of ``AdversarialDivergence`` or ``WassersteinCritic``
    asks as in ``concat_sites(net, "x", "x_level")``, with the same meaning. A level that is told
    must fit the batch of the site, so a plate must not subsample inside the model then.

    Without a site, ``draw`` does not know which dims are a datum's: it draws one level for each
    element, or for as many as ``kernel`` couples.

    **References**

    [1] `Spread Divergence`, Zhang, Hayes, Bird, Habib, Barber, https://arxiv.org/abs/1811.08968

    [2] `Generative Modeling by Estimating Gradients of the Data Distribution`, Yang Song, Stefano
    Ermon, https://arxiv.org/abs/1907.05600

    :param kernel: a stationary kernel with a scale, such as ``GaussianNoise(1.0)``.
    :param levels: positive multipliers of its scale: numbers, or an array of shape (L,).
    :param weights: L positive numbers, the shares of the levels up to a factor; alike if left out.
    :raises TypeError: if kernel is not such a kernel.
    :raises ValueError: if a level or weight is not positive and finite, or their numbers differ.
    """

    kernel: Any
    levels: Any
    weights: Any

    #: Event dims of the site of a draw; None where there is no site.
    _event_dim: ClassVar[int | None] = None
    #: Whether the weights are those of a level that is known, datum by datum.
    _is_told: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self._backend.is_kernel(self.kernel):
            raise TypeError("MultiLevelNoise: " + messages.not_a_kernel(self.kernel))
        if not self.kernel._is_stationary():
            raise TypeError(messages.levels_of_other_kernel(type(self.kernel).__name__))
        levels = self._positive("levels", self.levels)
        number = len(levels)
        weights = [1.0] * number if self.weights is None else self.weights
        weights = self._positive("weights", weights)
        if len(weights) != number:
            raise ValueError(messages.levels_and_weights(number, len(weights)))
        total: Any = sum(weights)
        own = isinstance(weights, tuple)
        shares = tuple(weight / total for weight in weights) if own else weights / total
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "weights", shares)

    def _positive(self, name: str, values: Any) -> Any:
        """Numbers as a tuple, whose type follows x, or an array of a floating type."""
        backend = self._backend
        if getattr(values, "shape", None) is None:
            values = tuple(values) if isinstance(values, Iterable) else (values,)
            if not all(isinstance(value, int | float | np.generic) for value in values):
                raise ValueError(messages.bad_levels(name, values))
            values = tuple(map(float, values))
        elif len(values.shape) != 1:
            raise ValueError(messages.bad_levels(name, values))
        if not len(values) or not backend.is_positive(values):
            raise ValueError(messages.bad_levels(name, values))
        return values if isinstance(values, tuple) else backend.as_positive(values)

    def _at_level(self, number: int) -> Any:
        """The kernel at one of the levels."""
        return self.kernel._scaled(self.levels[number])

    def _scaled(self, factor: Any) -> Any:
        return self._changed(kernel=self.kernel._scaled(factor))

    def _is_elementwise(self) -> bool:
        return False

    def _is_stationary(self) -> bool:
        return False  # levels of levels are levels

    def _at_events(self, event_dim: int) -> Any:
        return self._changed(_event_dim=event_dim)

    def _told(self, one_hot: Any) -> Any:
        """
        The kernel of data whose levels are known.

        :param one_hot: array of shape batch + (L,), one at the level of each datum and else zero.
        """
        return self._changed(weights=one_hot, _is_told=True)

    def characteristic_function(self, omega: Any) -> Any:
        r""":math:`\sum_l w_l\, \phi(l\, \omega)` of the characteristic function of ``kernel``."""
        terms = [
            weight * self.kernel.characteristic_function(level * self._backend.as_array(omega))
            for level, weight in zip(self.levels, self.weights, strict=True)
        ]
        return sum(terms[1:], terms[0])

    @property
    def coupled_dims(self) -> int:  # type: ignore[override]
        """Event dims of x that the kernel needs."""
        return int(self.kernel.coupled_dims)

    def _check_drawn(self, shape: Sequence[int]) -> None:
        self.kernel._check_drawn(shape)

    def _check_site(self, shape: Sequence[int], event_dim: int) -> None:
        self.kernel._check_site(shape, event_dim)
        batch = tuple(shape[: len(shape) - event_dim])
        of_levels = tuple(self.weights.shape[:-1]) if self._is_told else ()
        if broadcast(batch, of_levels) != batch:
            raise ValueError(messages.told_misfit(of_levels, batch))

    def _coupled_dims_of(self, x: Any) -> int:
        return max(self.kernel._coupled_dims_of(x), self._event_dim or 0)

    def _placed_dims(self, event_dim: int) -> int:
        told = len(self.weights.shape) - 1 if self._is_told else 0
        return max(event_dim + told, self.kernel._placed_dims(event_dim))

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        cut, own = len(scored) - event_dim, len(drawn) - event_dim
        alike = own >= 0 and tuple(drawn[own:]) == tuple(scored[cut:])
        return alike and self.kernel._drawn_alike(drawn, scored, event_dim)

    def _for_components(self, event_dim: int) -> Any:
        return self._changed(kernel=self.kernel._for_components(event_dim))


def has_level(kernel: Any) -> bool:
    """
    Whether there is a number that the scale of a datum was multiplied by, and that can be told.

    :param kernel: the kernel of this step.
    """
    if isinstance(kernel, MultiLevel):
        return True
    if kernel._moved_by is None:
        return False
    while hasattr(kernel, "noise"):  # a transformed kernel does not say which level it drew
        kernel = kernel.noise
    return not isinstance(kernel, MultiLevel)


def level_told(
    kernel: Any, index: Any, y: Any, event_dim: int, as_like: Callable[[Any, Any], Any]
) -> Any:
    """
    What the scale of every datum was multiplied by: its level times the multiplier of a scale that
    moves. None if there is no such number.

    :param kernel: the kernel of this step.
    :param index: the numbers of its levels, if it has several.
    :param y: noisy values of shape batch + event.
    :param event_dim: number of event dims.
    :param as_like: from numbers and y to an array of the numbers, of the type of y.
    """
    if not has_level(kernel):
        return None
    shape = tuple(y.shape[: y.ndim - event_dim])
    level: Any = as_like(kernel.levels, y)[index] if isinstance(kernel, MultiLevel) else None
    if kernel._moved_by is not None:
        factor = as_like(kernel._moved_by, y)
        level = factor if level is None else factor * level
    return array_namespace(y).broadcast_to(level, shape)


def levels_asked_for(
    noise: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *functions: Callable[..., Any] | None,
) -> set[str]:
    """
    The sites whose levels a guide or model has an argument for.

    :param noise: dict from site to the kernel of this step.
    :param args: positional arguments of this call.
    :param kwargs: keyword arguments of this call.
    :param functions: the guide and the model.
    :raises ValueError: if the caller gives a level too, or a site has none.
    :raises NotImplementedError: if the site shares its kernel with others.
    """
    wanted, given = set[str](), set(kwargs)
    for fn in functions:
        if fn is not None:
            wanted |= _keywords(fn)
            given |= set(positional_names(fn)[: len(args)])
    asked = set()
    for name in sorted(wanted | given):
        site = name.removesuffix(_SUFFIX)
        key = key_of(noise, site) if site != name else None
        if key is None:
            continue
        kernel = noise[key]
        if key == site and name in given and has_level(kernel):
            raise ValueError(general.at_site(site, messages.level_given(name)))
        if name in given:
            continue
        if key != site and not has_level(kernel):  # maybe there is no such site
            continue
        if key != site:
            raise NotImplementedError(general.at_site(site, messages.level_of_pattern(name, key)))
        if not has_level(kernel):
            kind = type(kernel).__name__
            raise ValueError(general.at_site(site, messages.no_level(name, kind)))
        asked.add(site)
    return asked


def refuse_asking(
    noise: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *functions: Callable[..., Any] | None,
) -> None:
    """
    Refuse a guide or model that asks for levels where nobody tells them.

    :raises NotImplementedError: naming the site.
    """
    for site in sorted(levels_asked_for(noise, args, kwargs, *functions)):
        raise NotImplementedError(general.at_site(site, messages.levels_untold(level_name(site))))


def telling(
    function: Callable[..., Any],
    levels: Mapping[str, Any],
    asks: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """
    A guide or model that is told the levels that it asks for.

    :param function: the guide or model.
    :param levels: dict from site to level.
    :param asks: the same without the handlers around it.
    """
    if not levels:
        return function
    names = _keywords(function if asks is None else asks)
    named = {level_name(site): level for site, level in levels.items()}
    told = {name: level for name, level in named.items() if name in names}
    return functools.partial(function, **told) if told else function


def level_name(site: str) -> str:
    """The name by which the level at a site is asked for."""
    return site + _SUFFIX


def _keywords(function: Callable[..., Any]) -> frozenset[str]:
    names = _known_keywords.get(function)
    if names is None:
        try:
            # The signature of a torch module's ``__call__`` tells nothing.
            parameters = inspect.signature(getattr(function, "forward", function)).parameters
        except (TypeError, ValueError):
            parameters = {}  # type: ignore[assignment]
        by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = frozenset(name for name, p in parameters.items() if p.kind in by_name)
        _known_keywords.keep(function, names)
    return names
