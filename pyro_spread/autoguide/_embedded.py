# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A module of the user's in front of a data site of an amortised guide."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from spread_core.amortized.embedding import Normal, dummy, leaf_name
from spread_core.amortized.layout import Variable
from spread_core.messages import embeddings as messages
from spread_core.messages.notes import noting

_ROWS = 3


class OwnEmbedding:
    """
    The module, for every member of an ensemble. All start with the module's own params.

    :param module: takes (batch,) + shape of an element, and returns (batch, K).
    :param variable: the site.
    :param like: says type and device of the numbers.
    :raises ValueError: if it returns another shape, or elements of a batch depend on each other.
    """

    def __init__(self, module: torch.nn.Module, variable: Variable, like: torch.Tensor) -> None:
        self._site, self._module = variable.name, copy.deepcopy(module).to(like)
        for part in self._module.modules():
            if isinstance(part, _BatchNorm) or (isinstance(part, _DropoutNd) and part.p):
                raise ValueError(messages.coupled_embedding(self._site, type(part).__name__))
        x = torch.as_tensor(dummy(_ROWS, variable)).to(like)
        x += torch.linspace(-1, 1, x.numel()).to(like).reshape(x.shape)
        failed = noting(lambda: messages.embedding_failed(self._site, x.shape))
        with torch.no_grad(), torch.random.fork_rng([]), failed:
            made, again, first = map(self._module, (x, x, x[:1]))
        shape = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
        if not isinstance(made, torch.Tensor) or made.dim() != 2 or len(made) != _ROWS:
            raise ValueError(messages.embedding_shape(self._site, x.shape, shape))
        if not all(torch.allclose(made[:1], other[:1], atol=1e-4) for other in (again, first)):
            raise ValueError(messages.coupled_embedding(self._site, type(self._module).__name__))
        self.width = made.shape[1]

    def initial(self, normal: Normal, members: int, key: Any) -> dict[str, torch.Tensor]:
        """Params before any training, (M, ...) each."""
        return {
            leaf_name(self._site, path): param.detach().expand(members, *param.shape).clone()
            for path, param in self._module.named_parameters()
        }

    def __call__(self, params: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Elements as the conditionals see them, (M, rows, K)."""
        own = {
            path: params[leaf_name(self._site, path)] for path, _ in self._module.named_parameters()
        }
        members = len(next(iter(own.values()), x))
        # One by one: vmap takes no recurrent nets.
        made = [
            functional_call(self._module, {path: p[m] for path, p in own.items()}, (x[m % len(x)],))
            for m in range(members)
        ]
        return torch.stack(made)


class HasEmbeddings:
    """What a guide of Pyro does with its embeddings."""

    _empty: torch.Tensor
    initial_embedding: Any

    def initial_embeddings(self) -> dict[str, torch.Tensor]:
        """Params of the learned embeddings before any training; none without."""
        like = self._empty
        normal = functools.partial(torch.randn, dtype=like.dtype, device=like.device)
        return {
            key: torch.as_tensor(value).to(like)
            for key, value in self.initial_embedding(normal).items()
        }

    def _check_module(self, module: Any) -> None:
        if not isinstance(module, torch.nn.Module):
            raise TypeError(messages.no_embedding(module, "a torch.nn.Module"))

    def _new_embedding(self, module: Any, variable: Variable) -> OwnEmbedding:
        return OwnEmbedding(module, variable, self._empty)
