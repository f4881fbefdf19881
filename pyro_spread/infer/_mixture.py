# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Pass draws of guide sites through a noise kernel, and score them as mixtures over further draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import sum_rightmost
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch.distributions import biject_to

from pyro_spread._recording import values_known
from pyro_spread.distributions import ImplicitDistribution
from pyro_spread.infer._sites import is_implicit, is_learned, mask_of_implicit, plain_name
from pyro_spread.infer._supports import Supports
from pyro_spread.noise import SpreadNoise
from spread_core.messages import contrasts, players, semi_implicit
from spread_core.noise.implicit_sites import ImplicitSites, SiteNoiseShared


class Spread(ImplicitSites, Messenger):
    """Sends the draws at implicit guide sites through their kernels."""

    def __init__(self, kernels: Mapping[str, SpreadNoise], supports: Supports) -> None:
        super().__init__()
        self._begin(kernels, supports)

    def _pyro_sample(self, msg: Any) -> None:
        kernel = self._kernel_for(msg, is_implicit(msg["fn"]), plain_name)
        if kernel is not None:
            msg["fn"] = self._replace(msg["name"], msg["fn"], kernel)

    def _replace(self, site: str, fn: Any, kernel: SpreadNoise) -> TorchDistribution:
        noise = SiteNoise(site, fn, kernel, self.supports.get(site))

        def draw(psi: torch.Tensor) -> torch.Tensor:
            return noise.to_support(noise.around(noise.to_reals(psi)).rsample())

        # Itself implicit, so that plates outside this handler expand what is below the noise.
        return ImplicitDistribution(draw, fn, fn.event_shape)


class Mix(Spread):
    """Gives implicit guide sites the density of a mixture over draws."""

    def __init__(
        self, kernels: Mapping[str, SpreadNoise], supports: Supports, num_mixture: int
    ) -> None:
        super().__init__(kernels, supports)
        self.num_mixture = num_mixture

    def _replace(self, site: str, fn: Any, kernel: SpreadNoise) -> TorchDistribution:
        _check_gradient(site, fn)
        noise = SiteNoise(site, fn, kernel, self.supports.get(site))
        return Mixture(
            noise, fn, _draws(site, fn, self.num_mixture + 1), mask_of_implicit(site, fn)
        )


class SiteNoise(SiteNoiseShared):
    """The kernel of a site, in the unconstrained space of the site's support."""

    _bijection = staticmethod(lambda support: biject_to(support).with_cache(1))
    _sum_rightmost = staticmethod(sum_rightmost)

    def to_reals(self, psi: torch.Tensor) -> torch.Tensor:
        """Draws of the guide in unconstrained space."""
        if self.transform is None:
            return psi
        u = self.transform.inv(psi)
        if not values_known():
            inside = self.support.check(psi).all() & torch.isfinite(u).all()
            return torch.where(inside, u, torch.full_like(u, float("nan")))
        checked = is_validation_enabled()
        if checked and not bool(self.support.check(psi).all() & torch.isfinite(u).all()):
            raise ValueError(semi_implicit.semi_outside_support(self.site, self.support))
        return u


class Mixture(TorchDistribution):
    r"""
    z ~ k(z | psi_0), with the log density of :math:`\frac{1}{K+1}\sum_k k(z | \psi_k)`.

    Which psi those are is settled when it is made: that is why it is made outside all plates.

    :param psi: draws of ``fn`` of shape (K + 1,) + batch + event.
    :param mask: elements of the batch whose density counts.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, noise: SiteNoise, fn: Any, psi: torch.Tensor, mask: Any) -> None:
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)
        self._noise, self._mask = noise, mask
        psi = noise.to_reals(psi)
        self._own, self._components = noise.around(psi[0]), noise.around(psi)

    @constraints.dependent_property
    def support(self) -> Any:
        """Support of the model's site."""
        if self._noise.support is not None:
            return self._noise.support
        return constraints.independent(constraints.real, self.event_dim)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        """Reparametrised draws around psi_0."""
        return self._noise.to_support(self._own.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log density of the mixture, in nats."""
        transform = self._noise.transform  # it remembers u, also where value has underflown
        u = value if transform is None else transform.inv(value)
        terms = self._components.log_prob(u)
        log_prob = terms.logsumexp(0) - math.log(len(terms)) - self._noise.log_jacobian(u, value)
        if self._mask is None or self._mask is True:
            return log_prob
        mask = torch.as_tensor(self._mask, device=log_prob.device)
        return torch.where(mask, log_prob, torch.zeros_like(log_prob))


def _draws(site: str, fn: Any, count: int) -> torch.Tensor:
    try:
        return fn.rsample((count,))
    except (TypeError, ValueError, RuntimeError) as error:
        with torch.no_grad():
            fn.rsample()  # what fails for one draw too has nothing to do with their number
        raise ValueError(contrasts.not_broadcasting(site, (count,), error)) from error


def _check_gradient(site: str, fn: Any) -> None:
    """Refuse noise whose parameters are learned but get no gradient."""
    while not isinstance(fn, ImplicitDistribution):
        fn = fn.base_dist
    if not fn.has_rsample and is_learned(fn.base_dist):
        raise NotImplementedError(players.latent_without_gradient(site, plain_name(fn.base_dist)))
