# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
JointContrastELBO: compare pairs of data and latents of guide and model; neither needs a density.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from pyro_spread._inputs import as_tensor
from pyro_spread._recording import when_known
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.divergences import Divergence, ReverseKL
from pyro_spread.infer._critic import (
    Judge,
    check_critic,
    is_lazy,
    judge,
    penalise,
    register_critic,
)
from pyro_spread.infer._handed import Handed, Watch
from pyro_spread.infer._joint_sides import JointSides, draw_joint
from pyro_spread.infer._noise import kernels_of
from pyro_spread.infer._particles import at_once
from pyro_spread.infer._posterior_estimation import Estimation
from pyro_spread.infer._random_delta import refuse_random_deltas
from pyro_spread.infer._ranks import LossModule, ranks, share
from pyro_spread.infer._registration import Loss
from pyro_spread.infer._simulated import Rows, in_turn
from pyro_spread.infer._spreading import Spreading
from pyro_spread.infer._watch import LagWatch
from pyro_spread.ratio._last_layer import refuse_bounded_logits
from pyro_spread.ratio.adapters import SiteValues
from pyro_spread.ratio.losses import log_ratio, logistic_loss, prior_log_odds, weighted_mean
from pyro_spread.ratio.regularizers import check_regularizer
from spread_core.logits import Logits
from spread_core.losses.joint_contrast_elbo import JointContrastShared
from spread_core.messages import contrasts, simulations
from spread_core.monitors import Monitor
from spread_core.nonfinite import NonFiniteError, Told
from spread_core.simulated import known_data_sites
from spread_core.typing import Guide, Model
from spread_core.use_of_data import UseOfData


