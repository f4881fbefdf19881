# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Base class of adversarial losses: exact gradients of both players, without interference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyro_spread._recording import when_known
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.infer._critic import (
    Judge,
    check_critic,
    is_lazy,
    judge,
    penalise,
    register_critic,
)
from pyro_spread.infer._noise import as_noise, kernels_of
from pyro_spread.infer._ranks import LossModule, ranks, share
from pyro_spread.infer._registration import Loss
from pyro_spread.infer._shared_pass import Rescale, away_from_zero, learns_others
from pyro_spread.infer._two_sides import TwoSides, draw_sides
from pyro_spread.ratio._samplewise import couples, is_samplewise_here
from pyro_spread.ratio.adapters import SiteValues
from pyro_spread.ratio.losses import weighted_mean
from pyro_spread.ratio.regularizers import check_regularizer
from spread_core.logits import Logits
from spread_core.losses.critic_loss import CriticLossShared
from spread_core.messages import moving, players
from spread_core.noise.moving import moving_kernels
from spread_core.typing import Guide, Model


class _Report(torch.autograd.Function):
    """``value``, whose gradient is that of ``surrogate``: finite even where that overflows."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, surrogate: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, grad


class CriticLoss(CriticLossShared, Loss):
    """Base class of the losses in which a critic compares data with the model's draws."""

    _as_noise = staticmethod(as_noise)
    _check_regularizer = staticmethod(check_regularizer)

    def _bind(self, discriminator: Any) -> None:
        check_critic(discriminator)

    def _watch(self, logits: Logits) -> None:
        """Monitor the logits and warn of problems; called at every training step."""

    def _adapt(self, *seen: Logits) -> None:
        """Tell the noise how often the critic was right, in the particles of a step."""
        self._moves.advance(sum(float(self._accuracy(logits)) for logits in seen) / len(seen))

    def __call__(self, model: nn.Module, guide: nn.Module) -> LossModule:
        """
        A complete ``nn.Module`` that computes the loss: for torch.optim, DDP and Lightning.

        Its parameters are those of model, guide and ``discriminator``; one ``backward`` gives both
        players their own gradients.
        """
        module = super().__call__(model, guide)
        module.discriminator = self.discriminator
        return module

    def loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """
        The reported value, at fresh draws and without penalties; nothing is trained.

        :raises ValueError: if sites, plates, masks and noise are inconsistent; the message names
            the site and says what to do, and params are as before.
        """
        with torch.no_grad():
            sides = self._sides(model, guide, args, kwargs)
            self._register(model, guide, args, kwargs)
            return float(self._evaluate(sides, model, guide, args, kwargs))

    def logits(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> Logits:
        """
        The critic's logits at the given data and at fresh draws of the model, after the noise.

        With held-out data it shows how far the critic can be trusted:
        ``critic_report(logits.p, logits.q, pi)``. Nothing is trained.

        :param model: the model.
        :param guide: the guide.
        :return: a named tuple ``(p, q, weights_p, weights_q)``, one logit for
            every datum; weights may be None.
        """
        with torch.no_grad():
            sides = self._sides(model, guide, args, kwargs)
            self._register(model, guide, args, kwargs)
            with unchanged_buffers(self.discriminator):
                return self._logits(sides, sides.model, args, kwargs)

    def look(
        self, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> tuple[float, dict[str, Any]]:
        """The value and the critic's logits, of the same draws."""
        logits = self.logits(model, guide, *args, **kwargs)
        return float(self._value(logits)), {"": logits}

    def differentiable_loss(
        self, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Like :meth:`loss`, as a tensor whose ``backward`` gives every param its player's gradient.

        The gradients of the players belong to different functions, so second derivatives have no
        meaning.
        """
        sides = self._sides(model, guide, args, kwargs)
        self._register(model, guide, args, kwargs)
        if not torch.is_grad_enabled():
            return self._evaluate(sides, model, guide, args, kwargs)
        return self._play(sides, model, guide, args, kwargs)

    def _evaluate(
        self, sides: TwoSides, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> torch.Tensor:
        values = []
        with unchanged_buffers(self.discriminator):
            for particle in range(self.num_particles):
                sides = sides if not particle else self._sides(model, guide, args, kwargs)
                values.append(self._value(self._logits(sides, sides.model, args, kwargs)))
        return torch.stack(values).mean()

    def _sides(self, model: Any, guide: Any, args: Any, kwargs: Any) -> TwoSides:
        sides = draw_sides(model, guide, kernels_of(self.noise, args, kwargs), args, kwargs)
        if is_lazy(self.discriminator):
            with torch.no_grad(), unchanged_buffers(self.discriminator):
                self._judge(sides.data, args, kwargs)
        return sides

    def _register(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        register_critic(self.name, self.discriminator)

    def _judge(self, values: SiteValues, args: Any, kwargs: Any) -> torch.Tensor:
        return judge(self.discriminator, values, args, kwargs)

    def _logits(self, sides: TwoSides, model_values: SiteValues, args: Any, kwargs: Any) -> Logits:
        return Logits(
            self._judge(sides.data, args, kwargs),
            self._judge(model_values, args, kwargs),
            sides.data_weights,
            sides.model_weights,
        )

    def _is_one_pass(self, logits: torch.Tensor, values: SiteValues, kwargs: Any) -> bool:
        """Whether one pass gives the generator's gradient too; asked of the logits of this step."""
        if self.update == "two_pass":
            return False
        if is_samplewise_here(self.discriminator, logits, values):
            return self.update == "one_pass" or not learns_others(values, kwargs)
        # What nothing proves may still be so, on the user's word and after a look.
        if self.update == "one_pass" and couples(self.discriminator, logits, values):
            raise ValueError(players.coupled_critic())
        return self.update == "one_pass"

    def _play(
        self, sides: TwoSides, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> torch.Tensor:
        total: torch.Tensor | None = None
        seen = []
        for particle in range(self.num_particles):
            if particle:
                sides = self._sides(model, guide, args, kwargs)
            loss, logits = self._play_once(sides, args, kwargs)
            seen.append(logits)
            total = loss if total is None else total + loss
        assert total is not None
        if any(kernel._needs_critic for kernel in moving_kernels(self.noise).values()):
            if ranks() is not None:
                raise NotImplementedError(moving.adaptive_ranks())
            when_known(self._adapt, *seen)
        return total / self.num_particles

    def _play_once(self, sides: TwoSides, args: Any, kwargs: Any) -> tuple[torch.Tensor, Logits]:
        """The reported value, whose surrogate gives both players' gradients, and the logits."""
        factors: list[Any] = []
        generator_learns = any(v.requires_grad for v in sides.model.values())
        inputs = {n: Rescale.apply(v, factors) for n, v in sides.model.items()}
        model_values = sides.model.replaced(inputs)
        logits = self._logits(sides, model_values, args, kwargs)
        own = share(logits.weights_p, logits.p, logits.p.numel())
        pull_data, pull_model, push = self._slopes(logits, own)
        surrogate = (logits.p * pull_data).sum()
        if not generator_learns:
            factors.append(None)
        elif self._is_one_pass(logits.q, model_values, kwargs):
            # The critic's own backward pass runs on into the generator, rescaled on the way.
            pull_model = away_from_zero(pull_model)
            factors += [torch.where(push == 0, push, 1 / pull_model), push]
        else:
            learned = {n: v for n, v in inputs.items() if v.requires_grad}
            # A critic may ignore some of the sites.
            grads = torch.autograd.grad(
                logits.q,
                list(learned.values()),
                push,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            factors.append(None)
            for name, grad in zip(learned, grads, strict=True):
                surrogate = surrogate + (grad * sides.model[name]).sum()
        surrogate = surrogate + (logits.q * pull_model).sum()
        judged = Judge(self.discriminator, args, kwargs)
        both = sides.data, sides.model
        surrogate = penalise(surrogate, self.regularizer, judged, *both, sides.data_weights, own)
        with torch.no_grad():
            detached = Logits(logits.p.detach(), logits.q.detach(), *logits[2:])
            value = self._value(detached)
            when_known(self._watch, detached)
        return _Report.apply(value, surrogate), detached

    def _slopes(
        self, logits: Logits, own: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Slopes of the critic's loss at both sides' logits, and of the generator's at its own."""
        data = logits.p.detach().requires_grad_()
        model = logits.q.detach().requires_grad_()
        with torch.enable_grad():
            critic = self._critic_loss(Logits(data, model, *logits[2:]))
            generator = weighted_mean(self._generator_loss(model), logits.weights_q)
        pull_data, pull_model = torch.autograd.grad(critic, (data, model))
        (push,) = torch.autograd.grad(generator, model)
        if ranks() is not None:  # both players minimise means, side by side
            pull_data, pull_model, push = (own * slope for slope in (pull_data, pull_model, push))
        return pull_data, pull_model, push
