# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A critic that scores implicit sites, and its loss in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyro_spread._transaction import unchanged_buffers
from pyro_spread.infer._contrast import ContrastRun
from pyro_spread.infer._critic import Judge, has_turn, is_lazy, judge, penalise
from pyro_spread.infer._gaussian_contrast import GaussianContrast
from pyro_spread.infer._ranks import num_ranks, share
from pyro_spread.infer._shared_pass import can_share, shared_logits
from pyro_spread.infer._watch import LagWatch
from pyro_spread.ratio._samplewise import couples
from pyro_spread.ratio.adapters import SiteValues
from pyro_spread.ratio.losses import logistic_loss, weighted_mean
from pyro_spread.ratio.regularizers import Regularizer
from spread_core.logits import Logits
from spread_core.messages import contrasts
from spread_core.moments import default_critic_draws, default_moment_draws
from spread_core.monitors import Monitor
from spread_core.nonfinite import NonFiniteError
from spread_core.stateful import Stateful


class CollapsedGuideError(NonFiniteError):
    """All draws of the guide for some datum are the same: log q is infinite there."""


class ContrastCritic(Stateful):
    """
    A critic that distinguishes a guide's draws from those of a contrast.

    :param discriminator: one module for all implicit sites, or a ``ModuleDict`` by site.
    :param adaptive: whether the contrast is the Gaussian with the guide's moments, or the prior.
    :param head: a module that gives these moments, or None to take them from draws.
    :param regularizer: penalty on the critic, or None.
    :param num_moment_draws: draws per datum for the moments, or None to choose.
    :param num_critic_draws: draws per datum for the critic, or None to choose.
    """

    _remembers = ("_watch",)

    def __init__(
        self,
        discriminator: nn.Module,
        adaptive: bool,
        head: nn.Module | None,
        regularizer: Regularizer | None,
        num_moment_draws: int | None,
        num_critic_draws: int | None,
    ) -> None:
        self.discriminator = discriminator
        self.adaptive = adaptive
        self.head = head
        self.regularizer = regularizer
        self.num_moment_draws = num_moment_draws
        self.num_critic_draws = num_critic_draws
        self._watch = LagWatch()

    @property
    def monitors(self) -> list[Monitor]:
        """What watches the critics during training."""
        return self._watch.monitors

    def groups(self, run: ContrastRun) -> list[tuple[str, ...]]:
        """Sites that share a critic."""
        if "groups" not in run.cache:
            if isinstance(self.discriminator, nn.ModuleDict):
                run.cache["groups"] = [(name,) for name in run.sites]
            else:
                run.cache["groups"] = [tuple(run.sites)] if run.sites else []
                if run.sites:
                    _check_together(run)
        return run.cache["groups"]

    def _critic_of(self, names: tuple[str, ...]) -> nn.Module:
        if not isinstance(self.discriminator, nn.ModuleDict):
            return self.discriminator
        if names[0] not in self.discriminator:
            raise ValueError(contrasts.missing_critic(names[0], self.discriminator))
        return self.discriminator[names[0]]

    def log_q(self, run: ContrastRun, name: str) -> torch.Tensor:
        """The estimate of log q at the guide's draw, up to the prior where that is the contrast."""
        site = run.sites.get(name)
        if site is None:  # masked as a whole
            return torch.zeros(())
        names = next(names for names in self.groups(run) if name in names)
        log_q = torch.zeros((), dtype=site.value.dtype, device=site.value.device)
        if name == names[0]:
            values = {n: self._seen(run, n, run.sites[n].value) for n in names}
            side, critic = run.side(names, values), self._critic_of(names)
            args, kwargs = run.call_arguments(side)
            if is_lazy(critic):
                with torch.no_grad(), unchanged_buffers(critic):
                    judge(critic, side, args, kwargs)
            if (
                torch.is_grad_enabled()
                and not self._lead(run, names)
                and can_share(critic, side, kwargs)
            ):
                judged = Judge(critic, args, kwargs)
                log_q, run.cache["logits", names] = shared_logits(judged, side)
            else:
                log_q = judge(critic, side, args, kwargs, frozen=True)
                run.cache["coupled", names] = couples(critic, log_q, side)
        if self.adaptive:
            log_q = log_q + self._contrast(run, name).log_prob(site.value)
        return log_q

    def _seen(self, run: ContrastRun, name: str, value: torch.Tensor) -> torch.Tensor:
        return self._contrast(run, name).standardise(value) if self.adaptive else value

    def _contrast(self, run: ContrastRun, name: str) -> GaussianContrast:
        """The Gaussian of an implicit site, held fixed."""
        key = ("contrast", name)
        if key not in run.cache:
            site = run.sites[name]
            event_dim = site.fn.event_dim
            if self.head is not None:
                loc, scale = self._head(run, name)
                run.cache[key] = GaussianContrast(loc.detach(), scale.detach(), event_dim)
            else:
                default = default_moment_draws(site.batch_shape.numel() * num_ranks())
                count = self.num_moment_draws or default
                contrast = GaussianContrast.from_draws(site.draw(count), event_dim)
                if site.weights is not None:
                    contrast = contrast.where(site.weights > 0)
                # What rounding leaves of a spread of zero; NaN fails too.
                least = torch.finfo(contrast.scale.dtype).eps * contrast.loc.abs()
                if not bool(((contrast.scale > least) & contrast.scale.isfinite()).all()):
                    is_point = bool(contrast.scale.isfinite().all())
                    error = CollapsedGuideError if is_point else NonFiniteError
                    raise error(contrasts.collapsed_guide(name))
                run.cache[key] = contrast
        return run.cache[key]

    def _head(self, run: ContrastRun, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.head is not None
        site = run.sites[name]
        # Sites of the same plates get the same arguments.
        key = ("head", *(frame.name for frame in site.frames))
        if key not in run.cache:
            named = run.reduced_arguments(site)
            args = [named.get(n, a) for n, a in zip(run.names, run.args, strict=False)]
            kwargs = {key: named[key] for key in run.kwargs}
            run.cache[key] = self.head(*args, *run.args[len(args) :], **kwargs)
        output = run.cache[key]
        if isinstance(output, Mapping):
            output = output.get(name)
        shape = site.value.shape
        try:
            loc, scale = output
            return loc.expand(shape), scale.expand(shape)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(contrasts.head_output(name, _describe(output), shape)) from error

    def _lead(self, run: ContrastRun, names: tuple[str, ...]) -> tuple[int, ...]:
        """Number of fresh draws per datum for the critic; empty if it takes the ELBO's own."""
        count = self.num_critic_draws or default_critic_draws(
            run.sites[names[0]].batch_shape.numel() * num_ranks()
        )
        alone = len(names) == 1 and (self.adaptive or names[0] in run.priors)
        return (count,) if alone and count > 1 else ()

    def sides(
        self, run: ContrastRun, names: tuple[str, ...]
    ) -> tuple[Logits, SiteValues, SiteValues]:
        """The critic's samples: draws of the guide and of its contrast, all constants."""
        first, lead = run.sites[names[0]], self._lead(run, names)
        count = lead[0] if lead else None
        guide_values, contrast_values = {}, {}
        for name in names:
            site = run.sites[name]
            drawn = site.value.detach() if count is None else site.draw(count)
            guide_values[name] = self._seen(run, name, drawn)
            if self.adaptive:
                contrast_values[name] = self._contrast(run, name).draw(lead)
        if not self.adaptive:
            contrast_values = run.prior_draws(names, count)
        guide_side = run.side(names, guide_values, count, detached=True)
        contrast_side = guide_side.replaced(contrast_values)
        weights = _expanded(first.weights, guide_side.batch_shape)
        judged = self._judge_of(run, names, guide_side)
        of_guide = None if lead else run.cache.get(("logits", names))
        if of_guide is None:
            of_guide = judged(guide_side)
        return Logits(of_guide, judged(contrast_side), weights, weights), guide_side, contrast_side

    def _judge_of(self, run: ContrastRun, names: tuple[str, ...], side: SiteValues) -> Judge:
        """The critic to call for the logits of several draws per datum, or of one."""
        critic = self._critic_of(names)
        args, kwargs = run.call_arguments(side)
        if self._lead(run, names) and run.cache.get(("coupled", names)):
            return DrawByDraw(critic, args, kwargs, run, names)
        return Judge(critic, args, kwargs)

    def loss(self, run: ContrastRun) -> torch.Tensor:
        total = torch.zeros(())
        for names in self.groups(run):
            first = run.sites[names[0]]
            weights = first.weights
            own = share(weights, first.value, first.batch_shape.numel())  # before a rank goes on
            if weights is not None and not bool((weights > 0).any()):
                if num_ranks() > 1:
                    has_turn(self.regularizer, first.value)  # others ask whether it has
                continue
            logits, guide_side, contrast_side = self.sides(run, names)
            loss = own * logistic_loss(logits.p, logits.q, 0.5, logits.weights_p, logits.weights_q)
            judged = self._judge_of(run, names, guide_side)
            sides = guide_side, contrast_side
            loss = penalise(loss, self.regularizer, judged, *sides, logits.weights_p, own)
            if self.head is not None:
                loss = loss + own * sum(self._head_loss(run, name, guide_side) for name in names)
            total = total + loss
            self._watch(logits)
        return total

    def _head_loss(self, run: ContrastRun, name: str, guide_side: SiteValues) -> torch.Tensor:
        """Negative log likelihood of the guide's draws under the head."""
        site, frozen = run.sites[name], self._contrast(run, name)
        live = GaussianContrast(*self._head(run, name), site.fn.event_dim)
        log_prob = live.log_prob(frozen.restore(guide_side[name]))
        return -weighted_mean(log_prob, _expanded(site.weights, log_prob.shape))


@dataclass(frozen=True)
class DrawByDraw(Judge):
    """
    Of several draws per datum judges one at a time, where all at once would move each other.

    That is what the ELBO asks of such a critic: there too, a datum meets those of its batch only.
    """

    run: ContrastRun
    names: tuple[str, ...]

    def __call__(self, values: SiteValues) -> torch.Tensor:
        each = []
        for index in range(values.batch_shape[0]):
            drawn = {name: value[index] for name, value in values.items()}
            side = self.run.side(self.names, drawn, detached=True)
            each.append(judge(self.discriminator, side, *self.run.call_arguments(side)))
        return torch.stack(each)


def _expanded(weights: torch.Tensor | None, shape: torch.Size) -> torch.Tensor | None:
    return None if weights is None else weights.expand(shape)


def _describe(output: Any) -> str:
    if isinstance(output, (tuple, list)):
        return str([tuple(getattr(part, "shape", ())) for part in output])
    return type(output).__name__


def _check_together(run: ContrastRun) -> None:
    """All implicit sites go to one critic: do they stand for the same data?"""
    first, *others = run.sites.values()
    for site in others:
        for what, one, other in (
            ("plates", first.plates, site.plates),
            ("masks or scales", first.weights, site.weights),
            ("scales", first.scale, site.scale),
        ):
            same = one is other
            if not same and one is not None and other is not None:
                same = (
                    torch.equal(torch.as_tensor(one), torch.as_tensor(other))
                    if what != "plates"
                    else one == other
                )
            if not same:
                raise ValueError(contrasts.contrast_mismatch(what, first.name, site.name))
