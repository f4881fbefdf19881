# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit: a guide without a density, made from the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule
from torch.distributions import biject_to

from pyro_spread._implicit_sampler import AmortisedSampler, FreeSampler, Net, location_and_scale
from pyro_spread._inputs import as_tensor
from pyro_spread._latent_sites import (
    constrain,
    latent_of,
    refuse_features,
    select_features,
    unconstrain,
)
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.autoguide._walks import HasQuantiles
from pyro_spread.distributions import ImplicitDistribution
from spread_core.auto_implicit import AutoImplicitShared
from spread_core.inputs import converted
from spread_core.latents import LatentGroup, group_latents
from spread_core.messages import autoguide

Encoder = Callable[..., torch.Tensor | Mapping[str, torch.Tensor]]


def _init_to_prior(site: Any) -> torch.Tensor:
    """A draw from the prior, or around 0 in unconstrained space where it cannot be drawn from."""
    try:
        return init_to_sample(site)
    except NotImplementedError:
        transform = biject_to(site["fn"].support)
        shape = transform.inverse_shape(site["fn"].shape())
        return transform(torch.empty(shape).uniform_(-2.0, 2.0))


class AutoImplicit(HasQuantiles, AutoImplicitShared, AutoGuide):
    """
    A guide over all continuous latents of a model that can be sampled but has no density.

        >>> import torch, pyro, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z**2, 0.3), obs=torch.tensor(1.0))
        >>> guide = AutoImplicit(model)
        >>> guide.sample_posterior(sample_shape=(5,))["z"].shape
        torch.Size([5])
    """

    def _parent_options(self, model: Any, prefix: str) -> dict[str, Any]:
        return {"model": InitMessenger(_init_to_prior)(model)}

    def _bind_encoder(self, encoder: Any) -> None:
        if encoder is not None and not callable(encoder):
            raise TypeError(autoguide.no_encoder(encoder, "a torch.nn.Module or a function"))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """
        The guide, with the model's arguments.

        :return: dict from site to value.
        :raises ValueError: if the features do not have the plates' shape.
        """
        args, kwargs = converted((args, kwargs), as_tensor)
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        features = self._features(self.encoder, args, kwargs)
        plates = self._create_plates(*args, **kwargs)
        scored = poutine.get_mask() is not False
        result = {}
        for group in self._groups:
            with ExitStack() as stack:
                indices = {p.name: stack.enter_context(plates[p.name]) for p in group.plates}
                selected = select_features(group, features.get(group.key), plates, indices)
                infer = {
                    "is_auxiliary": True,
                    "_unconstrain": functools.partial(unconstrain, group, self._supports),
                    "_covers": group.names,
                }
                implicit = self._distribution(group, selected)
                vectors = pyro.sample(self._site_name(group), implicit, infer=infer)
                for name, unconstrained in group.split(vectors):
                    event_dim = self.prototype_trace.nodes[name]["fn"].event_dim
                    delta = constrain(self._supports[name], event_dim, unconstrained, scored)
                    result[name] = pyro.sample(name, delta)
        return result

    @torch.no_grad()
    def sample_posterior(
        self, *args: Any, sample_shape: Sequence[int] = (), **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """
        Draws of all latents, of all data even where plates subsample; with an encoder, of the data
        whose features it returns.

        :param args: arguments of the model.
        :param sample_shape: shape of the draws.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to values of shape sample + shape of the site.
        """
        draws = self._unconstrained_draws(tuple(sample_shape), args, kwargs)
        return {name: biject_to(self._supports[name])(draws[name]) for name in draws}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | torch.Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """
        Quantiles of all latents, taken in unconstrained space as other autoguides do, estimated
        from :attr:`num_quantile_draws` draws.

        :param quantiles: probabilities.
        :return: dict from site to quantiles, the probabilities in front.
        """
        draws = self._unconstrained_draws((self.num_quantile_draws,), args, kwargs)
        result = {}
        for name, draw in draws.items():
            found = np.quantile(draw.cpu().numpy(), np.asarray(quantiles), axis=0)
            result[name] = biject_to(self._supports[name])(draw.new_tensor(found))
        return result

    @torch.no_grad()
    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            with unchanged_buffers():
                super()._setup_prototype(*args, **kwargs)
                self._set_up(args, kwargs)
        except BaseException:
            self.prototype_trace = None  # a call after an error begins anew
            raise

    def _set_up(self, args: Any, kwargs: Any) -> None:
        sites = dict(self.prototype_trace.iter_stochastic_nodes())
        discrete = [name for name, site in sites.items() if site["fn"].support.is_discrete]
        if discrete:
            raise ValueError(autoguide.discrete_latents(discrete, "pyro.poutine.block"))
        if not sites:
            raise ValueError(autoguide.no_guide_latents())
        self._groups = group_latents(latent_of(name, site) for name, site in sites.items())
        self._supports = {name: site["fn"].support for name, site in sites.items()}
        # Not as an attribute, which would register lazy params before they have a shape.
        encoder: Any = self._modules.get("encoder", self.__dict__.get("encoder"))
        if encoder is not None and not self._groups[-1].plates:
            raise ValueError(autoguide.nothing_to_amortise(list(sites)))
        features = self._features(encoder, args, kwargs)
        draws = self._prior_draws(args, kwargs)
        self.samplers = PyroModule()
        for group, prior in zip(self._groups, draws, strict=True):
            amortised = group.key in features
            loc, scale = location_and_scale(prior, group, amortised)
            noise_size = group.noise_size(self.noise_dim)
            net = functools.partial(Net, noise_size, hidden=self.hidden, like=loc)
            sampler: PyroModule
            if amortised:
                sampler = AmortisedSampler(loc, scale, features[group.key].shape[-1], net)
            else:
                sampler = FreeSampler(loc, scale, bool(group.plates), net)
            deep_setattr(self, f"samplers.{self.prefix}_{group.key}", sampler)

    def _prior_draws(self, args: Any, kwargs: Any) -> list[torch.Tensor]:
        """For every group, draws in unconstrained space of shape (draws,) + batch + (size,)."""
        model = poutine.block(self.model, self._prototype_hide_fn)
        get_trace = poutine.block(poutine.trace(model).get_trace)
        draws: list[list[torch.Tensor]] = [[] for _ in self._groups]
        for _ in range(self.init_samples):
            nodes = get_trace(*args, **kwargs).nodes
            supports = {name: nodes[name]["fn"].support for name in self._supports}
            values = {name: nodes[name]["value"] for name in self._supports}
            for group, kept in zip(self._groups, draws, strict=True):
                kept.append(unconstrain(group, supports, values))
        return [torch.stack(kept) for kept in draws]

    def _distribution(
        self, group: LatentGroup, features: torch.Tensor | None
    ) -> ImplicitDistribution:
        return attrgetter(f"samplers.{self.prefix}_{group.key}")(self)(features)

    def _unconstrained_draws(
        self, sample_shape: tuple[int, ...], args: Any, kwargs: Any
    ) -> dict[str, torch.Tensor]:
        args, kwargs = converted((args, kwargs), as_tensor)
        with self._pyro_context:  # params are those of the param store
            if self.prototype_trace is None:
                self._setup_prototype(*args, **kwargs)
            features = self._features(self.encoder, args, kwargs)
            draws: dict[str, torch.Tensor] = {}
            for group in self._groups:
                vectors = self._distribution(group, features.get(group.key)).sample(sample_shape)
                draws.update(group.split(vectors, len(sample_shape)))
        return draws

    def _features(self, encoder: Encoder | None, args: Any, kwargs: Any) -> dict[str, torch.Tensor]:
        """Features of every local group by its key; plates are made as large as they are."""
        if encoder is None:
            return {}
        output = encoder(*args, **kwargs)
        features = {}
        for group in self._groups:
            if not group.plates:
                continue
            mine = output.get(group.key) if isinstance(output, Mapping) else output
            if not isinstance(mine, torch.Tensor):
                raise TypeError(autoguide.encoder_features_type(group.key, mine))
            if not group.features_fit(mine.shape, {}):
                refuse_features(group, mine, {p.name: p.size for p in group.plates}, output)
            for plate in group.plates:
                size, full_size = plate.resized(mine.shape[plate.dim - 1])
                frame = self._prototype_frames[plate.name]
                self._prototype_frames[plate.name] = frame._replace(size=size, full_size=full_size)
            features[group.key] = mine
        return features
