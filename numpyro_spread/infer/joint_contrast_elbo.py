# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
JointContrastELBO: compare pairs of data and latents of guide and model; neither needs a density.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import lax, random
from numpyro.handlers import block

from numpyro_spread.divergences import KL, Divergence, ReverseKL
from numpyro_spread.infer._critic import penalty_in_turn, warn_of_coupling
from numpyro_spread.infer._datum import are_whole, data_dims, parts_left_out
from numpyro_spread.infer._gradients import refuse_gradient
from numpyro_spread.infer._guide_run import stop_gradient_tree
from numpyro_spread.infer._handed import Watch
from numpyro_spread.infer._invalid import note, noting
from numpyro_spread.infer._joint_sides import (
    JointSides,
    draw_joint,
    failed_simulations,
    is_latent,
    run,
    run_forward,
)
from numpyro_spread.infer._noise import Noise, draw_at
from numpyro_spread.infer._own_draws import refuse_own_draws
from numpyro_spread.infer._random_delta import refuse_random_deltas
from numpyro_spread.infer._registration import Loss, Registered, declare_params, example_of
from numpyro_spread.infer._sites import is_implicit, mask_of_batch, plain_name
from numpyro_spread.infer._spreading import Spreading, SpreadStep
from numpyro_spread.infer._two_sides import is_compared
from numpyro_spread.infer._watch import watch_lag
from numpyro_spread.ratio._last_layer import refuse_bounded_logits
from numpyro_spread.ratio.adapters import SiteValues
from numpyro_spread.ratio.binding import bind
from numpyro_spread.ratio.losses import log_ratio, logistic_loss, prior_log_odds, weighted_mean
from numpyro_spread.ratio.regularizers import Regularizer, check_regularizer
from spread_core.arguments import get_argument, locate_data, replace_arguments
from spread_core.logits import Logits
from spread_core.loss_words import NOT_A_BOUND, LossWords, divergence_name
from spread_core.messages import contrasts, players, simulations, spreading
from spread_core.monitors import FalseEvidenceMonitor, LogitRangeMonitor
from spread_core.paths import Where
from spread_core.patterns import resolved
from spread_core.stateful import Stateful
from spread_core.validation import check_count

# Folded into the key, so that it differs from the keys that splitting gives.
_WATCH = 0x5EED0002

# The loss of one run, new mutable state, the critic's accuracy, and whether anything is left.
_Particle = tuple[
    jax.Array, dict[str, Any], tuple[jax.Array, jax.Array, jax.Array] | None, jax.Array
]


