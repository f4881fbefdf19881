# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One run of guide and model, as the parts of a contrast see it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution

from pyro_spread._transaction import unchanged_buffers
from pyro_spread.infer._plate_arguments import subsampled
from pyro_spread.infer._sites import is_black_box, is_implicit, is_learned
from pyro_spread.ratio.adapters import ConcatSites, SiteValues
from spread_core.contrast_options import ContrastOptions
from spread_core.messages import contrasts

_PARTICLES = "num_particles_vectorized"


@dataclass(frozen=True)
class ImplicitSite:
    """
    An implicit site of the guide, its draw and its plates.

    :param weights: how much each element of the batch counts; None if all count alike.
    :param frames: the plates.
    :param earlier: names of the guide's sites drawn or computed before.
    :param infer: what the site was given as ``infer``.
    """

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
        """Name, dimension and size of each plate."""
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


class GuideRun:
    """
    Guide and model of one particle (or of all at once), and their recorded sites.

    :param options: of the loss.
    :param model: the model, spread if there is noise.
    :param names: names of its positional arguments.
    :param args: positional arguments of model and guide.
    :param kwargs: keyword arguments of both.
    """

    def __init__(
        self,
        options: ContrastOptions,
        model: Callable[..., Any],
        names: Sequence[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.options, self.model, self.names = options, model, names
        self.args, self.kwargs = args, kwargs
        self.forget()

    def forget(self) -> None:
        """Forget what was recorded: Pyro may run a guide once more, to count its plates."""
        self.sites: dict[str, ImplicitSite] = {}
        #: Names of these and of those that are masked as a whole.
        self.implicit: set[str] = set()
        #: Values of all guide sites in their order, with their number of event dimensions.
        self.values: dict[str, tuple[torch.Tensor, int]] = {}
        #: What the guide computed at deterministic sites, as constants.
        self.computed: dict[str, torch.Tensor] = {}
        #: The indices that plates took.
        self.indices: dict[str, torch.Tensor] = {}
        #: Priors of the implicit sites, given what the guide drew.
        self.priors: dict[str, TorchDistribution] = {}
        self._head_outputs: dict[tuple[str, ...], Any] = {}
        self._at_values: Any = None

    def covered(self) -> set[str]:
        """Latents of the model whose prior the contrast accounts for."""
        names = set(self.sites)
        for site in self.sites.values():
            names |= set(site.infer.get("_covers", ()))
        return names

    def reduced_arguments(self, site: ImplicitSite) -> dict[str, Any]:
        """The model's arguments by name, reduced to what plates subsampled."""
        named = dict(zip(self.names, self.args, strict=False)) | self.kwargs
        return subsampled(named, site.frames, self.indices, site.plate_shape)

    def head_output(self, site: ImplicitSite, side: SiteValues) -> Any:
        """
        What the head returns for a site; it is called once for all sites of the same plates.

        :param side: what ``concat_sites`` may look up for it.
        """
        plates = tuple(frame.name for frame in site.frames)
        if plates not in self._head_outputs:
            named = self.reduced_arguments(site)
            args = [named.get(n, a) for n, a in zip(self.names, self.args, strict=False)]
            kwargs = {key: named[key] for key in self.kwargs}
            if isinstance(self.options.head, ConcatSites):
                output, _ = self.options.head.output(side, kwargs)
            else:
                output = self.options.head(*args, *self.args[len(args) :], **kwargs)
            self._head_outputs[plates] = output
        return self._head_outputs[plates]

    def prior_draws(self, names: Sequence[str], count: int | None) -> dict[str, torch.Tensor]:
        """
        Draws of the prior at these sites, given the guide's draws elsewhere; no gradient.

        :param names: sites of one critic. Several, and those that are no site of the model, are
            drawn ancestrally in a run of the model.
        :param count: number of draws per datum, of one site only.
        """
        with torch.no_grad(), unchanged_buffers():
            if len(names) > 1 or names[0] not in self.priors:
                return self._ancestral(names)
            name = names[0]
            # The prior of a site may have fewer batch dimensions than the guide's.
            prior = self.priors[name].expand(self.sites[name].batch_shape)
            return {name: prior.sample(() if count is None else (count,))}

    def _ancestral(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
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
        if self._at_values is None:
            # Another run, in which nothing but params has a gradient: what the draws do to the
            # prior's density is in the critic's logit already.
            self._at_values = self._rerun(set(self.values))
        node = self._at_values[name]
        if is_implicit(node["fn"]):
            if torch.is_grad_enabled() and node["fn"].rsample().requires_grad:
                raise NotImplementedError(contrasts.learned_implicit_prior(name))
            return torch.zeros(())
        if is_black_box(node["fn"]):
            if torch.is_grad_enabled() and is_learned(node["fn"]):
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
