# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Handlers with which a stock ELBO scores guide sites without a density, by a critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions import Delta, TorchDistribution
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from pyro_spread import _parents
from pyro_spread.infer._evidence_gap import evidence_gap
from pyro_spread.infer._guide_run import GuideRun, ImplicitSite
from pyro_spread.infer._implicit_group import ImplicitGroup
from pyro_spread.infer._sites import (
    combine_masks,
    is_black_box,
    is_implicit,
    is_latent,
    is_learned,
    lacks_gradient,
    mask_of_implicit,
    plain_name,
)
from spread_core.logits import Logits
from spread_core.messages import contrasts, players


class Scored(TorchDistribution):
    """
    Draws of one distribution, scored by a function that is asked when the whole guide has run.

    :param fn: the distribution that draws.
    :param score: gives the log density at the value that was drawn, of the batch shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, fn: TorchDistribution, score: Callable[[], torch.Tensor]) -> None:
        self.fn, self._score = fn, score
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of ``fn``."""
        return self.fn.support

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Scored:
        """Expand the distribution; the score stays the same."""
        return Scored(self.fn.expand(batch_shape), self._score)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        """Sample from ``fn``."""
        return self.fn.rsample(sample_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The score at the value that was drawn."""
        return self._score().expand(self.batch_shape)


class ContrastRun(GuideRun):
    """
    One run of guide and model: the guide's implicit sites, and what critics learn from them.

    :param args: those of :class:`GuideRun`.
    """

    def in_guide(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """The guide with its implicit sites scored."""
        return _InGuide(self)(guide)

    def in_model(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model without the priors that are part of a log-ratio."""
        return _InModel(self)(model)

    def forget(self) -> None:
        """Forget what was recorded."""
        super().forget()
        self._groups: dict[str | None, ImplicitGroup] = {}

    @property
    def groups(self) -> dict[str | None, ImplicitGroup]:
        """Implicit sites by critic; the key of a single critic is None."""
        if not self._groups:
            for key, names in self.options.sites_by_critic(self.sites).items():
                self._groups[key] = ImplicitGroup(self, names, self.options.critic(key))
        return self._groups

    def log_q(self, name: str) -> torch.Tensor:
        """The estimate of log q at the guide's draw, less log p where the contrast is the prior."""
        if name not in self.sites:  # masked as a whole
            return torch.zeros(())
        return self.groups[self.options.key_of(name)].log_q(name)

    def learn(self, looks: bool = False) -> tuple[torch.Tensor, list[Logits], torch.Tensor | None]:
        """
        The loss of all critics and of the head, the critics' logits, and how far they lag.

        :param looks: whether to look how far, in nats; else it is NaN. None: it cannot be known.
        """
        total, seen, gaps = torch.zeros(()), [], []
        for group in self.groups.values():
            loss, logits = group.critic_loss()
            if logits is None:
                continue
            gaps.append(evidence_gap(group, logits, looks))
            total = total + loss
            seen.append(logits)
        known = [gap for gap in gaps if gap is not None]
        if not known or len(known) < len(gaps):
            return total, seen, None
        nats, num_data = torch.stack(known).unbind(-1)
        return total, seen, torch.stack([nats.sum(), num_data.max()])

    def logits(self) -> dict[str | None, Logits]:
        """The critics' logits at guide draws and at the contrast's, by critic."""
        return {key: group.logits() for key, group in self.groups.items()}


class _InGuide(Messenger):
    """Replace implicit sites of the guide by scored ones."""

    def __init__(self, run: ContrastRun) -> None:
        super().__init__()
        self.run = run

    def __enter__(self) -> Any:
        self.run.forget()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        name, fn, run = msg["name"], msg["fn"], self.run
        if msg["infer"].get("_deterministic"):  # Pyro would warn that the model has no such site
            msg["infer"] = {**msg["infer"], "is_auxiliary": True}
        if not is_latent(msg):
            return
        if is_implicit(fn):
            if lacks_gradient(fn):
                raise NotImplementedError(
                    players.latent_without_gradient(name, plain_name(fn.base_dist))
                )
            mask = mask_of_implicit(name, fn)
            run.implicit.add(name)
            scored: TorchDistribution = Scored(fn, lambda: run.log_q(name))
            msg["fn"] = scored if mask is None else scored.mask(mask)
        elif not run.options.adaptive and isinstance(fn, Delta) and name in run.covered():
            # Its log density is the Jacobian of a prior that drops out as a whole.
            msg["fn"] = Delta(fn.v, event_dim=fn.event_dim)

    def _pyro_post_sample(self, msg: Any) -> None:
        name, fn, run = msg["name"], msg["fn"], self.run
        if isinstance(fn, _Subsample):
            run.indices[name] = msg["value"]
        if msg["infer"].get("_deterministic"):
            run.computed[name] = msg["value"].detach()
        if not is_latent(msg):
            return
        earlier = (*run.values, *run.computed)
        run.values[name] = (msg["value"], fn.event_dim)
        mask = msg["mask"]
        while isinstance(fn, MaskedDistribution):
            mask, fn = combine_masks(mask, _parents.mask_of(fn)), fn.base_dist
        if not isinstance(fn, Scored) or mask is False:
            return
        run.sites[name] = ImplicitSite(
            name,
            fn.fn,
            msg["value"],
            _weights(name, fn, mask, msg["scale"], msg["value"].dtype),
            msg["scale"],
            tuple(msg["cond_indep_stack"]),
            earlier,
            dict(msg["infer"]),
        )


class _InModel(Messenger):
    """Record the priors of implicit sites, and remove them where they cancel."""

    def __init__(self, run: ContrastRun) -> None:
        super().__init__()
        self.run = run

    def _pyro_sample(self, msg: Any) -> None:
        name, fn, run = msg["name"], msg["fn"], self.run
        if name not in run.covered() or not is_latent(msg):
            return
        if name in run.sites:
            run.priors[name] = fn
        if run.options.adaptive:
            if is_implicit(fn) or is_black_box(fn):
                raise NotImplementedError(contrasts.implicit_prior(name))
            return
        # Of an implicit prior one cannot tell before another run.
        learned = is_implicit(fn) or is_learned(fn)
        nothing = torch.zeros(())
        msg["fn"] = Scored(fn, (lambda: run.prior_gradient(name)) if learned else lambda: nothing)


def _weights(
    name: str, fn: Scored, mask: Any, scale: Any, dtype: torch.dtype
) -> torch.Tensor | None:
    """How much each element of the batch counts; a number for all of them cancels in the mean."""
    weights: torch.Tensor | None = None
    try:
        if mask is not None and mask is not True:
            weights = torch.as_tensor(mask).expand(fn.batch_shape).to(dtype)
        if isinstance(scale, torch.Tensor) and scale.dim():
            scale = scale.expand(fn.batch_shape).to(dtype)
            weights = scale if weights is None else weights * scale
    except RuntimeError as error:
        shape = torch.as_tensor(mask if weights is None else scale).shape
        raise ValueError(players.mask_misfit(name, shape, fn.batch_shape)) from error
    return weights
