# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose params are learned, by raising the divergence under a constraint."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
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
from spread_core.noise.stationary import Gaussian, Laplace, Logistic
from spread_core.shared_docs import SharedDocs

CONSTRAINTS = ("trace", "determinant")
_KINDS = (Gaussian, Laplace, Logistic, LowRankGaussian)

#: Least variance of an element under a fixed trace, as a share of the mean variance, unless told
#: otherwise: a scale of 0 spreads nothing.
LEAST = 1e-6

Params = Mapping[str, Any]


class LearnedShared(SharedDocs, Learnable):
    r"""
    Noise whose covariance is learned: it raises the divergence that the model lowers.

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

    **References**

    [1] `Spread Divergence`, Mingtian Zhang, Peter Hayes, Tom Bird, Raza Habib, David Barber,
    https://arxiv.org/abs/1811.08968

    [2] `On Variational Bounds of Mutual Information`, Ben Poole, Sherjil Ozair, Aäron van den Oord,
    Alexander Alemi, George Tucker, https://arxiv.org/abs/1905.06922

    :param noise: the kernel to start from: ``GaussianNoise``, ``LaplaceNoise`` or ``LogisticNoise``
        with a scale for each element, or ``LowRankGaussianNoise``.
    :param constraint: ``"trace"`` or ``"determinant"``; there is no default.
    :param least: the variance that every element keeps under a trace, as a share of the mean
        variance; a millionth by default.
    :raises TypeError: if noise is no kernel.
    :raises ValueError: if there is no constraint, or under it nothing to learn.
    :raises NotImplementedError: for other kernels.
    """

    _backend: ClassVar[Backend]

    def __init__(self, noise: Any, constraint: Any, least: float | None) -> None:
        super().__init__()
        if not self._backend.is_kernel(noise):
            raise TypeError("learned: " + noise_messages.not_a_kernel(noise))
        if constraint is None:
            raise ValueError(messages.no_constraint())
        if constraint not in CONSTRAINTS:
            raise ValueError(messages.bad_constraint(constraint, CONSTRAINTS))
        if least is not None and (constraint != "trace" or not 0 < least < 1):
            raise ValueError(messages.bad_least(least, constraint))
        if not isinstance(noise, _KINDS):
            moving = f"{noise._name}(...)" if isinstance(noise, Moving) else None
            raise NotImplementedError(messages.other_kernel(moving or type(noise).__name__))
        scale, factor = (self._numbers(getattr(noise, n, None)) for n in ("scale", "factor"))
        if scale.size == 1 and factor is None:
            raise ValueError(messages.nothing_to_learn(type(noise).__name__, constraint))
        if factor is not None and not factor.any():
            raise ValueError(messages.zero_factor())
        self.constraint = constraint
        self.least = LEAST if least is None else float(least)
        self._kernel = copy.copy(noise)  # of which the class and the shapes remain
        self._size = scale.size if factor is None else len(factor)
        if constraint == "trace":
            self._level, self._start = self._from_trace(scale, factor)
        else:
            self._level, self._start = self._from_determinant(scale, factor)

    @staticmethod
    def _numbers(value: Any) -> Any:
        """A parameter as NumPy's doubles; None for none."""
        raise NotImplementedError

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
        object.__setattr__(kernel, "_is_played", is_played)
        return kernel

    def _moves_with_data(self) -> bool:
        """It has a scale for each element."""
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
