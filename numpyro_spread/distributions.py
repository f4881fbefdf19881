# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Distributions without a usable density: samplers and deterministic generators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.tree_util import Partial
from jax.typing import ArrayLike
from numpyro.distributions import Delta, Distribution, constraints
from numpyro.distributions.batch_util import promote_batch_shape

from numpyro_spread._gradients import refuse_gradient
from numpyro_spread._pytree import widened
from numpyro_spread.noise.base import is_concrete
from spread_core.black_box import Typed, as_numbers
from spread_core.densityless import (
    DeterministicGeneratorShared,
    ImplicitShared,
    SimulatorShared,
)
from spread_core.inspection import is_inspected
from spread_core.messages import distributions


def _as_pytree(fn: Callable[..., Any]) -> Any:
    """``fn`` as a callable pytree, so that the arrays it carries cross jit and vmap."""
    if isinstance(fn, Partial):
        return fn
    if isinstance(fn, functools.partial):
        # This is what flax_module and its kin return, with the params among its arguments.
        return Partial(fn.func, *fn.args, **fn.keywords)
    if not jax.tree_util.all_leaves([fn]):
        return fn  # a module that is a pytree itself, as in equinox
    return Partial(fn)


class ImplicitDistribution(ImplicitShared, Distribution):
    r"""
    The distribution of ``fn(eps)`` for ``eps ~ base_dist``: it can be sampled, it has no density.

    It is a pytree: arrays that ``fn`` needs cross jit, vmap and scan as arguments of a
    :class:`jax.tree_util.Partial` (a plain ``functools.partial`` is converted); those that it
    closes over do not.

        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> base = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
        >>> d = ImplicitDistribution(lambda eps: eps[..., :2] ** 2, base, event_shape=(2,))
        >>> d.expand([5]).sample(jax.random.key(0), (7,)).shape
        (7, 5, 2)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    pytree_data_fields = ("fn", "base_dist")
    pytree_aux_fields = ("_ndims",)

    def __init__(
        self,
        fn: Callable[[jax.Array], jax.Array],
        base_dist: Distribution,
        event_shape: Sequence[int],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self._check(fn, base_dist, event_shape, Distribution, "numpyro")
        self.fn = _as_pytree(fn)
        self.base_dist = base_dist
        # The dims that vmap and scan put in front of the arrays follow from the dims they had
        # before.
        self._ndims = tuple(np.ndim(leaf) for leaf in jax.tree.leaves((self.fn, base_dist)))
        super().__init__(base_dist.batch_shape, tuple(event_shape), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """All real values, since ``SVI.init`` needs a support; fn may reach only some of them."""
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Sequence[int]) -> ImplicitDistribution:
        """The distribution over ``batch_shape`` independent draws: it is the noise that expands."""
        if tuple(batch_shape) == self.batch_shape:
            return self
        return ImplicitDistribution(self.fn, self.base_dist.expand(batch_shape), self.event_shape)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> ImplicitDistribution:
        """The distribution whose last batch dims count as event dims: those of the noise do."""
        count = len(self.batch_shape)
        if reinterpreted_batch_ndims is not None:
            count = reinterpreted_batch_ndims
        if count == 0:
            return self
        event_shape = (*self.batch_shape[len(self.batch_shape) - count :], *self.event_shape)
        return ImplicitDistribution(self.fn, self.base_dist.to_event(count), event_shape)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """
        Draws of shape sample + batch + event, reparametrised if those of ``base_dist`` are; in
        float32 if ``fn`` returns 16 bits.

        :raises ValueError: if ``fn`` returns another shape.
        """
        value = widened(self.fn(self.base_dist.sample(key, sample_shape)))
        expected = self.shape(sample_shape)
        self._check_draws(jnp.shape(value), expected)
        return value

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> ArrayLike:
        """
        Not available. For ``numpyro.infer.inspect`` the result shows what a density would depend
        on.

        :raises NotImplementedError: always else, naming the losses that need no density.
        """
        if is_inspected("numpyro.infer.inspect"):
            return _depends_on(value, self.sample(random.key(0)), self.event_dim)
        raise NotImplementedError(distributions.implicit_has_no_density())


@promote_batch_shape.register
def _promote_implicit(d: ImplicitDistribution) -> ImplicitDistribution:
    """A batch of distributions, where ``vmap`` or scan has stacked the arrays of one."""
    leaves = jax.tree.leaves((d.fn, d.base_dist))
    grown = [np.ndim(leaf) - ndim for leaf, ndim in zip(leaves, d._ndims, strict=True)]
    count = max(grown, default=0)
    if count <= 0:
        return d
    if set(grown) - {0, count}:
        raise ValueError(
            "ImplicitDistribution: its arrays went through different numbers of vmap. Call "
            "promote_batch_shape after each."
        )
    sizes = next(jnp.shape(leaf) for leaf, n in zip(leaves, grown, strict=True) if n)[:count]
    mapped = tuple(n > 0 for n in grown)
    split = len(jax.tree.leaves(d.fn))
    fn, base = d.fn, d.base_dist
    for size in reversed(sizes):
        noise_ndim = len(base.batch_shape) + len(base.event_shape)
        fn = _Stacked(fn, mapped[:split], noise_ndim)
        base = _SideBySide(base, mapped[split:], size)
    return ImplicitDistribution(fn, base, d.event_shape)


def _axes(tree: Any, mapped: Sequence[bool]) -> Any:
    """For ``vmap``: which of a tree's arrays have a dim in front."""
    return jax.tree.unflatten(jax.tree.structure(tree), [0 if each else None for each in mapped])


