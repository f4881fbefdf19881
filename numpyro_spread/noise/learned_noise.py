# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose params are learned, by raising the divergence under a constraint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.tree_util import Partial

from numpyro_spread.noise.base import BACKEND, SpreadNoise, is_concrete
from numpyro_spread.noise.residual import chain_of, is_dense, layers_of, round_mean
from spread_core.messages import learned as messages
from spread_core.noise.learned import Layer, LearnedShared, Params
from spread_core.noise.residual import Weights


class LearnedNoise(LearnedShared):
    r"""
    Noise whose params are learned: it raises the divergence that the model lowers.

    Its params are those of SVI at ``noise$``, the name of the site, ``$params``.
    """

    _backend, _around, _partial = BACKEND, staticmethod(round_mean), Partial

    def __init__(
        self,
        noise: SpreadNoise,
        constraint: str | None = None,
        least: float | None = None,
        mean: Any = None,
        lipschitz: float | None = None,
    ) -> None:
        super().__init__(noise, constraint, least, mean, lipschitz)
        fields = (getattr(noise, name, None) for name in ("scale", "factor"))
        arrays = [value for value in fields if isinstance(value, jax.Array)]
        # NumPy's: made inside a compiled function, they would be tracers.
        self._start = {n: np.asarray(v, jnp.result_type(*arrays)) for n, v in self._start.items()}

    @staticmethod
    def _numbers(value: Any) -> Any:
        if value is None:
            return None
        if not is_concrete(value):
            raise ValueError(messages.unknown_numbers())
        return np.asarray(value, dtype=float)

    def _net_of(self, mean: Any) -> tuple[list[Layer], int]:
        chain = chain_of(mean)
        self._dense = [layer for layer in chain if is_dense(layer)]
        return layers_of(chain)

    def _weights(self, params: Params) -> Weights:
        layers = [params[name] for name in self._names()]
        return [(layer["kernel"], layer.get("bias")) for layer in layers]

    def _names(self) -> list[str]:
        """Of the params of dense layers: one for a layer that is there twice."""
        names: dict[int, str] = {}
        return [names.setdefault(id(layer), f"Dense_{len(names)}") for layer in self._dense]

    def init(self, rng_key: jax.Array | None = None) -> dict[str, Any]:
        """
        The params to start from.

        :param rng_key: random key for a net, of seed 0 by default.
        """
        params: dict[str, Any] = {name: jnp.asarray(value) for name, value in self._start.items()}
        if self._chain is None:
            return params
        rng_key, width = random.key(0) if rng_key is None else rng_key, self._chain.size
        for name, layer in zip(self._names(), self._dense, strict=True):
            if name not in params:
                key = random.fold_in(rng_key, len(params))
                params[name] = layer.init(key, jnp.zeros((1, width)))["params"]
            width = layer.features
        return params

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
    noise: SpreadNoise,
    constraint: str | None = None,
    *,
    least: float | None = None,
    mean: Any = None,
    lipschitz: float | None = None,
) -> LearnedNoise:
    r"""
    Noise of this kind whose params are learned: it raises the divergence that the model lowers.

        >>> import jax.numpy as jnp, optax
        >>> from flax import linen
        >>> from numpyro_spread import AdversarialDivergence, GaussianNoise, concat_sites, learned
        >>> from numpyro_spread import two_player
        >>> noise = learned(GaussianNoise(jnp.full(3, 0.5)), constraint="trace")
        >>> loss = AdversarialDivergence(concat_sites(linen.Dense(1)), noise={"x": noise})
        >>> optim = two_player(optax.adam(1e-3), optax.adam(2e-3), noise=optax.adam(1e-3))
        >>> noise.kernel(noise.init()).scale
        Array([0.5, 0.5, 0.5], dtype=float32)

    With ``mean=net`` it is round x + net(x), for data and model alike:

        >>> net = linen.Sequential([linen.Dense(16), jnp.tanh, linen.Dense(3)])
        >>> noise = learned(GaussianNoise(0.5), mean=net, lipschitz=0.8)
        >>> x, y = jnp.zeros(3), jnp.ones(3)
        >>> f = [noise.kernel(noise.init())(each, 1).mean for each in (x, y)]
        >>> distance = [float(jnp.linalg.norm(a - b)) for a, b in ((x, y), f)]
        >>> 0.2 * distance[0] <= distance[1] <= 1.8 * distance[0]
        True

    :param noise: the kernel to start from: ``GaussianNoise``, ``LaplaceNoise`` or ``LogisticNoise``
        with a scale for each element, or ``LowRankGaussianNoise``.
    :param constraint: ``"trace"`` for a constant sum of variances, ``"determinant"`` for a constant
        determinant of the covariance; with ``mean``, None for a constant covariance.
    :param least: the variance that every element keeps under a trace, as a share of the mean
        variance; a millionth by default.
    :param mean: a ``Sequential`` of flax linen, of ``Dense`` layers and activations, from the
        elements of an event to as many numbers, which are added to x; its dense layers are
        scaled down where it would be steeper than ``lipschitz``.
    :param lipschitz: the largest Lipschitz constant of ``mean``, below one; 0.9 by default.
    :return: what to put in place of a kernel in the ``noise`` of ``AdversarialDivergence`` or
        ``SpreadELBO``. Its method ``kernel`` is the kernel at some params.
    :raises TypeError: if noise is no kernel, or mean not such a net.
    :raises ValueError: if there is no constraint, or under it nothing to learn; if a layer of mean
        has no known Lipschitz constant, or the sizes do not fit.
    :raises NotImplementedError: for other kernels.
    """
    return LearnedNoise(noise, constraint, least, mean, lipschitz)
