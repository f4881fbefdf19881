# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
SemiImplicitELBO: a true lower bound for guides without a density, by adding noise to their draws.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from numpyro import infer
from numpyro.infer.elbo import ELBO

from numpyro_spread._typing import RngKey
from numpyro_spread.infer._mixture import Spread
from numpyro_spread.infer._noise import kernels_with_params
from numpyro_spread.infer._registration import Loss, Registered
from numpyro_spread.infer._scan import Inside
from numpyro_spread.infer._supports import find_supports
from numpyro_spread.noise.base import BACKEND
from spread_core.losses.over_stock_elbo import StockELBOs
from spread_core.losses.semi_implicit_elbo import SemiImplicitELBOShared, refuse_discrete
from spread_core.messages import spreading
from spread_core.typing import Args, Guide, Kwargs, Model

_STOCK = StockELBOs(
    infer.Trace_ELBO,
    ELBO,
    "numpyro.infer.elbo.ELBO",
    (
        infer.RenyiELBO,
        infer.Trace_ELBO,
        infer.TraceEnum_ELBO,
        infer.TraceGraph_ELBO,
        infer.TraceMeanField_ELBO,
    ),
)


class SemiImplicitELBO(SemiImplicitELBOShared, Loss):
    r"""
    Evidence lower bound for implicit guides, critic-free: draws of the guide pass a noise kernel.

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

    Values of fn outside the support are an error where they are concrete, in an eager
    ``loss.loss(...)``, and make a loss of NaN under jit.

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, with every ``elbo``:
    a compiled step means the whole batch, wherever its parts are.
    """

    _stock = _STOCK
    _backend = BACKEND

    def _checked(self, elbo: Any) -> Any:
        checked = super()._checked(elbo)
        if getattr(checked, "multi_sample_guide", False):
            why = "the guide's own samples would be taken for a batch. Use num_particles."
            name = f"{type(checked).__name__}(multi_sample_guide=True)"
            raise NotImplementedError(spreading.elbo_refused(type(self).__name__, name, why))
        return checked

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
            kernels = self._kernels(args, kwargs)
            supports = find_supports(model, guide, kernels, {}, args, kwargs)
            return Spread(guide, kernels, supports, 0)(*args, **kwargs)

        return spread

    def guide_as_trained(
        self, rng_key: RngKey, params: Any, model: Model, guide: Guide, args: Args, kwargs: Kwargs
    ) -> tuple[Any, Any, Any]:
        """The spread guide, whose draws are those of the posterior."""
        spread = self.spread_guide(model, guide)
        return super().guide_as_trained(rng_key, params, model, spread, args, kwargs)

    def loss(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
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
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
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
        kernels = kernels_with_params(self.noise, params, args, kwargs)
        refuse_discrete(kernels)
        supports = find_supports(model, guide, kernels, params, args, kwargs)
        mixed = Spread(guide, kernels, supports, self.num_mixture)
        return getattr(self.elbo, method)(rng_key, params, Inside(model), mixed, *args, **kwargs)
