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
from spread_core.messages import moving as messages
from spread_core.noise import moving

__all__ = ["adaptive", "annealed"]


class _MovingNoise(SpreadNoise, moving.Moving):
    """Keeps its state in a list, which a loss and its copies share."""

    _cell: ClassVar[list[Any]]

    def _owned(self, site: str) -> Any:
        owned = super()._owned(site)
        object.__setattr__(owned, "_cell", list(getattr(self, "_cell", [self._initial])))
        return owned

    def kernel(self) -> SpreadNoise:
        """
        The kernel of the next step, of noise that a loss keeps: ``loss.noise["x"].kernel()``.

        :raises TypeError: of the noise that was given to the loss, which counts in a copy.
        """
        if self._site is None:
            raise TypeError(messages.kept_by_a_loss(self._name))
        made: SpreadNoise = self.inner._scaled(self._known_factor())
        return made

    def _factor_now(self) -> Any:
        return number(self._known_factor)  # a compiled step asks for it before it runs

    def _known_factor(self) -> float:
        state = self._cell[0]
        factor = self._factor(state)
        if not is_positive(factor) or np.ndim(factor) > 0:
            raise self._refused(state, factor)
        return float(factor)


@dataclass(frozen=True, eq=False)
class _AnnealedNoise(moving.Annealed, _MovingNoise):
    """Noise whose scale follows a schedule."""

    inner: SpreadNoise
    schedule: Callable[[int], Any]


@dataclass(frozen=True, eq=False)
class _AdaptiveNoise(moving.Adaptive, _MovingNoise):
    """Noise whose scale keeps the critic's accuracy at a set point."""

    inner: SpreadNoise
    accuracy: float
    speed: float
    limits: tuple[float, float]


def annealed(noise: SpreadNoise | Mapping[str, SpreadNoise], schedule: Callable[[int], Any]) -> Any:
    r"""
    Noise whose scale follows a schedule, counted in steps of SVI.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import GaussianNoise, SpreadELBO, annealed
        >>> pyro.clear_param_store()
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Delta(w.expand(len(x))), obs=x)
        >>> noise = annealed(GaussianNoise(1.0), lambda step: 0.9**step)
        >>> loss = SpreadELBO({"x": noise})
        >>> svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), loss)
        >>> losses = [svi.step(torch.zeros(100)) for _ in range(20)]
        >>> losses[0] > losses[-1]
        True

    The kernel of a step is ``noise`` with its scale multiplied by ``schedule(step)``, where
    ``step`` counts the steps done before, from 0. Evaluations use the present scale and do not
    count. Steps in ``compiled(loss)`` and checkpoints know the count; Jit ELBOs are refused. Values
    of a loss at different scales are different divergences: compare at one.

    The loss counts: make a new loss for a new run, and one for each ``SVI``. In your own loop every
    forward pass of ``loss(model, guide)`` with gradients counts.

    :param noise: a kernel with a scale, or a dict from site to kernel; for the argument ``noise``
        of a loss.
    :param schedule: from the number of steps done to a positive number; schedules of optax are
        such functions. In NumPyro the number is traced: compute with ``jax.numpy``.
    :return: a kernel, or a dict of them, for the argument ``noise`` of a loss. The kernel that it
        has become is ``loss.noise["x"].kernel()``.
    :raises TypeError: if noise is neither or has no scale, or schedule cannot be called.
    """
    return moving.annealed_by(_AnnealedNoise, noise, schedule)


def adaptive(
    noise: SpreadNoise | Mapping[str, SpreadNoise],
    accuracy: float = 0.75,
    *,
    speed: float = 0.01,
    limits: tuple[float, float] = (1e-4, 1e4),
) -> Any:
    r"""
    Noise whose scale keeps the critic's accuracy at a set point.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import AdversarialDivergence, GaussianNoise, adaptive
        >>> from pyro_spread import concat_sites, two_player
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Delta(w.expand(len(x))), obs=x)
        >>> pyro.clear_param_store()
        >>> critic = concat_sites(torch.nn.Linear(1, 1), "x")
        >>> loss = AdversarialDivergence(critic, noise={"x": adaptive(GaussianNoise(1.0))})
        >>> optim = two_player(pyro.optim.Adam({"lr": 1e-3}), pyro.optim.Adam({"lr": 2e-3}))
        >>> svi = SVI(model, lambda x: None, optim, loss)
        >>> 0 <= svi.step(torch.zeros(100)) <= 0.7
        True

    After every step of training the logarithm of the scale rises by up to ``speed`` if the critic
    was right more often than ``accuracy``, and falls if it was less often, in proportion to the
    difference. Then data and draws are never so far apart that the critic is perfect and its slope
    vanishes, nor so blurred that it sees nothing; the scale falls as the model gets better. The
    idea is that of adaptive augmentation [1]. The accuracy is that of the sign of the log-ratio,
    both sides counting alike, whatever ``pi`` is; at an exact critic it is (1 + TV) / 2 of the
    total variation of the noisy distributions. Since the scale is no longer that of a fixed
    divergence, compare models by another measure.

    A critic may ask for the present multiplier, as in ``concat_sites(net, "x", "x_level")``.
    Evaluations use the present scale and do not change it; it is in checkpoints. It is for
    :class:`AdversarialDivergence`; other losses refuse it. The loss keeps the scale: make a new
    loss for a new run, and one for each ``SVI``. In your own loop every forward pass of
    ``loss(model, guide)`` with gradients moves it.

    **References**

    [1] `Training Generative Adversarial Networks with Limited Data`, Tero Karras et al.,
    https://arxiv.org/abs/2006.06676

    :param noise: a kernel with a scale, or a dict from site to kernel; the scale that training
        begins with.
    :param accuracy: the set point, between 0.5 and 1.
    :param speed: the largest change of the logarithm of the scale in a step.
    :param limits: the least and the largest multiplier of the scale.
    :return: a kernel, or a dict of them, for the argument ``noise`` of a loss. The kernel that it
        has become is ``loss.noise["x"].kernel()``.
    :raises TypeError: if noise is neither or has no scale.
    :raises ValueError: if another argument is out of its range.
    """
    return moving.adaptive_by(_AdaptiveNoise, noise, accuracy, speed, limits)
