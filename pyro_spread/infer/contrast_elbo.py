# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
PriorContrastELBO: the ELBO of a guide without a density, with a log-ratio learned by a critic.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import nn

from pyro_spread._recording import number, settle, when_known
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.infer._contrast import ContrastRun
from pyro_spread.infer._critic import (
    check_critic,
    is_lazy,
    register_critic,
)
from pyro_spread.infer._evidence_gap import num_data
from pyro_spread.infer._guards import idle_critics
from pyro_spread.infer._held_out import (
    Silent,
    compare_estimates,
    fit_critic,
    fresh_copy,
    judging,
    normalised,
)
from pyro_spread.infer._implicit_group import CollapsedGuideError
from pyro_spread.infer._noise import Noise
from pyro_spread.infer._random_delta import refuse_random_deltas
from pyro_spread.infer._ranks import LossModule
from pyro_spread.infer._registration import Loss
from pyro_spread.infer._spreading import Spreading, started
from pyro_spread.infer._watch import BiasWatch
from pyro_spread.ratio._last_layer import refuse_bounded_logits
from pyro_spread.ratio.regularizers import Regularizer, check_regularizer
from spread_analysis import EvidenceReport
from spread_core.arguments import positional_names
from spread_core.contrast_options import ContrastOptions
from spread_core.losses.contrast_elbo import PriorContrastShared
from spread_core.messages import contrasts, players
from spread_core.monitors import Monitor
from spread_core.paths import Where
from spread_core.stateful import Stateful
from spread_core.typing import Guide, Model
from spread_core.use_of_data import UseOfData
from spread_core.validation import check_count

Critic = nn.Module | Mapping[str, nn.Module]
Annealing = int | Callable[..., float | torch.Tensor]


