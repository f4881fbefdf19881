# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What all losses of this package have that the stock ones have not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer.elbo import ELBO

from pyro_spread.infer._guards import no_new_params_on_error
from spread_analysis._stateful import Stateful


class Loss(Stateful, ELBO):
    """Base of all losses: code ports to NumPyro, and an error leaves no params behind."""

    def register(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Callable[..., Any]:
        """
        The guide to hand to SVI: here the guide itself. Code ports to NumPyro, where it does more.

        :param model: the model.
        :param guide: the guide.
        """
        return guide

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Like :meth:`loss`, and adds to every param the gradient of its own player's loss."""
        with no_new_params_on_error():
            self._register(model, guide, args, kwargs)
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
            if loss.requires_grad:
                loss.backward()
        return float(loss.detach())

    def _register(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Put the params of critics into the store, where SVI looks for them."""

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError  # densities are what these losses do without
