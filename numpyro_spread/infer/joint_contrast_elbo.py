# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
JointContrastELBO: compare pairs of data and latents of guide and model; neither needs a density.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import lax, random
from numpyro.handlers import block

from numpyro_spread._gradients import refuse_gradient
from numpyro_spread._typing import RngKey
from numpyro_spread.divergences import Divergence, ReverseKL
from numpyro_spread.infer._critic import penalty_in_turn, warn_of_coupling
from numpyro_spread.infer._guide_run import stop_gradient_tree
from numpyro_spread.infer._handed import Watch
from numpyro_spread.infer._invalid import note, noting
from numpyro_spread.infer._joint_sides import (
    JointSides,
    draw_joint,
)
from numpyro_spread.infer._moving import state_sites
from numpyro_spread.infer._noise import kernels_of, kernels_with_params
from numpyro_spread.infer._posterior_estimation import minus_log_q
from numpyro_spread.infer._random_delta import refuse_random_deltas
from numpyro_spread.infer._registration import Loss, Registered, declare_params, example_of
from numpyro_spread.infer._simulated import Rows
from numpyro_spread.infer._spreading import Spreading, SpreadStep
from numpyro_spread.infer._watch import looks_now, watch_lag
from numpyro_spread.ratio._last_layer import refuse_bounded_logits
from numpyro_spread.ratio.adapters import SiteValues
from numpyro_spread.ratio.binding import bind
from numpyro_spread.ratio.losses import log_ratio, logistic_loss, prior_log_odds, weighted_mean
from numpyro_spread.ratio.regularizers import check_regularizer
from spread_core.logits import Logits
from spread_core.losses.joint_contrast_elbo import JointContrastShared
from spread_core.messages import contrasts, players, spreading
from spread_core.monitors import FalseEvidenceMonitor, LogitRangeMonitor
from spread_core.simulated import known_data_sites
from spread_core.stateful import Stateful
from spread_core.typing import Guide, Model

# Folded into the key, so that they differ from the keys that splitting gives.
_WATCH, _ROWS = 0x5EED0002, 0x5EED0004

# The loss of one run, new mutable state, the critic's accuracy, and whether anything is left.
_Particle = tuple[
    jax.Array, dict[str, Any], tuple[jax.Array, jax.Array, jax.Array] | None, jax.Array
]


