# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Run guide and model once, with a critic that scores the implicit sites."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, TorchDistribution
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from pyro_spread import _parents
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.infer._plate_arguments import expand_batch, subsampled
from pyro_spread.infer._sites import (
    combine_masks,
    is_implicit,
    is_latent,
    is_learned,
    lacks_gradient,
    mask_of_implicit,
    plain_name,
)
from pyro_spread.ratio.adapters import SiteValues
from spread_core.messages import contrasts, players

Score = Callable[[], torch.Tensor]
_PARTICLES = "num_particles_vectorized"


class Scored(TorchDistribution):
    """
    Draws of one distribution, scored by a function that is asked when the whole guide has run.

    :param fn: the distribution that draws.
    :param score: gives the log density at the value that was drawn, of the batch shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, fn: TorchDistribution, score: Score) -> None:
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


@dataclass
class ImplicitSite:
    """An implicit site, its draw and its plates, after the guide has run."""

    name: str
    fn: TorchDistribution
    value: torch.Tensor
    weights: torch.Tensor | None
    scale: Any
    frames: tuple[Any, ...]
    earlier: tuple[str, ...]
    infer: Mapping[str, Any]

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of plates and particles."""
        return self.fn.batch_shape

    @property
    def plates(self) -> frozenset[tuple[Any, ...]]:
        """Name, dimension and size of each."""
        return frozenset((f.name, f.dim, f.size) for f in self.frames if f.vectorized)

    @property
    def plate_shape(self) -> torch.Size:
        """Shape of the plates, without the particles."""
        depth = max(
            (-f.dim for f in self.frames if f.vectorized and f.name != _PARTICLES), default=0
        )
        return self.batch_shape[len(self.batch_shape) - depth :]

    def draw(self, count: int) -> torch.Tensor:
        """
        Fresh draws of shape count + batch + event, without gradient.

        :raises ValueError: if ``fn`` does not broadcast.
        """
        with torch.no_grad(), unchanged_buffers():
            try:
                return self.fn.sample((count,))
            except (RuntimeError, ValueError, IndexError) as error:
                message = contrasts.not_broadcasting(self.name, (count,), error)
                raise ValueError(message) from error


