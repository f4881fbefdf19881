# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Distributions without a usable density: samplers and deterministic generators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints

from pyro_spread._recording import values_known
from spread_core.black_box import as_numbers
from spread_core.densityless import (
    DeterministicGeneratorShared,
    ImplicitShared,
    SimulatorShared,
)
from spread_core.inspection import is_inspected
from spread_core.messages import distributions


class ImplicitDistribution(ImplicitShared, TorchDistribution):
    r"""
    The distribution of ``fn(eps)`` for ``eps ~ base_dist``: it can be sampled, it has no density.

        >>> import torch, pyro.distributions as dist
        >>> base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        >>> d = ImplicitDistribution(lambda eps: eps[..., :2] ** 2, base, event_shape=(2,))
        >>> d.expand([5]).rsample((7,)).shape
        torch.Size([7, 5, 2])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        fn: Callable[[torch.Tensor], torch.Tensor],
        base_dist: TorchDistribution,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self._check(fn, base_dist, event_shape, torch.distributions.Distribution, "pyro")
        self.fn = fn
        self.base_dist = base_dist
        super().__init__(
            base_dist.batch_shape, torch.Size(event_shape), validate_args=validate_args
        )

    @constraints.dependent_property
    def support(self) -> Any:
        """All real values; fn may reach only some of them."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def has_rsample_(self, value: bool) -> ImplicitDistribution:
        """
        Return the value, or raise an error.

        :param value: whether draws are to have a gradient.
        :raises NotImplementedError: if they are not as asked: there is no density that could serve.
        """
        if bool(value) != self.has_rsample:
            raise NotImplementedError(distributions.implicit_rsample())
        return self

    def expand(
        self, batch_shape: torch.Size, _instance: ImplicitDistribution | None = None
    ) -> ImplicitDistribution:
        """The distribution over ``batch_shape`` independent draws: it is the noise that expands."""
        return ImplicitDistribution(self.fn, self.base_dist.expand(batch_shape), self.event_shape)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        """
        Reparametrised draws of shape sample + batch + event.

        :raises ValueError: if ``fn`` returns another shape.
        """
        draw = self.base_dist.rsample if self.base_dist.has_rsample else self.base_dist.sample
        sample_shape = torch.Size(sample_shape)
        value = self.fn(draw(sample_shape))
        expected = self._extended_shape(sample_shape)
        self._check_draws(value.shape, expected)
        return value

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """
        Not available. For ``pyro.infer.inspect`` the result shows what a density would depend on.

        :raises NotImplementedError: always else, naming the losses that need no density.
        """
        if is_inspected("pyro.infer.inspect"):
            with torch.random.fork_rng(devices=[]):
                draw = self.sample()
            return _depends_on(value, draw, len(self.event_shape))
        raise NotImplementedError(distributions.implicit_has_no_density())


class DeterministicGenerator(DeterministicGeneratorShared, dist.Delta):
    r"""
    The likelihood :math:`p(x \mid z) = \delta(x - g(z))` of a deterministic generator.

        >>> import torch
        >>> DeterministicGenerator(torch.zeros(5, 2), event_dim=1).batch_shape
        torch.Size([5])
    """

    def __init__(
        self, value: torch.Tensor, event_dim: int = 0, *, validate_args: bool | None = None
    ) -> None:
        super().__init__(value, event_dim=event_dim, validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size, _instance: DeterministicGenerator | None = None
    ) -> DeterministicGenerator:
        """The generator over ``batch_shape``, each element with the same output."""
        value = self.v.expand(torch.Size(batch_shape) + self.event_shape)
        return DeterministicGenerator(value, event_dim=self.event_dim)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """
        Raises an error. For ``pyro.infer.inspect`` the result shows what a density would depend on.

        :raises NotImplementedError: always else, naming the losses that can train this model.
        """
        if is_inspected("pyro.infer.inspect"):
            return _depends_on(x, self.v, self.event_dim)
        raise NotImplementedError(distributions.generator_has_no_density())