class JointContrastELBO(JointContrastShared, Stateful, Loss):
    """
    Divergence between the model's pairs (x, z) and the guide's, learned from draws of both.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import KL, JointContrastELBO
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         eps = jax.random.normal(numpyro.prng_key(), z.shape)
        ...         numpyro.sample("x", dist.Delta(z + 0.1 * eps), obs=x)      # no density
        >>> def guide(x):
        ...     w, log_scale = numpyro.param("w", 0.0), numpyro.param("log_scale", 0.0)
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Normal(w * x, jnp.exp(log_scale)))
        >>> loss = JointContrastELBO(divergence=KL())
        >>> svi = SVI(model, loss.register(model, guide), optax.adam(1e-3), loss)
        >>> result = svi.run(jax.random.key(0), 10, jnp.zeros(100), progress_bar=False)
        >>> bool((result.losses > 0).all())
        True

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, for every critic: a
    compiled step means the whole batch, wherever its parts are.

    Critics are modules of flax linen, flax nnx or equinox.
    """

    #: Draws need no enumeration; ``SVI.init`` asks.
    can_infer_discrete = True

    _remembers = ("_monitor",)
    _spreading_class = Spreading
    _as_array = staticmethod(jnp.asarray)

    def _set_up(self) -> None:
        self._critic: Any = None if self.discriminator is None else bind(self.discriminator)
        self._monitor = FalseEvidenceMonitor()
        self._range = LogitRangeMonitor(prior_log_odds(self._pi))

    def _check_players(self, discriminator: Any, divergence: Divergence, regularizer: Any) -> None:
        divergence.generator_loss(jnp.zeros(1))
        if discriminator is not None:
            refuse_bounded_logits(discriminator)
        check_regularizer(regularizer)

    def register(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Callable[..., Any]:
        """
        The guide to hand to SVI: it carries the discriminator's params too.

        ``SVI.init`` collects params from model and guide only. The shapes of the critic's inputs
        are found by tracing both abstractly.

        :param model: the model.
        :param guide: the guide.
        :return: a guide of the same signature.
        """

        def declare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._critic is not None:
                declare_params(self._site, lambda: self._init(model, guide, args, kwargs))

        def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._table is None and known_data_sites(guide, args, kwargs) is None:
                self._spreading.check(model, args, kwargs)
            else:  # data need not be in the arguments; a callable ``noise`` declares its params
                kernels_of(self.noise, args, kwargs)

        return Registered(guide, check, declare)

    @property
    def _site(self) -> str:
        return f"{self.name}$params"

    def _init(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        rng_key = numpyro.prng_key()
        rng_key = random.key(0) if rng_key is None else rng_key
        draw_key, init_key = random.split(rng_key)

        def draw(key: jax.Array) -> SiteValues:
            # Noise changes no shapes.
            return draw_joint(key, {}, model, guide, {}, args, kwargs).guide

        with block():
            return self._critic.init(init_key, example_of(draw, draw_key), args, kwargs)

    def loss(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """
        The adversarial estimate of the divergence in nats; its gradient is that of every param's
        player.

        It is the derivative of no single function: second derivatives make no sense.

        :param rng_key: random key; the same key gives the same draws.
        :param param_map: dict from param site to value.
        :param model: the model, as it is.
        :param guide: the guide that :meth:`register` returned.
        :raises ValueError: if sites, plates, masks and noise are inconsistent; the message names
            the site and says what to do.
        """
        return self.loss_with_mutable_state(rng_key, param_map, model, guide, *args, **kwargs)[
            "loss"
        ]

    def loss_with_mutable_state(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """Like :meth:`loss`, in a dict with the new mutable state."""
        if self._critic is None:
            return self._forward_step(rng_key, param_map, model, guide, args, kwargs)

        def run(step: SpreadStep) -> Any:
            def one(key: jax.Array) -> _Particle:
                return self._adversarial_loss(key, step, step.params, model, guide, args, kwargs)

            return self._mean(rng_key, one, random.split(rng_key, self.num_particles))

        return self._spreading.settled(param_map, model, args, kwargs, run)

    def _mean(self, rng_key: jax.Array, one: Callable[[Any], _Particle], each: Any) -> Any:
        """The mean over particles of ``one``, called with the elements of ``each``."""
        totals: list[int] = []

        def particle(own: Any) -> tuple[_Particle, dict[str, Any]]:
            with noting() as noted:
                result = one(own)
            totals.append(noted.total)
            return result, noted.counts

        if self.num_particles == 1:
            first = jax.tree.map(lambda leaf: leaf[0], each)
            (loss, mutable, seen, is_left), counts = particle(first)
            loss, is_left = jnp.asarray(loss)[None], jnp.asarray(is_left)[None]
        else:
            found, counts = self.vectorize_particles_fn(particle, each)
            loss, mutable, seen, is_left = found
            if mutable.keys() - state_sites(self.noise):
                raise NotImplementedError(spreading.mutable_particles(self.num_particles))
        # A particle may have come to nothing; if all have, so has the step.
        loss = jnp.where(is_left, loss, 0).sum() / is_left.sum()
        counts = {name: jnp.sum(count) for name, count in counts.items()}
        can = self.exclude_invalid_x if self._critic is None else None
        note(counts, totals[0] * self.num_particles, can)
        if seen is not None:
            watch_key = random.fold_in(rng_key, _WATCH)
            loss = watch_lag(loss, looks_now(watch_key), self._monitor, self._range, seen)
        return {"loss": loss, "mutable_state": mutable or None}

    def logits(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Logits:
        """
        The critic's logits at fresh pairs of the guide and of the model.

        With held-out data it shows how far the critic can be trusted:
        ``critic_report(logits.p, logits.q)``. Nothing is trained.

        :param rng_key: random key.
        :param param_map: dict from param site to value, such as ``svi.get_params(state)``.
        :param model: the model.
        :param guide: the guide.
        :return: a named tuple ``(p, q, weights_p, weights_q)``: P are the guide's pairs, Q the
            model's.
        :raises ValueError: if there is no discriminator.
        """
        if self._critic is None:
            raise ValueError(contrasts.joint_nothing_implicit("logits()"))

        def run(step: SpreadStep) -> Logits:
            sides, *own = self._draw(rng_key, step, step.params, model, guide)
            return self._logits(step.params[self._site], sides, *own)

        return self._spreading.settled(param_map, model, args, kwargs, run)

    def _draw(
        self, rng_key: jax.Array, step: SpreadStep, params: Any, model: Any, guide: Any
    ) -> tuple[JointSides, tuple[Any, ...], dict[str, Any]]:
        if self._site not in params:
            raise ValueError(players.not_registered(self.name))
        handed, rng_key = step.hand(rng_key)
        args, kwargs = handed.args, handed.kwargs
        watch = Watch(None, handed)
        sides = draw_joint(rng_key, params, model, guide, step.noise, args, kwargs, watch)
        self._check_globals(sides.global_sites)
        if sides.global_sites:  # of the local ones no density is asked for
            refuse_random_deltas(params, guide, args, kwargs, sides.global_sites)
        return sides, args, kwargs

    def _logits(self, critic: Any, sides: JointSides, args: Any, kwargs: Any) -> Logits:
        """Logits at detached pairs, on which the critic is trained."""
        args, kwargs = stop_gradient_tree((args, kwargs))
        guide, model = (
            self._critic.apply(critic, stop_gradient_tree(side), args, kwargs)
            for side in (sides.guide, sides.model)
        )
        return Logits(guide, model, sides.guide_weights, sides.model_weights)

    def _adversarial_loss(
        self,
        rng_key: jax.Array,
        step: SpreadStep,
        params: Any,
        model: Any,
        guide: Any,
        args: Any,
        kwargs: Any,
    ) -> _Particle:
        draw_key, penalty_key = random.split(rng_key)
        sides, args, kwargs = self._draw(draw_key, step, params, model, guide)
        critic = params[self._site]
        value = self._players_loss(stop_gradient_tree(critic), sides, args, kwargs)
        logits = self._logits(params[self._site], sides, args, kwargs)
        weights = logits.weights_p, logits.weights_q
        critic_loss = logistic_loss(logits.p, logits.q, self._pi, *weights)

        def judge(critic: Any, values: SiteValues) -> jax.Array:
            return self._critic.apply(critic, values, *stop_gradient_tree((args, kwargs)))

        pairs = stop_gradient_tree(sides.guide), stop_gradient_tree(sides.model)
        if self.regularizer is not None:
            warn_of_coupling(
                self._critic, params[self._site], pairs[0], *stop_gradient_tree((args, kwargs))
            )
        critic_loss += penalty_in_turn(
            penalty_key, self.regularizer, judge, params[self._site], *pairs, weights
        )
        seen = lax.stop_gradient((logits.accuracy(), *logits.range()))
        value = value + critic_loss - lax.stop_gradient(critic_loss)
        return value, sides.mutable, seen, jnp.array(True)

    def _players_loss(self, critic: Any, sides: JointSides, args: Any, kwargs: Any) -> jax.Array:
        """The value, with the gradients of guide and model and none for the critic."""
        divergence, weights = self.divergence, (sides.guide_weights, sides.model_weights)

        def ratio(side: SiteValues) -> jax.Array:
            return log_ratio(self._critic.apply(critic, side, args, kwargs), self._pi)

        try:
            exchanged, model_side = divergence.reversed, sides.model
        except NotImplementedError as error:  # to be said only where the model is learned
            exchanged, model_side = None, refuse_gradient(sides.model, error)
        guide, model = ratio(sides.guide), ratio(model_side)
        if isinstance(divergence, ReverseKL):
            scaled = sides.scales if weights[0] is None else sides.scales * jnp.sign(weights[0])
            value, total = (scaled * guide).sum() - sides.log_globals, scaled.sum()
        else:
            # The divergence takes the model first: its log-ratio is that of model to guide.
            estimate = divergence.estimate(-model, -guide, weights[1], weights[0])
            value, total = (
                _worth(estimate, weighted_mean(divergence.generator_loss(-guide), weights[0])),
                jnp.ones(()),
            )
        if exchanged is None:
            return value
        of_model = total * weighted_mean(exchanged.generator_loss(model), weights[1])
        return value + of_model - lax.stop_gradient(of_model)

    def _forward_step(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Any:
        """The loss of neural posterior estimation, with no critic to look at."""
        # Containers are copied, since a model may write to those of mutable sites.
        params = jax.tree.map(lambda leaf: leaf, dict(params))
        noise = kernels_with_params(self.noise, params, args, kwargs)
        if noise and self._table is None and known_data_sites(guide, args, kwargs) is None:
            self._spreading.check(model, args, kwargs)
        rows: Rows | None = None
        each: list[Any] = [random.split(rng_key, self.num_particles)]
        if self._table is not None:
            rows = Rows(self._table, params, model, guide, args, kwargs)
            each.append(rows.draw(random.fold_in(rng_key, _ROWS), self.num_particles))

        def one(own: list[Any]) -> _Particle:
            loss, mutable, is_left = minus_log_q(
                own[0],
                params,
                model,
                guide,
                noise,
                self.data,
                self.exclude_invalid_x,
                args,
                kwargs,
                rows,
                *own[1:],
            )
            return loss, mutable, None, is_left

        return self._mean(rng_key, one, each)


def _worth(value: jax.Array, loss: jax.Array) -> jax.Array:
    """``value`` with the gradient of ``loss``."""
    return lax.stop_gradient(value) + (loss - lax.stop_gradient(loss))
