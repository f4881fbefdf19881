# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose params are learned, by raising the divergence under a constraint."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from spread_core.math._arrays import cast
from spread_core.messages import learned as messages
from spread_core.messages import noise as noise_messages
from spread_core.noise.base import Backend, Kernel
from spread_core.noise.learnable import Learnable
from spread_core.noise.low_rank import LowRankGaussian
from spread_core.noise.moving import Moving
from spread_core.noise.residual import Chain, Weights
from spread_core.noise.stationary import Gaussian, Laplace, Logistic
from spread_core.shared_docs import SharedDocs

CONSTRAINTS = ("trace", "determinant")
_KINDS = (Gaussian, Laplace, Logistic, LowRankGaussian)

#: Least variance of an element under a fixed trace, as a share of the mean variance, unless told
#: otherwise: a scale of 0 spreads nothing.
LEAST = 1e-6

#: Largest Lipschitz constant of g, unless told otherwise.
LIPSCHITZ = 0.9

Params = Mapping[str, Any]
#: An activation and how steep it is at most; None and one for a dense layer.
Layer = tuple[Any, float]


class LearnedShared(SharedDocs, Learnable):
    r"""
    Noise whose params are learned: it raises the divergence that the model lowers.

    More noise lowers every spread divergence, and a bound on :math:`E \log\tilde q(y)` alone rises
    as noise vanishes, so noise that follows the model's loss says nothing. Here the noise is a
    player of its own in

    .. math::
        \min_\theta \max_\psi \; D[p * k_\psi \,\|\, q_\theta * k_\psi],

    under a constraint that keeps :math:`k_\psi` as strong as the kernel that is given [1]. Its
    params get the gradient of minus the divergence, all others that of their own loss, as always;
    so any optimiser may move them, and ``two_player(..., noise=optim)`` moves them by one of their
    own.

    - Under ``AdversarialDivergence`` the divergence is the value of the best critic, and its
      gradient that through the noisy samples of both sides, with the critic held fixed.
    - Under ``SpreadELBO`` the divergence is :math:`E\log\tilde p(y)` minus the bound, where
      :math:`\tilde p(y_i)` is taken for the mixture
      :math:`\frac1B \sum_j k_\psi(y_i \mid x_j)` of the mini-batch, whose log is on average not
      below the true value, and at most :math:`\log B` below :math:`\log k_\psi(y_i \mid x_i)`, as
      in InfoNCE [2]. Where :math:`y_i` tells which of the :math:`x_j` it came from, the mixture
      knows the noise only and nothing of the data: use large batches and enough noise. The reported
      value stays minus the bound.

    The constraint holds exactly at every step: under ``"trace"`` the sum of the variances of all
    elements, under ``"determinant"`` the determinant of the covariance, is that of the kernel that
    was given, which is the start. The KL divergence of Gaussians with independent elements is
    convex in the variances of the noise, so that it is largest where all that is free is in one
    element: ``least`` is the variance that each keeps. Under a fixed determinant there is no such
    bound, and the divergence of a model on a thin set has no maximum.

    With ``mean`` the noise is round :math:`f(x) = x + g(x)`, for data and model alike: the
    injective mean of [1], as a residual network [3]. The net g is a chain of dense layers and
    activations, of Lipschitz constant at most ``lipschitz`` below one, so that no two points go to
    one and the divergence is still zero only at equality. The bound holds at every step for any
    params: a dense layer whose largest singular value, computed exactly, is above its share is
    scaled down to it (spectral normalisation [4]). At most, f stretches a direction by 1 +
    ``lipschitz``, which is to the divergence as less noise there. An event of several dimensions is
    flattened. Without a constraint the covariance stays what it is, and the mean alone is learned.

    **References**

    [1] `Spread Divergence`, Mingtian Zhang, Peter Hayes, Tom Bird, Raza Habib, David Barber,
    https://arxiv.org/abs/1811.08968

    [2] `On Variational Bounds of Mutual Information`, Ben Poole, Sherjil Ozair, Aäron van den Oord,
    Alexander Alemi, George Tucker, https://arxiv.org/abs/1905.06922

    [3] `Invertible Residual Networks`, Jens Behrmann, Will Grathwohl, Ricky T. Q. Chen, David
    Duvenaud, Jörn-Henrik Jacobsen, https://arxiv.org/abs/1811.00995

    [4] `Spectral Normalization for Generative Adversarial Networks`, Takeru Miyato, Toshiki
    Kataoka, Masanori Koyama, Yuichi Yoshida, https://arxiv.org/abs/1802.05957

    :param noise: the kernel to start from: ``GaussianNoise``, ``LaplaceNoise`` or ``LogisticNoise``
        with a scale for each element, or ``LowRankGaussianNoise``.
    :param constraint: ``"trace"`` or ``"determinant"``; there is no default but with ``mean``, with
        which None leaves the covariance, that may then be of a single scale.
    :param least: the variance that every element keeps under a trace, as a share of the mean
        variance; a millionth by default.
    :param mean: the net g, from the elements of an event to as many numbers.
    :param lipschitz: the largest Lipschitz constant of g; 0.9 by default.
    :raises TypeError: if noise is no kernel, or mean not such a net.
    :raises ValueError: if there is no constraint, or under it nothing to learn; if a layer of mean
        has no known Lipschitz constant, or the sizes do not fit.
    :raises NotImplementedError: for other kernels.
    """

    _backend: ClassVar[Backend]
    #: The kernel round f(x) of this backend, and its functions with arguments that it sees through.
    _around: ClassVar[Any]
    _partial: ClassVar[Any]
    _chain: Chain | None = None

    def __init__(
        self, noise: Any, constraint: Any, least: float | None, mean: Any, lipschitz: float | None
    ) -> None:
        super().__init__()
        if not self._backend.is_kernel(noise):
            raise TypeError("learned: " + noise_messages.not_a_kernel(noise))
        if lipschitz is not None and mean is None:
            raise ValueError(messages.lipschitz_of_nothing())
        if constraint is None and mean is None:
            raise ValueError(messages.no_constraint())
        if constraint not in (*CONSTRAINTS, None):
            raise ValueError(messages.bad_constraint(constraint, CONSTRAINTS))
        if least is not None and (constraint != "trace" or not 0 < least < 1):
            raise ValueError(messages.bad_least(least, constraint))
        if not isinstance(noise, _KINDS):
            moving = f"{noise._name}(...)" if isinstance(noise, Moving) else None
            raise NotImplementedError(messages.other_kernel(moving or type(noise).__name__))
        self.constraint = constraint
        self.lipschitz = LIPSCHITZ if lipschitz is None else lipschitz
        scale, factor = (self._numbers(getattr(noise, n, None)) for n in ("scale", "factor"))
        self._size = scale.size if factor is None else len(factor)
        if mean is not None:
            self._learn_mean(mean)
        self._kernel = copy.copy(noise)  # of which the class and the shapes remain
        if constraint is None:
            self._start: dict[str, Any] = {}
            fields = {name: self._constant(getattr(noise, name)) for name in noise._fields()}
            self._kernel = noise._changed(**fields)
            return
        if scale.size == 1 and factor is None:
            raise ValueError(messages.nothing_to_learn(type(noise).__name__, constraint))
        if factor is not None and not factor.any():
            raise ValueError(messages.zero_factor())
        self.least = LEAST if least is None else float(least)
        if constraint == "trace":
            self._level, self._start = self._from_trace(scale, factor)
        else:
            self._level, self._start = self._from_determinant(scale, factor)

    @staticmethod
    def _numbers(value: Any) -> Any:
        """A parameter as NumPy's doubles; None for none."""
        raise NotImplementedError

    @staticmethod
    def _constant(value: Any) -> Any:
        """A parameter without its gradient."""
        return value

    def _net_of(self, mean: Any) -> tuple[list[Layer], int]:
        """
        The layers of a net, and the number of its inputs.

        :raises TypeError: if it is no chain.
        :raises ValueError: naming a layer that is not known or does not fit.
        """
        raise NotImplementedError

    def _weights(self, params: Params) -> Weights:
        """What the dense layers take from the params, one after the other."""
        raise NotImplementedError

    def _learn_mean(self, mean: Any) -> None:
        if not isinstance(self.lipschitz, Real) or not 0 < self.lipschitz < 1:
            raise ValueError(messages.bad_lipschitz(self.lipschitz))
        layers, size = self._net_of(mean)
        if all(layer is not None for layer, _ in layers):
            raise ValueError(messages.no_dense_layer())
        if self._size not in (1, size):
            raise ValueError(messages.mean_elsewhere(size, self._size))
        slope = math.prod(slope for _, slope in layers)
        self._chain = Chain([layer for layer, _ in layers], slope, size, float(self.lipschitz))

    def _from_trace(self, scale: Any, factor: Any) -> tuple[float, dict[str, Any]]:
        """The trace, and params with which :meth:`_at` gives these numbers."""
        times = self._size / scale.size
        correlated = 0.0 if factor is None else float((factor**2).sum())
        trace = times * float((scale**2).sum()) + correlated
        share = (scale**2 / trace - self.least / self._size) / (1 - self.least)
        if not (share > 0).all():
            raise ValueError(messages.below_least(self.least))
        start = {"log_scale": 0.5 * np.log(share)}
        if factor is not None:
            start["factor"] = factor / math.sqrt((1 - self.least) * trace)
        return trace, start

    def _from_determinant(self, scale: Any, factor: Any) -> tuple[float, dict[str, Any]]:
        """The log determinant, and params with which :meth:`_at` gives these numbers."""
        start = {"log_scale": np.log(scale)}
        if factor is not None:
            start["factor"] = factor
        return float(self._log_det(**start)), start

    def _log_det(self, log_scale: Any, factor: Any = None) -> Any:
        xp = array_namespace(log_scale)
        isotropic = 2 * (self._size / math.prod(log_scale.shape)) * log_scale.sum()
        if factor is None:
            return isotropic
        scaled = factor * xp.exp(-log_scale)[..., None]  # a scale for all has no dims, or one
        gram = scaled.T @ scaled
        return isotropic + xp.linalg.slogdet(gram + cast(np.eye(len(gram)), gram))[1]

    def _at(self, params: Params) -> dict[str, Any]:
        """The fields of the kernel at these params, on which the constraint holds."""
        if self.constraint is None:
            return {}
        log_scale, factor = params["log_scale"], params.get("factor")
        xp = array_namespace(log_scale)
        if self.constraint == "determinant":
            shift = (self._level - self._log_det(**params)) / (2 * self._size)
            fields = {"scale": xp.exp(log_scale + shift)}
            return fields if factor is None else fields | {"factor": factor * xp.exp(shift)}
        # The largest taken off, no sum overflows.
        largest = log_scale.max()
        variance = xp.exp(2 * (log_scale - largest))
        total = (self._size / math.prod(log_scale.shape)) * variance.sum()
        if factor is not None:
            factor = factor * xp.exp(-largest)
            total = total + (factor**2).sum()
        left, kept = (1 - self.least) * self._level, self.least * self._level / self._size
        fields = {"scale": xp.sqrt(left * variance / total + kept)}
        if factor is None:
            return fields
        return fields | {"factor": factor * xp.sqrt(left / total)}

    def _made(self, params: Params, is_played: bool) -> Any:
        """
        The kernel at some params.

        :param is_played: whether a loss plays it, which knows what its gradient is for.
        """
        kernel: Kernel[Any, Any, Any] = copy.copy(self._kernel)
        # Not by its constructor: what it checks holds, and cannot be looked at in compiled steps.
        for name, value in self._at(params).items():
            object.__setattr__(kernel, name, value)
        if self._chain is not None:
            weights = self._chain.bounded(self._weights(params))
            kernel = self._around(self._partial(self._chain, weights), kernel)
        object.__setattr__(kernel, "_is_played", is_played)
        return kernel

    def _moves_with_data(self) -> bool:
        """It has a scale for each element, or a mean that depends on all of them."""
        return False


def name_of(key: str) -> str:
    """
    The name of learned noise among the params.

    :param key: the site or pattern that it stands at.
    """
    return f"noise${key}"


def is_noise(name: str) -> bool:
    """
    Whether a name is that of learned noise.

    :param name: made by :func:`name_of`, or of something else.
    """
    return name.startswith("noise$")