@dataclass
class ContrastRun:
    """
    Guide and model of one particle (or of all at once), and their recorded sites.

    :param score: from this run and a site's name to the estimate of log q at its draw.
    :param prior_cancels: whether contrasts are with the prior, whose density then drops out.
    :param model: the model, spread if there is noise.
    :param names: names of its positional arguments.
    :param args: positional arguments of model and guide.
    :param kwargs: keyword arguments of both.
    """

    score: Callable[[ContrastRun, str], torch.Tensor]
    prior_cancels: bool
    model: Callable[..., Any]
    names: Sequence[str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sites: dict[str, ImplicitSite] = field(default_factory=dict)
    #: Names of these and of those that are masked as a whole.
    implicit: set[str] = field(default_factory=set)
    #: Values of all guide sites in their order, with their number of event dimensions.
    values: dict[str, tuple[torch.Tensor, int]] = field(default_factory=dict)
    indices: dict[str, torch.Tensor] = field(default_factory=dict)
    #: Priors of the implicit sites, given what the guide drew.
    priors: dict[str, TorchDistribution] = field(default_factory=dict)
    #: What the loss has computed of this run.
    cache: dict[Any, Any] = field(default_factory=dict)

    def in_guide(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """The guide with its implicit sites scored."""
        return _InGuide(self)(guide)

    def in_model(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model as the ELBO should see it."""
        return _InModel(self)(model)

    def covered(self) -> set[str]:
        """Latents of the model whose prior the contrast accounts for."""
        names = set(self.sites)
        for site in self.sites.values():
            names |= set(site.infer.get("_covers", ()))
        return names

    def arguments(self, names: tuple[str, ...]) -> dict[str, Any]:
        """
        What a critic of these sites may look up: the model's arguments and the other guide sites.

        :param names: sites of one critic.
        """
        site = self.sites[names[0]]
        full, plates = site.batch_shape, site.plate_shape
        named = self.reduced_arguments(site)
        found = {name: expand_batch(value, plates, full) for name, value in named.items()}
        for name in site.earlier:
            value, event_dim = self.values[name]
            batch = value.shape[: value.dim() - event_dim]
            if name not in names and _broadcasts(batch, full):
                found[name] = value.expand((*full, *value.shape[len(batch) :]))
        return found

    def reduced_arguments(self, site: ImplicitSite) -> dict[str, Any]:
        """The model's arguments by name, reduced to what plates subsampled."""
        named = dict(zip(self.names, self.args, strict=False)) | self.kwargs
        return subsampled(named, site.frames, self.indices, site.plate_shape)

    def side(
        self,
        names: tuple[str, ...],
        values: Mapping[str, torch.Tensor],
        count: int | None = None,
        detached: bool = False,
    ) -> SiteValues:
        """
        Values as a critic gets them.

        :param names: sites of one critic.
        :param values: dict from site to value of shape (count +) batch + event.
        :param count: number of draws per datum, if several.
        :param detached: whether no gradient may reach the guide through what is looked up.
        """
        batch = self.sites[names[0]].batch_shape
        arguments = self.cache.get(("arguments", names))
        if arguments is None:
            arguments = self.cache["arguments", names] = self.arguments(names)
        if detached:
            arguments = {name: _detached(value) for name, value in arguments.items()}
        full = batch if count is None else torch.Size((count, *batch))
        arguments = {name: expand_batch(value, batch, full) for name, value in arguments.items()}
        return SiteValues(values, full, arguments)

    def call_arguments(self, side: SiteValues) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """
        The model's arguments with those over the data in the batch shape of ``side``.

        :param side: what the critic is called with.
        """
        plates, full = self.sites[next(iter(side))].plate_shape, side.batch_shape
        args = tuple(expand_batch(value, plates, full) for value in self.args)
        return args, {n: expand_batch(value, plates, full) for n, value in self.kwargs.items()}

    def prior_draws(self, names: tuple[str, ...], count: int | None) -> dict[str, torch.Tensor]:
        """
        Draws of the prior at these sites, given the guide's draws elsewhere; no gradient.

        :param names: sites of one critic. Several, and those that are no site of the model, are
            drawn ancestrally in a run of the model.
        :param count: number of draws per datum, of one site only.
        """
        with torch.no_grad(), unchanged_buffers():
            if len(names) == 1 and names[0] in self.priors:
                return {names[0]: self._prior_draw(names[0], count)}
            return self._ancestral(names)

    def _prior_draw(self, name: str, count: int | None) -> torch.Tensor:
        site, fn = self.sites[name], self.priors[name]
        # The prior of a site may have fewer batch dimensions than the guide's.
        return fn.expand(site.batch_shape).sample(() if count is None else (count,))

    def _ancestral(self, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        nodes = self._rerun(set(self.values) - self.covered())
        draws = {}
        for name in names:
            site = self.sites[name]
            shape = (*site.batch_shape, *site.fn.event_shape)
            if "_unconstrain" in site.infer:
                latents = {n: nodes[n]["value"] for n in site.infer["_covers"]}
                draws[name] = site.infer["_unconstrain"](latents).expand(shape)
            elif name in nodes:
                draws[name] = nodes[name]["value"].expand(shape)
            else:
                raise ValueError(contrasts.no_prior_site(name))
        return draws

    def prior_gradient(self, name: str) -> torch.Tensor:
        """Zero, whose gradient in the prior's params is that of its log density at the draw."""
        if "priors" not in self.cache:
            # Another run, in which nothing but params has a gradient: what the draws do to the
            # prior's density is in the critic's logit already.
            self.cache["priors"] = self._rerun(set(self.values))
        node = self.cache["priors"][name]
        if is_implicit(node["fn"]):
            if torch.is_grad_enabled() and node["fn"].rsample().requires_grad:
                raise NotImplementedError(contrasts.learned_implicit_prior(name))
            return torch.zeros(())
        log_prob = node["fn"].log_prob(node["value"])
        return log_prob - log_prob.detach()

    def _rerun(self, kept: set[str]) -> Any:
        """Sites of another run of the model at the guide's draws of ``kept``, as constants."""
        guide_trace = poutine.Trace()
        values = {name: value.detach() for name, (value, _) in self.values.items() if name in kept}
        for name, value in (values | self.indices).items():
            guide_trace.add_node(
                name, name=name, type="sample", value=value, is_observed=False, infer={}
            )
        model = poutine.replay(self.model, trace=guide_trace)
        frames = {f.name: f for site in self.sites.values() for f in site.frames}
        with poutine.block(), unchanged_buffers(), contextlib.ExitStack() as stack:
            if _PARTICLES in frames:
                frame = frames[_PARTICLES]
                stack.enter_context(pyro.plate(_PARTICLES, frame.size, dim=frame.dim))
                model = poutine.broadcast(model)
            return poutine.trace(model).get_trace(*self.args, **self.kwargs).nodes


class _InGuide(Messenger):
    """Replace implicit sites of the guide by scored ones."""

    def __init__(self, run: ContrastRun) -> None:
        super().__init__()
        self.run = run

    def __enter__(self) -> Any:
        run = self.run
        for seen in (run.sites, run.implicit, run.values, run.indices, run.priors, run.cache):
            seen.clear()  # a run to look at the plates may have come before
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        name, fn, run = msg["name"], msg["fn"], self.run
        if not is_latent(msg):
            return
        if is_implicit(fn):
            if lacks_gradient(fn):
                raise NotImplementedError(
                    players.latent_without_gradient(name, plain_name(fn.base_dist))
                )
            mask = mask_of_implicit(name, fn)
            run.implicit.add(name)
            scored: TorchDistribution = Scored(fn, lambda: run.score(run, name))
            msg["fn"] = scored if mask is None else scored.mask(mask)
        elif run.prior_cancels and isinstance(fn, Delta) and name in run.covered():
            # Its log density is the Jacobian of a prior that drops out as a whole.
            msg["fn"] = Delta(fn.v, event_dim=fn.event_dim)

    def _pyro_post_sample(self, msg: Any) -> None:
        name, fn, run = msg["name"], msg["fn"], self.run
        if isinstance(fn, _Subsample):
            run.indices[name] = msg["value"]
        if not is_latent(msg):
            return
        earlier = tuple(run.values)
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
        if not run.prior_cancels:
            if is_implicit(fn):
                raise NotImplementedError(contrasts.implicit_prior(name))
            return
        # Of an implicit prior one cannot tell before another run.
        learned = is_implicit(fn) or is_learned(fn)
        nothing = torch.zeros(())
        msg["fn"] = Scored(fn, (lambda: run.prior_gradient(name)) if learned else lambda: nothing)


def _broadcasts(shape: torch.Size, full: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, full) == full
    except RuntimeError:
        return False


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


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
