# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
SemiImplicitELBO: a true lower bound for guides without a density, by adding noise to their draws.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import torch
from pyro import infer, poutine
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger

from pyro_spread.infer._mixture import Mix, Spread
from pyro_spread.infer._noise import Noise, as_noise, kernels_of
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
from pyro_spread.noise import ChannelNoise, SpreadNoise, TransformedNoise
from spread_core.loss_words import LossWords
from spread_core.messages import general, semi_implicit

_REFUSED = {
    "Trace_MMD": "it compares latent samples with the prior and is no bound on log p(x).",
    "ReweightedWakeSleep": "its sleep phase scores the guide at draws of the model, for which the "
    "mixture is no lower bound.",
    "TraceTMC_ELBO": "it recombines the draws of different sites, but a draw can be scored only "
    "with the mixture it came from.",
    "TraceTailAdaptive_ELBO": "its objective is no lower bound of log p(x).",
}
_ACCEPTED = (
    infer.RenyiELBO,
    infer.Trace_ELBO,
    infer.TraceEnum_ELBO,
    infer.TraceGraph_ELBO,
    infer.TraceMeanField_ELBO,
)


class SemiImplicitELBO(Loss):
    r"""
    Evidence lower bound for implicit guides, critic-free: draws of the guide pass a noise kernel.

    A guide site :math:`\psi \sim` :class:`~pyro_spread.ImplicitDistribution` becomes
    :math:`z \sim k(z \mid \psi)`, whose conditional density is known. With K = ``num_mixture``
    further draws :math:`\psi_1, \dots, \psi_K` of the guide in addition to the :math:`\psi_0` that
    produced z,

    .. math::
        \mathbb{E}\Big[ \log p(x, z)
        - \log \frac{1}{K+1} \sum_{k=0}^{K} k(z \mid \psi_k) \Big] \le \log p(x)

    in nats [1, eq. 8; 2, section 3.1]. Unlike the contrast ELBOs' estimates, this is a **true lower
    bound** for every K; it grows with K, towards the ELBO of the marginal
    :math:`q(z) = \mathbb{E}\, k(z \mid \psi)` [2]. All :math:`\psi_k` carry gradients. The cost is
    that of K + 1 forward passes of ``fn``, in one vectorised call. Everything else (sites with
    densities, plates, subsampling, masks, particles) is the stock ``elbo``'s.

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

    **Where the noise is added.** If the model's site of the same name has a constrained support,
    then fn must return values in it; all K + 1 draws are mapped to unconstrained space by
    ``biject_to(support).inv``, the noise is added there, z is the image of the result, and the
    density contains minus the log-determinant of the Jacobian. A scale is thus in unconstrained
    units, and its event shape is that of the unconstrained value. An auxiliary site, which the
    model does not have, is in unconstrained space already. The support is looked up once for a
    model; bounds that move (with data, params or other latents) are refused.

    **Draws of the posterior.** The guide alone gives :math:`\psi`, without noise. For z use
    ``Predictive(loss.spread_guide(model, guide), ...)``.

    **Data parallelism** (DDP around ``loss(model, guide)``): exact if the plate of the data says
    what they stand for, since the bound is a sum over them: ``plate("data", N, subsample=x)`` on
    shards of equal size, or ``poutine.scale`` by the number of ranks around a plate of the shard's
    own size. Otherwise the gradient is that of the sum divided by that number. Latents enumerated
    outside all plates couple the data and are refused.

    **References**

    [1] `Semi-Implicit Variational Inference`, Mingzhang Yin, Mingyuan Zhou,
    https://arxiv.org/abs/1805.11183

    [2] `Doubly Semi-Implicit Variational Inference`, Dmitry Molchanov, Valery Kharitonov, Artem
    Sobolev, Dmitry Vetrov, https://arxiv.org/abs/1810.02789

    :param noise: dict from implicit guide site to noise kernel, one for each; or a callable that
        returns it, called with the model's arguments at every draw, in which ``pyro.param`` and
        ``pyro.module`` may be used, so that a scale is learned or amortised. An ``nn.Parameter``
        of a kernel in a dict is trained through ``loss(model, guide)`` only.
    :param num_mixture: number K >= 0 of further draws; 0 is the hierarchical bound.
    :param elbo: the stock ELBO to evaluate; ``Trace_ELBO()`` by default. Also ``TraceGraph_ELBO``,
        ``TraceMeanField_ELBO``, ``TraceEnum_ELBO``, their compiled forms, and ``RenyiELBO`` (a
        bound too where its alpha is not negative, since :math:`p(x, z)` over the mixture is an
        unbiased estimate of p(x)).
    :raises TypeError: if noise is not such a dict, or elbo not an ELBO.
    :raises ValueError: if num_mixture is not such an integer or a kernel is discrete.
    :raises NotImplementedError: if elbo is one that cannot be used, saying why.
    """

    def __init__(self, noise: Noise, num_mixture: int = 10, elbo: ELBO | None = None) -> None:
        elbo = infer.Trace_ELBO() if elbo is None else elbo
        _check_elbo(elbo)
        super().__init__(
            num_particles=elbo.num_particles, vectorize_particles=elbo.vectorize_particles
        )
        is_integer = isinstance(num_mixture, Integral) and not isinstance(num_mixture, bool)
        if not is_integer or num_mixture < 0:
            raise ValueError(semi_implicit.semi_bad_num_mixture(num_mixture))
        self.noise: Noise = _check_noise(noise)
        self.num_mixture = int(num_mixture)
        self.elbo = elbo
        self._supports: Supports = {}
        # The stock ELBO runs unchanged, except that it gets another guide. Wrapped here and no
        # earlier, the guide is within our handler with the plate of its particles around it.
        self._runner = copy.copy(elbo)
        self._runner._get_trace = self._get_trace
        self._runner._guess_max_plate_nesting = self._guess_max_plate_nesting

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        value = "minus the semi-implicit bound"
        return LossWords(type(self).__name__, value, is_sum=True)

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
            kernels = _kernels(self.noise, args, kwargs)
            supports = find_supports(model, guide, kernels, args, kwargs)
            with Spread(kernels, supports):
                return guide(*args, **kwargs)

        return spread

    def guide_as_trained(
        self, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """The spread guide, whose draws are those of the posterior."""
        return super().guide_as_trained(model, self.spread_guide(model, guide), args, kwargs)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """
        The negative bound in nats, a Monte Carlo estimate.

        :raises ValueError: if site, guide and kernel do not fit together; the message names the
            site and says what to do, and params are as before.
        """
        return self._run("loss", model, guide, args, kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """
        Compute :meth:`loss`, and add the gradients of the surrogate loss to the params' grads.
        """
        return self._run("loss_and_grads", model, guide, args, kwargs)

    def differentiable_loss(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Like :meth:`loss`, as a tensor to differentiate."""
        if not hasattr(self.elbo, "differentiable_loss"):
            name = type(self.elbo).__name__
            reason = "it has no differentiable_loss. Use it through SVI, or another ELBO here."
            raise NotImplementedError(semi_implicit.semi_elbo_refused(name, reason))
        return self._run("differentiable_loss", model, guide, args, kwargs)

    def _run(self, method: str, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(poutine.unwrap(guide), Messenger):
            raise NotImplementedError(semi_implicit.semi_messenger_guide())
        check_separable(self.elbo)
        kernels = _kernels(self.noise, args, kwargs)
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
        if not torch.jit.is_tracing():
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
            kernels = _kernels(self.noise, args, kwargs)
            with Mix(kernels, self._supports, self.num_mixture):
                return guide(*args, **kwargs)

        return mixed


def _check_elbo(elbo: Any) -> None:
    for name, why in _REFUSED.items():
        refused = getattr(infer, name, None)
        if refused is not None and isinstance(elbo, refused):
            raise NotImplementedError(semi_implicit.semi_elbo_refused(name, why))
    if not isinstance(elbo, ELBO):
        raise TypeError(semi_implicit.semi_no_elbo(elbo, "pyro.infer.ELBO"))
    if not isinstance(elbo, _ACCEPTED):
        reason = "whether it is a lower bound is not known. Subclass one of the stock ELBOs."
        raise NotImplementedError(semi_implicit.semi_elbo_refused(type(elbo).__name__, reason))


def _check_noise(noise: Any) -> Noise:
    by_call = callable(noise) and not isinstance(noise, SpreadNoise)
    if not by_call and (not isinstance(noise, Mapping) or not noise):
        raise TypeError(semi_implicit.semi_bad_noise(noise))
    checked = as_noise(noise)
    if isinstance(checked, Mapping):
        _refuse_discrete(checked)
    return checked


def _kernels(noise: Noise, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, SpreadNoise]:
    kernels = kernels_of(noise, args, kwargs)
    _refuse_discrete(kernels)
    return kernels


def _refuse_discrete(kernels: Mapping[str, SpreadNoise]) -> None:
    for site, kernel in kernels.items():
        while isinstance(kernel, TransformedNoise):
            kernel = kernel.noise
        if isinstance(kernel, ChannelNoise):
            name = type(kernel).__name__
            raise ValueError(general.at_site(site, semi_implicit.semi_discrete_kernel(name)))
