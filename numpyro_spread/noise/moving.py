# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose scale changes from step to step of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from numpyro.primitives import mutable

from numpyro_spread.noise.base import SpreadNoise, is_concrete, is_positive, positive_parameter
from spread_core.noise import moving

__all__ = ["adaptive", "annealed"]


class _MovingNoise(SpreadNoise, moving.Moving):
    """Keeps its state in a mutable site, which SVI carries from step to step."""

    @property
    def _state_site(self) -> str:
        return f"{self._site}${self._name}"

    def _factor_now(self) -> Any:
        return self._factor_at(mutable(self._state_site, jnp.asarray(self._initial)))

    def _factor_at(self, state: Any) -> Any:
        factor = self._factor(state)
        if jnp.ndim(factor) or (is_concrete(factor) and not is_positive(factor)):
            raise self._refused(state, factor)
        return positive_parameter(factor)

    def kernel(self, state: Any) -> SpreadNoise:
        """
        The kernel of the next step.

        :param state: that of this noise, such as ``svi_state.mutable_state["x$adaptive"]``.
        """
        made: SpreadNoise = self.inner._scaled(self._factor_at(state))
        return made


@dataclass(frozen=True, eq=False)
class _AnnealedNoise(moving.Annealed, _MovingNoise):
    """Noise whose scale follows a schedule."""

    inner: SpreadNoise
    schedule: Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class _AdaptiveNoise(moving.Adaptive, _MovingNoise):
    """Noise whose scale keeps the critic's accuracy at a set point."""

    inner: SpreadNoise
    accuracy: float
    speed: float
    limits: tuple[float, float]


def annealed(noise: SpreadNoise | Mapping[str, SpreadNoise], schedule: Callable[[Any], Any]) -> Any:
    r"""
    Noise whose scale follows a schedule, counted in steps of SVI.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import GaussianNoise, SpreadELBO, annealed
        >>> def model(x):
        ...     w = numpyro.param("w", 0.0)
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", dist.Delta(w * jnp.ones(len(x))), obs=x)
        >>> def guide(x):
        ...     pass
        >>> noise = annealed(GaussianNoise(1.0), lambda step: jnp.maximum(0.1, 0.9**step))
        >>> loss = SpreadELBO({"x": noise})
        >>> svi = SVI(model, loss.register(model, guide), numpyro.optim.Adam(1e-2), loss)
        >>> result = svi.run(jax.random.key(0), 20, jnp.zeros(100), progress_bar=False)
        >>> bool(result.losses[0] > result.losses[-1])
        True

    The kernel of a step is ``noise`` with its scale multiplied by ``schedule(step)``, where
    ``step`` counts the steps done before, from 0. Evaluations use the present scale and do not
    count. Compiled steps and checkpoints know the count. Values of a loss at different scales are
    different divergences: compare at one. ``SVI.evaluate`` hands over no count, so it is refused:
    call ``loss.loss(key, svi.get_params(state) | state.mutable_state, model, guide, x)``.

    :param noise: a kernel with a scale, or a dict from site to kernel; for the argument ``noise``
        of a loss whose guide goes through ``register``.
    :param schedule: from the number of steps done to a positive number; schedules of optax are
        such functions. In NumPyro the number is traced: compute with ``jax.numpy``.
    :return: a kernel, or a dict of them, for the argument ``noise`` of a loss. The kernel that it
        has become is ``noise.kernel(state.mutable_state["x$annealed"])`` at a state of SVI.
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

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        >>> from flax import linen
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import AdversarialDivergence, GaussianNoise, adaptive
        >>> from numpyro_spread import concat_sites
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", dist.Delta(w * jnp.ones(len(x))), obs=x)
        >>> critic = concat_sites(linen.Dense(1), "x")
        >>> loss = AdversarialDivergence(critic, noise={"x": adaptive(GaussianNoise(1.0))})
        >>> guide = loss.register(model, lambda x: None)
        >>> svi = SVI(model, guide, optax.adam(1e-3), loss)
        >>> result = svi.run(jax.random.key(0), 5, jnp.zeros(100), progress_bar=False)
        >>> list(result.state.mutable_state)
        ['x$adaptive']

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
    :class:`AdversarialDivergence`; other losses refuse it.

    **References**

    [1] `Training Generative Adversarial Networks with Limited Data`, Tero Karras et al.,
    https://arxiv.org/abs/2006.06676

    :param noise: a kernel with a scale, or a dict from site to kernel; the scale that training
        begins with.
    :param accuracy: the set point, between 0.5 and 1.
    :param speed: the largest change of the logarithm of the scale in a step.
    :param limits: the least and the largest multiplier of the scale.
    :return: a kernel, or a dict of them, for the argument ``noise`` of a loss. The kernel that it
        has become is ``noise.kernel(state.mutable_state["x$adaptive"])`` at a state of SVI.
    :raises TypeError: if noise is neither or has no scale.
    :raises ValueError: if another argument is out of its range.
    """
    return moving.adaptive_by(_AdaptiveNoise, noise, accuracy, speed, limits)
