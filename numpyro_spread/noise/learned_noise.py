# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose params are learned, by raising the divergence under a constraint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numpyro_spread.noise.base import BACKEND, SpreadNoise, is_concrete
from spread_core.messages import learned as messages
from spread_core.noise.learned import LearnedShared


class LearnedNoise(LearnedShared):
    r"""
    Noise whose covariance is learned: it raises the divergence that the model lowers.

    Its params are those of SVI at ``noise$``, the name of the site, ``$params``.
    """

    _backend = BACKEND

    def __init__(
        self, noise: SpreadNoise, constraint: str | None = None, least: float | None = None
    ) -> None:
        super().__init__(noise, constraint, least)
        fields = (getattr(noise, name, None) for name in ("scale", "factor"))
        dtype = jnp.result_type(*(value for value in fields if isinstance(value, jax.Array)))
        # NumPy's: made inside a compiled function, they would be tracers.
        self._start = {name: np.asarray(v, dtype) for name, v in self._start.items()}

    @staticmethod
    def _numbers(value: Any) -> Any:
        if value is None:
            return None
        if not is_concrete(value):
            raise ValueError(messages.unknown_numbers())
        return np.asarray(value, dtype=float)

    def init(self) -> dict[str, jax.Array]:
        """The params to start from."""
        return {name: jnp.asarray(value) for name, value in self._start.items()}

    def kernel(self, params: Mapping[str, Any]) -> SpreadNoise:
        """
        The kernel that it has become, whose numbers are constants.

        :param params: of this noise, such as ``svi.get_params(state)["noise$x$params"]``.
        """
        made: SpreadNoise = self._made(lax.stop_gradient(dict(params)), False)
        return made

    def _played(self, params: Mapping[str, Any] | None = None) -> SpreadNoise:
        """The kernel of a step, by default of the first one."""
        params = self.init() if params is None else params
        # The same numbers, with a gradient of the opposite sign: the loss is what others lower.
        played = jax.tree.map(lambda param: 2 * lax.stop_gradient(param) - param, dict(params))
        made: SpreadNoise = self._made(played, True)
        return made


def learned(
    noise: SpreadNoise, constraint: str | None = None, *, least: float | None = None
) -> LearnedNoise:
    r"""
    Noise of this kind whose covariance is learned: it raises the divergence that the model lowers.

        >>> import jax.numpy as jnp, optax
        >>> from flax import linen
        >>> from numpyro_spread import AdversarialDivergence, GaussianNoise, concat_sites, learned
        >>> from numpyro_spread import two_player
        >>> noise = learned(GaussianNoise(jnp.full(3, 0.5)), constraint="trace")
        >>> loss = AdversarialDivergence(concat_sites(linen.Dense(1)), noise={"x": noise})
        >>> optim = two_player(optax.adam(1e-3), optax.adam(2e-3), noise=optax.adam(1e-3))
        >>> noise.kernel(noise.init()).scale
        Array([0.5, 0.5, 0.5], dtype=float32)

    :param noise: the kernel to start from: ``GaussianNoise``, ``LaplaceNoise`` or ``LogisticNoise``
        with a scale for each element, or ``LowRankGaussianNoise``.
    :param constraint: ``"trace"`` for a constant sum of variances, ``"determinant"`` for a constant
        determinant of the covariance.
    :param least: the variance that every element keeps under a trace, as a share of the mean
        variance; a millionth by default.
    :return: what to put in place of a kernel in the ``noise`` of ``AdversarialDivergence`` or
        ``SpreadELBO``. Its method ``kernel`` is the kernel at some params.
    :raises TypeError: if noise is no kernel.
    :raises ValueError: if there is no constraint, or under it nothing to learn.
    :raises NotImplementedError: for other kernels.
    """
    return LearnedNoise(noise, constraint, least)
