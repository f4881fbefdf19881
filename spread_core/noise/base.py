# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Base class of the noise kernels: the call, and the recursion of ``spread`` through wrappers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from spread_core.messages import general, learned, moving, spreading
from spread_core.messages import noise as noise_messages
from spread_core.noise.learnable import Learnable
from spread_core.shared_docs import SharedDocs
from spread_core.typing import Args, Kwargs

ValueT = TypeVar("ValueT")
ArrayT = TypeVar("ArrayT")
DistributionT = TypeVar("DistributionT")

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Backend:
    """
    What the kernels need to know of the arrays and distributions of a backend.

    :param as_array: the array of a value or parameter.
    :param widened: the array of a value, in float32 if it is in 16 bits.
    :param as_parameter: a parameter as a kernel keeps it: a Python float, whose type follows x, or
        an array of a floating type.
    :param as_positive: a parameter that must be positive; NaN where only a compiled step shows that
        it is not.
    :param known: the numbers of a parameter as a NumPy array; None where they are not known yet.
    :param type_of: the type of a value, and whether it is "floating", "integer" or "other".
    :param range_of: the least and the largest label; None if they are not known or there are none.
    :param identity: the identity matrix of a size.
    :param distribution: base class of all distributions.
    :param independent: takes batch dims for event dims.
    :param delta: all mass on one value.
    :param masked: leaves some elements out of the score.
    :param expanded: repeats a distribution over a batch.
    :param mask_of: the mask of a masked distribution.
    :param expanded_inside: an expanded distribution as one whose parameters are expanded; None
        where that cannot be done.
    """

    as_array: Callable[[Any], Any]
    widened: Callable[[Any], Any]
    as_parameter: Callable[[Any], Any]
    as_positive: Callable[[Any], Any]
    known: Callable[[Any], Any]
    type_of: Callable[[Any], tuple[Any, str]]
    range_of: Callable[[Any], tuple[Any, Any] | None]
    identity: Callable[[int], Any]
    distribution: Any
    independent: Any
    delta: Any
    masked: Any
    expanded: Any
    mask_of: Callable[[Any], Any]
    expanded_inside: Callable[[Any], Any]

    def is_positive(self, value: Any) -> bool:
        """
        Whether every element is a positive, finite number (NaN is not); True where it is unknown.

        :param value: anything.
        """
        try:
            known = self.known(value)
            array = np.asarray(1.0 if known is None else known, dtype=float)
        except (TypeError, ValueError, RuntimeError):  # not a number at all
            return False
        return bool(np.all((array > 0) & np.isfinite(array)))

    def is_kernel(self, value: Any) -> bool:
        """Whether a value is a kernel of this backend."""
        return isinstance(value, Kernel) and value._backend is self

    def check_noise(self, noise: Any, is_played: bool = False) -> dict[str, Any]:
        """
        A copy of ``noise`` if it is a dict from site names to kernels.

        :param noise: the argument of a handler or loss.
        :param is_played: whether the loss knows what learned noise has to do.
        :raises TypeError: if it is not.
        :raises NotImplementedError: if there is learned noise for which nobody knows it.
        """
        if not isinstance(noise, Mapping) or not noise:
            raise TypeError(spreading.bad_noise_argument(noise))
        seen: dict[int, str] = {}
        for site, kernel in noise.items():
            if not isinstance(site, str):
                raise TypeError(spreading.bad_noise_argument(noise))
            if isinstance(kernel, Learnable):
                if not is_played:
                    raise NotImplementedError(general.at_site(site, learned.learned_elsewhere()))
                for part in (kernel, *kernel._nets()):
                    if seen.setdefault(id(part), site) != site:
                        raise ValueError(learned.one_object_twice(seen[id(part)], site))
            elif not self.is_kernel(kernel):
                raise TypeError(general.at_site(site, noise_messages.not_a_kernel(kernel)))
        return dict(noise)

    def as_noise(self, noise: Any, is_played: bool = False, adapts: bool = False) -> Any:
        """
        ``noise`` as a loss keeps it: a checked dict, empty for None, or the callable.

        :param noise: the argument of a loss.
        :param is_played: whether the loss knows what learned noise has to do.
        :param adapts: whether it tells the accuracy of a critic to noise that asks for it.
        :raises TypeError: if it is none of these, or asks in vain.
        """
        if noise is None:
            return {}
        # Kernels are callable too, and so are modules.
        if callable(noise) and not (self.is_kernel(noise) or isinstance(noise, Learnable)):
            return noise
        kernels = self.check_noise(noise, is_played)
        for site, kernel in kernels.items():
            if isinstance(kernel, Learnable):
                continue
            if kernel._needs_critic and not adapts:
                raise TypeError(general.at_site(site, moving.no_critic()))
            kernels[site] = kernel._owned(site)
        return kernels

    def kernels_of(self, noise: Any, args: Args, kwargs: Kwargs) -> dict[str, Any]:
        """
        The kernels of this step.

        :param noise: what :meth:`as_noise` returned.
        :param args: arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        kernels = self.check_noise(noise(*args, **kwargs)) if callable(noise) else noise
        return {
            site: kernel._played() if isinstance(kernel, Learnable) else kernel._now()
            for site, kernel in kernels.items()
        }


def broadcast(*shapes: Sequence[int]) -> Shape | None:
    """
    The shape that arrays of these shapes broadcast to, or None if they do not.

    :param shapes: of the arrays; torch.jit traces their sizes, which NumPy could not read.
    """
    rank = max(map(len, shapes), default=0)
    full = [1] * rank
    for shape in shapes:
        for dim, size in enumerate(shape, start=rank - len(shape)):
            if size != 1 and full[dim] not in (1, size):
                return None
            full[dim] = max(size, full[dim]) if size else 0
    return tuple(full)


class Kernel(SharedDocs, Generic[ValueT, ArrayT, DistributionT]):
    r"""
    A noise kernel :math:`k(y \mid x)`, a small immutable object.

    Passing data :math:`p` and model :math:`q` through the same kernel gives
    :math:`\tilde p(y) = \int k(y \mid x)\, p(x)\, dx` and :math:`\tilde q` alike, and
    :math:`\mathrm{KL}[\tilde p \,\|\, \tilde q] = 0` if and only if :math:`p = q`, provided that
    the map from :math:`p` to :math:`\tilde p` is invertible [1, section 2]. Every kernel of this
    module is, and refuses parameters for which it would not be. In NumPyro a kernel is a JAX
    pytree: values are checked where they are concrete; where those of tracers, as of a scale that
    is learned, turn out to be wrong, results are NaN.

    To write your own kernel, derive a frozen dataclass whose fields are its parameters and
    implement :meth:`conditional`. Make sure that it is valid: a stationary kernel is valid if its
    :meth:`characteristic_function` has no zeros.

    **References**

    [1] `Spread Divergence`, Mingtian Zhang, Peter Hayes, Tom Bird, Raza Habib, David Barber,
    https://arxiv.org/abs/1811.08968
    """

    #: Number of rightmost dimensions of x that the kernel couples; 0 if it acts element by element.
    coupled_dims: int = 0

    #: Whether its params are learned noise, whose gradient the loss knows to use.
    _is_played: bool = False

    _backend: ClassVar[Backend]

    def __call__(self, x: ValueT, event_dim: int = 0) -> DistributionT:
        """
        The distribution of y given x.

        :param x: values of the site, of shape batch + event.
        :param event_dim: number of event dimensions of the site of x.
        :return: a distribution over y with the same batch and event shape, in float32 if x is in 16
            bits.
        :raises TypeError: if x has an integer type under a continuous kernel, or the reverse.
        :raises ValueError: if the event shape does not fit the kernel.
        """
        self.check_value(x)
        array = self._backend.widened(x)
        if not 0 <= event_dim <= array.ndim:
            raise ValueError(noise_messages.event_dim_too_large(repr(self), event_dim, array.ndim))
        if event_dim < self.coupled_dims:
            name = type(self).__name__
            raise ValueError(noise_messages.event_dim_too_small(name, self.coupled_dims, event_dim))
        return self._conditional(array, event_dim)

    def spread(self, distribution: DistributionT) -> DistributionT:
        r"""
        The exact distribution of y when x follows ``distribution``.

        :param distribution: ``Delta`` under every kernel; ``Normal`` and ``MultivariateNormal``
            under the Gaussian kernels; ``Categorical`` under a channel; mixtures of these; all also
            inside ``Independent`` and masked or expanded distributions.
        :return: :math:`\int k(y \mid x)\, p(x)\, dx`, of the same batch and event shape.
        :raises NotImplementedError: for every other distribution, naming the pair and what to do.
        """
        fn: Any = distribution
        if not isinstance(fn, self._backend.distribution):
            names = type(self).__name__, type(fn).__name__
            raise NotImplementedError(noise_messages.no_spread_rule(*names))
        self._check_site((*fn.batch_shape, *fn.event_shape), len(fn.event_shape))
        return self._spread(fn, 0)

    def characteristic_function(self, omega: ValueT) -> ArrayT:
        r"""
        :math:`E\, e^{i \omega (y - x)}` of a stationary kernel: real, and nowhere zero.

        :param omega: frequencies, in radians per unit of x.
        :raises NotImplementedError: for kernels that are not stationary.
        """
        raise NotImplementedError(noise_messages.no_characteristic_function(type(self).__name__))

    def check_value(self, x: ValueT) -> None:
        """
        Refuse values of the wrong type.

        :raises TypeError: if x is not of a floating type.
        """
        dtype, kind = self._backend.type_of(x)
        if kind != "floating":
            raise TypeError(noise_messages.integer_under_continuous(type(self).__name__, dtype))

    def conditional(self, x: ArrayT, event_dim: int) -> DistributionT:
        """
        The distribution of y given x; implement this method in your own kernel.

        The rest of the class calls it with values whose type and dims are checked. To get the
        distribution from a kernel, call the kernel.

        :param x: values of the site, of shape batch + event.
        :param event_dim: number of event dimensions of the site of x.
        :return: a distribution over y with the same batch shape and number of event dims.
        :raises NotImplementedError: if the class does not implement it.
        """
        # The kernels of the package implement the method below instead.
        if type(self)._conditional is Kernel._conditional:
            raise NotImplementedError(noise_messages.no_conditional(type(self).__name__))
        return self._conditional(x, event_dim)

    def _conditional(
        self, x: ArrayT, event_dim: int, validate_args: bool | None = None
    ) -> DistributionT:
        """The distribution of y given x; ``draw`` has no use for its validation."""
        return self.conditional(x, event_dim)

    @classmethod
    def _fields(cls) -> list[str]:
        # Asked for late: the dataclass decorator runs after a class has been made.
        return [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    def _check_drawn(self, shape: Sequence[int]) -> None:
        """Refuse to draw noise for values of ``shape`` that the parameters would widen."""

    def _check_site(self, shape: Sequence[int], event_dim: int) -> None:
        """Refuse to spread a distribution of ``shape`` that the parameters would widen."""

    def _coupled_dims_of(self, x: Any) -> int:
        """The smallest ``event_dim`` with which ``x`` can be noised."""
        return self.coupled_dims

    def _moves_with_data(self) -> bool:
        """Whether every element is noised alike, so that it does not matter where it stands."""
        return False

    def _placed_dims(self, event_dim: int) -> int:
        """Number of rightmost dims within which elements must keep their places."""
        return max(event_dim, 1)

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        """Whether noise on values of shape ``drawn`` is that of a site that scores ``scored``."""
        placed = 0 if self._moves_with_data() else self._placed_dims(event_dim)
        return placed == 0 or tuple(drawn[-placed:]) == tuple(scored[-placed:])

    def _for_components(self, event_dim: int) -> Any:
        """The kernel for the components of a mixture, with a dimension left of the event dims."""
        return self

    def _mixes_elements(self) -> bool:
        """Whether an element of y depends on other elements of x."""
        return False

    #: Whether a loss has to tell how often its critic is right.
    _needs_critic: ClassVar[bool] = False
    #: What the scale was multiplied by at this step; None if it does not change.
    _moved_by: ClassVar[Any] = None

    def _owned(self, site: str) -> Any:
        """The kernel that a loss keeps for a site."""
        return self

    def _now(self) -> Any:
        """The kernel at the step that is being computed."""
        return self

    def _is_elementwise(self) -> bool:
        """Whether elements of y are independent given x."""
        return self.coupled_dims == 0

    def _is_stationary(self) -> bool:
        """Whether y - x does not depend on x and has a scale."""
        return False

    def _changed(self, **fields: Any) -> Any:
        """A copy with other values, which are known to be right."""
        changed = copy.copy(self)
        for name, value in fields.items():
            object.__setattr__(changed, name, value)
        return changed

    def _scaled(self, factor: Any) -> Any:
        """
        The kernel with its scale multiplied by a positive number.

        :raises TypeError: if it has none.
        """
        raise TypeError(noise_messages.no_scale(type(self).__name__))

    def _at_events(self, event_dim: int) -> Any:
        """The kernel for draws at a site with that many event dims."""
        return self

    def _spread_exactly(self, fn: Any, extra: int) -> Any:
        """The spread of ``fn.to_event(extra)`` where this kernel has a closed form, else None."""
        return None

    def _spread_delta(self, fn: Any, extra: int) -> Any:
        raise NotImplementedError

    def _spread_mixture(self, fn: Any) -> Any:
        """The spread of a mixture, component by component; None for anything else."""
        raise NotImplementedError

    def _spread(self, fn: Any, extra: int) -> Any:
        """The spread of ``fn.to_event(extra)``."""
        # A kernel that couples dimensions must see them all, so the event dims of the wrappers
        # around a distribution are carried inwards as ``extra`` instead of being put back outside.
        backend = self._backend
        if isinstance(fn, backend.independent):
            return self._spread(fn.base_dist, extra + fn.reinterpreted_batch_ndims)
        if isinstance(fn, backend.delta):
            return self._spread_delta(fn, extra)
        separable = extra == 0 or self._is_elementwise()
        if isinstance(fn, backend.masked):
            mask = backend.mask_of(fn)
            if isinstance(mask, bool):
                return self._spread(fn.base_dist, extra).mask(mask)
            if separable:
                return self._spread(fn.base_dist, 0).mask(mask).to_event(extra)
        if isinstance(fn, backend.expanded):
            if separable:
                return self._spread(fn.base_dist, 0).expand(fn.batch_shape).to_event(extra)
            inner = backend.expanded_inside(fn)
            if inner is not None:
                return self._spread(inner, extra)
        exact = self._spread_exactly(fn, extra)
        if exact is not None:
            return exact
        if separable:
            mixture = self._spread_mixture(fn)
            if mixture is not None:
                return mixture.to_event(extra)
        name = type(fn).__name__
        known_as = name if separable else f"Independent({name}, {extra})"
        raise NotImplementedError(noise_messages.no_spread_rule(type(self).__name__, known_as))
