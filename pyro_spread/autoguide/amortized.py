# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoAmortized: an amortised posterior with a density, made from the model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule
from torch.distributions import biject_to

from pyro_spread._inputs import as_tensor
from pyro_spread.autoguide._conditional import (
    ConditionalSite,
    close_gap,
    open_gap,
    unconstrained,
)
from pyro_spread.autoguide._held import Held, mapped
from pyro_spread.autoguide._world import (
    World,
    data_of,
    group_masks,
    is_data,
    latent_of,
    look,
    same_support,
    sites_of,
)
from pyro_spread.infer._sites import is_latent
from spread_core.amortized.context import Context
from spread_core.amortized.density import Conditional
from spread_core.amortized.guide import AutoAmortizedShared
from spread_core.amortized.layout import Group, Variable
from spread_core.amortized.mixture import initial
from spread_core.inputs import converted
from spread_core.messages import amortized as messages


class AutoAmortized(AutoAmortizedShared, AutoGuide):
    """
    An amortised posterior: a conditional density over all latents of a model, given its data.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_spread import AutoAmortized
        >>> def model(x=None):
        ...     z = pyro.sample("z", dist.Uniform(-1.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 0.1), obs=x)
        >>> guide = AutoAmortized(model, observed="x")
        >>> guide.sample_posterior(torch.tensor(0.3), sample_shape=(5,))["z"].shape
        torch.Size([5])
    """

    def _parent_options(self, model: Any, prefix: str) -> dict[str, Any]:
        return {"model": model}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """
        The guide, with the model's arguments.

        :return: dict from site to value.
        :raises ValueError: if the model observes no data at these arguments.
        """
        return self._run(None, {}, args, kwargs)

    def run_given(
        self, values: Mapping[str, Any] | None, masks: Mapping[str, Any], args: Any, kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """
        The guide for given data; see :meth:`given`.

        :param values: dict from data site to value; None takes those at the arguments.
        :param masks: dict from data site to what counts.
        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        with self._pyro_context:  # params are those of the param store
            return self._run(values, masks, args, kwargs)

    def _run(
        self, values: Mapping[str, Any] | None, masks: Mapping[str, Any], args: Any, kwargs: Any
    ) -> dict[str, torch.Tensor]:
        args, kwargs = converted((args, kwargs), as_tensor)
        self._prepare(args, kwargs)
        self._declare(args, kwargs)
        created = self._created_plates(args, kwargs)
        world = self._look(values, masks, args, kwargs, created)
        plates = created | world.plates(created)
        result: dict[str, torch.Tensor] = {}

        def visit(group: Group, variable: Variable, conditional: Conditional) -> torch.Tensor:
            site = self._site(group, variable, conditional, world.sizes, ())
            with ExitStack() as stack:
                for name in group.dims:
                    stack.enter_context(plates[name])
                value = result[variable.name] = pyro.sample(variable.name, site)
            return self._vectors(variable, value, conditional)

        self._walk(self.params(), world.values, world.masks, 0, visit)
        return result

    def data_sites(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """
        Names of the sites that the guide conditions on.

        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        self._prepare(*converted((args, kwargs), as_tensor))
        return tuple(v.name for group in self.context.data for v in group.variables)

    @torch.no_grad()
    def sample_posterior(
        self, *args: Any, sample_shape: Sequence[int] = (), **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """
        Draws of all latents given the data at the arguments.

        :param args: arguments of the model, with the data in their place.
        :param sample_shape: shape of the draws.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to values of shape sample + shape of the site.
        """
        lead = tuple(sample_shape)
        result: dict[str, torch.Tensor] = {}

        def visit(group: Group, variable: Variable, conditional: Conditional) -> torch.Tensor:
            site = self._site(group, variable, conditional, world.sizes, lead)
            drawn = site.sample()
            value, ndim = close_gap(variable, drawn, site.event_dim, self.context.depth)
            result[variable.name] = value.reshape((*lead, *value.shape[ndim:]))
            return self._vectors(variable, drawn, conditional)

        with self._pyro_context:  # params are those of the param store
            world = self._world_outside(args, kwargs)
            self._walk(self.params(), world.values, world.masks, 0, visit)
        return {name: result[name] for name in self._supports}

    def log_prob(self, values: Mapping[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        Log density of latents given the data at the arguments, in nats; normalised.

        :param values: dict from every latent to values of shape sample + shape of the site.
        :param args: arguments of the model, with the data in their place.
        :param kwargs: keyword arguments of the model.
        :return: of shape sample.
        """
        total: list[torch.Tensor] = []

        def visit(group: Group, variable: Variable, conditional: Conditional) -> torch.Tensor:
            value = torch.as_tensor(as_tensor(values[variable.name]))
            site = self._site(group, variable, conditional, world.sizes, ())
            lead = value.dim() - len(variable.batch_shape) - site.event_dim
            log_prob = site.log_prob(open_gap(variable, value, lead, self.context.depth))
            total.append(log_prob.reshape((*value.shape[:lead], -1)).sum(-1))
            raw = unconstrained(variable, self._supports[variable.name], value)
            return variable.join(raw.to(conditional.loc), self.context.depth, lead)

        with self._pyro_context:  # params are those of the param store
            world = self._world_outside(args, kwargs)
            self._walk(self.params(), world.values, world.masks, 0, visit)
        return sum(total[1:], total[0])

    def median(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """
        Medians of all latents, estimated from :attr:`num_quantile_draws` draws.

        :param args: arguments of the model, with the data in their place.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to median.
        """
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | torch.Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """
        Quantiles of all latents, taken in unconstrained space as other autoguides do, estimated
        from :attr:`num_quantile_draws` draws.

        :param quantiles: probabilities.
        :param args: arguments of the model, with the data in their place.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to quantiles, the probabilities in front.
        """
        shape = (self.num_quantile_draws,)
        draws = self.sample_posterior(*args, sample_shape=shape, **kwargs)
        result = {}
        for name, draw in draws.items():
            support = self._supports[name]
            transform = None if support.is_discrete else biject_to(support)
            raw = draw if transform is None else transform.inv(draw)
            method: Any = "linear" if transform else "nearest"
            host = np.quantile(raw.cpu().numpy(), np.asarray(quantiles), axis=0, method=method)
            found = draw.new_tensor(host)
            result[name] = found if transform is None else transform(found)
        return result

    # What the guide knows of the model.

    def _prepare(self, args: Any, kwargs: Any) -> None:
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)

    @torch.no_grad()
    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        one, other = (sites_of(self.model, args, kwargs) for _ in range(2))
        observed = self.observed
        if observed is None:
            observed = tuple(n for n, s in one.items() if is_data(s))
            if not observed:
                raise ValueError(messages.nothing_observed())
        for name in observed:
            if name not in one:
                raise ValueError(messages.no_data_site(name, one))
        latents = {n: s for n, s in one.items() if n not in observed and is_latent(s)}
        if not latents:
            raise ValueError(messages.no_latents())
        for name, site in latents.items():
            if not same_support(site["fn"].support, other[name]["fn"].support):
                raise ValueError(messages.support_moves(name))
        self._supports = {name: site["fn"].support for name, site in latents.items()}
        self._values = {name: site["value"] for name, site in latents.items()}
        self._context = Context(
            [latent_of(name, site) for name, site in latents.items()],
            [data_of(name, one[name]) for name in observed],
        )
        numbers = [*self._values.values(), *(torch.as_tensor(one[n]["value"]) for n in observed)]
        floats = [x for x in numbers if x.is_floating_point()] or [torch.empty(0)]
        dtype = functools.reduce(torch.promote_types, [x.dtype for x in floats])
        self._empty = torch.empty(0, dtype=dtype, device=floats[0].device)
        self.prototype_trace = one

    @torch.no_grad()
    def simulated(
        self, num_runs: int, args: Any, kwargs: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """
        Latents, unconstrained, data and masks of runs of the model.

        :param num_runs: number of runs, in front of every value.
        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        variables = {v.name: v for g in self.context.groups for v in g.variables}
        args, kwargs = converted((args, kwargs), as_tensor)
        names, model = self.data_sites(*args, **kwargs), poutine.uncondition(self.model)
        runs: list[tuple[dict[str, torch.Tensor], ...]] = []
        for _ in range(num_runs):
            sites = sites_of(model, args, kwargs)
            latents = {
                name: unconstrained(v, self._supports[name], sites[name]["value"])
                for name, v in variables.items()
            }
            data = {name: sites[name]["value"] for name in names}
            runs.append((latents, data, group_masks(self.context, sites, {})))
        latents, data, masks = (
            {key: torch.stack([run[key] for run in part]) for key in part[0]}
            for part in zip(*runs, strict=True)
        )
        return latents, data, masks

    def fitted(self, latents: Any, data: Any, masks: Any) -> dict[str, Any]:
        """
        The standardisation that simulations give: nested dicts of tensors.

        :param latents: unconstrained values by site, of shape (simulations,) + site's.
        :param data: values by observed site, alike.
        :param masks: what counts of the data, by group.
        """
        host = [
            {key: torch.as_tensor(value).detach().cpu().numpy() for key, value in part.items()}
            for part in (latents, data, masks)
        ]
        found: dict[str, Any] = mapped(self._tensor, self.context.fit(*host))
        return found

    def initial_nets(self, fitted: Any, group: Group) -> dict[str, torch.Tensor]:
        """
        Params of a group's nets before any training.

        :param fitted: the standardisation.
        :param group: the group.
        """

        def normal(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.randn(shape, dtype=self._empty.dtype, device=self._empty.device)

        params = initial(normal, **self._initial_sizes(fitted, group))
        return {key: self._tensor(value) for key, value in params.items()}

    def params(self) -> dict[str, Any]:
        """Standardisation and nets of every group, by name: nested dicts of tensors."""
        nets = {}
        for group in self.context.groups:
            net = attrgetter(f"nets.{self._name(group)}")(self)
            nets[self._name(group)] = {key: getattr(net, key) for key in list(net._parameters)}
        return {self._standardisation: self.standardisation.tree()} | nets

    def set_params(self, params: Mapping[str, Any]) -> None:
        """
        Take over standardisation and nets.

        :param params: as :meth:`params` returns them.
        """
        self.standardisation = Held(mapped(self._tensor, params[self._standardisation]))
        self.nets = PyroModule()
        for group in self.context.groups:
            net = PyroModule()
            for key, value in params[self._name(group)].items():
                setattr(net, key, torch.nn.Parameter(self._tensor(value).detach().clone()))
            deep_setattr(self, f"nets.{self._name(group)}", net)

    def _declare(self, args: Any, kwargs: Any) -> None:
        """Make standardisation and nets where they are not there yet."""
        if "nets" in self._modules:
            return
        fitted = self.fitted(*self.simulated(self.init_samples, args, kwargs))
        nets = {self._name(g): self.initial_nets(fitted, g) for g in self.context.groups}
        self.set_params({self._standardisation: fitted} | nets)

    def _tensor(self, value: Any) -> torch.Tensor:
        return torch.as_tensor(value).to(self._empty)

    def _site(
        self,
        group: Group,
        variable: Variable,
        conditional: Conditional,
        sizes: Mapping[str, int],
        lead: tuple[int, ...],
    ) -> ConditionalSite:
        plates = [1] * self.context.depth
        for name, dim in group.dims.items():
            plates[dim] = sizes[name]
        seen = (part.shape[:-1] for part in (conditional.inputs, conditional.before))
        shape = torch.broadcast_shapes((*lead, *plates), *seen)
        support, value = self._supports[variable.name], self._values[variable.name]
        return ConditionalSite(conditional, support, shape, len(shape) - len(plates), value)

    def _vectors(
        self, variable: Variable, value: torch.Tensor, conditional: Conditional
    ) -> torch.Tensor:
        support, depth = self._supports[variable.name], self.context.depth
        event_dim = self._values[variable.name].dim() - len(variable.batch_shape)
        value, lead = close_gap(variable, value, event_dim, depth)
        raw = unconstrained(variable, support, value)
        return variable.join(raw.to(conditional.loc), depth, lead)

    # What a call sees.

    def _created_plates(self, args: Any, kwargs: Any) -> dict[str, pyro.plate]:
        """Plates that are not made after the model's."""
        if self.master is not None:
            return dict(self.master().plates)
        plates = self.create_plates(*args, **kwargs) if self.create_plates else []
        plates = [plates] if isinstance(plates, pyro.plate) else plates
        return {plate.name: plate for plate in plates}

    def _world_outside(self, args: Any, kwargs: Any) -> World:
        args, kwargs = converted((args, kwargs), as_tensor)
        self._prepare(args, kwargs)
        self._declare(args, kwargs)
        return self._look(None, {}, args, kwargs, None)

    def _look(
        self,
        values: Mapping[str, Any] | None,
        masks: Mapping[str, Any],
        args: Any,
        kwargs: Any,
        created: Mapping[str, pyro.plate] | None,
    ) -> World:
        like = self._empty
        return look(self.model, self.context, values, masks, args, kwargs, like, created)

    # Copies.

    def __getstate__(self) -> dict[str, Any]:
        # The parent's forgets the model, without which this guide cannot find its data.
        return self.__dict__ | {"master": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoAmortized:
        memo[id(self.model)] = self.model
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        result.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return result
