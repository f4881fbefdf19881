# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
PriorContrastELBO: the ELBO of a guide without a density, with a log-ratio learned by a critic.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import random
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import Trace_ELBO
from numpyro.primitives import mutable as numpyro_mutable

from numpyro_spread._typing import RngKey
from numpyro_spread.infer._contrast import ContrastRun, init_params
from numpyro_spread.infer._evidence_gap import num_data
from numpyro_spread.infer._held_out import Silent, compare_estimates, fit_critic
from numpyro_spread.infer._moving import state_sites
from numpyro_spread.infer._noise import Noise
from numpyro_spread.infer._random_delta import refuse_random_deltas
from numpyro_spread.infer._registration import Loss, Registered, declare_params
from numpyro_spread.infer._spreading import Spreading, SpreadStep
from numpyro_spread.infer._watch import GAP_EVERY, looks_now, watch_lag
from numpyro_spread.ratio._last_layer import refuse_bounded_logits
from numpyro_spread.ratio.binding import bind
from numpyro_spread.ratio.regularizers import Regularizer, check_regularizer
from spread_analysis.critic import EvidenceReport
from spread_core.contrast_options import ContrastOptions
from spread_core.losses.contrast_elbo import NUM_NORMALISER_DRAWS, PriorContrastShared
from spread_core.messages import players, spreading
from spread_core.monitors import EvidenceGapMonitor, FalseEvidenceMonitor, LogitRangeMonitor
from spread_core.paths import Where
from spread_core.stateful import Stateful
from spread_core.typing import Guide, Model
from spread_core.validation import check_count

Annealing = int | Callable[..., Any]

# Folded into keys: what the stock ELBO draws from them stays as it is. Large, since the first
# numbers are what splitting a key amounts to.
_OWN, _WATCH = 0x5EED0001, 0x5EED0002
_HEAD = "a module of flax linen, flax nnx or equinox: head(*args, **kwargs) -> (loc, scale)"


