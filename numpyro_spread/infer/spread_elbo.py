# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""SpreadELBO: the ELBO of a model and data that were both passed through noise."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro import infer
from numpyro.infer.elbo import ELBO

from numpyro_spread._typing import RngKey
from numpyro_spread.infer._moving import RefuseMutable, state_sites
from numpyro_spread.infer._registration import Loss, Registered
from numpyro_spread.infer._scan import Inside
from numpyro_spread.infer._spreading import Spreading, SpreadStep
from spread_core.losses.over_stock_elbo import StockELBOs
from spread_core.losses.spread_elbo import SpreadELBOShared
from spread_core.messages import spreading
from spread_core.typing import Args, Guide, Kwargs, Model

_AVERAGING = (
    infer.Trace_ELBO,
    infer.TraceMeanField_ELBO,
    infer.TraceGraph_ELBO,
    infer.TraceEnum_ELBO,
)
# All particles of these enter one log-mean-exp: they must bound the same log p(y).
_SHARING = (infer.RenyiELBO,)
_STOCK = StockELBOs(infer.Trace_ELBO, ELBO, "numpyro.infer.elbo.ELBO", _AVERAGING + _SHARING)


class SpreadELBO(SpreadELBOShared, Loss):
    r"""
    Evidence lower bound of the spread model, for models whose likelihood is zero almost everywhere.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import GaussianNoise, SpreadELBO
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     v = numpyro.param("v", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         numpyro.sample("z", dist.Normal(v * x, 0.3))
        >>> loss = SpreadELBO({"x": GaussianNoise(0.3)})
        >>> svi = SVI(model, loss.register(model, guide), numpyro.optim.Adam(1e-2), loss)
        >>> x = jax.random.normal(jax.random.key(0), (100,))
        >>> result = svi.run(jax.random.key(1), 10, x, progress_bar=False)
        >>> bool(jnp.isfinite(result.losses).all())
        True

    Values can be checked only where they are concrete: in eager calls, in ``svi.run`` (which
    captures the data) and, if the guide went through :meth:`register`, in ``SVI.init``. Structure,
    shapes and types are checked under jit too, when it traces, at no cost when it runs.

    Clean samples are those of
    ``Predictive(model, params=params, num_samples=1)(rng_key, None)``.

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, with every ``elbo``:
    a compiled step means the whole batch, wherever its parts are.
    """

    _stock = _STOCK
    _make_spreading = Spreading

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"vectorize_particles": self.elbo.vectorize_particles}

    def _prepare(self) -> None:
        # Averaged bounds are run particle by particle, each on a y of its own.
        self._particle = copy.copy(self.elbo)
        self._particle.num_particles = 1

    @property
    def can_infer_discrete(self) -> bool:
        """Whether the stock ELBO takes discrete latent variables; ``SVI.init`` asks."""
        return self.elbo.can_infer_discrete

    @property
    def multi_sample_guide(self) -> bool:
        """Whether the guide proposes several samples at once; ``SVI.init`` asks."""
        return getattr(self.elbo, "multi_sample_guide", False)

    def register(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Callable[..., Any]:
        """
        The guide to hand to SVI. With it, wrong data are an error in ``SVI.init`` already, and
        params of a callable ``noise`` are trained.

        :param model: the model.
        :param guide: the guide.
        :return: a guide of the same signature.
        """
        return Registered(
            guide, before=functools.partial(self._spreading.check, model, guide=guide)
        )

    def loss(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """
        The negative bound in nats, a Monte Carlo estimate with fresh noise.

        :param rng_key: random key; the same key gives the same noise.
        :param param_map: dict from param site to value.
        :param model: the model, as it is.
        :param guide: the guide, which is called on y.
        :raises ValueError: if site, argument, data and kernel do not fit together; the message
            names the site and says what to do.
        """
        return self._run("loss", rng_key, param_map, model, guide, args, kwargs)

    def loss_with_mutable_state(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """Like :meth:`loss`, in a dict with the new mutable state."""
        own = state_sites(self.noise)
        stateless = type(self.elbo).loss_with_mutable_state is ELBO.loss_with_mutable_state
        if own and (stateless or self.num_particles > 1):
            with RefuseMutable(own):
                value = self.loss(rng_key, param_map, model, guide, *args, **kwargs)
            return {"loss": value, "mutable_state": None}
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
        def run(step: SpreadStep) -> Any:
            return self._on_step(step, method, rng_key, Inside(guide))

        return self._spreading.settled(params, model, args, kwargs, run, guide)

    def _on_step(self, step: SpreadStep, method: str, rng_key: jax.Array, guide: Any) -> Any:
        def on_fresh_noise(elbo: ELBO, rng_key: jax.Array) -> Any:
            def evaluate(
                model: Model, guide: Guide, args: Args, kwargs: Kwargs, key: jax.Array
            ) -> Any:
                return getattr(elbo, method)(key, step.params, model, guide, *args, **kwargs)

            if elbo.num_particles == 1 and not self.multi_sample_guide:
                return step.run(rng_key, guide, evaluate)
            # Particles that share one y may each subsample it.
            return evaluate(*step.draw(rng_key, guide))

        if self.num_particles == 1 or isinstance(self.elbo, _SHARING) or self.multi_sample_guide:
            result = on_fresh_noise(self.elbo, rng_key)
        else:
            rng_keys = random.split(rng_key, self.num_particles)
            one = functools.partial(on_fresh_noise, self._particle)
            losses = self.elbo.vectorize_particles_fn(one, rng_keys)
            # A tree: with sum_sites=False the loss is a dict of sites.
            result = jax.tree.map(lambda loss: jnp.mean(loss, axis=0), losses)
        step.check_observed()
        return result
