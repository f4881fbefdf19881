# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One pass through a critic that gives each of two players its own gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pyro_spread.ratio._samplewise import is_samplewise
from pyro_spread.ratio.adapters import SiteValues

# Weight below which a sample's gradient in the critic is lost in float32 next to that of the
# others.
_NEGLIGIBLE = 1e-12


class Rescale(torch.autograd.Function):
    """The identity; the gradient that comes back is multiplied by ``factors``, sample by sample."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factors: list[Any]) -> torch.Tensor:
        ctx.factors = factors  # filled in after the forward pass; None lets nothing through
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        if ctx.factors == [None]:
            return None, None
        # One after the other: their product may overflow where the result does not.
        for factor in ctx.factors:
            grad = grad * factor.reshape([*factor.shape, *[1] * (grad.dim() - factor.dim())])
        return grad, None


class _Share(torch.autograd.Function):
    """
    Logits twice: for those who learn from the critic, and for the critic.

    Only the critic's gradient goes on through its layers; at their input :class:`Rescale` makes the
    others' of it, which differs by a factor per sample.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, factors: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.factors = factors
        return logits.clone(), logits.clone()

    @staticmethod
    def backward(ctx: Any, push: torch.Tensor, pull: torch.Tensor) -> tuple[torch.Tensor, None]:
        pull = torch.where(push == 0, pull, away_from_zero(pull))
        ctx.factors[:] = [torch.where(push == 0, push, 1 / pull), push]
        return pull, None


def away_from_zero(pull: torch.Tensor) -> torch.Tensor:
    """
    Derivatives that can be divided by; the change does not affect the critic.

    :param pull: slope of the critic's loss at every logit.
    """
    floor = _NEGLIGIBLE / max(1, pull.numel())
    return torch.where(pull.abs() < floor, torch.full_like(pull, floor), pull)


def can_share(critic: nn.Module, values: SiteValues, kwargs: Mapping[str, Any]) -> bool:
    """
    Whether one pass will do: every logit depends on its own sample alone, and nobody wants another
    gradient than those of the critic's params and of the sites.

    :param critic: the module.
    :param values: of the sites, with the arguments that the critic may look up.
    :param kwargs: keyword arguments that it gets.
    """
    return not learns_others(values, kwargs) and is_samplewise(critic)


def learns_others(values: SiteValues, kwargs: Mapping[str, Any]) -> bool:
    """
    Whether something else than the sites has a gradient that passes through the critic.

    :param values: of the sites, with the arguments that the critic may look up.
    :param kwargs: keyword arguments that it gets.
    """
    others = (*values.arguments.values(), *kwargs.values())
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in others)


def shared_logits(
    judge: Callable[[SiteValues], torch.Tensor], values: SiteValues
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Logits for those who learn from the critic, which teach it nothing, and logits for the critic,
    which move nothing else.

    :param judge: from values to logits.
    :param values: of the sites.
    """
    factors: list[torch.Tensor] = []
    rescaled = {name: Rescale.apply(value, factors) for name, value in values.items()}
    shared: tuple[torch.Tensor, torch.Tensor] = _Share.apply(
        judge(values.replaced(rescaled)), factors
    )
    return shared
