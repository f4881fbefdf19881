# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Decide whether each logit of a critic depends on its own sample only, or on the whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from pyro_spread.ratio._slopes import are_apart, others_move
from pyro_spread.ratio.adapters import ConcatSites, SiteValues
from pyro_spread.ratio.critics import (
    _MLP,
    ConvCritic,
    MLPCritic,
    QuadraticCritic,
    SeparableCritic,
    leaky_relu,
)
from spread_core.remembered import Remembered

# Layers of which one knows that they treat samples one by one, whatever the number of batch dims.
_LAYERS: set[Any] = {
    nn.Linear, nn.Sequential, nn.ModuleList, nn.Identity, nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.ELU,
    nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.ReLU6,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink,
    ConcatSites, ConvCritic, MLPCritic, QuadraticCritic, SeparableCritic, _MLP,
}  # fmt: skip
# Elsewhere they may take the batch for channels.
_IMAGE_LAYERS = {nn.Conv2d, nn.Flatten}
_ACTIVATIONS = (leaky_relu, torch.relu, nn.functional.relu, torch.tanh, nn.functional.gelu)
_PLAIN = (bool, int, float, str, type(None))
_MOST_LOOKS = 32

# What a look has shown, by what the critic was like then.
_seen: Remembered[dict[Any, bool]] = Remembered()


def is_samplewise(critic: nn.Module) -> bool:
    """
    Whether the layers alone prove that every logit depends on its own sample and no other.

    It is asked at every step, since layers may be exchanged or set to another mode.

    :param critic: the module.
    """
    return _is_known(critic, _LAYERS, is_root=True)


def is_samplewise_here(critic: nn.Module, logits: torch.Tensor, values: SiteValues) -> bool:
    """
    Whether layers, or the graph of these logits, prove that none has a slope in another sample.

    Nothing is computed. Where neither proves it, the answer is no.

    :param critic: the module.
    :param logits: its logits, of the batch shape.
    :param values: of which they were computed, those with gradients being leaves or results.
    """
    if are_apart(logits, list(values.values()), values.batch_shape):
        return True
    return is_samplewise(critic) and "forward" not in vars(critic)


def couples(critic: nn.Module, logits: torch.Tensor, values: SiteValues) -> bool:
    """
    Whether logits depend on other samples, where nothing proves that they do not.

    The logits are differentiated. The answer is remembered for as long as modes, layers and plain
    attributes of the critic stay what they are.

    :param critic: the module.
    :param logits: its logits, of the batch shape.
    :param values: of which they were computed; only those with gradients are looked at.
    """
    if is_samplewise(critic):
        return False
    like = _likeness(critic, values)
    known = _seen.get(critic) or {}
    if like not in known and not any(value.requires_grad for value in values.values()):
        return False  # there is nothing to be seen
    if like not in known:
        inputs = list(values.values())
        found = not are_apart(logits, inputs, values.batch_shape) and others_move(logits, inputs)
        if found is None:
            return False  # such a step ends in an error of its own
        known = {**(known if len(known) < _MOST_LOOKS else {}), like: found}
        _seen.keep(critic, known)
    return known[like]


def known_to_couple(critic: nn.Module, values: SiteValues) -> bool | None:
    """What :func:`couples` says; None if it has yet to see the logits of such values."""
    if is_samplewise(critic):
        return False
    return (_seen.get(critic) or {}).get(_likeness(critic, values))


def with_slopes(values: SiteValues) -> SiteValues:
    """Copies of the values that require a gradient where their type is floating."""

    def with_slope(value: torch.Tensor) -> torch.Tensor:
        if value.requires_grad or not value.is_floating_point():
            return value
        return value.detach().requires_grad_()

    return values.replaced({name: with_slope(value) for name, value in values.items()})


def _is_known(module: nn.Module, layers: set[Any], is_root: bool = False) -> bool:
    compiled = getattr(module, "_orig_mod", None)  # torch.compile wraps what it compiles
    if compiled is not None and type(module).__module__.startswith("torch._dynamo"):
        return _is_known(compiled, layers, is_root)
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if "forward" in vars(module) and not is_root:
        return False
    kind: Any = type(module)
    if parametrize.is_parametrized(module):
        own = parametrize.__name__, nn.utils.parametrizations.__name__
        each = [part for of in module.parametrizations.children() for part in of.modules()]  # type: ignore[union-attr]
        if any(type(part).__module__ not in own for part in each):
            return False
        kind = parametrize.type_before_parametrizations(module)
    if kind in (nn.LayerNorm, nn.RMSNorm):
        return len(module.normalized_shape) == 1  # type: ignore[arg-type]
    if kind not in layers:
        return False
    if kind is nn.Flatten and not module.start_dim >= 1:  # type: ignore[operator]
        return False
    if kind is ConcatSites and not isinstance(module.net, nn.Module):
        return False
    if kind in (_MLP, MLPCritic):
        activation = module.activation
        if not isinstance(activation, nn.Module) and activation not in _ACTIVATIONS:
            return False
    layers = layers | _IMAGE_LAYERS if kind is ConvCritic else layers
    parts = (part for name, part in module.named_children() if name != "parametrizations")
    return all(_is_known(part, layers) for part in parts)


def _likeness(critic: nn.Module, values: SiteValues) -> Any:
    """What decides how a critic treats its samples, as far as one can see from outside."""
    layers = tuple(
        (
            name,
            type(module),
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            tuple((k, v) for k, v in vars(module).items() if isinstance(v, _PLAIN)),
        )
        for name, module in critic.named_modules()
    )
    return layers, values.batch_shape, tuple((name, v.shape) for name, v in values.items())