class JointContrastELBO(Stateful, Loss):
    r"""
    Divergence between the model's pairs (x, z) and the guide's, learned from draws of both.

    As in every loss, P is the side with the data and Q the model. P pairs data with the guide's
    draws, :math:`p_{data}(x)\, q(z \mid x)`. Q runs the model forward: it draws z' and then x'
    given z'. A critic learns :math:`\log P/Q` by distinguishing the pairs, so neither likelihood,
    prior nor guide needs a density. The divergence is that of the guide from the model, D(Q || P).
    Three are well known:

    - ``ReverseKL()``, ``KL[guide || model]``: :math:`\mathrm{KL}[P \| Q]`, minus the ELBO up to the
      entropy of the data: the likelihood-free variational inference of [1], the joint contrast of
      [2];
    - ``JSPi(pi)``: at 1/2 adversarially learned inference and BiGAN [3, 4];
    - ``KL()``, ``KL[model || guide]``: :math:`\mathrm{KL}[Q \| P]`. If the guide has a density,
      this is neural posterior estimation [5]: :math:`-E_Q \log q(z' \mid x')` is minimised
      directly, and no critic is needed and none trained.

    Latents in no plate of the data are global: they keep their densities, both sides share the
    guide's draws, and the critic may look them up by name (hierarchical implicit models [1],
    ``ReverseKL()`` only). A pair of the model is always x' with the z' that produced it.

    The reported value is the divergence, an **adversarial estimate and not a bound**, in nats: for
    ``ReverseKL()`` scaled by plates and summed over the data, with the globals' KL, as minus an
    ELBO is; otherwise the mean over the data. For neural posterior estimation it is the mean of
    :math:`-\log q(z' \mid x')` over the batch dims that all its sites share: with a global latent
    the data are one.

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

    **References**

    [1] `Hierarchical Implicit Models and Likelihood-Free Variational Inference`, Dustin Tran,
    Rajesh Ranganath, David M. Blei, https://arxiv.org/abs/1702.08896

    [2] `Variational Inference using Implicit Distributions`, Ferenc Huszar,
    https://arxiv.org/abs/1702.08235

    [3] `Adversarially Learned Inference`, Vincent Dumoulin et al., https://arxiv.org/abs/1606.00704

    [4] `Adversarial Feature Learning`, Jeff Donahue, Philipp Krähenbühl, Trevor Darrell,
    https://arxiv.org/abs/1605.09782

    [5] `Fast epsilon-free Inference of Simulation Models with Bayesian Conditional Density
    Estimation`, George Papamakarios, Iain Murray, https://arxiv.org/abs/1605.06376

    :param discriminator: a module of flax linen, flax nnx or equinox, called as
        ``discriminator(values, *args, **kwargs)``, where ``values`` is a dict of data and local
        latents; it returns one logit for every pair, large for those of the guide. On the
        model's pairs ``args`` still are the data: look at ``values``. May be left out with ``KL()``
        and a guide with a density.
    :param divergence: D(model || guide), so that ``KL()`` is ``KL[model || guide]``;
        ``ReverseKL()`` by default. Its ``pi`` is the share of the model's pairs.
    :param noise: dict from observed site to noise kernel, or a callable that returns one. Data and
        the model's x' pass through it, with fresh draws; guide and critic see the noisy ones.
    :param data: dict from site to the name of the model argument that carries its data. Left out:
        the argument of the site's name, else the first.
    :param exclude_invalid_x: whether simulations that are NaN or inf are left out, for ``KL()``
        without a discriminator; otherwise they are an error. What is learned is the posterior given
        that the simulator succeeds, which for data that were observed, and so are finite, is the
        posterior itself. One :class:`InvalidSimulationsWarning` says how many there are. As ``sbi``
        calls it.
    :param regularizer: penalty on the discriminator's gradient, such as ``R1(1.0)``.
    :param num_particles: number of draws of guide and model per datum and step, all at once.
    :param name: of the discriminator: its params are at ``name$params``.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range, or the discriminator is missing.
    :raises NotImplementedError: if the divergence has no gradient.
    """

    #: Draws need no enumeration; ``SVI.init`` asks.
    can_infer_discrete = True

    _remembers = ("_monitor",)

    def __init__(
        self,
        discriminator: Any = None,
        divergence: Divergence | None = None,
        noise: Noise | None = None,
        *,
        data: Mapping[str, Where] | None = None,
        regularizer: Regularizer | None = None,
        exclude_invalid_x: bool = False,
        num_particles: int = 1,
        name: str = "discriminator",
    ) -> None:
        check_count("num_particles", num_particles)
        super().__init__(num_particles)
        divergence = ReverseKL() if divergence is None else divergence
        if not isinstance(divergence, Divergence):
            raise TypeError(players.no_divergence(divergence))
        divergence.generator_loss(jnp.zeros(1))  # refuses here what has no gradient
        if discriminator is None and not isinstance(divergence, KL):
            raise ValueError(contrasts.joint_nothing_implicit(type(divergence).__name__))
        if exclude_invalid_x and (discriminator is not None or not isinstance(divergence, KL)):
            raise ValueError(simulations.exclude_without_forward())
        if discriminator is not None:
            refuse_bounded_logits(discriminator)
        check_regularizer(regularizer)
        self.discriminator = discriminator
        self.divergence = divergence
        self.regularizer = regularizer
        self.exclude_invalid_x = bool(exclude_invalid_x)
        self.name = name
        self._critic: Any = None if discriminator is None else bind(discriminator)
        self._spreading = Spreading(noise, None if noise is None else data)
        self.noise, self.data = self._spreading.noise, dict(data or {})
        self._monitor = FalseEvidenceMonitor()
        self._range = LogitRangeMonitor(float(prior_log_odds(1 - divergence.pi)))

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        name = type(self).__name__
        if self.discriminator is None:
            reason = "The guide has a density: no critic is needed, and none trained."
            value = "minus the guide's log density at the model's latents"
            return LossWords(name, value, no_critic=reason)
        return LossWords(
            name,
            f"{divergence_name(self.divergence)} of the pairs (x, z)",
            caution=NOT_A_BOUND,
            is_divergence=True,
            sides=("guide's pairs", "model's pairs"),
            pi=1 - float(self.divergence.pi),
        )

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

        return Registered(guide, functools.partial(self._spreading.check, model), declare)

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
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
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
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Like :meth:`loss`, in a dict with the new mutable state."""

        def run(step: SpreadStep) -> Any:
            return self._on_step(step, rng_key, model, guide, args, kwargs)

        return self._spreading.settled(param_map, model, args, kwargs, run)

    def _on_step(
        self, step: SpreadStep, rng_key: jax.Array, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Any:
        one = self._forward_loss if self._critic is None else self._adversarial_loss
        param_map = step.params

        totals: list[int] = []

        def particle(key: jax.Array) -> tuple[_Particle, dict[str, Any]]:
            with noting() as noted:
                result = one(key, step, param_map, model, guide, args, kwargs)
            totals.append(noted.total)
            return result, noted.counts

        keys = random.split(rng_key, self.num_particles)
        if self.num_particles == 1:
            (loss, mutable, seen, is_left), counts = particle(keys[0])
            loss, is_left = jnp.asarray(loss)[None], jnp.asarray(is_left)[None]
        else:
            found, counts = self.vectorize_particles_fn(particle, keys)
            loss, mutable, seen, is_left = found
            if mutable:
                raise NotImplementedError(spreading.mutable_particles(self.num_particles))
        # A particle may have come to nothing; if all have, so has the step.
        loss = jnp.where(is_left, loss, 0).sum() / is_left.sum()
        counts = {name: jnp.sum(count) for name, count in counts.items()}
        can = self.exclude_invalid_x if self._critic is None else None
        note(counts, totals[0] * self.num_particles, can)
        if seen is not None:
            watch_lag(random.fold_in(rng_key, _WATCH), self._monitor, self._range, seen)
        return {"loss": loss, "mutable_state": mutable or None}

    def logits(
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
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

    def look(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> tuple[float, dict[str, Any]]:
        """The value, and the critic's logits, of other draws."""
        value, _ = super().look(rng_key, params, model, guide, *args, **kwargs)
        if self.discriminator is None:
            return value, {}
        return value, {"": self.logits(rng_key, params, model, guide, *args, **kwargs)}

    def _draw(
        self, rng_key: jax.Array, step: SpreadStep, params: Any, model: Any, guide: Any
    ) -> tuple[JointSides, tuple[Any, ...], dict[str, Any]]:
        if self._site not in params:
            raise ValueError(players.not_registered(self.name))
        handed, rng_key = step.hand(rng_key)
        args, kwargs = handed.args, handed.kwargs
        watch = Watch(None, handed)
        sides = draw_joint(rng_key, params, model, guide, step.noise, args, kwargs, watch)
        if sides.global_sites and not isinstance(self.divergence, ReverseKL):
            name = type(self.divergence).__name__
            raise ValueError(contrasts.joint_global_divergence(sides.global_sites[0], name))
        if sides.global_sites:  # of the local ones no density is asked for
            refuse_random_deltas(params, guide, args, kwargs, sides.global_sites)
        return sides, args, kwargs

    def _logits(self, critic: Any, sides: JointSides, args: Any, kwargs: Any) -> Logits:
        """Of constant pairs: what the critic is trained on."""
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
        share = 1 - self.divergence.pi  # of the guide's pairs, whose label is one
        value = self._players_loss(
            stop_gradient_tree(params[self._site]), sides, share, args, kwargs
        )
        logits = self._logits(params[self._site], sides, args, kwargs)
        weights = logits.weights_p, logits.weights_q
        critic_loss = logistic_loss(logits.p, logits.q, share, *weights)

        def judge(critic: Any, values: SiteValues) -> jax.Array:
            return self._critic.apply(critic, values, *stop_gradient_tree((args, kwargs)))

        pairs = stop_gradient_tree(sides.guide), stop_gradient_tree(sides.model)
        if self.regularizer is not None:
            warn_of_coupling(
                self._critic, params[self._site], pairs[0], *stop_gradient_tree((args, kwargs))
            )
        critic_loss += penalty_in_turn(
            penalty_key, self.regularizer, judge, params[self._site], *pairs, weights[0]
        )
        seen = lax.stop_gradient((logits.accuracy(), *logits.range()))
        value = value + critic_loss - lax.stop_gradient(critic_loss)
        return value, sides.mutable, seen, jnp.array(True)

    def _players_loss(
        self, critic: Any, sides: JointSides, share: float, args: Any, kwargs: Any
    ) -> jax.Array:
        """The value, with the gradients of guide and model and none for the critic."""
        divergence, weights = self.divergence, (sides.guide_weights, sides.model_weights)

        def ratio(side: SiteValues) -> jax.Array:
            return log_ratio(self._critic.apply(critic, side, args, kwargs), share)

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

    def _forward_loss(
        self,
        rng_key: jax.Array,
        step: SpreadStep,
        params: Any,
        model: Any,
        guide: Any,
        args: Any,
        kwargs: Any,
    ) -> _Particle:
        """Minus the log density of the guide at the model's latents, given their data."""
        model_key, noise_key, guide_key = random.split(rng_key, 3)
        simulated = run_forward(model, model_key, stop_gradient_tree(params), {}, args, kwargs)
        observed = {name: site for name, site in simulated.items() if is_compared(site)}
        if not observed:
            raise ValueError(players.nothing_observed())
        refuse_own_draws(stop_gradient_tree(params), model, observed, args, kwargs)
        exclude, kernels, values = self.exclude_invalid_x, resolved(step.noise, observed), {}
        invalid, axes = failed_simulations(simulated, observed)
        located = locate_data(model, observed, args, kwargs, self.data)
        keys = random.split(noise_key, len(located))
        for (site, key), site_key in zip(located.items(), keys, strict=True):
            value, given = observed[site]["value"], get_argument(key, args, kwargs)
            if jnp.shape(given) != jnp.shape(value):
                message = contrasts.joint_simulated_shape(site, value.shape, jnp.shape(given))
                raise ValueError(message)
            if exclude:
                value = invalid.replaced(value, axes[site], given)
            noise = kernels.get(site)
            noisy = value if noise is None else draw_at(site_key, site, noise, value)
            values[key] = lax.stop_gradient(noisy)
        args, kwargs = replace_arguments(values, args, kwargs)
        latents = {n: lax.stop_gradient(s["value"]) for n, s in simulated.items() if is_latent(s)}
        if exclude:
            local = axes.keys() & latents.keys()
            latents |= {n: invalid.replaced(latents[n], axes[n], latents[n]) for n in local}
        with contextlib.nullcontext() if exclude else invalid.blamed(may_exclude=True):
            scored = run(guide, guide_key, params, latents, args, kwargs)
        sites = {n: s for n, s in scored.items() if n in latents and s["type"] == "sample"}
        if not sites:
            raise ValueError(contrasts.joint_no_latent(scored))
        drawn_with = observed | {name: simulated[name] for name in sites}
        one = not are_whole(drawn_with)
        dims = dict.fromkeys(drawn_with) if one else data_dims(drawn_with)
        total, seen = jnp.zeros(()), jnp.zeros(invalid.total, bool)
        for name, site in sites.items():
            # At the model's latents a Delta is worth minus infinity.
            if is_implicit(site["fn"]) or plain_name(site["fn"]) == "Delta":
                raise ValueError(contrasts.joint_needs_density(name))
            log_prob = site["fn"].log_prob(site["value"])
            scale = 1.0 if site["scale"] is None else site["scale"]
            weights = scale * mask_of_batch(site["fn"]) * jnp.ones(jnp.shape(log_prob))
            seen = seen | _of_data(weights > 0, dims[name])
            dim = dims[name]
            if exclude and dim is not None:
                good = invalid.good(jnp.ndim(log_prob), [dim], [log_prob.shape[dim]])
                log_prob, weights = jnp.where(good, log_prob, 0), jnp.where(good, weights, 0)
            rest = tuple(dim for dim in range(-weights.ndim, 0) if dim != dims[name])
            count = weights.max(rest).sum() / parts_left_out(site, scored)
            total = total - (scale * log_prob).sum() / jnp.maximum(1.0, count)
        mutable = {
            name: site["value"]
            for name, site in [*simulated.items(), *scored.items()]
            if site["type"] == "mutable"
        }
        is_left = jnp.array(True)
        if exclude:  # data that share a draw are left out together
            is_left = ~(invalid.rows.any() if one else invalid.none_good)
        else:  # a guide may have masked them
            invalid = invalid.among(seen)
            invalid.refuse(may_exclude=True)
        note(invalid.counts, invalid.total, exclude)
        return total, mutable, None, is_left


def _of_data(elements: jax.Array, dim: int | None) -> jax.Array:
    """Which data have any of the elements; all of them if no dim counts the data."""
    if dim is None:
        return elements.any()
    return jnp.moveaxis(elements, dim, 0).reshape(elements.shape[dim], -1).any(-1)


def _worth(value: jax.Array, loss: jax.Array) -> jax.Array:
    """``value`` with the gradient of ``loss``."""
    return lax.stop_gradient(value) + (loss - lax.stop_gradient(loss))
