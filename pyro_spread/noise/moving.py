# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose scale changes from step to step of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pyro_spread._recording import number
from pyro_spread.noise.base import SpreadNoise, is_positive
from spread_core.messages import general
from spread_core.messages import moving as messages
from spread_core.noise import moving

__all__ = ["annealed"]


class _MovingNoise(SpreadNoise, moving.Moving):
    """Keeps its state in a list, which a loss and its copies share."""

    _cell: ClassVar[list[Any]]

    def _owned(self, site: str) -> Any:
        owned = super()._owned(site)
        object.__setattr__(owned, "_cell", list(getattr(self, "_cell", [self._initial])))
        return owned

    def _factor_now(self) -> Any:
        return number(self._known_factor)  # a compiled step asks for it before it runs

    def _known_factor(self) -> float:
        state = self._cell[0]
        factor = self._factor(state)
        if not is_positive(factor) or np.ndim(factor) > 0:
            text = messages.bad_factor(self._name, state, factor)
            raise ValueError(general.at_site(str(self._site), text))
        return float(factor)


@dataclass(frozen=True, eq=False)
class AnnealedNoise(moving.Annealed, _MovingNoise):
    """Noise whose scale follows a schedule."""

    kernel: SpreadNoise
    schedule: Callable[[int], Any]


def annealed(noise: SpreadNoise | Mapping[str, SpreadNoise], schedule: Callable[[int], Any]) -> Any:
    r"""
    Noise whose scale follows a schedule, counted in steps of SVI.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import GaussianNoise, SpreadELBO, annealed
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Delta(w.expand(len(x))), obs=x)
        >>> noise = annealed(GaussianNoise(1.0), lambda step: max(0.1, 0.99**step))
        >>> loss = SpreadELBO({"x": noise})
        >>> svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), loss)
        >>> svi.step(torch.randn(100)) > svi.step(torch.randn(100) / 100)
        True

    The kernel of a step is ``noise`` with its scale multiplied by ``schedule(step)``, where
    ``step`` counts the steps done before, from 0. Evaluations use the present scale and do not
    count. Compiled steps and checkpoints know the count. Values of a loss at different scales are
    different divergences: compare at one.

    :param noise: a kernel with a scale, or a dict from site to kernel; for the argument ``noise``
        of a loss.
    :param schedule: from the number of steps done to a positive number; schedules of optax are
        such functions. In NumPyro the number is traced: compute with ``jax.numpy``.
    :return: a kernel, or a dict of them, for the argument ``noise`` of a loss.
    :raises TypeError: if noise is neither or has no scale, or schedule cannot be called.
    """
    return moving.annealed_by(AnnealedNoise, noise, schedule)