class PriorContrastELBO(PriorContrastShared, Loss):
    """
    ELBO of a guide with sites that can be sampled but have no density.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_spread import ImplicitDistribution, PriorContrastELBO
        >>> from pyro_spread import concat_sites, two_player
        >>> encoder = torch.nn.Linear(2, 1)
        >>> def model(x):
        ...     with pyro.plate("data", x.shape[0]):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("encoder", encoder)
        ...     noise = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        ...     def fn(eps):
        ...         return encoder(torch.cat([eps, x.expand(eps.shape)], -1))
        ...     with pyro.plate("data", x.shape[0]):
        ...         pyro.sample("z", ImplicitDistribution(fn, noise, event_shape=(1,)))
        >>> pyro.clear_param_store()
        >>> critic = concat_sites(torch.nn.Linear(2, 1), "x", "z")
        >>> adam = pyro.optim.Adam({"lr": 1e-3})
        >>> optim = two_player(adam, pyro.optim.Adam({"lr": 2e-3}), discriminator_steps=2)
        >>> svi = SVI(model, guide, optim, PriorContrastELBO(critic))
        >>> svi.step(torch.randn(8, 1)) > 0
        True

    ``fn`` is also called for several draws per datum: it has to broadcast over leading dimensions.

    **Data parallelism** (DDP around ``loss(model, guide)``): exact if the plate of the data says
    what they stand for, since the ELBO is a sum over them: ``plate("data", N, subsample=x)`` on
    shards of equal size, or ``poutine.scale`` by the number of ranks around a plate of the shard's
    own size. Otherwise the gradient is that of the sum divided by that number. The critic's and the
    head's losses are means over the whole batch, whatever the shards, if something counts on each.
    Moments of the adaptive contrast are those of single data. Critics with batch normalisation are
    refused.

    :param vectorize_particles: whether they are drawn at once, as in the stock ELBO. With ``noise``
        they come one after another, since each has its own noisy data.
    :param max_plate_nesting: as in the stock ELBO.
    :param name: of the discriminator in the param store.
    """

    _remembers = ("steps_done", "_contrast")

    def __init__(
        self,
        discriminator: Critic,
        noise: Noise | None = None,
        adaptive: bool = True,
        *,
        data: Mapping[str, Where] | None = None,
        head: nn.Module | None = None,
        annealing: Annealing | None = None,
        regularizer: Regularizer | None = None,
        num_moment_draws: int | None = None,
        num_critic_draws: int | None = None,
        num_particles: int = 1,
        vectorize_particles: bool = False,
        max_plate_nesting: float = math.inf,
        name: str = "discriminator",
    ) -> None:
        discriminator = _as_module(discriminator)
        if head is not None and not isinstance(head, nn.Module):
            raise TypeError(players.bad_range("head", head, "a torch.nn.Module, or None"))
        check_regularizer(regularizer)
        spreading = Spreading(noise, data)
        options = ContrastOptions(
            dict(discriminator) if isinstance(discriminator, nn.ModuleDict) else discriminator,
            head,
            adaptive,
            regularizer,
            num_moment_draws,
            num_critic_draws,
            name,
            num_particles,
            vectorize_particles and not spreading.noise,
        )
        super().__init__(discriminator, head, annealing, options, spreading)
        #: Steps taken, for ``annealing``.
        self.steps_done = 0
        self._stock = Trace_ELBO(num_particles=num_particles)
        self._one = Trace_ELBO(
            num_particles=options.num_at_once,
            vectorize_particles=options.num_at_once > 1,
            max_plate_nesting=max_plate_nesting,
        )
        self._contrast = _Watched()

    def __call__(self, model: nn.Module, guide: nn.Module) -> LossModule:
        """
        A complete ``nn.Module`` that computes the loss: for torch.optim, DDP and Lightning.

        Its parameters are those of model, guide, ``discriminator``, ``head`` and noise kernels.
        """
        module = super().__call__(model, guide)
        module.discriminator, module.head = self.discriminator, self.head
        module.noise = self._spreading.modules()
        return module

    def loss(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> float:
        """
        Minus the adversarial ELBO estimate in nats, at fresh draws; nothing is trained.

        :raises ValueError: if sites, plates, masks and critics do not fit together; the message
            names the site and says what to do, and params are as before.
        """
        with torch.no_grad(), self._unchanged():
            self._register(model, guide, args, kwargs)
            loss, _ = self._run(model, guide, args, kwargs, 1.0)
        return float(loss)

    def differentiable_loss(
        self, model: Model, guide: Guide, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Like :meth:`loss`, as a tensor whose ``backward`` gives every param its player's gradient.

        The players' gradients are of different functions: second derivatives have no meaning.
        """
        if not torch.is_grad_enabled():
            return torch.as_tensor(self.loss(model, guide, *args, **kwargs))
        beta = 1.0
        if isinstance(self.annealing, int):
            beta = number(self._annealed)
        self._register(model, guide, args, kwargs)
        loss, runs = self._run(model, guide, args, kwargs, beta)
        critics = [self._learn(run) for run in runs]
        critic = torch.stack(critics).mean() if critics else torch.zeros(())
        if isinstance(self.annealing, int):
            when_known(self._count)
        # The stock loss is a number if nothing in it is learned.
        return torch.as_tensor(loss) + (critic - critic.detach())

    def logits(self, model: Model, guide: Guide, *args: Any, **kwargs: Any) -> Any:
        """
        The critic's logits at fresh draws of the guide and of its contrast.

        With held-out data it shows how well the critic is calibrated:
        ``critic_report(logits.p, logits.q)``. Nothing is trained.

        :param model: the model.
        :param guide: the guide.
        :return: a named tuple ``(p, q, weights_p, weights_q)``: P is the guide, Q the contrast. The
            logits have shape (draws +) batch. A dict from site to such tuples if there is a
            critic per site, or no implicit site.
        """
        with torch.no_grad(), self._unchanged():
            _, runs = self._run(model, guide, args, kwargs, 1.0)
            logits = runs[0].logits()
        return logits if self._options.is_by_site or not logits else logits[None]

    def monitors(self) -> list[Monitor]:
        """What watches the critic during training, and warns once."""
        return self._contrast._watch.monitors

    def held_out_check(
        self,
        model: Model,
        guide: Guide,
        *args: Any,
        num_steps: int = 1000,
        learning_rate: float = 1e-3,
        num_draws: int = 200,
        **kwargs: Any,
    ) -> EvidenceReport:
        """
        Look for false evidence with other critics; guide and model stay as they are.

        There are a Gaussian with the covariance of the guide's draws, a fresh critic whose contrast
        it is, and with ``adaptive`` a copy of the trained critic, trained on. The best on other
        draws gives an estimate no lower than the ELBO, on average. What the reported one exceeds it
        by is false evidence. If all are worse than the trained critic, the report says "not known".
        A guide that has collapsed to a point has no ELBO: then the evidence is false.

        :param model: the model.
        :param guide: the guide.
        :param num_steps: steps of each critic that is fitted.
        :param learning_rate: of its Adam, falling linearly to zero.
        :param num_draws: held-out draws of the guide, at least 2.
        :return: both estimates and the gap with its standard error, in nats. A gap of more than two
            standard errors, 0.3 nats and 0.1 nats per datum is a :class:`FalseEvidenceWarning`.
        """
        check_count("held_out_check: num_draws", num_draws, 2)
        own = replace(self._options, num_particles=1, at_once=False, regularizer=None)
        full = own.with_full_contrast()
        reported, fitted = judging(self, own), [judging(self, full, fresh_copy(self.discriminator))]
        if self.adaptive:  # against the prior it would lag as it does
            fitted.append(judging(self, own, copy.deepcopy(self.discriminator)))

        def critic_loss(loss: PriorContrastELBO) -> torch.Tensor:
            with torch.no_grad():
                _, runs = loss._run(model, guide, args, kwargs, 1.0)
            return runs[0].learn()[0]

        def estimate(loss: PriorContrastELBO) -> float:
            with torch.no_grad(), loss._unchanged():
                return -float(loss._run(model, guide, args, kwargs, 1.0)[0])

        try:
            with poutine.block(), unchanged_buffers():
                for loss in fitted:
                    estimate(loss)  # lazy layers see their input
                    fitting = functools.partial(critic_loss, loss)
                    fit_critic(loss.discriminator, fitting, num_steps, learning_rate)
                judges = [judging(self, full.with_critics(Silent())), *map(normalised, fitted)]
                report = compare_estimates(
                    functools.partial(estimate, reported),
                    [functools.partial(estimate, loss) for loss in judges],
                    num_draws,
                )
                with torch.no_grad(), reported._unchanged():
                    groups = reported._run(model, guide, args, kwargs, 1.0)[1][0].groups
                data = max((float(num_data(group)) for group in groups.values()), default=1.0)
        except ValueError as error:
            # Pyro's traces wrap what their sites raise. With moments the loss itself needs them.
            if self.adaptive or not isinstance(error.__cause__ or error, CollapsedGuideError):
                raise
            with poutine.block(), unchanged_buffers():
                value = estimate(reported)
            return self._checked(EvidenceReport(value, math.nan, math.nan, math.nan, num_draws))
        return self._checked(report, data)

    def _annealed(self) -> float:
        assert isinstance(self.annealing, int)
        return min(1.0, (self.steps_done + 1) / self.annealing)

    def _count(self) -> None:
        self.steps_done += 1

    def _learn(self, run: ContrastRun) -> torch.Tensor:
        """The critics' loss in a run, at which the monitors look."""
        watch = self._contrast._watch
        loss, seen, gap = run.learn(settle(watch.is_due))
        for logits in seen:
            when_known(watch, logits)
        if gap is not None:
            when_known(watch.look_at_gap, gap)
        return loss

    def _run(
        self, model: Any, guide: Any, args: Any, kwargs: Any, beta: Any
    ) -> tuple[Any, list[ContrastRun]]:
        """The stock loss of the scored guide, and the runs it is made of."""
        self._spreading.check_asking(model, guide, args, kwargs)
        is_checked = refuse_random_deltas(guide, args, kwargs, settled=True)
        if callable(self.annealing):
            beta = self.annealing(*args, **kwargs)
        runs: list[ContrastRun] = []
        runner = copy.copy(self._stock)
        runner._get_traces = functools.partial(self._get_traces, runs, beta)
        method = runner.differentiable_loss if torch.is_grad_enabled() else runner.loss
        loss = method(model, guide, *args, **kwargs)
        if not is_checked:
            refuse_random_deltas(guide, args, kwargs)
        if runs:
            self._options.check_sites(runs[0].implicit)
        return loss, runs

    def _get_traces(
        self, runs: list[ContrastRun], beta: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Iterator[Any]:
        located = self._spreading.locate(model, args, kwargs) if self.noise else {}
        names = positional_names(model)

        def pairs(use: UseOfData) -> tuple[ContrastRun, Iterator[Any]]:
            seen, told, own, own_kwargs = self._spreading.draw(
                use, located, model, guide, args, kwargs
            )
            run = ContrastRun(self._options, seen, names, own, own_kwargs)
            if isinstance(beta, torch.Tensor) or beta != 1:
                seen = _Annealed(beta)(seen)
            sides = run.in_model(seen), run.in_guide(told)
            return run, started(self._one._get_traces(*sides, own, own_kwargs))

        for _ in range(self._options.num_particles // self._options.num_at_once):
            run, traces = self._spreading.settled(located, model, args, kwargs, pairs)
            runs.append(run)
            yield from traces

    def _register(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Put params into the store before they are used: it may hold saved values."""
        if is_lazy(self.discriminator):
            with torch.no_grad(), unchanged_buffers():
                self._run(model, guide, args, kwargs, 1.0)
        idle_critics.pop(self, None)
        if is_lazy(self.discriminator):  # as they stay without an implicit site
            idle_critics[self] = self.name
        else:
            register_critic(self.name, self.discriminator)
        if self.head is not None and not is_lazy(self.head):
            # Under the discriminator's name, since it plays on its side.
            register_critic(f"{self.name}$$$head", self.head)

    def _unchanged(self) -> Any:
        return unchanged_buffers(self.discriminator)


class _Watched(Stateful):
    """What watches the critics, at the place where checkpoints keep it."""

    _remembers = ("_watch",)

    def __init__(self) -> None:
        self._watch = BiasWatch()


class _Annealed(Messenger):
    """Weighs the observations of a model."""

    def __init__(self, beta: Any) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic", False):
            msg["scale"] = msg["scale"] * self.beta


def _as_module(discriminator: Critic) -> nn.Module:
    """
    The critics as one module, checked.

    :raises TypeError: if something is no critic.
    :raises ValueError: if a site's name is none for a module, or the logits are bounded.
    """
    if isinstance(discriminator, Mapping):
        for site, critic in discriminator.items():
            check_critic(critic)
            if "." in site or hasattr(nn.ModuleDict(), site):
                raise ValueError(contrasts.critic_site_name(site))
        discriminator = nn.ModuleDict(discriminator)
    check_critic(discriminator)
    refuse_bounded_logits(discriminator)
    return discriminator
