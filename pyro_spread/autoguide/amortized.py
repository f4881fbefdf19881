# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoAmortized: an amortised posterior with a density, made from the model."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule
from pyro.util import get_rng_state, set_rng_state

from pyro_spread import _parents
from pyro_spread._held import Held, mapped
from pyro_spread._inputs import as_tensor, tensor_of
from pyro_spread.autoguide._conditional import ConditionalSite, interval_of, unconstrained
from pyro_spread.autoguide._copied import KeepsModel
from pyro_spread.autoguide._embedded import HasEmbeddings
from pyro_spread.autoguide._flows import HasFlows
from pyro_spread.autoguide._given_rows import GivenRows
from pyro_spread.autoguide._walks import HasQuantiles, draws, log_prob, shape_of, vectors
from pyro_spread.autoguide._world import (
    World,
    created_plates,
    data_of,
    group_masks,
    is_data,
    latent_of,
    like_numbers,
    look,
    masked_latents,
    observed_value,
    same_support,
    simulated,
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


class AutoAmortized(
    HasEmbeddings, HasFlows, HasQuantiles, GivenRows, AutoAmortizedShared, KeepsModel
):
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

    As ``density``, a function takes the numbers of features and of context of a site and returns a
    module that, called with a context of shape (batch, context), gives a distribution of batch
    shape (batch,) and event shape (features,): ``zuko.flows.NSF``, or
    ``functools.partial(zuko.flows.NSF, transforms=5)``.

    As an ``embedding``, any ``torch.nn.Module`` without batch normalisation and dropout. Members
    start with the module's own params, and the module itself stays as it is.
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
        self._decide(args, kwargs)
        self._declare(args, kwargs)
        if strangers := _parents.foreign_params(self):
            raise ValueError(messages.stranger(strangers[0]))
        created = created_plates(self, args, kwargs)
        world = self._look(values, masks, args, kwargs, created)
        plates = created | world.plates(created)
        result: dict[str, torch.Tensor] = {}

        def visit(group: Group, variable: Variable, conditional: Conditional) -> torch.Tensor:
            site = self.site(group, variable, conditional, world.sizes, ())
            with ExitStack() as stack:
                for name in variable.frames:
                    stack.enter_context(plates[name])
                value = result[variable.name] = pyro.sample(variable.name, site)
            return vectors(self, variable, value)

        self.walk(self.params(), world.values, world.masks, world.lead, visit)
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
        world = self._world_outside(args, kwargs)
        return draws(self, tuple(sample_shape), world.sizes, world.values, world.masks, 0)

    def log_prob(self, values: Mapping[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        Log density of latents given the data at the arguments, in nats; normalised.

        :param values: dict from every latent to values of shape sample + shape of the site.
        :param args: arguments of the model, with the data in their place.
        :param kwargs: keyword arguments of the model.
        :return: of shape sample.
        """
        world = self._world_outside(args, kwargs)
        latents = {}
        for name in self.supports:
            if name not in values:
                raise ValueError(messages.missing_value(name, values))
            latents[name] = tensor_of(values[name])
        return log_prob(self, world.sizes, latents, world.values, world.masks, 0)

    def observation(
        self, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """
        The data that the model observes at the arguments.

        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        :return: dict from data site to value, and masks by group.
        :raises ValueError: if it observes none.
        """
        world = self._world_outside(args, kwargs, declare=False)
        return world.values, world.masks

    def masked_latents(self, *args: Any, **kwargs: Any) -> list[str]:
        """
        Latents of which not everything counts in the model's density at the arguments.

        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        """
        return masked_latents(self.model, self.supports, args, kwargs)

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
        self.supports = {name: site["fn"].support for name, site in latents.items()}
        self._context = Context(
            [latent_of(name, site, self.truncates) for name, site in latents.items()],
            [data_of(name, one[name]) for name in observed],
        )
        self._context.masked = frozenset(group_masks(self._context, one, {}))
        like = like_numbers([*latents.values(), *(one[name] for name in observed)])
        self.register_buffer("_empty", like, persistent=False)
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
        args, kwargs = converted((args, kwargs), as_tensor)
        return simulated(self.model, self.context, self.supports, num_runs, args, kwargs)

    def drawn_shape(self, name: str) -> tuple[int, ...]:
        """
        The shape of what the model draws at a site.

        :param name: of the site.
        """
        return tuple(observed_value(self.prototype_trace[name]).shape)

    def unconstrained(self, variable: Variable, values: Any) -> np.ndarray:
        """
        Values of a latent as the conditionals take them.

        :param variable: the latent.
        :param values: of shape (simulations,) + shape of the site.
        :return: outside of the support NaN, or what lies outside alike.
        """
        value = torch.as_tensor(values).to(self._drawn(variable.name))
        support = self.supports[variable.name]
        found = unconstrained(variable, support, value)
        if variable.low is None and (ends := interval_of(support)) is not None:
            found = found.masked_fill((value < ends[0]) | (value > ends[1]), math.nan)
        host: np.ndarray = found.cpu().numpy()
        return host

    def fitted(self, latents: Any, data: Any, masks: Any) -> dict[str, Any]:
        """
        The standardisation that simulations give: nested dicts of NumPy's arrays.

        :param latents: unconstrained values by site, of shape (simulations,) + site's.
        :param data: values by observed site, alike.
        :param masks: what counts of the data, by group.
        """
        host = [
            {key: torch.as_tensor(value).detach().cpu().numpy() for key, value in part.items()}
            for part in (latents, data, masks)
        ]
        return self.context.fit(*host)

    def initial_nets(self, fitted: Any, group: Group) -> dict[str, torch.Tensor]:
        """
        Params of a group's nets before any training.

        :param fitted: the standardisation.
        :param group: the group.
        """
        like = self._empty
        normal = functools.partial(torch.randn, dtype=like.dtype, device=like.device)
        sizes = self._initial_sizes(fitted, group)
        params = initial(normal, **sizes) if self.has_mixtures(group) else {}
        for flow in self.flows(group, sizes["inputs"]).values():
            params |= flow.initial()
        return {key: self.tensor(value) for key, value in params.items()}

    def params(self) -> dict[str, Any]:
        """Standardisation and nets of every group, by name: nested dicts of tensors."""
        found = {self.standardisation_name: self.standardisation.tree()}
        for name in self.net_names:
            net = attrgetter(f"nets.{name}")(self)
            found[name] = {key: getattr(net, key) for key in list(net._parameters)}
        return found

    def set_params(self, params: Mapping[str, Any]) -> None:
        """
        Take over standardisation and nets.

        :param params: as :meth:`params` returns them.
        """
        self.standardisation = Held(mapped(self.tensor, params[self.standardisation_name]))
        self.nets = PyroModule()
        for name in self.net_names:
            net = PyroModule()
            for key, value in params[name].items():
                setattr(net, key, torch.nn.Parameter(self.tensor(value).detach().clone()))
            deep_setattr(self, f"nets.{name}", net)

    def _decide(self, args: Any, kwargs: Any) -> None:
        """Find out in which plates elements differ, where nobody has yet."""
        if self.ordered_plates is not None:
            return
        runs: Any = ({}, {}, {})
        if self.exchangeable is None and self.context.depth:
            # The same for whoever reads the params of another guide, as out of a checkpoint.
            state = get_rng_state()
            pyro.set_rng_seed(0)
            try:
                runs = self.simulated(200, args, kwargs)
            finally:
                set_rng_state(state)
        self.decide(*runs)

    def _declare(self, args: Any, kwargs: Any) -> None:
        """Make standardisation and nets where they are not there yet."""
        if "nets" in self._modules:
            return
        fitted = self.fitted(*self.simulated(self.init_samples, args, kwargs))
        nets = {self.params_name(g): self.initial_nets(fitted, g) for g in self.context.groups}
        nets |= {name: self.initial_embeddings() for name in self.learned_names}
        self.set_params({self.standardisation_name: fitted} | nets)

    def tensor(self, value: Any) -> torch.Tensor:
        """
        Numbers in the type and on the device of the guide's params. Gradients pass.

        :param value: a tensor, or an array of NumPy.
        """
        return tensor_of(value).to(self._empty)

    def site(
        self,
        group: Group,
        variable: Variable,
        conditional: Conditional,
        sizes: Mapping[str, int],
        lead: tuple[int, ...],
    ) -> ConditionalSite:
        """
        The distribution of a latent.

        :param group: its group.
        :param variable: the latent.
        :param conditional: of its numbers.
        :param sizes: of plates by name.
        :param lead: dims of samples in front.
        """
        shape = shape_of(conditional, group, sizes, lead, self.context.depth)
        support, value = self.supports[variable.name], self._drawn(variable.name)
        return ConditionalSite(conditional, support, shape, self.context.depth, value)

    def _drawn(self, name: str) -> torch.Tensor:
        """A value of a latent, as the model draws it."""
        value: torch.Tensor = self.prototype_trace[name]["value"]
        return value

    # What a call sees.

    def _world_outside(self, args: Any, kwargs: Any, declare: bool = True) -> World:
        args, kwargs = converted((args, kwargs), as_tensor)
        self._prepare(args, kwargs)
        self._decide(args, kwargs)
        if declare:
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
