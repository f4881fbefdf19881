# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""SemiImplicitELBO: what is the same in both backends."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, ClassVar

from spread_core.losses.over_stock_elbo import OverStockELBO
from spread_core.messages import general, moving, semi_implicit
from spread_core.noise.base import Backend
from spread_core.noise.channel import Channel
from spread_core.noise.moving import Moving
from spread_core.noise.transformed import Transformed


class SemiImplicitELBOShared(OverStockELBO):
    r"""
    Evidence lower bound for implicit guides, critic-free: draws of the guide pass a noise kernel.

    A guide site :math:`\psi \sim` ``ImplicitDistribution`` becomes
    :math:`z \sim k(z \mid \psi)`, whose conditional density is known. With K = ``num_mixture``
    further draws :math:`\psi_1, \dots, \psi_K` of the guide in addition to the :math:`\psi_0` that
    produced z,

    .. math::
        \mathbb{E}\Big[ \log p(x, z)
        - \log \frac{1}{K+1} \sum_{k=0}^{K} k(z \mid \psi_k) \Big] \le \log p(x)

    in nats [1, eq. 8; 2, section 3.1]. Unlike the contrast ELBOs' estimates, this is a **true lower
    bound** for every K; it grows with K, towards the ELBO of the marginal
    :math:`q(z) = \mathbb{E}\, k(z \mid \psi)` [2]. All :math:`\psi_k` carry gradients. The cost is
    that of K + 1 forward passes of ``fn``, in one vectorised call. Everything else (sites with
    densities, plates, subsampling, masks, particles) is the stock ``elbo``'s.

    **Where the noise is added.** If the model's site of the same name has a constrained support,
    then fn must return values in it; all K + 1 draws are mapped to unconstrained space by
    ``biject_to(support).inv``, the noise is added there, z is the image of the result, and the
    density contains minus the log-determinant of the Jacobian. A scale is thus in unconstrained
    units, and its event shape is that of the unconstrained value. An auxiliary site, which the
    model does not have, is in unconstrained space already. Bounds of a support that move with
    params or other latents are refused; so are bounds that move with data, in Pyro always, in
    NumPyro under ``jit``.

    **Draws of the posterior.** The guide alone gives :math:`\psi`, without noise. For z use
    ``Predictive(loss.spread_guide(model, guide), ...)``.

    **References**

    [1] `Semi-Implicit Variational Inference`, Mingzhang Yin, Mingyuan Zhou,
    https://arxiv.org/abs/1805.11183

    [2] `Doubly Semi-Implicit Variational Inference`, Dmitry Molchanov, Valery Kharitonov, Artem
    Sobolev, Dmitry Vetrov, https://arxiv.org/abs/1810.02789

    :param noise: dict from implicit guide site to noise kernel, one for each; or a callable that
        returns it, called with the model's arguments at every draw, in which params and modules may
        be used, so that a scale is learned or amortised (in NumPyro if the guide goes through
        :meth:`register`).
    :param num_mixture: number K >= 0 of further draws; 0 is the hierarchical bound.
    :param elbo: the stock ELBO to evaluate; ``Trace_ELBO()`` by default. Also ``TraceGraph_ELBO``,
        ``TraceMeanField_ELBO``, ``TraceEnum_ELBO``, their compiled forms, and ``RenyiELBO`` (a
        bound too where its alpha is not negative, since :math:`p(x, z)` over the mixture is an
        unbiased estimate of p(x)).
    :raises TypeError: if noise is not such a dict, or elbo not an ELBO.
    :raises ValueError: if num_mixture is not such an integer or a kernel is discrete.
    :raises NotImplementedError: if elbo is one that cannot be used, saying why.
    """

    _value = "minus the semi-implicit bound"
    _unknown = "whether it is a lower bound"
    #: Where the backend's kernels are known.
    _backend: ClassVar[Backend]

    def __init__(self, noise: Any, num_mixture: int = 10, elbo: Any = None) -> None:
        elbo = self._checked(elbo)
        options: dict[str, Any] = {
            "num_particles": elbo.num_particles,
            "vectorize_particles": elbo.vectorize_particles,
        }
        super().__init__(**options)
        is_integer = isinstance(num_mixture, Integral) and not isinstance(num_mixture, bool)
        if not is_integer or num_mixture < 0:
            raise ValueError(semi_implicit.semi_bad_num_mixture(num_mixture))
        by_call = callable(noise) and not self._backend.is_kernel(noise)
        if not by_call and (not isinstance(noise, Mapping) or not noise):
            raise TypeError(semi_implicit.semi_bad_noise(noise))
        self.noise = self._backend.as_noise(noise)
        if isinstance(self.noise, Mapping):
            refuse_discrete(self.noise)
        self.num_mixture = int(num_mixture)
        self.elbo = elbo

    def _kernels(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """The kernels of this step."""
        kernels = self._backend.kernels_of(self.noise, args, kwargs)
        refuse_discrete(kernels)
        return kernels


def refuse_discrete(kernels: Mapping[str, Any]) -> None:
    """Refuse kernels for class labels, also inside a transform: z must be continuous."""
    for site, kernel in kernels.items():
        if isinstance(kernel, Moving):
            raise TypeError(moving.moving_guide_noise(kernel._name, site))
        while isinstance(kernel, Transformed):
            kernel = kernel.noise
        if isinstance(kernel, Channel):
            name = type(kernel).__name__
            raise ValueError(general.at_site(site, semi_implicit.semi_discrete_kernel(name)))
