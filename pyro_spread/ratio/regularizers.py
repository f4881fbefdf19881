# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Penalties on the gradient of a critic, which stabilise adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyro_spread.ratio.adapters import SiteValues
from spread_core.math.regularizers import GradientPenaltyShared, R1Shared, RegularizerShared
from spread_core.messages import players

Critic = Callable[[SiteValues], torch.Tensor]


def _squared_norms(critic: Critic, values: SiteValues) -> torch.Tensor:
    """Squared norm of the gradient of every logit at its own input, of the batch shape."""
    inputs = {name: value.detach().requires_grad_() for name, value in values.items()}
    logits = critic(values.replaced(inputs))
    # A critic need not look at every site.
    grads = torch.autograd.grad(
        logits.sum(), list(inputs.values()), create_graph=True, materialize_grads=True
    )
    return sum(grad.square().reshape(*values.batch_shape, -1).sum(-1) for grad in grads)  # type: ignore[return-value]


@dataclass(frozen=True)
class Regularizer(RegularizerShared):
    """
    Base class of penalties on the critic's loss; subclasses implement :meth:`penalty`.

    Only the critic is trained by it.
    """

    def penalty(
        self,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        The penalty, a scalar that is differentiable in the critic's params.

        :param critic: from values to logits.
        :param data: values of the data, after the noise.
        :param model: values of the model's draws, after the noise.
        :param weights: of the data samples, of the batch shape.
        """
        raise NotImplementedError


def check_regularizer(regularizer: object) -> None:
    """
    Raise an error for anything that is not a penalty.

    :param regularizer: a :class:`Regularizer`, or None.
    :raises TypeError: saying what it must be.
    """
    if regularizer is not None and not isinstance(regularizer, Regularizer):
        wanted = "a Regularizer such as R1(), or None"
        raise TypeError(players.bad_range("regularizer", regularizer, wanted))


@dataclass(frozen=True)
class R1(R1Shared, Regularizer):
    r"""
    :math:`\gamma/2 \; E_P |\nabla_x \mathrm{logit}(x)|^2` at the (noisy) data.

        >>> R1(every=4, gamma=1.0)
        R1(every=4, gamma=1.0)
    """

    def penalty(
        self,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The penalty at the data, a scalar."""
        return self._of_slopes(_squared_norms(critic, data), weights)


@dataclass(frozen=True)
class GradientPenalty(GradientPenaltyShared, Regularizer):
    r"""
    :math:`\lambda\, E (|\nabla_x c(x)| - t)^2` at random points between data and model draws.

        >>> GradientPenalty(10.0)
        GradientPenalty(every=1, weight=10.0, target=1.0)
    """

    def penalty(
        self,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The penalty at points between data and draws, a scalar."""
        between: dict[str, torch.Tensor] = {}
        for site, real in data.items():
            fake = model[site].detach()
            if fake.shape != real.shape:
                raise ValueError(players.unequal_for_penalty(site, real.shape, fake.shape))
            if not between:
                ndim = len(data.batch_shape)
                share = torch.rand(data.batch_shape, dtype=real.dtype, device=real.device)
            mixing = share.reshape([*share.shape, *[1] * (real.dim() - ndim)])
            between[site] = mixing * real + (1 - mixing) * fake
        return self._of_slopes(_squared_norms(critic, data.replaced(between)), weights)