class Simulator(SimulatorShared, TorchDistribution):
    r"""
    The distribution of ``fn(rng, *arrays)``: a black box in NumPy, which can be sampled only.

        >>> import torch
        >>> def walk(rng, drift, scale):  # both of shape (n,)
        ...     steps = rng.normal(drift[:, None], scale[:, None], (len(drift), 20))
        ...     return steps.cumsum(-1)
        >>> d = Simulator(walk, torch.zeros(5), 1.0, event_shape=(20,))
        >>> d.sample((7,)).shape
        torch.Size([7, 5, 20])

    Draws have the floating type of the arguments, or the default one if all are integers, whatever
    ``fn`` returns: counts are floating too. Seeds are drawn from torch's generator, so that
    ``pyro.set_rng_seed`` repeats them. Draws lie on the device of the arguments.

    :raises NotImplementedError: when drawn, under ``torch.jit.trace``, which would keep one draw.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        fn: Callable[..., Any],
        *args: Any,
        event_shape: tuple[int, ...] | torch.Size,
        vectorized: bool = True,
        arg_event_dims: int | Sequence[int] = 0,
        validate_args: bool | None = None,
    ) -> None:
        self._box = self._make_box(fn, args, event_shape, vectorized, arg_event_dims)
        tensors = _as_tensors(args)
        batch_shape = self._box.batch_shape([tensor.shape for tensor in tensors])
        self.args = self._expanded(tensors, batch_shape)
        super().__init__(
            torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args
        )

    def _expanded(
        self, args: Sequence[torch.Tensor], batch_shape: Sequence[int]
    ) -> tuple[torch.Tensor, ...]:
        own = self._box.own_shapes([arg.shape for arg in args])
        return tuple(arg.expand((*batch_shape, *o)) for arg, o in zip(args, own, strict=True))

    @constraints.dependent_property
    def support(self) -> Any:
        """All real values; fn may reach only some of them."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: torch.Size, _instance: Simulator | None = None) -> Simulator:
        """The distribution over ``batch_shape`` independent runs."""
        new = self._get_checked_instance(Simulator, _instance)
        new._box = self._box
        new.args = self._expanded(self.args, batch_shape)
        super(Simulator, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        return new

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        """
        Draws of shape sample + batch + event, without a gradient.

        :raises TypeError: if ``fn`` does not return real numbers.
        :raises ValueError: if it returns another shape.
        """
        if not values_known():
            raise NotImplementedError(distributions.simulator_traced())
        batch_shape = (*sample_shape, *self.batch_shape)
        args = self._expanded([_widened(arg.detach()) for arg in self.args], batch_shape)
        dtype = _floating_type(args)
        seeds = torch.randint(2**32, self._box.seeds_shape(batch_shape), device="cpu")
        arrays = [arg.cpu().numpy() for arg in args]
        as_numpy = torch.empty((), dtype=dtype, device="cpu").numpy().dtype
        values = self._box.call(as_numpy, seeds.numpy(), *arrays)
        return torch.from_numpy(values).to(args[0].device)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """
        Not available. For ``pyro.infer.inspect`` the result shows what a density would depend on.

        :raises NotImplementedError: always else, naming the losses that need no density.
        """
        if is_inspected("pyro.infer.inspect"):
            ndim, event_dim = len(self.batch_shape), len(self.event_shape)
            each = [arg.flatten(ndim).sum(-1) if arg.dim() > ndim else arg for arg in self.args]
            together = torch.stack([arg.to(value.dtype) for arg in each]).sum(0)
            return _depends_on(value, together[(..., *[None] * event_dim)], event_dim)
        raise NotImplementedError(distributions.simulator_has_no_density())


def _floating_type(args: Iterable[Any]) -> torch.dtype:
    """The floating type of tensors, the default one if there is none."""
    types = {a.dtype for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()}
    return functools.reduce(torch.promote_types, types) if types else torch.get_default_dtype()


def _as_tensors(args: Sequence[Any]) -> list[torch.Tensor]:
    """Arguments of a simulator; what is no tensor gets device and floating type of those."""
    dtype, tensors = _floating_type(args), []
    device = next((arg.device for arg in args if isinstance(arg, torch.Tensor)), None)
    for number, arg in enumerate(args, 1):
        if not isinstance(arg, torch.Tensor):
            arg = torch.as_tensor(as_numbers(number, arg), device=device)
            arg = arg.to(dtype) if arg.is_floating_point() else arg
        tensors.append(arg)
    return tensors


def _widened(value: torch.Tensor) -> torch.Tensor:
    """Numbers of 16 bits as 32, since NumPy lacks one of the two types."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _depends_on(value: torch.Tensor, other: torch.Tensor, event_dim: int) -> torch.Tensor:
    """A number for every element of a batch that depends on what a density would depend on."""
    both = value - other
    return both.reshape(*both.shape[: both.dim() - event_dim], -1).sum(-1) if event_dim else both
