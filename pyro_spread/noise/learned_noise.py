# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose params are learned, by raising the divergence under a constraint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.noise.learned import LearnedShared


class LearnedNoise(LearnedShared, nn.Module):
    r"""
    Noise whose covariance is learned: it raises the divergence that the model lowers.

    A module, whose parameters a loss puts into the param store under ``noise$`` and the name of the
    site.
    """

    _backend = BACKEND

    def __init__(
        self, noise: SpreadNoise, constraint: str | None = None, least: float | None = None
    ) -> None:
        super().__init__(noise, constraint, least)
        fields = (getattr(noise, name, None) for name in ("scale", "factor"))
        like = next(value for value in fields if isinstance(value, torch.Tensor))
        for name, value in self._start.items():
            param = torch.as_tensor(value, dtype=like.dtype, device=like.device)
            self.register_parameter(name, nn.Parameter(param.clone()))

    @staticmethod
    def _numbers(value: Any) -> Any:
        return None if value is None else torch.as_tensor(value).detach().cpu().double().numpy()

    def kernel(self) -> SpreadNoise:
        """The kernel that it is now, whose numbers are constants."""
        made: SpreadNoise = self._made({n: p.detach() for n, p in self.named_parameters()}, False)
        return made

    def _played(self) -> SpreadNoise:
        # The same numbers, with a gradient of the opposite sign: the loss is what others lower.
        params = {name: 2 * param.detach() - param for name, param in self.named_parameters()}
        made: SpreadNoise = self._made(params, True)
        return made


def learned(
    noise: SpreadNoise, constraint: str | None = None, *, least: float | None = None
) -> LearnedNoise:
    r"""
    Noise of this kind whose covariance is learned: it raises the divergence that the model lowers.

        >>> import torch, pyro
        >>> from pyro_spread import AdversarialDivergence, GaussianNoise, concat_sites, learned
        >>> from pyro_spread import two_player
        >>> noise = learned(GaussianNoise(torch.full((3,), 0.5)), constraint="trace")
        >>> loss = AdversarialDivergence(concat_sites(torch.nn.Linear(3, 1)), noise={"x": noise})
        >>> adam = [pyro.optim.Adam({"lr": rate}) for rate in (1e-3, 2e-3, 1e-3)]
        >>> optim = two_player(adam[0], adam[1], noise=adam[2])
        >>> noise.kernel().scale
        tensor([0.5000, 0.5000, 0.5000])

    :param noise: the kernel to start from: ``GaussianNoise``, ``LaplaceNoise`` or ``LogisticNoise``
        with a scale for each element, or ``LowRankGaussianNoise``.
    :param constraint: ``"trace"`` for a constant sum of variances, ``"determinant"`` for a constant
        determinant of the covariance.
    :param least: the variance that every element keeps under a trace, as a share of the mean
        variance; a millionth by default.
    :return: what to put in place of a kernel in the ``noise`` of ``AdversarialDivergence`` or
        ``SpreadELBO``. Its method ``kernel`` is the kernel that it is now.
    :raises TypeError: if noise is no kernel.
    :raises ValueError: if there is no constraint, or under it nothing to learn.
    :raises NotImplementedError: for other kernels.
    """
    return LearnedNoise(noise, constraint, least)