@jax.tree_util.register_pytree_node_class
class _Stacked:
    """
    Functions side by side, each of which gets noise of its own.

    :param fn: a function whose arrays have a dim in front.
    :param mapped: which of them have; the others belong to all.
    :param noise_ndim: dims of the noise of one.
    """

    def __init__(self, fn: Callable[..., Any], mapped: tuple[bool, ...], noise_ndim: int) -> None:
        self.fn, self.mapped, self.noise_ndim = fn, mapped, noise_ndim

    def __call__(self, noise: jax.Array) -> jax.Array:
        axis = noise.ndim - self.noise_ndim - 1
        axes = (_axes(self.fn, self.mapped), axis)
        value = jax.vmap(lambda fn, eps: fn(eps), axes)(self.fn, noise)
        return jnp.moveaxis(value, 0, min(axis, value.ndim - 1))

    def tree_flatten(self) -> tuple[tuple[Any], Any]:
        """Into the function; the rest is static."""
        return (self.fn,), (self.mapped, self.noise_ndim)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> _Stacked:
        """The functions side by side."""
        return cls(children[0], *static)


class _SideBySide(Distribution):
    """
    Distributions side by side, each with draws of its own.

    :param each: a distribution whose arrays have a dim in front.
    :param mapped: which of them have; the others belong to all.
    :param size: their number, the leftmost batch dim.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    pytree_data_fields = ("each",)
    pytree_aux_fields = ("mapped",)

    def __init__(self, each: Distribution, mapped: tuple[bool, ...], size: int) -> None:
        self.each, self.mapped = each, mapped
        super().__init__((size, *each.batch_shape), each.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Support of each distribution."""
        return self.each.support

    @property
    def has_rsample(self) -> bool:
        """Whether draws are differentiable."""
        return bool(self.each.has_rsample)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws of shape sample + (size,) + batch + event."""
        assert key is not None
        keys = random.split(key, self.batch_shape[0])
        draw = jax.vmap(
            lambda each, key: each.sample(key, sample_shape), (_axes(self.each, self.mapped), 0)
        )
        return jnp.moveaxis(draw(self.each, keys), 0, len(sample_shape))


class DeterministicGenerator(DeterministicGeneratorShared, Delta):
    r"""
    The likelihood :math:`p(x \mid z) = \delta(x - g(z))` of a deterministic generator.

        >>> import jax.numpy as jnp
        >>> DeterministicGenerator(jnp.zeros((5, 2)), event_dim=1).batch_shape
        (5,)
    """

    def __init__(
        self, value: ArrayLike, event_dim: int = 0, *, validate_args: bool | None = None
    ) -> None:
        super().__init__(value, event_dim=event_dim, validate_args=validate_args)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> DeterministicGenerator:
        """The generator whose last batch dims count as event dims."""
        count = len(self.batch_shape)
        if reinterpreted_batch_ndims is not None:
            count = reinterpreted_batch_ndims
        return DeterministicGenerator(self.v, self.event_dim + count) if count else self

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> ArrayLike:
        """
        Raises an error. For ``numpyro.infer.inspect`` the result shows what a density would depend
        on.

        :raises NotImplementedError: always else, naming the losses that can train this model.
        """
        if is_inspected("numpyro.infer.inspect"):
            return _depends_on(value, self.v, self.event_dim)
        raise NotImplementedError(distributions.generator_has_no_density())


class Simulator(SimulatorShared, Distribution):
    r"""
    The distribution of ``fn(rng, *arrays)``: a black box in NumPy, which can be sampled only.

        >>> import jax, jax.numpy as jnp
        >>> def walk(rng, drift, scale):  # both of shape (n,)
        ...     steps = rng.normal(drift[:, None], scale[:, None], (len(drift), 20))
        ...     return steps.cumsum(-1)
        >>> d = Simulator(walk, jnp.zeros(5), 1.0, event_shape=(20,))
        >>> d.sample(jax.random.key(0), (7,)).shape
        (7, 5, 20)

    Draws have the floating type of the arguments, or the default one if all are integers, whatever
    ``fn`` returns: counts are floating too. Seeds are made from the site's key. ``fn`` is called
    through :func:`jax.pure_callback`, under jit and in scan too, and all runs of a ``vmap`` are one
    call. It must not use JAX itself. For an error in ``fn`` JAX raises one of its own type under
    jit, with type and message of the error in its text.

    It is a pytree, whose children are the arguments: they cross jit, vmap and scan.

    :raises NotImplementedError: if a draw is differentiated in the arguments.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    pytree_data_fields = ("args",)
    pytree_aux_fields = ("_box",)

    def __init__(
        self,
        fn: Callable[..., Any],
        *args: Any,
        event_shape: Sequence[int],
        vectorized: bool = True,
        arg_event_dims: int | Sequence[int] = 0,
        validate_args: bool | None = None,
    ) -> None:
        self._box = self._make_box(fn, args, event_shape, vectorized, arg_event_dims)
        arrays = _as_arrays(args)
        batch_shape = self._box.batch_shape([array.shape for array in arrays])
        self.args = self._expanded(arrays, batch_shape)
        super().__init__(batch_shape, self._box.event_shape, validate_args=validate_args)

    def _expanded(
        self, args: Sequence[jax.Array], batch_shape: Sequence[int]
    ) -> tuple[jax.Array, ...]:
        own = self._box.own_shapes([arg.shape for arg in args])
        shapes = [(*batch_shape, *each) for each in own]
        return tuple(jnp.broadcast_to(*pair) for pair in zip(args, shapes, strict=True))

    @property
    def has_rsample(self) -> bool:
        """No: a black box passes on no gradient."""
        return False

    @property
    def support(self) -> constraints.Constraint:
        """All real values, since ``SVI.init`` needs a support; fn may reach only some of them."""
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Sequence[int]) -> Simulator:
        """The distribution over ``batch_shape`` independent runs."""
        if tuple(batch_shape) == self.batch_shape:
            return self
        return self._over(self.args, batch_shape)

    def _over(self, args: Sequence[jax.Array], batch_shape: Sequence[int]) -> Simulator:
        box = self._box
        return Simulator(
            box.fn,
            *self._expanded(args, batch_shape),
            event_shape=box.event_shape,
            vectorized=box.vectorized,
            arg_event_dims=box.event_dims,
        )

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """
        Draws of shape sample + batch + event, without a gradient.

        :raises TypeError: if ``fn`` does not return real numbers.
        :raises ValueError: if it returns another shape.
        """
        assert key is not None
        batch_shape = (*sample_shape, *self.batch_shape)
        args = self._expanded([widened(arg) for arg in self.args], batch_shape)
        dtype = _floating_type(args)
        run = Typed(self._box, np.dtype(dtype))
        seeds = random.bits(key, self._box.seeds_shape(batch_shape), jnp.uint32)
        if is_concrete(seeds, *args):
            return jnp.asarray(run(seeds, *args))  # errors of fn keep their type
        shape = jax.ShapeDtypeStruct((*batch_shape, *self.event_shape), dtype)
        error = NotImplementedError(distributions.simulator_has_no_gradient())
        args = refuse_gradient(args, error)
        return jax.pure_callback(run, shape, seeds, *args, vmap_method="broadcast_all")

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> ArrayLike:
        """
        Not available. For ``numpyro.infer.inspect`` the result shows what a density would depend
        on.

        :raises NotImplementedError: always else, naming the losses that need no density.
        """
        if is_inspected("numpyro.infer.inspect"):
            ndim = len(self.batch_shape)
            each = [arg.sum(tuple(range(ndim, arg.ndim))) for arg in self.args]
            together = jnp.stack([arg.astype(jnp.result_type(float)) for arg in each]).sum(0)
            ones = (1,) * self.event_dim
            return _depends_on(value, together.reshape(*together.shape, *ones), self.event_dim)
        raise NotImplementedError(distributions.simulator_has_no_density())


