# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""SpreadELBO: the ELBO of a model and data that were both passed through noise."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro import infer
from numpyro.infer.elbo import ELBO

from numpyro_spread.infer._noise import Noise
from numpyro_spread.infer._registration import Loss, Registered
from numpyro_spread.infer._scan import Inside
from numpyro_spread.infer._spreading import Spreading, SpreadStep
from spread_core.loss_words import LossWords
from spread_core.messages import spreading
from spread_core.paths import Where

_AVERAGING = (
    infer.Trace_ELBO,
    infer.TraceMeanField_ELBO,
    infer.TraceGraph_ELBO,
    infer.TraceEnum_ELBO,
)
# All particles of these enter one log-mean-exp: they must bound the same log p(y).
_SHARING = (infer.RenyiELBO,)


class SpreadELBO(Loss):
    r"""
    Evidence lower bound of the spread model, for models whose likelihood is zero almost everywhere.

    Data and model pass through the same noise kernel :math:`k(y \mid x)`, and the stock ``elbo`` is
    evaluated on the result [1, section 4]. With :math:`p(x \mid z) = \delta(x - g(z))`,

    .. math::
        \mathbb{E}_{p(x)\, k(y|x)}\Big[ \mathbb{E}_{q(z|y)} \log k(y \mid g(z))
        - \mathrm{KL}[q(z \mid y) \,\|\, p(z)] \Big]
        \le \mathbb{E}\, \log \tilde p(y),

    in nats, and maximising it minimises :math:`\mathrm{KL}[\tilde p_{data} \| \tilde p_{model}]`,
    which is zero only where the clean distributions agree. At every step and for every particle a
    fresh :math:`y \sim k(y \mid x)` is drawn and passed to model and guide **instead of** x, so the
    likelihood is evaluated at y. Importance-weighted bounds (``RenyiELBO``; ``Trace_ELBO`` with
    ``multi_sample_guide``) share one y among the particles of a step, since all of them must bound
    the same :math:`\log \tilde p(y)`. The model needs no change. At test time no noise is added:
    where the model takes ``x=None`` and then draws,
    ``Predictive(model, params=params, num_samples=1)(rng_key, None)`` gives clean samples.

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
    shapes and types are checked under jit too, when it traces, at no cost when it runs. Under a
    plate that subsamples full data inside the model, noise is drawn for the rows that are taken,
    and for all of them only if model or guide read them all.

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, with every ``elbo``:
    a compiled step means the whole batch, wherever its parts are.

    **References**

    [1] `Spread Divergence`, Mingtian Zhang, Peter Hayes, Tom Bird, Raza Habib, David Barber,
    https://arxiv.org/abs/1811.08968

    :param noise: dict from observed site to noise kernel, in which ``"x_*"`` stands for all
        observed sites of such a name; or a callable that returns it, called
        with the model's (clean) arguments at every step, in which ``numpyro.param`` may be used if
        the guide goes through :meth:`register`. An annealed scale that is an argument of the model
        reaches the kernel that way, also under jit.
    :param elbo: the stock ELBO to evaluate; ``Trace_ELBO()`` by default.
    :param data: dict from site to the name of the model argument that carries its data, or to a
        way into one: ``"batch.image"`` or ``("batch", "image")``. Left out: the argument of the
        site's name, else the first.
    :raises TypeError: if noise is not such a dict or elbo not an ELBO.
    :raises NotImplementedError: if elbo is one that cannot be spread, saying why.
    """

    def __init__(
        self, noise: Noise, elbo: ELBO | None = None, data: Mapping[str, Where] | None = None
    ) -> None:
        elbo = infer.Trace_ELBO() if elbo is None else elbo
        _check_elbo(elbo)
        super().__init__(elbo.num_particles, elbo.vectorize_particles)
        if noise is None:
            raise TypeError(spreading.bad_noise_argument(noise))
        self._spreading = Spreading(noise, data)
        self.noise, self.data = self._spreading.noise, self._spreading.data
        self.elbo = elbo
        # Averaged bounds are run particle by particle, each on a y of its own.
        self._particle = copy.copy(elbo)
        self._particle.num_particles = 1

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        value = "minus the ELBO of the spread data"
        return LossWords(type(self).__name__, value, is_sum=True)

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
        return Registered(guide, before=functools.partial(self._spreading.check, model))

    def loss(
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
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
        def run(step: SpreadStep) -> Any:
            return self._on_step(step, method, rng_key, Inside(guide))

        return self._spreading.settled(params, model, args, kwargs, run)

    def _on_step(self, step: SpreadStep, method: str, rng_key: jax.Array, guide: Any) -> Any:
        def on_fresh_noise(elbo: ELBO, rng_key: jax.Array) -> Any:
            def evaluate(model: Any, guide: Any, args: Any, kwargs: Any, key: jax.Array) -> Any:
                return getattr(elbo, method)(key, step.params, model, guide, *args, **kwargs)

            if elbo.num_particles == 1 and not self.multi_sample_guide:
                return step.run(rng_key, guide, evaluate)
            # Particles that share one y may each subsample it.
            model, args, kwargs, rng_key = step.draw(rng_key)
            return evaluate(model, guide, args, kwargs, rng_key)

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


def _check_elbo(elbo: Any) -> None:
    if not isinstance(elbo, ELBO):
        raise TypeError(spreading.no_elbo(elbo, "numpyro.infer.elbo.ELBO"))
    if not isinstance(elbo, _AVERAGING + _SHARING):
        reason = "how its particles share noise is not known. Subclass one of the stock ELBOs."
        raise NotImplementedError(spreading.elbo_refused(type(elbo).__name__, reason))
