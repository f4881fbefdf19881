# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""SpreadELBO: the ELBO of a model and data that were both passed through noise."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro import infer, poutine
from pyro.infer.elbo import ELBO

from pyro_spread.infer._noise import register_noise
from pyro_spread.infer._ranks import LossModule, check_separable, check_traces, ranks
from pyro_spread.infer._registration import Loss
from pyro_spread.infer._spreading import Spreading, started
from spread_core.arguments import Key
from spread_core.losses.over_stock_elbo import StockELBOs
from spread_core.losses.spread_elbo import SpreadELBOShared
from spread_core.messages import general, learned, moving, spreading
from spread_core.noise.learnable import learned_of
from spread_core.noise.moving import moving_kernels
from spread_core.typing import Guide, Model
from spread_core.use_of_data import UseOfData

# All particles of these enter one log-mean-exp: they must bound the same log p(y).
_SHARING = (infer.RenyiELBO, infer.TraceTailAdaptive_ELBO, infer.TraceTMC_ELBO)
_AVERAGING = (
    infer.Trace_ELBO,
    infer.TraceEnum_ELBO,
    infer.TraceGraph_ELBO,
    infer.TraceMeanField_ELBO,
)
_JIT = (
    infer.JitTrace_ELBO,
    infer.JitTraceEnum_ELBO,
    infer.JitTraceGraph_ELBO,
    infer.JitTraceMeanField_ELBO,
)
_STOCK = StockELBOs(
    infer.Trace_ELBO,
    ELBO,
    "pyro.infer.ELBO",
    _AVERAGING + _SHARING,
    {
        infer.Trace_MMD: "it compares latent samples with the prior and is no bound on log p(y).",
        infer.ReweightedWakeSleep: "its sleep phase draws data from the model instead of "
        "spreading them.",
    },
)


class SpreadELBO(SpreadELBOShared, Loss):
    r"""
    Evidence lower bound of the spread model, for models whose likelihood is zero almost everywhere.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import GaussianNoise, SpreadELBO
        >>> def model(x):
        ...     w = pyro.param("w", torch.tensor(0.5))
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     v = pyro.param("v", torch.tensor(0.5))
        ...     with pyro.plate("data", x.shape[0]):
        ...         pyro.sample("z", dist.Normal(v * x, 0.3))
        >>> loss = SpreadELBO({"x": GaussianNoise(0.3)})
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
        >>> svi.step(torch.randn(100)) < float("inf")
        True

    A kernel's ``nn.Parameter`` is trained through ``loss(model, guide)`` only: under ``SVI`` make
    the scale a ``pyro.param`` in a callable ``noise``. Clean samples are those of
    ``Predictive(model, num_samples=1)(None)``.

    With ``vectorize_particles=True`` an averaged bound still runs its particles one after another:
    each sees its own y, and a model written for x of shape (N, ...) cannot take (particles, N,
    ...).

    **Data parallelism** (DDP around ``loss(model, guide)``): exact if the plate of the data says
    what they stand for, since the bound is a sum over them: ``plate("data", N, subsample=x)`` on
    shards of equal size, or ``poutine.scale`` by the number of ranks around a plate of the shard's
    own size. Otherwise the gradient is that of the sum divided by that number.
    ``TraceTailAdaptive_ELBO``, latents enumerated outside all plates and learned noise couple the
    data and are refused.
    """

    _stock = _STOCK
    _make_spreading = Spreading

    def _prepare(self) -> None:
        elbo = self.elbo
        # The stock ELBO runs unchanged, except that its traces are made here.
        self._runner = copy.copy(elbo)
        self._runner._get_traces = self._get_traces
        self._particles = copy.copy(elbo)
        self._num_draws = 1
        if not isinstance(elbo, _SHARING):
            self._num_draws = elbo.num_particles
            if elbo.vectorize_particles and elbo.num_particles > 1:
                self._particles.max_plate_nesting -= 1  # it reserved a dim for the particles
            self._particles.num_particles, self._particles.vectorize_particles = 1, False

    def __call__(self, model: torch.nn.Module, guide: torch.nn.Module) -> LossModule:
        """
        A complete ``nn.Module`` that computes the loss: for torch.optim, DDP and Lightning.

        Its parameters are those of model, guide and the noise kernels.
        """
        module = super().__call__(model, guide)
        module.noise = self._spreading.modules()
        return module

    def loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """
        The negative bound in nats, a Monte Carlo estimate with fresh noise.

        :raises ValueError: if site, argument, data and kernel do not fit together; the message
            names the site and says what to do, and params and data are as before.
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
        if isinstance(poutine.unwrap(guide), poutine.messenger.Messenger):
            raise NotImplementedError(spreading.messenger_guide())
        check_separable(self.elbo)
        register_noise(self.noise)
        if learned_of(self.noise) and ranks() is not None:
            raise NotImplementedError(learned.mixture_of_shard())
        if isinstance(self.elbo, _JIT):
            self._check_compilable(type(self.elbo).__name__)
            # A compiled graph runs no checks: make them before it.
            located = self._spreading.locate(model, args, kwargs)
            _check_positional(located, type(self.elbo).__name__)
        return getattr(self._runner, method)(model, guide, *args, **kwargs)

    def _check_compilable(self, elbo: str) -> None:
        if learned_of(self.noise):
            raise NotImplementedError(learned.mixture_under_jit(elbo))
        for site, kernel in moving_kernels(self.noise).items():
            raise NotImplementedError(general.at_site(site, moving.under_jit(kernel._name, elbo)))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(model, guide, args, kwargs)

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Any]:
        """Pairs of traces of the spread model and the guide, each on its own draw of y."""
        located = self._spreading.locate(model, args, kwargs)

        def pairs(use: UseOfData) -> Iterator[Any]:
            sides = self._spreading.draw(use, located, model, guide, args, kwargs)
            return started(self._particles._get_traces(*sides))

        for _ in range(self._num_draws):
            for traces in self._spreading.settled(located, model, args, kwargs, pairs):
                check_traces(traces)
                yield traces


def _check_positional(located: Mapping[str, Key], elbo: str) -> None:
    for site, key in located.items():
        top = key[0] if isinstance(key, tuple) else key
        if isinstance(top, str):
            raise ValueError(spreading.jit_keyword_data(site, top, elbo))