@promote_batch_shape.register
def _promote_simulator(d: Simulator) -> Simulator:
    """A batch of distributions, where ``vmap`` or scan has stacked the arrays of one."""
    batch_shape = d._box.batch_shape([jnp.shape(arg) for arg in d.args])
    return d if batch_shape == d.batch_shape else d._over(d.args, batch_shape)


def _floating_type(args: Iterable[Any]) -> Any:
    """The floating type of arrays, the default one if there is none."""
    types = [arg.dtype for arg in args if isinstance(arg, jax.Array)]
    floating = [each for each in types if jnp.issubdtype(each, jnp.floating)]
    return jnp.result_type(*floating) if floating else jnp.result_type(float)


def _as_arrays(args: Sequence[Any]) -> list[jax.Array]:
    """Arguments of a simulator; what is floating and no array of JAX gets the type of those."""
    dtype, arrays = _floating_type(args), []
    for number, arg in enumerate(args, 1):
        if not isinstance(arg, jax.Array):
            array = as_numbers(number, arg)
            arg = jnp.asarray(array, dtype if array.dtype.kind == "f" else None)
        elif jnp.issubdtype(arg.dtype, jax.dtypes.extended):  # random keys
            raise TypeError(distributions.simulator_arg(number, arg))
        arrays.append(arg)
    return arrays


def _depends_on(value: ArrayLike, other: ArrayLike, event_dim: int) -> jax.Array:
    """A number for every element of a batch that depends on what a density would depend on."""
    both = jnp.asarray(value) - other
    return both.sum(tuple(range(both.ndim - event_dim, both.ndim)))
