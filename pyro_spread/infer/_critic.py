# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Discriminators in the losses: check, register, and compute logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import pyro
import torch
from pyro.nn import PyroModule
from pyro.params import param_with_module_name
from torch import nn

from pyro_spread import _parents
from pyro_spread._recording import settle
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.infer._guards import check_logits, critic_params
from pyro_spread.infer._ranks import broadcast_from_first, in_module, ranks
from pyro_spread.ratio._samplewise import couples, known_to_couple, with_slopes
from pyro_spread.ratio.adapters import SiteValues
from pyro_spread.ratio.critics import ConvCritic, MLPCritic, QuadraticCritic
from pyro_spread.ratio.regularizers import Regularizer, Weights, constant
from spread_core.arguments import accepts
from spread_core.caller_warning import warn_user
from spread_core.messages import learned, players
from spread_core.messages import ranks as rank_messages
from spread_core.messages.notes import noting
from spread_core.noise.learned import is_noise
from spread_core.typing import Args, Kwargs

# Critics of which it was said that a gradient penalty does not suit them.
_warned: WeakSet[nn.Module] = WeakSet()

_CALLED = "a module that takes the dict of sites and the arguments of the model"


def check_critic(discriminator: Any) -> None:
    """
    Raise an error for anything that cannot be a discriminator.

    :raises TypeError: saying what it must be.
    """
    if not isinstance(discriminator, nn.Module):
        raise TypeError(players.no_critic(discriminator, "a torch.nn.Module"))
    if isinstance(discriminator, (ConvCritic, MLPCritic, QuadraticCritic)):
        raise TypeError(players.no_critic(discriminator, _CALLED))
    if any(isinstance(module, PyroModule) for module in discriminator.modules()):
        raise TypeError(players.pyro_module_critic())


def is_lazy(module: nn.Module) -> bool:
    """Whether some layer has yet to see its input."""
    return any(nn.parameter.is_lazy(param) for param in module.parameters())


def register_critic(name: str, discriminator: nn.Module) -> None:
    """
    Put the params of a discriminator or of learned noise into the store, where SVI looks for them.

    :param name: of the discriminator or noise in the store.
    :raises ValueError: if the store holds the params of another one under this name.
    """
    if in_module():  # which hands its params out itself
        return
    store = pyro.get_param_store()
    for param_name, param in discriminator.named_parameters():
        full_name = param_with_module_name(name, param_name)
        stored = _parents.stored_params().get(full_name)
        if stored is None or stored is param:
            continue
        if stored in critic_params or stored.shape != param.shape:
            stale = learned.stale if is_noise(name) else players.stale_critic
            raise ValueError(stale(name))
        # Loaded from a file, so no other critic's: the module takes its value. The module's
        # own tensor stays, since pyro.module would leave the two side by side.
        with torch.no_grad():
            param.copy_(stored)
        del store[full_name]
    for param_name, param in discriminator.named_parameters():
        # As pyro.module would, which refuses a name inside another's, such as the head's.
        if param.requires_grad:
            pyro.param(param_with_module_name(name, param_name), param)
            critic_params[param] = name


def judge(
    discriminator: nn.Module,
    values: SiteValues,
    args: Args,
    kwargs: Kwargs,
    frozen: bool = False,
    params: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """
    Logits of the batch shape.

    :param frozen: whether the discriminator's params get no gradient, but only ``values``.
    :param params: by name, in place of the discriminator's own; buffers stay as they are.
    :raises TypeError: if it cannot be called like this.
    :raises ValueError: if the logits are of another shape, or not finite; or if they couple the
        samples of a shard.
    """
    if ranks() is not None and torch.is_grad_enabled():
        _refuse_local_coupling(discriminator, values, args, kwargs)
    shapes = {name: value.shape for name, value in values.items()}
    try:
        with noting(lambda: players.critic_failed(shapes, values.batch_shape)):
            if frozen:
                params = {name: param.detach() for name, param in discriminator.named_parameters()}
            if params is not None:
                with unchanged_buffers(discriminator):  # nor does it learn their averages
                    logits = torch.func.functional_call(
                        discriminator, dict(params), (values, *args), kwargs
                    )
            else:
                logits = discriminator(values, *args, **kwargs)
    except TypeError as error:
        if accepts(discriminator.forward, values, *args, **kwargs):
            raise
        raise TypeError(players.no_critic(discriminator, _CALLED)) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != values.batch_shape:
        got = logits.shape if isinstance(logits, torch.Tensor) else ()
        raise ValueError(players.logit_shape(got, values.batch_shape))
    check_logits(discriminator, logits, values)
    return logits


@dataclass(frozen=True)
class Judge:
    """A discriminator with the arguments it is called with: a function from values to logits."""

    discriminator: nn.Module
    args: Any
    kwargs: Any
    params: Mapping[str, torch.Tensor] | None = field(default=None, kw_only=True)

    def __call__(self, values: SiteValues) -> torch.Tensor:
        return judge(self.discriminator, values, self.args, self.kwargs, params=self.params)


def _refuse_local_coupling(
    discriminator: nn.Module, values: SiteValues, args: Any, kwargs: Any
) -> None:
    """
    Refuse a critic that couples the samples of this rank's shard; checked once.

    :raises ValueError: if the samples of the shard move each other's logits.
    """
    coupled = known_to_couple(discriminator, values)
    if coupled is None:
        nets = discriminator.modules()
        synced = [net for net in nets if isinstance(net, nn.SyncBatchNorm) and net.training]
        devices = {value.device for value in values.values() if value.is_cuda}
        for layer in synced:  # it gathers the moments of all ranks: the question is of the rest
            layer.training = False
        try:
            seen = with_slopes(values)
            with unchanged_buffers(discriminator), torch.random.fork_rng(devices):
                logits = discriminator(seen, *args, **kwargs)
            coupled = couples(discriminator, logits, seen)
        finally:
            for layer in synced:
                layer.training = True
    if coupled:
        raise ValueError(rank_messages.local_coupling())


def has_turn(regularizer: Regularizer | None, like: torch.Tensor) -> bool:
    """
    Whether the penalty comes at this step, which is the same step on all ranks.

    :param like: a tensor on the device of the loss.
    """
    if regularizer is None or regularizer.every == 1:
        return regularizer is not None
    # By chance and not by a counter: nothing to save, and the same as in a compiled step.
    if ranks() is None:
        return settle(lambda: bool(torch.rand(()) < 1 / regularizer.every))
    return bool(broadcast_from_first(torch.rand(()), like) < 1 / regularizer.every)


def penalise(
    loss: torch.Tensor,
    regularizer: Regularizer | None,
    critic: Judge,
    data: SiteValues,
    model: SiteValues,
    weights: Weights,
    share: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """
    The critic's loss with its penalty, whenever that has its turn.

    :param critic: from values to logits.
    :param data: values of the side with label one.
    :param model: values of the other side.
    :param weights: of both sides.
    :param share: this rank's share in the mean over data, if there are several.
    """
    if not has_turn(regularizer, loss):
        return loss
    assert regularizer is not None

    def watched(values: SiteValues) -> torch.Tensor:
        logits = critic(values)
        if critic.discriminator not in _warned and couples(critic.discriminator, logits, values):
            _warned.add(critic.discriminator)
            warn_user(players.coupled_penalty())
        return logits

    with unchanged_buffers():
        penalty = regularizer.between(watched, constant(data), constant(model), weights)
    return loss + regularizer.every * share * penalty
