# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Base class of every loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from pyro.infer.elbo import ELBO
from torch import nn

from pyro_spread._inputs import takes_arrays
from pyro_spread.infer._guards import as_one
from pyro_spread.infer._moving import moved_on
from pyro_spread.infer._precision import nets_in_half
from pyro_spread.infer._ranks import LossModule
from spread_core.loss_words import Described
from spread_core.noise.moving import Moves, moving_kernels
from spread_core.stateful import Stateful
from spread_core.typing import Args, Guide, Kwargs, Model

_METHODS = ("loss", "loss_and_grads", "differentiable_loss", "logits")
# More of those that take a model, a guide and their arguments.
_CHECKS = ("held_out_check",)


class Loss(Described, Stateful, ELBO):
    """
    Base class of every loss: ``register``, undoing of failed steps, conversion of arrays of other
    libraries, and autocast for nets only.
    """

    #: The processes that share a batch under ``DistributedDataParallel``; None for all of them.
    process_group: Any = None
    #: Where a loss adds noise to the data that the guide sees.
    _spreading: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _METHODS:
            if name in vars(cls):
                setattr(cls, name, takes_arrays(as_one(moved_on(nets_in_half(vars(cls)[name])))))
        for name in _CHECKS:
            if name in vars(cls):
                setattr(cls, name, takes_arrays(vars(cls)[name]))

    def __call__(self, model: nn.Module, guide: nn.Module) -> LossModule:
        """
        A complete ``nn.Module`` that computes the loss: for torch.optim, DDP and Lightning.

        :param model: the model.
        :param guide: the guide.
        """
        return LossModule(model, guide, self)

    def register(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Callable[..., Any]:
        """
        The guide to pass to SVI: in Pyro the guide itself, so that code can be ported to NumPyro.

        :param model: the model.
        :param guide: the guide.
        """
        return guide

    @property
    def _moves(self) -> Moves:
        """The states of noise that moves from step to step."""
        return Moves(moving_kernels(getattr(self, "noise", None)))

    def _remembered(self) -> tuple[str, ...]:
        moves = ("_moves",) if moving_kernels(getattr(self, "noise", None)) else ()
        return (*self._remembers, *moves)

    @takes_arrays
    @as_one
    @moved_on
    @nets_in_half
    def loss_and_grads(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """
        Compute :meth:`loss`, and add to every param the gradient of its own player's loss.

        :raises NonFiniteError: if data, params or logits are NaN or inf, naming site or param and
            player; all but the random state is as it was.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def look(
        self, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> tuple[float, dict[str, Any]]:
        """
        The reported value at fresh draws, and the logits of each critic; nothing is learned.

        :return: the value, and logits by critic; the name of a single critic is empty.
        """
        value = float(self.loss(model, guide, *args, **kwargs))
        if getattr(self, "discriminator", None) is None:
            return value, {}
        logits = cast(Any, self).logits(model, guide, *args, **kwargs)
        return value, logits if type(logits) is dict else {"": logits}

    def guide_as_trained(
        self, model: Model, guide: Guide, args: Args, kwargs: Kwargs
    ) -> tuple[Any, Any, Any]:
        """
        The guide and its arguments as in training: with noise on the data where there is noise.

        :return: guide, positional arguments, keyword arguments.
        """
        if self._spreading is not None and self._spreading.noise:
            return self._spreading.noisy(model, guide, args, kwargs)
        return guide, args, kwargs

    def _register(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Put the params of critics into the store, where SVI looks for them."""

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError  # densities are what these losses do without
