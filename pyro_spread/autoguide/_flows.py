# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Flows of zuko, and other modules that give distributions, at sites of an amortised guide."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.contrib.zuko import ZukoToPyro

from spread_core.amortized.flow import leaf_name
from spread_core.amortized.flow_sites import Build, HasDensity
from spread_core.messages import amortized as messages
from spread_core.messages import general


def named(density: str, hidden: Sequence[int]) -> Build:
    """
    What makes zuko's flow of a name.

    :param density: the name.
    :param hidden: sizes of the hidden layers.
    :raises ImportError: if zuko is missing.
    """
    try:
        flows = importlib.import_module("zuko.flows")
    except ImportError as error:
        raise ImportError(general.missing_extra(f"density='{density}'", "flows", error)) from error
    flow = {"nsf": flows.NSF, "maf": flows.MAF}[density]
    return functools.partial(flow, hidden_features=tuple(hidden))


class HasFlows(HasDensity):
    """A guide whose sites may have flows."""

    _empty: torch.Tensor

    def _builder(self, density: str) -> Build:
        return named(density, self.hidden)

    def _new_flow(self, build: Build, site: str, features: int, context: int) -> ModuleFlow:
        return ModuleFlow(build, site, features, context, self.ensemble, self._empty)


class ModuleFlow:
    """
    The density of a site: a module that gives a distribution, with params for every member.

    :param build: makes the module from the numbers of features and of context.
    :param site: name of the site.
    :param features: length of the site's vectors.
    :param context: length of what they are conditioned on.
    :param members: M.
    :param like: a tensor of the params' type, on their device.
    :raises ValueError: if what is made is no distribution of such vectors.
    """

    def __init__(
        self,
        build: Build,
        site: str,
        features: int,
        context: int,
        members: int,
        like: torch.Tensor,
    ) -> None:
        self._make = functools.partial(build, features, context)
        self._site, self._features, self._members, self._like = site, features, members, like
        # What is no param, such as the order of the latents in a layer, is the same every time.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            module = self._make()
        if not isinstance(module, torch.nn.Module):
            found = f"it gave {general.shown(module)}, no torch.nn.Module"
            raise ValueError(messages.wrong_density(site, features, context, found))
        self._inside = _Inside(module).to(like)
        self.has_rsample = self._checked(context)
        self._paths = list(_trained(module))
        self.names = [leaf_name(site, path) for path in self._paths]

    @torch.no_grad()
    def _checked(self, context: int) -> bool:
        """Whether draws have gradients."""
        rows = self._like.new_zeros((2, context))
        try:
            made = self._inside.module(rows)
            shapes = tuple(made.batch_shape), tuple(made.event_shape)
            has_rsample = bool(made.has_rsample)
            found = f"of 2 contexts it gave batch and event shapes {shapes}"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                messages.wrong_density(self._site, self._features, context, reason)
            ) from error
        if shapes != ((2,), (self._features,)):
            raise ValueError(messages.wrong_density(self._site, self._features, context, found))
        return has_rsample

    def initial(self) -> dict[str, torch.Tensor]:
        """New params, (M, ...) each."""
        made = [_trained(self._make()) for _ in range(self._members)]
        return {
            name: torch.stack([params[path].detach() for params in made])
            for name, path in zip(self.names, self._paths, strict=True)
        }

    def log_prob(
        self, params: Mapping[str, torch.Tensor], t: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        """
        Log density in nats, of shape (M,) + batch.

        :param params: of the group, (M, ...) each.
        :param t: standardised vectors, (1 or M,) + batch + (size,).
        :param context: what they are conditioned on, (1 or M,) + batch + (C,).
        """
        batch = torch.broadcast_shapes(t.shape[1:-1], context.shape[1:-1])

        def rows(part: torch.Tensor, member: int) -> torch.Tensor:
            own = part[member if part.shape[0] > 1 else 0]
            return own.expand((*batch, own.shape[-1])).reshape(-1, own.shape[-1])

        found = [self._call(params, m, rows(context, m), rows(t, m)) for m in range(self._members)]
        return torch.stack(found).reshape((self._members, *batch))

    def draw(
        self,
        params: Mapping[str, torch.Tensor],
        context: torch.Tensor,
        choose: torch.Tensor,
        key: None,
    ) -> torch.Tensor:
        """
        Vectors of shape batch + (size,), each from one of the members.

        :param params: of the group, (M, ...) each.
        :param context: what they are conditioned on, (1 or M,) + batch + (C,).
        :param choose: uniform numbers of shape batch, which choose the member.
        :param key: none, as random numbers are global.
        """
        rows = context.reshape(len(context), -1, context.shape[-1])
        member = (choose.reshape(-1) * self._members).long().clamp(max=self._members - 1)
        found = rows.new_zeros((rows.shape[1], self._features))
        for m in range(self._members):
            places = (member == m).nonzero().squeeze(-1)
            if len(places):
                own = rows[m if len(rows) > 1 else 0, places]
                found = found.index_put((places,), self._call(params, m, own))
        return found.reshape((*context.shape[1:-1], self._features))

    def _call(self, params: Mapping[str, torch.Tensor], member: int, *args: Any) -> torch.Tensor:
        own = {
            f"module.{path}": params[name][member]
            for name, path in zip(self.names, self._paths, strict=True)
        }
        found: torch.Tensor = torch.func.functional_call(self._inside, own, args)
        return found


class _Inside(torch.nn.Module):
    """Draws and densities as one call, since a flow reads params when it is asked for either."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, context: torch.Tensor, t: torch.Tensor | None = None) -> torch.Tensor:
        made = ZukoToPyro(self.module(context))
        return made() if t is None else made.log_prob(t)


def _trained(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: param for name, param in module.named_parameters() if param.requires_grad}