class JointContrastELBO(JointContrastShared, Loss):
    """
    Divergence between the model's pairs (x, z) and the guide's, learned from draws of both.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import KL, JointContrastELBO
        >>> net = torch.nn.Linear(1, 2)
        >>> def model(x):
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         simulated = z + 0.1 * torch.randn(z.shape)         # no density
        ...         pyro.sample("x", dist.Delta(simulated, event_dim=1), obs=x)
        >>> def guide(x):
        ...     pyro.module("net", net)
        ...     loc, log_scale = net(x).chunk(2, -1)
        ...     with pyro.plate("data", x.shape[0]):
        ...         pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
        >>> pyro.clear_param_store()
        >>> loss = JointContrastELBO(divergence=KL())
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)
        >>> svi.step(torch.zeros(100, 1)) > 0
        True

    **Data parallelism** (DDP around ``loss(model, guide)``): exact. Means are those over the whole
    batch, whatever the shards, if something counts on each; for ``ReverseKL()``, a sum over data,
    their plate has to say what they stand for: ``plate("data", N, subsample=x)`` on shards of equal
    size. Critics with batch normalisation are refused. With ``KL()`` and no critic only the guide
    learns: DDP needs ``find_unused_parameters=True``.
    """

    _remembers = ("_watch",)
    _spreading_class = Spreading
    _as_array = staticmethod(as_tensor)

    def _set_up(self) -> None:
        if not isinstance(self.vectorize_particles, bool):  # a function is for NumPyro
            raise TypeError(simulations.not_bool(self.vectorize_particles))
        if self.discriminator is not None and self.vectorize_particles:
            raise ValueError(simulations.vectorized_with_critic())
        self._watch = LagWatch(prior_log_odds(self._pi))
        self._told = Told()

    def _check_players(self, discriminator: Any, divergence: Divergence, regularizer: Any) -> None:
        divergence.generator_loss(torch.zeros(1))
        if discriminator is not None:
            check_critic(discriminator)
            refuse_bounded_logits(discriminator)
        check_regularizer(regularizer)

    def __call__(self, model: nn.Module, guide: nn.Module) -> LossModule:
        """
        A complete ``nn.Module`` that computes the loss: for torch.optim, DDP and Lightning.

        Its parameters are those of model, guide and ``discriminator``.
        """
        module = super().__call__(model, guide)
        module.discriminator = self.discriminator
        return module

    def loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """
        The adversarial estimate of the divergence in nats, at fresh draws; nothing is trained.

        :raises ValueError: if sites, plates, masks and noise are inconsistent; the message names
            the site and says what to do, and params are as before.
        """
        kept = (
            nullcontext() if self.discriminator is None else unchanged_buffers(self.discriminator)
        )
        with torch.no_grad(), kept:
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        return float(loss)

    def differentiable_loss(
        self, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Like :meth:`loss`, as a tensor whose ``backward`` gives every param its player's gradient.

        The gradients of the players belong to different functions, so second derivatives have no
        meaning.
        """
        if self.discriminator is None:
            return self._forward_loss(model, guide, args, kwargs)
        self._register(model, guide, args, kwargs)
        number = range(self.num_particles)
        return torch.stack(
            [self._adversarial_loss(model, guide, args, kwargs) for _ in number]
        ).mean()

    def logits(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> Logits:
        """
        The critic's logits at fresh pairs of the guide and of the model.

        With held-out data it shows how far the critic can be trusted:
        ``critic_report(logits.p, logits.q)``. Nothing is trained.

        :param model: the model.
        :param guide: the guide.
        :return: a named tuple ``(p, q, weights_p, weights_q)``: P are the guide's pairs, Q the
            model's.
        :raises ValueError: if there is no discriminator.
        """
        if self.discriminator is None:
            raise ValueError(contrasts.joint_nothing_implicit("logits()"))
        with torch.no_grad():
            sides, args, kwargs = self._draw(model, guide, args, kwargs)
            with unchanged_buffers(self.discriminator):
                return self._logits(sides, args, kwargs)

    def monitors(self) -> list[Monitor]:
        """What watches the critic during training, and warns once."""
        return self._watch.monitors

    def _draw(
        self, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[JointSides, tuple[Any, ...], dict[str, Any]]:
        """Pairs of both sides, and the arguments with the noisy data in them."""
        located = self._spreading.locate(model, args, kwargs) if self.noise else {}

        def draw(use: UseOfData) -> tuple[JointSides, Handed]:
            handed = self._spreading.hand(use, located, args, kwargs)
            watch = Watch(handed) if located else None
            own = handed.noise, handed.args, handed.kwargs
            return draw_joint(model, guide, *own, watch), handed

        sides, handed = self._spreading.settled(located, model, args, kwargs, draw)
        args, kwargs = handed.args, handed.kwargs
        self._check_globals(sides.global_sites)
        if sides.global_sites:  # of the local ones no density is asked for
            refuse_random_deltas(guide, args, kwargs, sides.global_sites)
        return sides, args, kwargs

    def _judge(
        self, values: SiteValues, args: Any, kwargs: Any, frozen: bool = False
    ) -> torch.Tensor:
        assert self.discriminator is not None
        return judge(self.discriminator, values, args, kwargs, frozen)

    def _logits(self, sides: JointSides, args: Any, kwargs: Any) -> Logits:
        """Logits at detached pairs, on which the critic is trained."""
        detached = [_constant(side) for side in (sides.guide, sides.model)]
        guide, model = (self._judge(side, args, kwargs) for side in detached)
        return Logits(guide, model, sides.guide_weights, sides.model_weights)

    def _adversarial_loss(self, model: Any, guide: Any, args: Any, kwargs: Any) -> torch.Tensor:
        sides, args, kwargs = self._draw(model, guide, args, kwargs)
        assert self.discriminator is not None
        if is_lazy(self.discriminator):
            with torch.no_grad(), unchanged_buffers(self.discriminator):
                self._judge(sides.guide, args, kwargs)
        like = next(iter(sides.guide.values()))
        own = share(sides.guide_weights, like, sides.guide.batch_shape.numel())
        value = self._players_loss(sides, own, args, kwargs)
        if not torch.is_grad_enabled():
            return value
        logits = self._logits(sides, args, kwargs)
        weights = logits.weights_p, logits.weights_q
        critic = own * logistic_loss(logits.p, logits.q, self._pi, *weights)
        judged = Judge(self.discriminator, args, kwargs)
        pairs = _constant(sides.guide), sides.model
        critic = penalise(critic, self.regularizer, judged, *pairs, weights, own)
        when_known(self._watch, logits)
        return value + (critic - critic.detach())

    def _players_loss(
        self, sides: JointSides, own: torch.Tensor | float, args: Any, kwargs: Any
    ) -> Any:
        """The value, with the gradients of guide and model and none for the critic."""
        guide = log_ratio(self._judge(sides.guide, args, kwargs, frozen=True), self._pi)
        learned = any(value.requires_grad for value in sides.model.values())
        model_side = sides.model if learned else _constant(sides.model)
        model = log_ratio(self._judge(model_side, args, kwargs, frozen=True), self._pi)
        divergence, weights = self.divergence, (sides.guide_weights, sides.model_weights)
        if isinstance(divergence, ReverseKL):
            scaled = sides.scales if weights[0] is None else sides.scales * weights[0].sign()
            value = (scaled * guide).sum() - sides.log_globals
            total = scaled.sum()
        else:
            # The divergence takes the model first: its log-ratio is that of model to guide.
            with torch.no_grad():
                value = divergence.estimate(-model, -guide, weights[1], weights[0])
            loss = own * weighted_mean(divergence.generator_loss(-guide), weights[0])
            value, total = value + (loss - loss.detach()), torch.ones(())
        if learned:
            if (current := ranks()) is not None:
                total = current.sum(total.to(model)) / current.size
            loss = weighted_mean(divergence.reversed.generator_loss(model), weights[1])
            loss = total * own * loss
            value = value + (loss - loss.detach())
        return value

    def _forward_loss(self, model: Any, guide: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """The loss of neural posterior estimation."""
        number, rows = self.num_particles, None
        known = known_data_sites(guide, args, kwargs)
        if self.noise and self._table is None and known is None:
            self._spreading.locate(model, args, kwargs)  # its checks
        if self._table is not None:
            rows = Rows(self._table, model, guide, args, kwargs)
        drawn = None if rows is None else rows.draw(number)
        told = self._told if self.exclude_invalid_x else None
        noise = functools.partial(kernels_of, self.noise, args, kwargs)
        estimation = Estimation(model, guide, noise, self.data, told, args, kwargs, rows)
        if self.vectorize_particles and number > 1:
            particles = at_once(estimation, number, drawn)
            if particles is not None:
                losses = [estimation.minus_log_q(drawn, particles)]
                return _mean_of_valid(losses, number)
        return _mean_of_valid(
            [estimation.minus_log_q(row) for row in in_turn(drawn, number)], number
        )

    def _register(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Put the critic's params into the store before they are used: it may hold saved values."""
        if self.discriminator is None:
            return
        if is_lazy(self.discriminator):
            with torch.no_grad(), unchanged_buffers():
                sides, args, kwargs = self._draw(model, guide, args, kwargs)
                self._judge(sides.guide, args, kwargs)
        register_critic(self.name, self.discriminator)


def _mean_of_valid(losses: list[torch.Tensor | None], number: int) -> torch.Tensor:
    valid = [loss for loss in losses if loss is not None]
    if not valid:
        raise NonFiniteError(simulations.all_left_out(number))
    return torch.stack(valid).mean()


def _constant(side: SiteValues) -> SiteValues:
    values = {name: value.detach() for name, value in side.items()}
    arguments = {
        n: a.detach() if isinstance(a, torch.Tensor) else a for n, a in side.arguments.items()
    }
    return SiteValues(values, side.batch_shape, arguments)
