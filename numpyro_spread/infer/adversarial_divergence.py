# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AdversarialDivergence: a divergence between data and model, estimated by a classifier."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from numpyro_spread.infer._critic_loss import CriticLoss
from numpyro_spread.infer._watch import looks_now, watched
from numpyro_spread.ratio._last_layer import refuse_bounded_logits
from spread_core.logits import Logits
from spread_core.losses.adversarial_divergence import AdversarialDivergenceShared
from spread_core.monitors import PERFECT_ACCURACY, PERFECT_SATURATION
from spread_core.stateful import Stateful


class AdversarialDivergence(AdversarialDivergenceShared, Stateful, CriticLoss):
    r"""
    Divergence of the data P from the model Q, with the log-ratio learned by a classifier.

        >>> import jax, numpyro, numpyro.distributions as dist, optax
        >>> from flax import linen
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import AdversarialDivergence, JSPi, concat_sites, two_player
        >>> def model(x):
        ...     w = numpyro.param("w", 0.5)
        ...     with numpyro.plate("data", x.shape[0]):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Delta(w * z), obs=x)
        >>> def guide(x):
        ...     pass
        >>> loss = AdversarialDivergence(concat_sites(linen.Dense(1), "x"), JSPi(0.5))
        >>> optim = two_player(optax.adam(1e-3), optax.adam(2e-3))
        >>> svi = SVI(model, loss.register(model, guide), optim, loss)
        >>> x = jax.random.normal(jax.random.key(0), (100,))
        >>> result = svi.run(jax.random.key(1), 10, x, progress_bar=False)
        >>> bool(((0 <= result.losses) & (result.losses <= 0.7)).all())
        True

    Evaluations count for the warnings as steps do.

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, also for critics that
    couple the samples: a compiled step means the whole batch, wherever its parts are.
    """

    _remembers = ("_monitor",)
    _zeros = staticmethod(jnp.zeros)
    _refuse_bounded_logits = staticmethod(refuse_bounded_logits)

    def _pushes_ahead(self, logits: Logits) -> tuple[jax.Array, jax.Array]:
        at_data, at_model = self._pushes(logits)
        if self.generator == "divergence":
            data, _, weights, _ = logits
            _, slopes = self._pushes(Logits(data, data, weights, weights))
            at_data = self._at_data(data, slopes)
        return at_data, at_model

    def _watch(self, loss: jax.Array, rng_key: jax.Array, logits: Logits) -> jax.Array:
        right, flat = self._shares(logits)
        low, high = logits.range()
        value = self._estimate(logits) if self._is_bounded else jnp.zeros(())

        def observe(right: float, flat: float, low: float, high: float, value: float) -> None:
            self._monitor.observe(right, flat)
            self._range.observe(low, high)
            self._clamp.observe(value)

        amiss = (right >= PERFECT_ACCURACY) & (flat >= PERFECT_SATURATION)
        amiss |= self._range.suspects(low, high) | self._clamp.suspects(value)
        return watched(loss, looks_now(rng_key), observe, amiss, right, flat, low, high, value)