class PriorContrastELBO(PriorContrastShared, Stateful, Loss):
    """
    ELBO of a guide with sites that can be sampled but have no density.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        >>> from flax import linen
        >>> from numpyro.infer import SVI
        >>> from numpyro_spread import ImplicitDistribution, PriorContrastELBO
        >>> from numpyro_spread import concat_sites, two_player
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        ...         numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     w, s = numpyro.param("w", 0.1), numpyro.param("s", 1.0)
        ...     noise = dist.Normal(jnp.zeros(1), 1.0).to_event(1)
        ...     fn = jax.tree_util.Partial(lambda x, w, s, eps: w * x + s * eps, x, w, s)
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", ImplicitDistribution(fn, noise, event_shape=(1,)))
        >>> loss = PriorContrastELBO(concat_sites(linen.Dense(1), "x", "z"))
        >>> optim = two_player(optax.adam(1e-3), optax.adam(2e-3), discriminator_steps=2)
        >>> svi = SVI(model, loss.register(model, guide), optim, loss)
        >>> x = jax.random.normal(jax.random.key(0), (8, 1))
        >>> bool((svi.run(jax.random.key(1), 4, x, progress_bar=False).losses > 0).all())
        True

    **Data parallelism** (batches sharded over devices, under ``jit``): exact, for every critic: a
    compiled step means the whole batch, wherever its parts are.

    Critics and head are modules of flax linen, flax nnx or equinox. With a number of steps for
    ``annealing``, ``svi.evaluate`` and :meth:`loss` with params alone give the likelihood its full
    weight.

    :param vectorize_particles: whether they are drawn at once, as in the stock ELBO.
    :param name: of the discriminator: its params are at ``name$params``, the head's at
        ``name$head``, the number of steps for ``annealing`` at ``name$steps``.
    """

    #: As in the stock ``Trace_ELBO``; ``SVI.init`` asks.
    can_infer_discrete = False

    _remembers = ("_monitor", "_gap")

    def __init__(
        self,
        discriminator: Any,
        noise: Noise | None = None,
        adaptive: bool = True,
        *,
        data: Mapping[str, Where] | None = None,
        head: Any = None,
        annealing: Annealing | None = None,
        regularizer: Regularizer | None = None,
        num_moment_draws: int | None = None,
        num_critic_draws: int | None = None,
        num_particles: int = 1,
        vectorize_particles: Any = True,
        name: str = "discriminator",
    ) -> None:
        check_regularizer(regularizer)
        try:
            bound_head = None if head is None else bind(head)
        except TypeError as error:
            raise TypeError(players.bad_range("head", head, _HEAD)) from error
        refuse_bounded_logits(discriminator)
        options = ContrastOptions(
            {site: bind(each) for site, each in discriminator.items()}
            if isinstance(discriminator, Mapping)
            else bind(discriminator),
            bound_head,
            adaptive,
            regularizer,
            num_moment_draws,
            num_critic_draws,
            name,
            num_particles,
            vectorize_particles,
        )
        spreading = Spreading(noise, data)
        of_elbo = {"vectorize_particles": vectorize_particles}
        super().__init__(discriminator, head, annealing, options, spreading, **of_elbo)
        self._stock = Trace_ELBO()
        self._monitor = FalseEvidenceMonitor()
        self._gap = EvidenceGapMonitor()
        self._range = LogitRangeMonitor()

    def register(self, model: Callable[..., Any], guide: Callable[..., Any]) -> Callable[..., Any]:
        """
        The guide to hand to SVI: it carries the params of discriminator and head too.

        ``SVI.init`` collects params from model and guide only. The shapes of the critic's inputs
        are found by tracing the guide abstractly.

        :param model: the model.
        :param guide: the guide.
        :return: a guide of the same signature.
        """
        options = self._options

        def declare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            def init() -> tuple[Any, Any]:
                rng_key = numpyro.prng_key()
                rng_key = random.key(0) if rng_key is None else rng_key
                return init_params(options, model, guide, args, kwargs, rng_key)

            declare_params(options.params_site, lambda: init()[0])
            if options.head is not None:
                declare_params(options.head_site, lambda: init()[1])
            if self.annealing is not None and not callable(self.annealing):
                numpyro_mutable(self._steps_site, jnp.zeros((), int))

        check = functools.partial(self._spreading.check, model, guide=guide)
        return Registered(guide, check, declare)

    @property
    def _steps_site(self) -> str:
        return f"{self.name}$steps"

    def loss(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """
        Minus the adversarial ELBO estimate in nats; its gradient is that of every param's player.

        It is the derivative of no single function: second derivatives make no sense.

        :param rng_key: random key; the same key gives the same draws.
        :param param_map: dict from param site to value.
        :param model: the model, as it is.
        :param guide: the guide that :meth:`register` returned.
        :raises ValueError: if sites, plates, masks and critics do not fit together; the message
            names the site and says what to do.
        """
        return self.loss_with_mutable_state(rng_key, param_map, model, guide, *args, **kwargs)[
            "loss"
        ]

    def loss_with_mutable_state(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """Like :meth:`loss`, in a dict with the new mutable state."""

        def run(step: SpreadStep) -> Any:
            return self._on_step(step, rng_key, model, guide, args, kwargs)

        return self._spreading.settled(param_map, model, args, kwargs, run, guide)

    def _on_step(
        self, step: SpreadStep, rng_key: jax.Array, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Any:
        param_map = step.params
        beta = self._likelihood_weight(param_map, args, kwargs)
        looks = looks_now(random.fold_in(rng_key, _WATCH), GAP_EVERY)

        def particle(key: jax.Array) -> tuple[jax.Array, dict[str, Any], list[Any]]:
            result, run = self._run(key, self._options, step, param_map, model, guide, beta)
            if run.has_bare_delta:
                refuse_random_deltas(param_map, guide, args, kwargs)
            learned, seen = run.learn(looks)
            mutable = dict(result["mutable_state"] or {})
            return (
                result["loss"] + learned,
                mutable,
                [(gap, each.accuracy(), *each.range()) for each, gap in seen],
            )

        if self.num_particles == 1:
            loss, mutable, seen = particle(rng_key)
        else:
            keys = random.split(rng_key, self.num_particles)
            loss, mutable, seen = self.vectorize_particles_fn(particle, keys)
            loss = loss.mean(0)
            if mutable.keys() - {self._steps_site} - state_sites(self.noise):
                raise NotImplementedError(spreading.mutable_particles(self.num_particles))
        step.check_observed()
        if seen:
            loss = self._watch(loss, looks, seen)
        if self._steps_site in param_map:
            mutable[self._steps_site] = param_map[self._steps_site] + 1
        return {"loss": loss, "mutable_state": mutable or None}

    def _watch(self, loss: jax.Array, looks: jax.Array, seen: list[Any]) -> jax.Array:
        """``loss``; the monitors look at the critics of all particles."""
        gaps, *others = zip(*seen, strict=True)
        # Of several critics the worst counts: right most often, or with odd logits.
        right, low, high = (jnp.stack(each).reshape(len(seen), -1) for each in others)
        right, low, high = right.mean(1), low.min(1), high.max(1)
        odd = jnp.argmax(self._range.suspects(low, high))
        worst = right.max(), low[odd], high[odd]
        known = None
        if all(gap is not None for gap in gaps):
            nats, num_data = jnp.stack(gaps).reshape(len(seen), -1, 2).mean(1).T
            known = self._gap, jnp.stack([nats.sum(), num_data.max()])
        return watch_lag(loss, looks, self._monitor, self._range, worst, known)

    def logits(
        self, rng_key: RngKey, param_map: Any, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> Any:
        """
        The critic's logits at fresh draws of the guide and of its contrast.

        With held-out data it shows how well the critic is calibrated:
        ``critic_report(logits.p, logits.q)``. Nothing is trained.

        :param rng_key: random key.
        :param param_map: dict from param site to value, such as ``svi.get_params(state)``.
        :param model: the model.
        :param guide: the guide.
        :return: a named tuple ``(p, q, weights_p, weights_q)``: P is the guide, Q the contrast. The
            logits have shape (draws +) batch. A dict from site to such tuples if there is a
            critic per site.
        """
        step = self._spreading.looked(param_map, model, args, kwargs, guide)
        run = self._run_guide(rng_key, self._options, step, param_map, model, guide)
        logits = run.logits()
        return logits if self._options.is_by_site or not logits else logits[None]

    def _run(
        self,
        rng_key: jax.Array,
        options: ContrastOptions,
        step: SpreadStep,
        params: Any,
        model: Any,
        guide: Any,
        beta: Any,
    ) -> tuple[Any, ContrastRun]:
        """The stock ELBO of the scored guide for one particle, and the run it saw."""
        spread_model, guide, args, kwargs, rng_key = step.draw(rng_key, guide)
        own_key = random.fold_in(rng_key, _OWN)
        run = ContrastRun(options, own_key, params, model, args, kwargs)
        sides = run.in_model(spread_model, beta), run.in_guide(guide)
        result = self._stock.loss_with_mutable_state(rng_key, params, *sides, *args, **kwargs)
        return result, run

    def _run_guide(
        self,
        rng_key: jax.Array,
        options: ContrastOptions,
        step: SpreadStep,
        params: Any,
        model: Any,
        guide: Any,
    ) -> ContrastRun:
        """A run of the guide alone."""
        _, guide, args, kwargs, key = step.draw(rng_key, guide)
        guide_key, own_key = random.split(key)
        run = ContrastRun(options, own_key, params, model, args, kwargs)
        # Containers are copied, since a guide may write to those of mutable sites.
        params = jax.tree.map(lambda leaf: leaf, dict(params))
        with trace():
            seed(substitute(run.in_guide(guide), data=params), guide_key)(*args, **kwargs)
        return run

    def held_out_check(
        self,
        rng_key: jax.Array,
        params: Any,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        num_steps: int = 1000,
        learning_rate: float = 1e-3,
        num_draws: int = 200,
        **kwargs: Any,
    ) -> EvidenceReport:
        """
        Look for false evidence with other critics; guide and model stay as they are.

        There are a Gaussian with the covariance of the guide's draws, a fresh critic whose contrast
        it is, and with ``adaptive`` a copy of the trained critic, trained on. That which is best on
        other draws gives an estimate no lower than the ELBO, on average. What the reported one
        exceeds it by is false evidence. If all are worse than the trained critic, the report says
        "not known". A guide that has collapsed to a point has no ELBO: then the gap is NaN or what
        rounding leaves, and the evidence false.

        :param rng_key: random key.
        :param params: dict from param site to value, such as ``svi.get_params(state)``.
        :param model: the model.
        :param guide: the guide.
        :param args: positional arguments of both.
        :param num_steps: steps of Adam for each critic that is fitted.
        :param learning_rate: of its Adam, falling linearly to zero.
        :param num_draws: held-out draws of the guide for all data, at least 2.
        :param kwargs: keyword arguments of both.
        :return: both estimates and the gap with its standard error, in nats.
        :warns FalseEvidenceWarning: if the gap is more than two standard errors, 0.3 nats and 0.1
            nats per datum.
        """
        check_count("held_out_check: num_draws", num_draws, 2)
        own = dataclasses.replace(self._options, regularizer=None, num_particles=1, at_once=False)
        full = own.with_full_contrast()
        silent = full.with_critics(Silent())
        frozen = {site: value for site, value in params.items() if site != self._steps_site}
        step = self._spreading.looked(frozen, model, args, kwargs, guide)
        beta = self._likelihood_weight(frozen, args, kwargs)
        init_key, fit_key, draw_key = random.split(rng_key, 3)
        started = substitute(guide, data=frozen)
        initial = init_params(full, model, started, args, kwargs, init_key)[0]

        def fitted(options: ContrastOptions, initial: Any, key: jax.Array) -> Any:
            def critic_loss(critic: Any, key: jax.Array) -> jax.Array:
                known = {**frozen, options.params_site: critic}
                run = self._run_guide(key, options, step, known, model, guide)
                return jnp.asarray(sum(group.critic_loss()[0] for group in run.groups.values()))

            keys = random.split(key, num_steps)
            critic = fit_critic(critic_loss, initial, keys, learning_rate)
            judged = dataclasses.replace(options, num_normaliser_draws=NUM_NORMALISER_DRAWS)
            return judged, {**frozen, options.params_site: critic}

        fresh_key, own_key = random.split(fit_key)
        judges = [(silent, frozen), fitted(full, initial, fresh_key)]
        if self.adaptive and own.params_site in frozen:  # against the prior it would lag as it does
            judges.append(fitted(own, frozen[own.params_site], own_key))

        def judge(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            def estimate(options: ContrastOptions, known: Any) -> jax.Array:
                return -self._run(key, options, step, known, model, guide, beta)[0]["loss"]

            return estimate(own, frozen), jnp.stack([estimate(*each) for each in judges])

        groups = self._run_guide(init_key, own, step, frozen, model, guide).groups
        data = max((float(num_data(group)) for group in groups.values()), default=1.0)
        return self._checked(compare_estimates(judge, random.split(draw_key, num_draws)), data)

    def _likelihood_weight(self, params: Any, args: Any, kwargs: Any) -> Any:
        if callable(self.annealing):
            return self.annealing(*args, **kwargs)
        if self.annealing is None or self._steps_site not in params:
            return None
        return jnp.minimum(1.0, (params[self._steps_site] + 1) / self.annealing)
