# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Penalties on the gradient of a critic, which stabilise adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from pyro_spread.ratio.adapters import SiteValues
from pyro_spread.ratio.losses import weighted_mean
from spread_core.messages import players
from spread_core.validation import check_count

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
class Regularizer:
    """
    Base class of penalties on the critic's loss; subclasses implement :meth:`penalty`.

    Only the critic is trained by it.
    """

    #: On average, the penalty is computed at every ``every``-th step, and is then as much larger.
    every: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        check_count("every", self.every)

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
class R1(Regularizer):
    r"""
    :math:`\gamma/2 \; E_P |\nabla_x \mathrm{logit}(x)|^2` at the (noisy) data.

    It makes GAN training converge locally where training without it oscillates or collapses [1,
    equation 9]. With ``every=k`` it is computed at one step in k, chosen at random, and multiplied
    by k (lazy regularisation, [2, appendix B]).

        >>> R1(every=4, gamma=1.0)
        R1(every=4, gamma=1.0)

    **References**

    [1] `Which Training Methods for GANs do actually Converge?`, Lars Mescheder, Andreas Geiger,
    Sebastian Nowozin, https://arxiv.org/abs/1801.04406

    [2] `Analyzing and Improving the Image Quality of StyleGAN`, Tero Karras et al.,
    https://arxiv.org/abs/1912.04958

    :param gamma: its weight.
    :param every: one step in that many has the penalty.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0:
            raise ValueError(players.bad_range("R1: gamma", self.gamma, "positive"))

    def penalty(
        self,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The penalty at the data, a scalar."""
        return self.gamma / 2 * weighted_mean(_squared_norms(critic, data), weights)


@dataclass(frozen=True)
class GradientPenalty(Regularizer):
    r"""
    :math:`\lambda\, E (|\nabla_x c(x)| - t)^2` at random points between data and model draws.

    With target :math:`t = 1` it is the gradient penalty of WGAN-GP [1, equation 3]. Datum i is
    paired with draw i, so both sides need equal numbers.

        >>> GradientPenalty(10.0)
        GradientPenalty(every=1, weight=10.0, target=1.0)

    **References**

    [1] `Improved Training of Wasserstein GANs`, Ishaan Gulrajani et al.,
    https://arxiv.org/abs/1704.00028

    :param weight: the factor lambda.
    :param target: the norm that is not penalised.
    :param every: one step in that many has the penalty, which is then as much larger.
    """

    weight: float = 10.0
    target: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weight > 0:
            raise ValueError(players.bad_range("GradientPenalty: weight", self.weight, "positive"))

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
        squared = _squared_norms(critic, data.replaced(between))
        # The root's gradient is infinite at zero, where a critic that is still flat stands.
        norms = torch.sqrt(squared + torch.finfo(squared.dtype).tiny ** 0.5)
        return self.weight * weighted_mean((norms - self.target).square(), weights)
