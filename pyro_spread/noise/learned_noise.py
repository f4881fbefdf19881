# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose params are learned, by raising the divergence under a constraint."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from pyro_spread.noise.base import BACKEND, SpreadNoise
from pyro_spread.noise.residual import chain_of, layers_of, round_mean
from spread_core.noise.learned import Layer, LearnedShared, Params
from spread_core.noise.residual import Weights


class LearnedNoise(LearnedShared, nn.Module):
    r"""
    Noise whose params are learned: it raises the divergence that the model lowers.

    A module, whose parameters a loss puts into the param store under ``noise$`` and the name of the
    site.
    """

    _backend, _around, _partial = BACKEND, staticmethod(round_mean), functools.partial

    def __init__(
        self,
        noise: SpreadNoise,
        constraint: str | None = None,
        least: float | None = None,
        mean: nn.Module | None = None,
        lipschitz: float | None = None,
    ) -> None:
        super().__init__(noise, constraint, least, mean, lipschitz)
        fields = [getattr(noise, name, None) for name in ("scale", "factor")]
        for name, value in self._start.items():
            like = next(field for field in fields if isinstance(field, torch.Tensor))
            param = torch.as_tensor(value, dtype=like.dtype, device=like.device)
            self.register_parameter(name, nn.Parameter(param.clone()))

    @staticmethod
    def _numbers(value: Any) -> Any:
        return None if value is None else torch.as_tensor(value).detach().cpu().double().numpy()

    @staticmethod
    def _constant(value: Any) -> Any:
        return value.detach() if isinstance(value, torch.Tensor) else value

    def _net_of(self, mean: Any) -> tuple[list[Layer], int]:
        self.mean = chain_of(mean)
        return layers_of(self.mean)

    def _weights(self, params: Params) -> Weights:
        linear = [layer for layer in self.mean if type(layer) is nn.Linear]
        names = {layer: name for name, layer in self.named_modules()}  # one for a layer twice in it
        pairs = ((params[f"{names[n]}.weight"], params.get(f"{names[n]}.bias")) for n in linear)
        return [(weight.mT, bias) for weight, bias in pairs]

    def _nets(self) -> tuple[Any, ...]:
        return () if self._chain is None else tuple(self.mean.parameters())

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
    noise: SpreadNoise,
    constraint: str | None = None,
    *,
    least: float | None = None,
    mean: nn.Module | None = None,
    lipschitz: float | None = None,
) -> LearnedNoise:
    r"""
    Noise of this kind whose params are learned: it raises the divergence that the model lowers.

        >>> import torch, pyro
        >>> from pyro_spread import AdversarialDivergence, GaussianNoise, concat_sites, learned
        >>> from pyro_spread import two_player
        >>> noise = learned(GaussianNoise(torch.full((3,), 0.5)), constraint="trace")
        >>> loss = AdversarialDivergence(concat_sites(torch.nn.Linear(3, 1)), noise={"x": noise})
        >>> adam = [pyro.optim.Adam({"lr": rate}) for rate in (1e-3, 2e-3, 1e-3)]
        >>> optim = two_player(adam[0], adam[1], noise=adam[2])
        >>> noise.kernel().scale
        tensor([0.5000, 0.5000, 0.5000])

    With ``mean=net`` it is round x + net(x), for data and model alike:

        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))
        >>> noise = learned(GaussianNoise(0.5), mean=net, lipschitz=0.8)
        >>> x, y = torch.zeros(3), torch.ones(3)
        >>> f = [noise.kernel()(each, 1).mean for each in (x, y)]
        >>> 0.2 * torch.dist(x, y) <= torch.dist(*f) <= 1.8 * torch.dist(x, y)
        tensor(True)

    :param noise: the kernel to start from: ``GaussianNoise``, ``LaplaceNoise`` or ``LogisticNoise``
        with a scale for each element, or ``LowRankGaussianNoise``.
    :param constraint: ``"trace"`` for a constant sum of variances, ``"determinant"`` for a constant
        determinant of the covariance; with ``mean``, None for a constant covariance.
    :param least: the variance that every element keeps under a trace, as a share of the mean
        variance; a millionth by default.
    :param mean: an ``nn.Sequential`` of ``nn.Linear`` layers and activations, from the elements
        of an event to as many numbers, which are added to x; its dense layers are scaled down
        where it would be steeper than ``lipschitz``.
    :param lipschitz: the largest Lipschitz constant of ``mean``, below one; 0.9 by default.
    :return: what to put in place of a kernel in the ``noise`` of ``AdversarialDivergence`` or
        ``SpreadELBO``. Its method ``kernel`` is the kernel that it is now.
    :raises TypeError: if noise is no kernel, or mean not such a net.
    :raises ValueError: if there is no constraint, or under it nothing to learn; if a layer of mean
        has no known Lipschitz constant, or the sizes do not fit.
    :raises NotImplementedError: for other kernels.
    """
    return LearnedNoise(noise, constraint, least, mean, lipschitz)
