# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
PriorContrastELBO: the ELBO of a guide without a density, with a log-ratio learned by a critic.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import random
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import Trace_ELBO
from numpyro.primitives import mutable as numpyro_mutable

from numpyro_spread.infer._contrast import ContrastRun, init_params
from numpyro_spread.infer._guide_run import ContrastOptions
from numpyro_spread.infer._held_out import compare_estimates, fit_critic
from numpyro_spread.infer._noise import Noise
from numpyro_spread.infer._random_delta import refuse_random_deltas
from numpyro_spread.infer._registration import Loss, Registered, declare_params
from numpyro_spread.infer._spreading import Spreading, SpreadStep
from numpyro_spread.infer._watch import watch_lag
from numpyro_spread.ratio._last_layer import refuse_bounded_logits
from numpyro_spread.ratio.binding import bind
from numpyro_spread.ratio.regularizers import Regularizer, check_regularizer
from spread_analysis.critic import EvidenceReport
from spread_core.loss_words import NOT_A_BOUND, LossWords
from spread_core.messages import contrasts, players, spreading
from spread_core.monitors import FalseEvidenceMonitor, FalseEvidenceWarning, LogitRangeMonitor
from spread_core.paths import Where
from spread_core.stateful import Stateful
from spread_core.validation import check_count

Annealing = int | Callable[..., Any]

# Folded into keys: what the stock ELBO draws from them stays as it is. Large, since the first
# numbers are what splitting a key amounts to.
_OWN, _WATCH = 0x5EED0001, 0x5EED0002
_HEAD = "a module of flax linen, flax nnx or equinox: head(*args, **kwargs) -> (loc, scale)"


