# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The implicit sites that one critic judges together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyro_spread._recording import values_known
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.infer._critic import Judge, has_turn, is_lazy, judge, penalise
from pyro_spread.infer._gaussian_contrast import GaussianContrast
from pyro_spread.infer._guide_run import GuideRun, ImplicitSite
from pyro_spread.infer._plate_arguments import expand_batch
from pyro_spread.infer._ranks import num_ranks, share
from pyro_spread.infer._shared_pass import can_share, shared_logits
from pyro_spread.ratio._samplewise import couples
from pyro_spread.ratio.adapters import SiteValues
from pyro_spread.ratio.losses import logistic_loss, weighted_mean
from spread_core.logits import Logits
from spread_core.math.normaliser import log_normaliser
from spread_core.messages import contrasts
from spread_core.nonfinite import NonFiniteError


class CollapsedGuideError(NonFiniteError):
    """All draws of the guide for some datum are the same: log q is infinite there."""


class ImplicitGroup:
    """
    One critic, its sites, their contrast, and the critic's logit at the ELBO's own draws.

    :param run: the run of guide and model.
    :param names: the sites, in the order of drawing.
    :param critic: the critic.
    :raises ValueError: if one critic cannot judge these sites.
    """

    def __init__(self, run: GuideRun, names: Sequence[str], critic: nn.Module) -> None:
        self._run, self._critic = run, critic
        self._sites = {name: run.sites[name] for name in names}
        self._first = first = self._sites[names[0]]
        _check_alike(self._sites)
        self._num_data = first.batch_shape.numel() * num_ranks()
        self._lead = self._choose_lead()
        self._arguments = self._find_arguments()
        adaptive = run.options.adaptive
        #: Draws behind the moments, and those from which the critic learned, by site.
        self._moment_draws: dict[str, torch.Tensor] = {}
        self._drawn: dict[str, torch.Tensor] = {}
        self._contrasts = {n: self._contrast(s) for n, s in self._sites.items()} if adaptive else {}
        side = self._side(
            {name: self._seen(name, site.value) for name, site in self._sites.items()}
        )
        if is_lazy(critic):
            with torch.no_grad(), unchanged_buffers(critic):
                judge(critic, side, *self._call_arguments(side))
        #: The logit from which guide and model learn; and, if one pass of the critic gives both,
        #: the logit from which the critic learns.
        self._logit, self._critic_logit = self._score(side)
        # Draws that move each other's logits are judged as they are in the ELBO: one per datum.
        self._one_by_one = self._critic_logit is None and couples(critic, self._logit, side)

    def _score(self, side: SiteValues) -> tuple[torch.Tensor, torch.Tensor | None]:
        args, kwargs = self._call_arguments(side)
        may_share = torch.is_grad_enabled() and not self._lead
        if may_share and can_share(self._critic, side, kwargs):
            return shared_logits(Judge(self._critic, args, kwargs), side)
        return judge(self._critic, side, args, kwargs, frozen=True), None

    def log_q(self, name: str) -> torch.Tensor:
        """
        The estimate of log q at one of the sites; the joint logit is booked at the first.

        Where the contrast is the prior, it is log q less the prior's log density.
        """
        value = self._sites[name].value
        log_q = self._logit if name == self._first.name else value.new_zeros(())
        options = self._run.options
        if options.num_normaliser_draws and name == self._first.name:
            log_q = log_q - self._log_normaliser()
        if not self._contrasts:
            return log_q
        contrast = self._contrasts[name]
        if options.full:
            log_q = log_q + contrast.plug_in_regret(self._moment_draws[name].shape[0])
        return log_q + contrast.log_prob(value)

    def _log_normaliser(self) -> torch.Tensor:
        """Of the density that the critic stands for, of the batch shape."""
        count = self._run.options.count_normaliser_draws(self._num_numbers)
        drawn = {name: each.draw((count,)) for name, each in self._contrasts.items()}
        side = self._side(drawn, (count,), detached=True)
        return log_normaliser(self._judge(side)(side))

    def critic_loss(self) -> tuple[torch.Tensor, Logits | None]:
        """The loss of critic and head, a scalar in nats, and logits; none if nothing counts."""
        first, options = self._first, self._run.options
        weights = first.weights
        own = share(weights, first.value, first.batch_shape.numel())  # before a rank goes on
        nothing = weights is not None and values_known() and not bool((weights > 0).any())
        if nothing:
            if num_ranks() > 1:
                has_turn(options.regularizer, first.value)  # others ask whether it has
            return torch.zeros(()), None
        sides = self._both_sides()
        judged = self._judge(sides[0])
        logits = self._logits(judged, *sides)
        loss = own * logistic_loss(logits.p, logits.q, 0.5, logits.weights_p, logits.weights_q)
        loss = penalise(loss, options.regularizer, judged, *sides, logits[2:], own)
        if options.head is not None:
            loss = loss + own * sum(self._head_loss(name, sides[0]) for name in self._sites)
        return loss, logits

    def logits(self) -> Logits:
        """Logits at guide draws and at the contrast's; several draws lead the batch shape."""
        sides = self._both_sides()
        return self._logits(self._judge(sides[0]), *sides)

    @property
    def _num_numbers(self) -> int:
        """How many numbers a draw of all sites has."""
        return sum(site.value.numel() for site in self._sites.values())

    # --- what the critic is called with

    def _choose_lead(self) -> tuple[int, ...]:
        """Number of fresh draws per datum for the critic; empty if it takes the ELBO's own."""
        count = self._run.options.count_critic_draws(self._num_data)
        alone = len(self._sites) == 1 and (
            self._run.options.adaptive or self._first.name in self._run.priors
        )
        return (count,) if alone and count > 1 else ()

    def _find_arguments(self) -> dict[str, Any]:
        """What the critic may look up: the model's arguments and the guide's earlier sites."""
        first, run = self._first, self._run
        full, plates = first.batch_shape, first.plate_shape
        named = run.reduced_arguments(first)
        found = {name: expand_batch(value, plates, full) for name, value in named.items()}
        for name in first.earlier:
            if name in run.computed:
                found[name] = expand_batch(run.computed[name], plates, full)
                continue
            value, event_dim = run.values[name]
            batch = value.shape[: value.dim() - event_dim]
            if name not in self._sites and _broadcasts(batch, full):
                found[name] = value.expand((*full, *value.shape[len(batch) :]))
        return found

    def _side(
        self,
        values: Mapping[str, torch.Tensor],
        lead: tuple[int, ...] = (),
        detached: bool = False,
    ) -> SiteValues:
        """
        Values as the critic gets them.

        :param values: dict from site to value of shape lead + batch + event.
        :param lead: number of draws per datum, if several.
        :param detached: whether no gradient may reach the guide through what is looked up.
        """
        arguments, batch = self._arguments, self._first.batch_shape
        if detached:
            arguments = {name: _detached(value) for name, value in arguments.items()}
        full = torch.Size((*lead, *batch))
        arguments = {name: expand_batch(value, batch, full) for name, value in arguments.items()}
        return SiteValues(values, full, arguments)

    def _call_arguments(self, side: SiteValues) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The model's arguments with those over the data in the batch shape of ``side``."""
        run, plates, full = self._run, self._first.plate_shape, side.batch_shape
        args = tuple(expand_batch(value, plates, full) for value in run.args)
        return args, {n: expand_batch(value, plates, full) for n, value in run.kwargs.items()}

    def _judge(self, side: SiteValues) -> Judge:
        """The critic as a function of values laid out as ``side``."""
        if self._one_by_one and side.batch_shape != self._first.batch_shape:
            return _DrawByDraw(self._critic, *self._call_arguments(side), self)
        return Judge(self._critic, *self._call_arguments(side))

    # --- the contrast

    def _seen(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """A value as the critic sees it: standardised by the moments of the contrast."""
        return self._contrasts[name].standardise(value) if self._contrasts else value

    def _contrast(self, site: ImplicitSite) -> GaussianContrast:
        """The Gaussian of an implicit site, held fixed."""
        options, event_dim = self._run.options, site.fn.event_dim
        if options.head is not None:
            return self._head(site).detach()
        count = options.count_moment_draws(self._num_data)
        draws = site.draw(count)
        self._moment_draws[site.name] = draws
        contrast = GaussianContrast.from_draws(draws, event_dim)
        if site.weights is not None:
            contrast = contrast.where(_counts(site))
        # What rounding leaves of a spread of zero; NaN fails too.
        least = torch.finfo(contrast.scale.dtype).eps * contrast.loc.abs()
        if not bool(((contrast.scale > least) & contrast.scale.isfinite()).all()):
            is_point = bool(contrast.scale.isfinite().all())
            error = CollapsedGuideError if is_point else NonFiniteError
            raise error(contrasts.collapsed_guide(site.name))
        if options.full:
            return GaussianContrast.of_covariance(counted(site, draws), event_dim)
        return contrast

    def _head(self, site: ImplicitSite) -> GaussianContrast:
        """The Gaussian that the head gives to a site."""
        side, shape = self._side({}, detached=True), site.value.shape
        output = self._run.head_output(site, side)
        if isinstance(output, Mapping):
            output = output.get(site.name)
        try:
            loc, scale = output
            contrast = GaussianContrast.around(loc.expand(shape), scale, site.fn.event_dim)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            message = contrasts.head_output(site.name, _describe(output), shape)
            raise ValueError(message) from error
        positive = contrast.scale > 0
        if site.weights is not None:  # what is masked may be anything
            positive = positive | ~_counts(site)
        if values_known() and not bool(positive.all()):
            raise ValueError(contrasts.head_scale(site.name))
        return contrast

    def _head_loss(self, name: str, guide_side: SiteValues) -> torch.Tensor:
        """Negative log likelihood of the guide's draws under the head."""
        site = self._sites[name]
        log_prob = self._head(site).log_prob(self._contrasts[name].restore(guide_side[name]))
        return -weighted_mean(log_prob, _expanded(site.weights, log_prob.shape))

    # --- what the critic learns from

    def _both_sides(self) -> tuple[SiteValues, SiteValues]:
        """The critic's samples: draws of the guide and of its contrast, all constants."""
        guide, contrast = {}, {}
        for name, site in self._sites.items():
            drawn = site.draw(*self._lead) if self._lead else site.value.detach()
            guide[name], self._drawn[name] = self._seen(name, drawn), drawn
            if self._contrasts:
                contrast[name] = self._contrasts[name].draw(self._lead)
        if not self._contrasts:
            contrast = self._run.prior_draws(list(self._sites), *self._lead or (None,))
        guide_side = self._side(guide, self._lead, detached=True)
        return guide_side, guide_side.replaced(contrast)

    def _logits(self, judged: Judge, guide: SiteValues, contrast: SiteValues) -> Logits:
        weights = _expanded(self._first.weights, guide.batch_shape)
        of_guide = judged(guide) if self._critic_logit is None else self._critic_logit
        return Logits(of_guide, judged(contrast), weights, weights)


@dataclass(frozen=True)
class _DrawByDraw(Judge):
    """
    Of several draws per datum judges one at a time, where all at once would move each other.

    That is what the ELBO asks of such a critic: there too, a datum meets those of its batch only.
    """

    group: ImplicitGroup

    def __call__(self, values: SiteValues) -> torch.Tensor:
        each = []
        for index in range(values.batch_shape[0]):
            drawn = {name: value[index] for name, value in values.items()}
            side = self.group._side(drawn, detached=True)
            args, kwargs = self.group._call_arguments(side)
            each.append(judge(self.discriminator, side, args, kwargs))
        return torch.stack(each)


def _check_alike(sites: Mapping[str, ImplicitSite]) -> None:
    """
    Refuse sites of one critic that do not stand for the same data.

    :raises ValueError: naming two of them.
    """
    first, *others = sites.values()
    for site in others:
        for what, one, other in (
            ("plates", first.plates, site.plates),
            ("masks or scales", first.weights, site.weights),
            ("scales", first.scale, site.scale),
        ):
            if not _same(one, other):
                raise ValueError(contrasts.contrast_mismatch(what, first.name, site.name))


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, frozenset):
        return bool(one == other)
    return torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def _broadcasts(shape: torch.Size, full: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, full) == full
    except RuntimeError:
        return False


def counted(site: ImplicitSite, values: torch.Tensor) -> torch.Tensor:
    """Values with zeros for what is masked, which may be anything."""
    return values if site.weights is None else torch.where(_counts(site), values, 0.0)


def _counts(site: ImplicitSite) -> torch.Tensor:
    """Which elements of the batch are not masked, with dimensions for the event."""
    assert site.weights is not None
    kept = site.weights > 0
    return kept.reshape([*kept.shape, *[1] * site.fn.event_dim])


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _expanded(weights: torch.Tensor | None, shape: torch.Size) -> torch.Tensor | None:
    return None if weights is None else weights.expand(shape)


def _describe(output: Any) -> str:
    if isinstance(output, (tuple, list)):
        return str([tuple(getattr(part, "shape", ())) for part in output])
    return type(output).__name__
