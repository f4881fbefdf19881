# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Handlers with which a stock ELBO scores guide sites without a density, by a critic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.distributions import Distribution
from numpyro.handlers import block, seed

from numpyro_spread._gradients import refuse_gradient
from numpyro_spread.infer._evidence_gap import evidence_gap
from numpyro_spread.infer._guide_run import GuideRun
from numpyro_spread.infer._implicit_group import ImplicitGroup
from numpyro_spread.infer._registration import example_of
from numpyro_spread.infer._scan import Inside, is_scanned
from numpyro_spread.infer._series import Series, time_last
from numpyro_spread.infer._sites import (
    innermost,
    is_bare_delta,
    is_black_box,
    is_implicit,
    mask_of_implicit,
    plain_name,
)
from numpyro_spread.ratio.adapters import SiteValues
from spread_core.contrast_options import ContrastOptions
from spread_core.logits import Logits
from spread_core.messages import contrasts, players


class Scored(Distribution):
    """
    Draws of one distribution, scored by a function that is asked when the whole guide has run.

    :param fn: the distribution that draws.
    :param score: gives the log density at the value that was drawn, of the batch shape.
    """

    def __init__(self, fn: Distribution, score: Callable[[], jax.Array]) -> None:
        self.fn, self._score = fn, score
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of the distribution."""
        return self.fn.support

    @property
    def has_rsample(self) -> bool:
        """Whether draws are differentiable."""
        return bool(self.fn.has_rsample)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draws of the distribution."""
        return self.fn.sample(key, sample_shape)

    def log_prob(self, value: Any, intermediates: list[Any] | None = None) -> jax.Array:
        """The score at the value that was drawn."""
        return self._score()


class ContrastRun(GuideRun):
    """
    One run of guide and model: the guide's implicit sites, and what critics learn from them.

    :param args: those of :class:`GuideRun`.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.has_bare_delta = False
        #: Latents of the model whose prior is part of the critic's log-ratio.
        self.unscored: set[str] = set()
        self._ignored: set[str] = set()
        self._groups: dict[str | None, ImplicitGroup] = {}

    def in_guide(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """The guide, its implicit sites with a density."""
        return _InGuide(guide, self)

    def in_model(
        self, model: Callable[..., Any], likelihood_weight: Any = None
    ) -> Callable[..., Any]:
        """
        The model, without the priors that are part of a log-ratio.

        :param model: the model, spread if there is noise.
        :param likelihood_weight: what observed sites' log-probabilities are multiplied by.
        """
        return _InModel(model, self, likelihood_weight)

    def see_implicit(self, site: Mapping[str, Any]) -> Any:
        """Record an implicit site of the guide, and return the distribution that replaces it."""
        name, fn = site["name"], site["fn"]
        mask = mask_of_implicit(name, fn)
        if mask is False:
            self._ignored.add(name)
            return fn
        noise = innermost(fn).base_dist
        if not noise.has_rsample:
            message = players.latent_without_gradient(name, plain_name(noise))
            refuse_gradient(noise, NotImplementedError(message))
        whole = Series(fn) if is_scanned(site) else fn
        if mask is not None and whole is not fn:
            mask = time_last(mask, len(whole.batch_shape))
        self.implicit[name] = (whole, mask)
        if not self.options.adaptive:
            self.unscored.update(site["infer"].get("_covers", (name,)))
        return Scored(fn, functools.partial(self.log_q, name))

    def check_critics(self) -> None:
        """
        Make sure that critics and implicit sites belong together.

        :raises ValueError: naming the site.
        """
        self.options.check_sites(self.implicit.keys() | self._ignored)
        for site in self.implicit:
            self.options.critic(self.options.key_of(site))
        if self.params is None or not self.implicit:
            return
        sites = [self.options.params_site] + [self.options.head_site] * bool(self.options.head)
        if any(site not in self.params for site in sites):
            raise ValueError(players.not_registered(self.options.name))

    @property
    def groups(self) -> dict[str | None, ImplicitGroup]:
        """Implicit sites by critic; the key of a single critic is None."""
        if not self._groups and self.implicit:
            groups = self.options.sites_by_critic(self.implicit)
            for index, (key, sites) in enumerate(groups.items()):
                rng_key = random.fold_in(self._rng_key, index)
                self._groups[key] = ImplicitGroup(self, key, sites, rng_key)
        return self._groups

    def log_q(self, name: str) -> jax.Array:
        """The estimate of the guide's log density at an implicit site, of its batch shape."""
        return self.groups[self.options.key_of(name)].log_q(name)

    def learn(self, looks: jax.Array) -> tuple[jax.Array, list[tuple[Logits, jax.Array | None]]]:
        """
        A term of value zero, added to the loss to give critics, head and learned priors their
        gradients.

        :param looks: whether to look how far critics lag; else NaN stands there.
        :return: a scalar; and of each critic its logits, detached, and how far it lags in nats,
            None if that cannot be known.
        """
        total, seen = self._prior_terms(), []
        for group in self.groups.values():
            loss, logits = group.critic_loss()
            total = total + loss
            seen.append((logits, evidence_gap(group, logits, looks)))
        return total - lax.stop_gradient(total), seen

    def logits(self) -> dict[str | None, Logits]:
        """The critics' logits at guide draws and at the contrast's, by critic."""
        return {key: group.logits() for key, group in self.groups.items()}

    def _prior_terms(self) -> jax.Array:
        """Minus the log-density of learned priors that the log-ratio has, a function of params."""
        total = jnp.zeros(())
        if not self.unscored:
            return total
        sites = self.prior_trace(set(), random.fold_in(self._rng_key, len(self.groups)))
        for name in sorted(self.unscored):
            site = sites[name]
            if not (is_implicit(site["fn"]) or is_black_box(site["fn"])):
                log_prob = site["fn"].log_prob(lax.stop_gradient(site["value"]))
                scale = 1.0 if site["scale"] is None else site["scale"]
                total = total - jnp.sum(scale * log_prob)
        return total

    def example(self) -> dict[str | None, tuple[SiteValues, tuple[Any, ...], dict[str, Any]]]:
        """Example inputs of critics and head, of the right shapes, by critic."""
        return {key: group.example() for key, group in self.groups.items()}


