# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Pass draws of guide sites through a noise kernel, and score them as mixtures over further draws.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import random
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, biject_to, constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.util import sum_rightmost

from numpyro_spread._gradients import refuse_gradient
from numpyro_spread.distributions import ImplicitDistribution
from numpyro_spread.infer._scan import Inside
from numpyro_spread.infer._sites import is_implicit, mask_of_implicit, plain_name
from numpyro_spread.infer._supports import Supports
from numpyro_spread.noise import SpreadNoise
from numpyro_spread.noise.base import is_concrete, where_valid
from spread_core.messages import contrasts, distributions, players, semi_implicit
from spread_core.noise.implicit_sites import ImplicitSites, SiteNoiseShared


class Spread(ImplicitSites, Inside):
    """
    Sends the draws at implicit guide sites through their kernels.

    :param num_mixture: number of further draws in the mixture that is the density of such a site.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        kernels: Mapping[str, SpreadNoise],
        supports: Supports,
        num_mixture: int,
    ) -> None:
        self._begin(kernels, supports)
        self.num_mixture = num_mixture
        super().__init__(fn)

    def visit(self, msg: Any, inside: bool) -> None:
        """Put the kernel round an implicit site."""
        site, fn = msg["name"], msg["fn"]
        kernel = self._kernel_for(msg, is_implicit(fn), plain_name)
        if kernel is not None:
            noise = SiteNoise(site, fn, kernel, self.supports.get(site))
            msg["fn"] = Mixture(noise, _guarded(site, fn), self.num_mixture)


@jax.tree_util.register_pytree_node_class
class SiteNoise(SiteNoiseShared):
    """The kernel of a site, in the unconstrained space of the site's support."""

    _bijection = staticmethod(biject_to)
    _sum_rightmost = staticmethod(sum_rightmost)

    def tree_flatten(self) -> tuple[tuple[SpreadNoise], SiteNoise]:
        """Into the kernel; the rest is static."""
        rest = copy.copy(self)
        del rest.kernel
        return (self.kernel,), rest

    @classmethod
    def tree_unflatten(cls, rest: SiteNoise, children: Any) -> SiteNoise:
        """Rebuild the mixture with another kernel."""
        result = copy.copy(rest)
        (result.kernel,) = children
        return result

    def to_reals(self, psi: jax.Array) -> jax.Array:
        """Draws of the guide in unconstrained space."""
        if self.transform is None:
            return psi
        u = self.transform.inv(psi)
        inside = self.support(psi).all() & jnp.isfinite(u).all()
        if not is_concrete(inside):
            return where_valid(u, inside)
        if not inside:
            raise ValueError(semi_implicit.semi_outside_support(self.site, self.support))
        return u


class Mixture(Distribution):
    r"""
    z ~ k(z | psi_0), with the log density of :math:`\frac{1}{K+1}\sum_k k(z | \psi_k)`.

    Draws come with the psi they were made from, as NumPyro's intermediates; only such draws can be
    scored.

    :param num_mixture: number K of further draws.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    pytree_data_fields = ("_noise", "_fn")
    pytree_aux_fields = ("_num_mixture",)

    def __init__(self, noise: SiteNoise, fn: Distribution, num_mixture: int) -> None:
        self._noise, self._fn, self._num_mixture = noise, fn, num_mixture
        mask_of_implicit(noise.site, fn)  # refuses here what it cannot be
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Support of the model's site."""
        if self._noise.support is not None:
            return self._noise.support
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def has_rsample(self) -> bool:
        """Draws are differentiable: what is not has been refused."""
        return True

    def expand(self, batch_shape: tuple[int, ...]) -> Mixture:
        """Expand to ``batch_shape`` independent draws: the noise of fn is expanded."""
        return Mixture(self._noise, self._fn.expand(batch_shape), self._num_mixture)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws around psi_0."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(
        self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Draws, the (K + 1) psi of each in unconstrained space, and the draw there."""
        assert key is not None  # a seed handler sees to it
        fn_key, noise_key = random.split(key)
        shape = (self._num_mixture + 1, *sample_shape)
        psi = self._noise.to_reals(_draws(self._noise.site, self._fn, fn_key, shape))
        u = self._noise.around(psi[0]).sample(noise_key).astype(psi.dtype)
        return self._noise.to_support(u), [psi, u]

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> ArrayLike:
        """
        The log density of the mixture, in nats.

        :raises NotImplementedError: without the psi that ``value`` came from.
        """
        if not intermediates:
            raise NotImplementedError(distributions.implicit_has_no_density())
        psi, u = intermediates
        terms = self._noise.around(psi).log_prob(u)
        log_prob = logsumexp(terms, axis=0) - math.log(len(terms))
        log_prob = log_prob - self._noise.log_jacobian(u, jnp.asarray(value))
        mask = mask_of_implicit(self._noise.site, self._fn)
        return log_prob if mask is None else jnp.where(mask, log_prob, 0.0)


class _Mixtures(Distribution):
    """
    Mixtures side by side, as scan stacks them: time is the leftmost batch dim.

    :param each: a mixture whose arrays have time in front.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, each: Mixture) -> None:
        self._each = each
        time = jnp.shape(jax.tree.leaves(each)[0])[0]
        super().__init__((time, *each.batch_shape), each.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Support of each distribution."""
        return self._each.support

    @property
    def has_rsample(self) -> bool:
        """Draws are differentiable."""
        return True

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> ArrayLike:
        """
        The log density of each, in nats.

        :raises NotImplementedError: without the psi that ``value`` came from.
        """
        return jax.vmap(lambda each, *drawn: each.log_prob(*drawn))(
            self._each, value, intermediates
        )


@promote_batch_shape.register
def _promote_mixture(d: Mixture) -> _Mixtures:
    return _Mixtures(d)


def _draws(site: str, fn: Distribution, rng_key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    try:
        return jnp.asarray(fn.sample(rng_key, shape))
    except (TypeError, ValueError) as error:
        fn.sample(rng_key)  # what fails for one draw too has nothing to do with their number
        raise ValueError(contrasts.not_broadcasting(site, shape, error)) from error


def _guarded(site: str, fn: Any) -> Any:
    """``fn`` that refuses gradients in parameters of noise that is not reparametrised."""
    if isinstance(fn, ImplicitDistribution):
        if fn.has_rsample:
            return fn
        message = players.latent_without_gradient(site, plain_name(fn.base_dist))
        base_dist = refuse_gradient(fn.base_dist, NotImplementedError(message))
        return ImplicitDistribution(fn.fn, base_dist, fn.event_shape)
    guarded = copy.copy(fn)
    guarded.base_dist = _guarded(site, fn.base_dist)
    return guarded
