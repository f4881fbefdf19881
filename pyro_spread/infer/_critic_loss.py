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
from pyro_spread.infer._noise import as_noise, kernels_of, register_noise
from pyro_spread.infer._ranks import LossModule, ranks, share
from pyro_spread.infer._registration import Loss
from pyro_spread.infer._shared_pass import Rescale, away_from_zero, learns_others
from pyro_spread.infer._two_sides import TwoSides, draw_sides
from pyro_spread.ratio._samplewise import couples, is_samplewise_here
from pyro_spread.ratio.adapters import SiteValues
from pyro_spread.ratio.regularizers import check_regularizer, constant
from spread_core.logits import Logits
from spread_core.losses.critic_loss import CriticLossShared
from spread_core.messages import critics, moving, players
from spread_core.messages import ranks as rank_messages
from spread_core.noise.learnable import learned_of
from spread_core.noise.moving import moving_kernels
from spread_core.nonfinite import NonFiniteError
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
        if learned := learned_of(self.noise):
            module.noise = nn.ModuleList(learned.values())
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
        register_noise(self.noise)
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
        if self.unroll and ranks() is not None:
            raise NotImplementedError(rank_messages.unrolled())
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
        """The reported value, whose surrogate gives all players' gradients, and the logits."""
        both = sides.data, sides.model
        factors: list[list[Any]] = [[], []]
        inputs = [
            values.replaced(
                {n: Rescale.apply(v, own) if v.requires_grad else v for n, v in values.items()}
            )
            for values, own in zip(both, factors, strict=True)
        ]
        judged = [self._judge(values, args, kwargs) for values in inputs]
        logits = Logits(judged[0], judged[1], sides.data_weights, sides.model_weights)
        own = share(logits.weights_p, logits.p, logits.p.numel())
        pulls, pushes = self._slopes(logits, own)
        surrogate = torch.zeros((), dtype=logits.p.dtype, device=logits.p.device)
        for side in range(2):
            learned = {n: v for n, v in inputs[side].items() if both[side][n].requires_grad}
            pull, push = pulls[side], pushes[side]
            if not learned:
                factors[side].append(None)
            elif self.unroll and side == 1:
                factors[side].append(None)
                for name, grad in self._look_ahead(sides, args, kwargs).items():
                    surrogate = surrogate + (grad * both[side][name]).sum()
            elif self._is_one_pass(judged[side], inputs[side], kwargs):
                # The critic's own backward pass runs on into its input, rescaled on the way.
                pull = away_from_zero(pull)
                factors[side] += [torch.where(push == 0, push, 1 / pull), push]
            else:
                # A critic may ignore some of the sites.
                grads = torch.autograd.grad(
                    judged[side],
                    list(learned.values()),
                    push,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                factors[side].append(None)
                for name, grad in zip(learned, grads, strict=True):
                    surrogate = surrogate + (grad * both[side][name]).sum()
            surrogate = surrogate + (judged[side] * pull).sum()
        critic = Judge(self.discriminator, args, kwargs)
        surrogate = penalise(surrogate, self.regularizer, critic, *both, logits[2:], own)
        with torch.no_grad():
            detached = Logits(logits.p.detach(), logits.q.detach(), *logits[2:])
            value = self._value(detached)
            when_known(self._watch, detached)
        return _Report.apply(value, surrogate), detached

    def _slopes(
        self, logits: Logits, own: torch.Tensor | float
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        Slopes at the logits of data and model: of the critic's loss, and of what the samples lower.

        That of the data is moved by learned noise only, of whose gradient the sign is turned later.
        """
        data = logits.p.detach().requires_grad_()
        model = logits.q.detach().requires_grad_()
        with torch.enable_grad():
            critic = self._critic_loss(Logits(data, model, *logits[2:]))
        pulls = torch.autograd.grad(critic, (data, model))
        pushes = (self._pushes_ahead if learned_of(self.noise) else self._pushes)(logits)
        # All players minimise means, side by side.
        scale = 1.0 if ranks() is None else own
        return [scale * slope for slope in pulls], [scale * slope for slope in pushes]

    def _pushes(self, logits: Logits) -> tuple[torch.Tensor, torch.Tensor]:
        """Slopes of what the generator minimises, at both sides' logits."""
        data, model = (side.detach().requires_grad_() for side in logits[:2])
        with torch.enable_grad():
            generator = self._generator_mean(Logits(data, model, *logits[2:]))
        at_data, at_model = torch.autograd.grad(generator, (data, model), materialize_grads=True)
        return at_data, at_model

    def _pushes_ahead(self, logits: Logits) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Slopes of the divergence that the best critic knows: learned noise moves the data's logits
        too, and so does a critic that looks ahead, which follows the generator.
        """
        return self._pushes(logits)

    def _look_ahead(self, sides: TwoSides, args: Any, kwargs: Any) -> dict[str, torch.Tensor]:
        """Gradients of the generator at its draws, through steps of the critic that follow them."""
        learned = {
            n: v.detach().requires_grad_() for n, v in sides.model.items() if v.requires_grad
        }
        draws = constant(sides.model).replaced(learned)
        data, weights = constant(sides.data), (sides.data_weights, sides.model_weights)
        params = {
            name: param.detach().requires_grad_(param.requires_grad)
            for name, param in self.discriminator.named_parameters()
        }
        moved = [name for name, param in params.items() if param.requires_grad]
        try:
            for _ in range(self.unroll if moved else 0):  # a frozen critic does not follow
                critic = Judge(self.discriminator, args, kwargs, params=params)
                loss = self._critic_loss(Logits(critic(data), critic(draws), *weights))
                if self.regularizer is not None:
                    loss = loss + self.regularizer.between(critic, data, draws, weights)
                slopes = torch.autograd.grad(
                    loss, [params[n] for n in moved], create_graph=True, materialize_grads=True
                )
                steps = zip(moved, slopes, strict=True)
                params |= {n: params[n] - self.unroll_step_size * slope for n, slope in steps}
            critic = Judge(self.discriminator, args, kwargs, params=params)
            logits = Logits(critic(data), critic(draws), *weights)
        except NonFiniteError as error:
            message = critics.diverged_ahead(self.unroll, self.unroll_step_size)
            raise NonFiniteError(message) from error
        pushes = self._pushes_ahead(logits)
        # A frozen critic's logits at the data follow nothing.
        seen = [pair for pair in zip(logits[:2], pushes, strict=True) if pair[0].requires_grad]
        outputs, slopes = zip(*seen, strict=True)
        grads = torch.autograd.grad(outputs, list(learned.values()), slopes, materialize_grads=True)
        return dict(zip(learned, grads, strict=True))
