# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
SemiImplicitELBO: a true lower bound for guides without a density, by adding noise to their draws.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import jax
from numpyro import infer
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.elbo import ELBO

from numpyro_spread.infer._mixture import Spread
from numpyro_spread.infer._noise import Noise, as_noise, kernels_of
from numpyro_spread.infer._registration import Loss, Registered
from numpyro_spread.infer._scan import Inside
from numpyro_spread.infer._supports import find_supports
from numpyro_spread.noise import ChannelNoise, SpreadNoise, TransformedNoise
from spread_core.loss_words import LossWords
from spread_core.messages import general, semi_implicit, spreading

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

    A guide site :math:`\psi \sim` :class:`~numpyro_spread.ImplicitDistribution` becomes
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

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from jax.tree_util import Partial
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import GaussianNoise, ImplicitDistribution, SemiImplicitELBO
        >>> def net(w, eps):
        ...     return jnp.tanh(eps @ w["in"]) @ w["out"]
        >>> def model(x):
        ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        ...     numpyro.sample("x", dist.Normal(z[..., 0] ** 2, 0.5), obs=x)
        >>> def guide(x):
        ...     w = {"in": numpyro.param("in", 0.5 * jax.random.normal(jax.random.key(0), (3, 32))),
        ...          "out": numpyro.param("out", jnp.full((32, 1), 0.1))}
        ...     eps = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
        ...     numpyro.sample("z", ImplicitDistribution(Partial(net, w), eps, event_shape=(1,)))
        >>> loss = SemiImplicitELBO({"z": GaussianNoise(0.1)}, num_mixture=20)
        >>> svi = SVI(model, loss.register(model, guide), numpyro.optim.Adam(1e-2), loss)
        >>> result = svi.run(jax.random.key(1), 10, jnp.array(1.0), progress_bar=False)
        >>> bool(jnp.isfinite(result.losses).all())
        True

    **Where the noise is added.** If the model's site of the same name has a constrained support,
    then fn must return values in it; all K + 1 draws are mapped to unconstrained space by
    ``biject_to(support).inv``, the noise is added there, z is the image of the result, and the
    density contains minus the log-determinant of the Jacobian. A scale is thus in unconstrained
    units, and its event shape is that of the unconstrained value. An auxiliary site, which the
    model does not have, is in unconstrained space already. Bounds of a support that move (with
    params or other latents, or under jit with data) are refused. Values of fn outside the support
    are an error where they are concrete, in an eager ``loss.loss(...)``, and make a loss of NaN
    under jit.

    **Draws of the posterior.** The guide alone gives :math:`\psi`, without noise. For z use
    ``Predictive(loss.spread_guide(model, guide), params=params, num_samples=100)``.

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, with every ``elbo``:
    a compiled step means the whole batch, wherever its parts are.

    **References**

    [1] `Semi-Implicit Variational Inference`, Mingzhang Yin, Mingyuan Zhou,
    https://arxiv.org/abs/1805.11183

    [2] `Doubly Semi-Implicit Variational Inference`, Dmitry Molchanov, Valery Kharitonov, Artem
    Sobolev, Dmitry Vetrov, https://arxiv.org/abs/1810.02789

    :param noise: dict from implicit guide site to noise kernel, one for each; or a callable that
        returns it, called with the model's arguments at every step, in which ``numpyro.param``
        and ``flax_module`` may be used, so that a scale is learned or amortised, if the guide goes
        through :meth:`register`.
    :param num_mixture: number K >= 0 of further draws; 0 is the hierarchical bound.
    :param elbo: the stock ELBO to evaluate; ``Trace_ELBO()`` by default. Also ``TraceGraph_ELBO``,
        ``TraceMeanField_ELBO``, ``TraceEnum_ELBO``, and ``RenyiELBO`` (a bound too where
        its alpha is not negative, since :math:`p(x, z)` over the mixture is an unbiased estimate of
        p(x)).
    :raises TypeError: if noise is not such a dict, or elbo not an ELBO.
    :raises ValueError: if num_mixture is not such an integer or a kernel is discrete.
    :raises NotImplementedError: if elbo is one that cannot be used, saying why.
    """

    def __init__(self, noise: Noise, num_mixture: int = 10, elbo: ELBO | None = None) -> None:
        elbo = infer.Trace_ELBO() if elbo is None else elbo
        _check_elbo(elbo)
        super().__init__(elbo.num_particles, elbo.vectorize_particles)
        is_integer = isinstance(num_mixture, Integral) and not isinstance(num_mixture, bool)
        if not is_integer or num_mixture < 0:
            raise ValueError(semi_implicit.semi_bad_num_mixture(num_mixture))
        self.noise: Noise = _check_noise(noise)
        self.num_mixture = int(num_mixture)
        self.elbo = elbo

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        value = "minus the semi-implicit bound"
        return LossWords(type(self).__name__, value, is_sum=True)

    @property
    def can_infer_discrete(self) -> bool:
        """Whether the stock ELBO takes discrete latent variables; ``SVI.init`` asks."""
        return self.elbo.can_infer_discrete

    def register(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Callable[..., Any]:
        """
        The guide to hand to SVI. With it, params of a callable ``noise`` are trained.

        :param model: the model.
        :param guide: the guide.
        :return: a guide of the same signature.
        """

        def declare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Predictive runs guides without data, which an amortised scale may need.
            if callable(self.noise) and any(a is not None for a in (*args, *kwargs.values())):
                self.noise(*args, **kwargs)

        return Registered(guide, after=declare)

    def spread_guide(
        self, model: Callable[..., Any], guide: Callable[..., Any]
    ) -> Callable[..., Any]:
        """
        The guide with its noise: its draws are those of the fitted posterior.

        Use it for sampling, as in ``Predictive(model, guide=loss.spread_guide(model, guide),
        params=params, num_samples=100)``; for training, pass the guide itself to the loss.

        :param model: the model, whose supports say where the noise is added.
        :param guide: the guide.
        :return: a guide of the same signature.
        """

        @functools.wraps(guide, updated=())
        def spread(*args: Any, **kwargs: Any) -> Any:
            kernels = _kernels(self.noise, args, kwargs)
            supports = find_supports(model, guide, kernels, {}, args, kwargs)
            return Spread(guide, kernels, supports, 0)(*args, **kwargs)

        return spread

    def guide_as_trained(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """The spread guide, whose draws are those of the posterior."""
        spread = self.spread_guide(model, guide)
        return super().guide_as_trained(rng_key, params, model, spread, args, kwargs)

    def loss(
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """
        The negative bound in nats, a Monte Carlo estimate.

        :param rng_key: random key.
        :param param_map: dict from param site to value.
        :param model: the model, as it is.
        :param guide: the guide.
        :raises ValueError: if site, guide and kernel do not fit together; the message names the
            site and says what to do.
        """
        return self._run("loss", rng_key, param_map, model, guide, args, kwargs)

    def loss_with_mutable_state(
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Like :meth:`loss`, in a dict with the new mutable state."""
        if self.num_particles > 1:
            raise NotImplementedError(spreading.mutable_particles(self.num_particles))
        method = "loss_with_mutable_state"
        return self._run(method, rng_key, param_map, model, guide, args, kwargs)

    def _run(
        self,
        method: str,
        rng_key: jax.Array,
        params: Any,
        model: Any,
        guide: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        with trace() as sites, seed(rng_seed=0), substitute(data=params):
            kernels = _kernels(self.noise, args, kwargs)
        unknown = [n for n, s in sites.items() if s["type"] == "param" and n not in params]
        if unknown:
            raise ValueError(spreading.unregistered_params(unknown))
        supports = find_supports(model, guide, kernels, params, args, kwargs)
        mixed = Spread(guide, kernels, supports, self.num_mixture)
        return getattr(self.elbo, method)(rng_key, params, Inside(model), mixed, *args, **kwargs)


def _check_elbo(elbo: Any) -> None:
    if not isinstance(elbo, ELBO):
        raise TypeError(semi_implicit.semi_no_elbo(elbo, "numpyro.infer.elbo.ELBO"))
    if not isinstance(elbo, _ACCEPTED):
        reason = "whether it is a lower bound is not known. Subclass one of the stock ELBOs."
        raise NotImplementedError(semi_implicit.semi_elbo_refused(type(elbo).__name__, reason))
    if getattr(elbo, "multi_sample_guide", False):
        reason = "the guide's own samples would be taken for a batch. Use num_particles."
        name = f"{type(elbo).__name__}(multi_sample_guide=True)"
        raise NotImplementedError(semi_implicit.semi_elbo_refused(name, reason))


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