class PriorContrastELBO(Stateful, Loss):
    r"""
    ELBO of a guide with sites that can be sampled but have no density.

    At an :class:`~numpyro_spread.ImplicitDistribution` in the guide, :math:`\log q(z \mid x)` is
    replaced by :math:`T(z, x) + \log c(z)`, where the critic T is trained by the logistic loss to
    distinguish the guide's draws from those of a contrast c, so that at its optimum
    :math:`T = \log q(z \mid x) / c(z)` [1]. Sites with densities keep them, and scales, masks and
    plates act on the ratio as on any log density: with no implicit site it is the stock
    ``Trace_ELBO``. Guide and model get the gradient with the critic frozen, the critic that of the
    logistic loss with all draws frozen.

    The reported loss is minus an **adversarial ELBO estimate** in nats. It is **not a bound**: a
    critic that lags behind reports values above the evidence. See :meth:`held_out_check`.

    The contrast is adaptive by default [1, section 4]: a Gaussian with the moments of
    :math:`q(z \mid x)` for each datum, and the critic sees z standardised by them. The critic then
    only has to learn the shape of the guide, whereas against the prior it fails as soon as the KL
    divergence is a few nats.

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

    **References**

    [1] `Adversarial Variational Bayes: Unifying Variational Autoencoders and Generative Adversarial
    Networks`, Lars Mescheder, Sebastian Nowozin, Andreas Geiger, https://arxiv.org/abs/1701.04722

    [2] `Variational Inference using Implicit Distributions`, Ferenc Huszar,
    https://arxiv.org/abs/1702.08235

    :param discriminator: one module of flax linen, flax nnx or equinox for all implicit sites
        together, or a dict from site to module. Each is called as
        ``discriminator(values, *args, **kwargs)``, where ``values`` is a dict of its sites and
        ``args`` are those of the model, and returns logits of the plates' batch shape.
        ``concat_sites(net, "x", "z")`` finds guide sites drawn before and the model's arguments by
        name.
    :param noise: dict from observed site to noise kernel, or a callable that returns one: data and
        model are spread as by :class:`~numpyro_spread.SpreadELBO`, for deterministic likelihoods.
    :param adaptive: whether the contrast is the Gaussian with the guide's moments (exact at any KL
        divergence) or the model's prior at the site given the guide's other draws (right only at a
        small one). The prior needs a density if adaptive, and if its params are learned.
    :param data: dict from site to the name of the model argument that carries its data, for
        ``noise``. Left out: the argument of the site's name, else the first.
    :param head: a module ``head(*args, **kwargs) -> (loc, scale)``, or a dict from site to such
        pairs: the Gaussian :math:`r(z \mid x)` of the contrast. It is fitted to the guide's draws
        by maximum likelihood, as part of the discriminator, and spares the draws for the moments.
        It gets the arguments reduced to what plates subsampled.
    :param annealing: number of steps over which the weight of the likelihood rises to one; or a
        callable of the model's arguments that returns the weight. ``svi.evaluate`` and
        :meth:`loss` with params alone give the likelihood its full weight in the first case.
    :param regularizer: penalty on the discriminator's gradient, such as ``R1(1.0)``.
    :param num_moment_draws: draws S of the guide per datum for the moments; by default 4096 over
        the number of data, 32 to 1024. They scatter by 1/sqrt(S) of the guide's standard deviation,
        which blurs what the critic sees: modes much narrower than the whole need more.
    :param num_critic_draws: draws per datum that the critic is trained on; by default as many as
        make 128 in all. Several implicit sites under one critic have one.
    :param num_particles: number of draws of the guide per datum and step in the ELBO.
    :param vectorize_particles: whether they are drawn at once, as in the stock ELBO.
    :param name: of the discriminator: its params are at ``name$params``, the head's at
        ``name$head``, the number of steps for ``annealing`` at ``name$steps``.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range.
    """

    #: As in the stock ``Trace_ELBO``; ``SVI.init`` asks.
    can_infer_discrete = False

    _remembers = ("_monitor",)

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
        for argument, value, least in (
            ("num_particles", num_particles, 1),
            ("num_moment_draws", num_moment_draws, 3),
            ("num_critic_draws", num_critic_draws, 1),
            ("annealing", None if callable(annealing) else annealing, 1),
        ):
            if value is not None:
                check_count(argument, value, least)
        super().__init__(num_particles, vectorize_particles)
        if head is not None and not adaptive:
            raise ValueError(contrasts.head_without_adaptive())
        check_regularizer(regularizer)
        try:
            bound_head = None if head is None else bind(head)
        except TypeError as error:
            raise TypeError(players.bad_range("head", head, _HEAD)) from error
        refuse_bounded_logits(discriminator)
        several = isinstance(discriminator, Mapping)
        self.discriminator = discriminator
        self.adaptive = adaptive
        self.head = head
        self.annealing = annealing
        self.regularizer = regularizer
        self.num_moment_draws = num_moment_draws
        self.num_critic_draws = num_critic_draws
        self.name = name
        self._spreading = Spreading(noise, data)
        self.noise, self.data = self._spreading.noise, self._spreading.data
        self._options = ContrastOptions(
            {site: bind(each) for site, each in discriminator.items()}
            if several
            else bind(discriminator),
            bound_head,
            adaptive,
            regularizer,
            num_moment_draws,
            num_critic_draws,
            name,
            num_particles if vectorize_particles else 1,
        )
        self._stock = Trace_ELBO()
        self._monitor = FalseEvidenceMonitor()
        self._range = LogitRangeMonitor()

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        return LossWords(
            type(self).__name__,
            "minus the adversarial ELBO",
            caution=NOT_A_BOUND,
            sides=("guide", "contrast"),
            is_sum=True,
        )

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

        return Registered(guide, functools.partial(self._spreading.check, model), declare)

    @property
    def _steps_site(self) -> str:
        return f"{self.name}$steps"

    def loss(
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
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
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Like :meth:`loss`, in a dict with the new mutable state."""

        def run(step: SpreadStep) -> Any:
            return self._on_step(step, rng_key, model, guide, args, kwargs)

        return self._spreading.settled(param_map, model, args, kwargs, run)

    def _on_step(
        self, step: SpreadStep, rng_key: jax.Array, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Any:
        param_map = step.params
        beta = self._likelihood_weight(param_map, args, kwargs)
        runs: list[ContrastRun] = []

        def particle(key: jax.Array) -> tuple[jax.Array, dict[str, Any], list[Any]]:
            result, run = self._run(key, self._options, step, param_map, model, guide, beta)
            runs.append(run)
            learned, logits = run.learn()
            mutable = dict(result["mutable_state"] or {})
            return (
                result["loss"] + learned,
                mutable,
                [(each.accuracy(), *each.range()) for each in logits.values()],
            )

        if self.num_particles == 1:
            loss, mutable, seen = particle(rng_key)
        else:
            keys = random.split(rng_key, self.num_particles)
            loss, mutable, seen = self.vectorize_particles_fn(particle, keys)
            loss = loss.mean(0)
            if mutable.keys() - {self._steps_site}:
                raise NotImplementedError(spreading.mutable_particles(self.num_particles))
        step.check_observed()
        if any(run.has_bare_delta for run in runs):
            refuse_random_deltas(param_map, guide, args, kwargs)
        if seen:
            # Of several critics the worst counts: right most often, or with odd logits.
            right, low, high = map(jnp.stack, zip(*seen, strict=True))
            right, low, high = (each.reshape(len(seen), -1) for each in (right, low, high))
            right, low, high = right.mean(1), low.min(1), high.max(1)
            odd = jnp.argmax(self._range.suspects(low, high))
            worst = right.max(), low[odd], high[odd]
            watch_lag(random.fold_in(rng_key, _WATCH), self._monitor, self._range, worst)
        if self._steps_site in param_map:
            mutable[self._steps_site] = param_map[self._steps_site] + 1
        return {"loss": loss, "mutable_state": mutable or None}

    def logits(
        self, rng_key: jax.Array, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
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
        step = self._spreading.looked(param_map, model, args, kwargs)
        run = self._run_guide(rng_key, self._options, step, param_map, model, guide)
        logits = run.logits()
        return logits if isinstance(self._options.critics, Mapping) or not logits else logits[None]

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
        spread_model, args, kwargs, rng_key = step.draw(rng_key)
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
        _, args, kwargs, key = step.draw(rng_key)
        guide_key, own_key = random.split(key)
        run = ContrastRun(options, own_key, params, model, args, kwargs)
        # Containers are copied, since a guide may write to those of mutable sites.
        params = jax.tree.map(lambda leaf: leaf, dict(params))
        with trace():
            seed(substitute(run.in_guide(guide), data=params), guide_key)(*args, **kwargs)
        return run

    def look(
        self, rng_key: jax.Array, params: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> tuple[float, dict[str, Any]]:
        """The value, and the logits of each critic, of other draws."""
        value, _ = super().look(rng_key, params, model, guide, *args, **kwargs)
        logits = self.logits(rng_key, params, model, guide, *args, **kwargs)
        return value, logits if isinstance(logits, dict) else {"": logits}

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
        Check the estimate with a fresh critic; guide and model stay as they are.

        It is of the same kind, always under the adaptive contrast. Both then judge the same draws.
        Of a guide that has collapsed to a point, as the plain contrast may let it, the fresh
        estimate is NaN or what rounding leaves, and the report says false evidence.

        :param rng_key: random key.
        :param params: dict from param site to value, such as ``svi.get_params(state)``.
        :param model: the model.
        :param guide: the guide.
        :param args: positional arguments of both.
        :param num_steps: steps of Adam for the fresh critic.
        :param learning_rate: of its Adam, falling linearly to zero.
        :param num_draws: held-out draws of the guide for all data.
        :param kwargs: keyword arguments of both.
        :return: both estimates, their gap and its standard error, in nats.
        :warns FalseEvidenceWarning: if the reported value is higher by more than chance.
        """
        options = dataclasses.replace(
            self._options, adaptive=True, head=None, regularizer=None, num_particles=1
        )
        frozen = {site: value for site, value in params.items() if site != self._steps_site}
        step = self._spreading.looked(frozen, model, args, kwargs)
        beta = self._likelihood_weight(frozen, args, kwargs)
        init_key, fit_key, draw_key = random.split(rng_key, 3)
        started = substitute(guide, data=frozen)
        initial = init_params(options, model, started, args, kwargs, init_key)[0]

        def critic_loss(critic: Any, key: jax.Array) -> jax.Array:
            known = {**frozen, options.params_site: critic}
            run = self._run_guide(key, options, step, known, model, guide)
            return jnp.asarray(sum(group.critic_loss()[0] for group in run.groups.values()))

        keys = random.split(fit_key, num_steps)
        known = {
            **frozen,
            options.params_site: fit_critic(critic_loss, initial, keys, learning_rate),
        }

        def judge(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            reported, _ = self._run(key, self._options, step, frozen, model, guide, beta)
            checked, _ = self._run(key, options, step, known, model, guide, beta)
            return -reported["loss"], -checked["loss"]

        checked = compare_estimates(judge, random.split(draw_key, num_draws))
        if checked.is_false():
            message = contrasts.false_evidence_gap(checked.gap, checked.standard_error)
            warnings.warn(message, FalseEvidenceWarning, stacklevel=2)
        return checked

    def _likelihood_weight(self, params: Any, args: Any, kwargs: Any) -> Any:
        if callable(self.annealing):
            return self.annealing(*args, **kwargs)
        if self.annealing is None or self._steps_site not in params:
            return None
        return jnp.minimum(1.0, (params[self._steps_site] + 1) / self.annealing)
