# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Communication between the ranks of ``DistributedDataParallel``.

DDP averages gradients over ranks. Sums over the data need no more than the right scale of their
plate. Means need the size of the whole batch, and losses that compare all pairs of samples need the
samples themselves. All communication takes place in the forward pass, so that it does not interfere
with DDP's own in the backward pass.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import TraceTailAdaptive_ELBO
from pyro.infer.elbo import ELBO, ELBOModule
from torch import distributed, nn

from pyro_spread._kinds import Part
from pyro_spread._steps import Grads, Steps, gradients, served
from spread_core.messages import compiled as compiled_messages
from spread_core.messages import ranks as rank_messages


@dataclass(frozen=True)
class Ranks:
    """
    The processes that train one model on shards of one batch.

    :param group: their process group; None for all processes.
    """

    group: Any

    @property
    def size(self) -> int:
        """World size."""
        return distributed.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return distributed.get_rank(self.group)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """All-reduce sum, elementwise; without gradient."""
        total = values.detach().clone()
        distributed.all_reduce(total, group=self.group)
        return total

    def broadcast(self, values: torch.Tensor) -> torch.Tensor:
        """Broadcast from rank 0; without gradient."""
        values = values.detach().clone().contiguous()
        # Not `group_src=0`, which torch has since 2.6 only.
        source = 0 if self.group is None else distributed.get_global_rank(self.group, 0)
        distributed.broadcast(values, source, self.group)
        return values

    def all_gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """All-gather of values of equal shape; without gradient."""
        values = values.detach().contiguous()
        gathered = [torch.empty_like(values) for _ in range(self.size)]
        distributed.all_gather(gathered, values, group=self.group)
        return gathered

    def gather_rows(self, values: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """
        All-gather of rows, in the order of ranks; only the rows of this rank have a gradient.

        :param values: the rows of this rank.
        :param sizes: how many rows each rank has.
        """
        padded = values.new_zeros((max(sizes), *values.shape[1:]))
        padded[: len(values)] = values.detach()
        parts = [part[:size] for part, size in zip(self.all_gather(padded), sizes, strict=True)]
        parts[self.rank] = values
        return torch.cat(parts)


_current: ContextVar[Ranks | None] = ContextVar("pyro_spread_ranks", default=None)


_in_module: ContextVar[bool] = ContextVar("pyro_spread_in_module", default=False)


def in_module() -> bool:
    """Whether the running loss is a :class:`LossModule`, whose params need no store."""
    return _in_module.get()


def ranks() -> Ranks | None:
    """The ranks that share the batch of the running loss; None if there is only one process."""
    return _current.get()


def num_ranks() -> int:
    """World size."""
    current = ranks()
    return 1 if current is None else current.size


def share(weights: torch.Tensor | None, like: torch.Tensor, count: int) -> torch.Tensor | float:
    """
    Factor that turns a mean over the shard into this rank's part of the mean over the batch.

    The average over ranks of the products is the mean over the whole batch, also where shards are
    of unequal sizes or masked unequally.

    :param weights: of the shard's samples, or None.
    :param like: a tensor of the type and on the device of the loss.
    :param count: number of samples in the shard.
    """
    current = ranks()
    if current is None:
        return 1.0
    if weights is None:
        own = torch.tensor(float(count), dtype=like.dtype, device=like.device)
    else:
        own = weights.detach().sum().to(like)
    return own * current.size / current.sum(own)


def broadcast_from_first(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """
    Broadcast a draw from rank 0, so that all ranks use the same.

    :param value: a draw.
    :param like: a tensor on the device of the loss.
    """
    current = ranks()
    return value if current is None else current.broadcast(value.to(like.device))


def all_gather_rows(
    samples: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    The samples of all ranks and their weights; only this rank's own have a gradient.

    :param samples: of shape (number, features).
    :param weights: of shape (number,), or None.
    """
    current = ranks()
    if current is None:
        return samples, weights
    about = [len(samples), weights is not None]
    told = current.all_gather(torch.tensor(about, device=samples.device))
    sizes = [int(size) for size, _ in told]
    if weights is None and any(bool(weighted) for _, weighted in told):
        weights = samples.new_ones(len(samples))
    rows = current.gather_rows(samples, sizes)
    return rows, None if weights is None else current.gather_rows(weights, sizes)


def whole_gradient(loss: torch.Tensor) -> torch.Tensor:
    """
    Scale the gradient of a loss over all samples, of which each rank has only its own part.

    :param loss: the same on all ranks.
    """
    current = ranks()
    # DDP takes the mean of the ranks' gradients, where here the whole is their sum.
    return loss if current is None else loss + (current.size - 1) * (loss - loss.detach())


class LossModule(ELBOModule):
    """
    A loss with its model and guide as one ``nn.Module``.

    In a process group its forward pass is that of one rank of ``DistributedDataParallel``, which
    trains on a shard of the batch. Without gradients there is no communication, so one rank may
    evaluate alone.
    """

    _compared_noise = False
    _steps: Steps | None = None

    def compile(self, **options: Any) -> None:
        """
        Trace the loss once for arguments of each kind, compile it, and run it without Python.

        :param options: those of ``torch.compile``.
        """
        self._steps = Steps(options)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss, to be differentiated."""
        if self._steps is None:
            return self._loss(*args, **kwargs)
        if _has_several(getattr(self.elbo, "process_group", None)):
            raise NotImplementedError(compiled_messages.several_ranks())

        def step(wanted: list[torch.Tensor], args: Any, kwargs: Any) -> tuple[torch.Tensor, Grads]:
            return gradients(torch.as_tensor(self._loss(*args, **kwargs)), wanted)

        found = self._steps(step, self._params, self.elbo, (args, kwargs))
        if found is None:
            with self._steps.watch():
                loss = self._loss(*args, **kwargs)
            self._steps.add(self)
            self._steps.see(self._params, self.elbo, (args, kwargs))
            return loss
        return served(*found) if torch.is_grad_enabled() else found[0]

    def _params(self) -> tuple[list[torch.Tensor], list[Part]]:
        return list(self.parameters()), []

    def _loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        token = _in_module.set(True)
        try:
            with self._as_rank():
                return super().forward(*args, **kwargs)
        finally:
            _in_module.reset(token)

    @contextmanager
    def _as_rank(self) -> Iterator[None]:
        group = getattr(self.elbo, "process_group", None)
        if not torch.is_grad_enabled() or not _has_several(group):
            yield
            return
        for net in ("discriminator", "head"):
            _check_batch_norm(net, getattr(self, net, None))
        current = Ranks(group)
        if not self._compared_noise:
            self._compared_noise = True
            _compare_noise(current, next(self.parameters(), torch.zeros(())).device)
        token = _current.set(current)
        try:
            yield
        finally:
            _current.reset(token)


def _has_several(group: Any) -> bool:
    known = distributed.is_available() and distributed.is_initialized()
    return known and distributed.get_world_size(group) > 1


def _check_batch_norm(net: str, module: nn.Module | None) -> None:
    for name, layer in [] if module is None else module.named_modules(prefix=net):
        if isinstance(layer, nn.SyncBatchNorm) or not layer.training:
            continue
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ValueError(rank_messages.local_batch_norm(name, type(layer).__name__))


def _compare_noise(current: Ranks, device: torch.device) -> None:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    digest = hashlib.sha256(b"".join(state.numpy().tobytes() for state in states)).digest()
    own = torch.tensor(int.from_bytes(digest[:7], "big"), device=device)
    told = [int(other) for other in current.all_gather(own)]
    if len(set(told)) < len(told):
        same = [rank for rank, other in enumerate(told) if told.count(other) > 1]
        warnings.warn(rank_messages.equal_noise(same), UserWarning, stacklevel=2)


def check_separable(elbo: ELBO) -> None:
    """
    Refuse a stock ELBO that is not a sum over shards of the data, if there are several.

    :raises NotImplementedError: saying why.
    """
    if ranks() is not None and isinstance(elbo, TraceTailAdaptive_ELBO):
        raise NotImplementedError(rank_messages.coupled_elbo(type(elbo).__name__))


def check_traces(traces: Iterable[Any]) -> None:
    """
    Refuse sums over a global latent that a stock ELBO carries out, if there are several ranks.

    :param traces: of model and guide.
    :raises NotImplementedError: naming the site.
    """
    if ranks() is None:
        return
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or site["infer"].get("_enumerate_dim") is None:
                continue
            if not any(frame.vectorized for frame in site["cond_indep_stack"]):
                raise NotImplementedError(rank_messages.enumerated_globally(name))
