# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
SemiImplicitELBO: a true lower bound for guides without a density, by adding noise to their draws.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from pyro import infer, poutine
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger

from pyro_spread._recording import values_known
from pyro_spread.infer._mixture import Mix, Spread
from pyro_spread.infer._noise import Noise
from pyro_spread.infer._ranks import LossModule, check_separable, check_traces
from pyro_spread.infer._registration import Loss
from pyro_spread.infer._spreading import Spreading
from pyro_spread.infer._supports import (
    MovedSupportError,
    Supports,
    find_supports,
    forget_supports,
    same_support,
    support_in,
)
from pyro_spread.noise.base import BACKEND
from spread_core.losses.over_stock_elbo import StockELBOs
from spread_core.losses.semi_implicit_elbo import SemiImplicitELBOShared
from spread_core.messages import semi_implicit
from spread_core.typing import Args, Guide, Kwargs, Model

_STOCK = StockELBOs(
    infer.Trace_ELBO,
    ELBO,
    "pyro.infer.ELBO",
    (
        infer.RenyiELBO,
        infer.Trace_ELBO,
        infer.TraceEnum_ELBO,
        infer.TraceGraph_ELBO,
        infer.TraceMeanField_ELBO,
    ),
    {
        infer.Trace_MMD: "it compares latent samples with the prior and is no bound on log p(x).",
        infer.ReweightedWakeSleep: "its sleep phase scores the guide at draws of the model, for "
        "which the mixture is no lower bound.",
        infer.TraceTMC_ELBO: "it recombines the draws of different sites, but a draw can be scored "
        "only with the mixture it came from.",
        infer.TraceTailAdaptive_ELBO: "its objective is no lower bound of log p(x).",
    },
)


class SemiImplicitELBO(SemiImplicitELBOShared, Loss):
    r"""
    Evidence lower bound for implicit guides, critic-free: draws of the guide pass a noise kernel.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import GaussianNoise, ImplicitDistribution, SemiImplicitELBO
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(),
        ...                           torch.nn.Linear(32, 1))
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        ...     pyro.sample("x", dist.Normal(z[..., 0] ** 2, 0.5), obs=x)
        >>> def guide(x):
        ...     pyro.module("net", net)
        ...     eps = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        ...     pyro.sample("z", ImplicitDistribution(net, eps, event_shape=(1,)))
        >>> loss = SemiImplicitELBO({"z": GaussianNoise(0.1)}, num_mixture=20)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
        >>> svi.step(torch.tensor(1.0)) < float("inf")
        True

    The support of a site is looked up once for a model. Compiled forms of the stock ELBOs are
    accepted too. An ``nn.Parameter`` of a kernel in a dict is trained through ``loss(model,
    guide)`` only.

    **Data parallelism** (DDP around ``loss(model, guide)``): exact if the plate of the data says
    what they stand for, since the bound is a sum over them: ``plate("data", N, subsample=x)`` on
    shards of equal size, or ``poutine.scale`` by the number of ranks around a plate of the shard's
    own size. Otherwise the gradient is that of the sum divided by that number. Latents enumerated
    outside all plates couple the data and are refused.
    """

    _stock = _STOCK
    _backend = BACKEND

    def __init__(self, noise: Noise, num_mixture: int = 10, elbo: ELBO | None = None) -> None:
        super().__init__(noise, num_mixture, elbo)
        self._supports: Supports = {}
        # The stock ELBO runs unchanged, except that it gets another guide. Wrapped here and no
        # earlier, the guide is within our handler with the plate of its particles around it.
        self._runner = copy.copy(self.elbo)
        self._runner._get_trace = self._get_trace
        self._runner._guess_max_plate_nesting = self._guess_max_plate_nesting

    def __call__(self, model: torch.nn.Module, guide: torch.nn.Module) -> LossModule:
        """
        A complete ``nn.Module`` that computes the loss: for torch.optim, DDP and Lightning.

        Its parameters are those of model, guide and the noise kernels.
        """
        module = super().__call__(model, guide)
        module.noise = Spreading(self.noise, None).modules()
        return module

    def spread_guide(
        self, model: Callable[..., Any], guide: Callable[..., Any]
    ) -> Callable[..., Any]:
        """
        The guide with its noise: its draws are those of the fitted posterior.

        Use it for sampling, as in
        ``Predictive(model, guide=loss.spread_guide(model, guide), num_samples=100)``; for training,
        pass the guide itself to the loss.

        :param model: the model, whose supports say where the noise is added.
        :param guide: the guide.
        :return: a guide of the same signature.
        """

        @functools.wraps(guide, updated=())
        def spread(*args: Any, **kwargs: Any) -> Any:
            kernels = self._kernels(args, kwargs)
            supports = find_supports(model, guide, kernels, args, kwargs)
            with Spread(kernels, supports):
                return guide(*args, **kwargs)

        return spread

    def guide_as_trained(
        self, model: Model, guide: Guide, args: Args, kwargs: Kwargs
    ) -> tuple[Any, Any, Any]:
        """The spread guide, whose draws are those of the posterior."""
        return super().guide_as_trained(model, self.spread_guide(model, guide), args, kwargs)

    def loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """
        The negative bound in nats, a Monte Carlo estimate.

        :raises ValueError: if site, guide and kernel do not fit together; the message names the
            site and says what to do, and params are as before.
        """
        return self._run("loss", model, guide, args, kwargs)

    def loss_and_grads(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """
        Compute :meth:`loss`, and add the gradients of the surrogate loss to the params' grads.
        """
        return self._run("loss_and_grads", model, guide, args, kwargs)

    def differentiable_loss(
        self, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Like :meth:`loss`, as a tensor to differentiate."""
        self._check_differentiable()
        return self._run("differentiable_loss", model, guide, args, kwargs)

    def _run(self, method: str, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(poutine.unwrap(guide), Messenger):
            raise NotImplementedError(semi_implicit.semi_messenger_guide())
        check_separable(self.elbo)
        kernels = self._kernels(args, kwargs)
        self._supports = find_supports(model, guide, kernels, args, kwargs)
        try:
            return getattr(self._runner, method)(model, guide, *args, **kwargs)
        except MovedSupportError:
            forget_supports(model)  # another call may have other bounds, fixed ones
            raise

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        stock = type(self.elbo)._get_trace
        traces = stock(self._runner, model, self._wrap(guide), args, kwargs)
        check_traces(traces)
        if values_known():
            for site, support in self._supports.items():
                if not same_support(support, support_in(traces[0], site)):
                    raise MovedSupportError(semi_implicit.semi_moving_support(site))
        return traces

    def _guess_max_plate_nesting(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        stock = type(self.elbo)._guess_max_plate_nesting
        stock(self._runner, model, self._wrap(guide), args, kwargs)

    def _wrap(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        def mixed(*args: Any, **kwargs: Any) -> Any:
            # In here, so that params of a callable are among those of the guide's trace.
            kernels = self._kernels(args, kwargs)
            with Mix(kernels, self._supports, self.num_mixture):
                return guide(*args, **kwargs)

        return mixed