class _InGuide(Inside):
    """Stands outermost around a guide, where plates have expanded its distributions."""

    def __init__(self, guide: Callable[..., Any], run: ContrastRun) -> None:
        super().__init__(guide)
        self._run = run

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            self._run.check_critics()

    def process_message(self, msg: Any) -> None:
        super().process_message(msg)
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        name, fn = msg["name"], msg["fn"]
        if is_bare_delta(fn):
            self._run.has_bare_delta = True
        if name in self._run.unscored:  # the bijection cancels in the log-ratio to the prior
            msg["fn"] = _worth_nothing(fn)
        elif is_implicit(fn):
            msg["fn"] = self._run.see_implicit(msg)

    def postprocess_message(self, msg: Any) -> None:
        super().postprocess_message(msg)
        if msg["type"] == "plate" or (msg["type"] == "sample" and not msg["is_observed"]):
            self._run.trace[msg["name"]] = msg
        elif msg["type"] == "deterministic" and not is_scanned(msg):
            self._run.computed[msg["name"]] = msg["value"], len(self._run.trace)


class _InModel(Inside):
    """Stands around a model, inside what replays it."""

    def __init__(self, model: Callable[..., Any], run: ContrastRun, weight: Any) -> None:
        super().__init__(model)
        self._run, self._weight = run, weight
        self._seen: set[str] = set()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:
            for site in sorted(self._run.unscored - self._seen):
                raise ValueError(contrasts.no_prior_site(site))

    def process_message(self, msg: Any) -> None:
        super().process_message(msg)
        if msg["type"] != "sample":
            return
        name, fn = msg["name"], msg["fn"]
        if msg["is_observed"]:
            if self._weight is not None:
                scale = 1.0 if msg["scale"] is None else msg["scale"]
                msg["scale"] = scale * self._weight
            return
        self._seen.add(name)
        if name in self._run.unscored:
            msg["fn"] = _worth_nothing(fn)
        elif self._run.options.adaptive and (is_implicit(fn) or is_black_box(fn)):
            raise NotImplementedError(contrasts.implicit_prior(name))


def _worth_nothing(fn: Distribution) -> Scored:
    """Draws of ``fn``, whose log density counts as zero."""
    return Scored(fn, lambda: jnp.zeros(fn.batch_shape))


def init_params(
    options: ContrastOptions,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rng_key: jax.Array,
) -> tuple[Any, Any]:
    """Initial params of critics and of the head; the guide is traced, nothing is computed."""
    guide_key, critic_key, head_key = random.split(rng_key, 3)

    def draw(key: jax.Array) -> Any:
        # Noise changes no shapes.
        run = ContrastRun(options, key, None, model, args, kwargs)
        seed(run.in_guide(guide), key)(*args, **kwargs)
        return run.example()

    with block():
        examples = example_of(draw, guide_key)
        critics = {}
        for index, (key, (values, _, _)) in enumerate(examples.items()):
            init_key = random.fold_in(critic_key, index)
            critics[key] = options.critic(key).init(init_key, values, args, kwargs)
        head = {}
        if options.head is not None and examples:
            values, own_args, own_kwargs = next(iter(examples.values()))
            head = options.head.init_at(head_key, values.replaced({}), own_args, own_kwargs)
    return critics if options.is_by_site else critics.get(None, {}), head
