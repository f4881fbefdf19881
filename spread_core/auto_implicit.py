# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit: what is the same in both backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spread_core.latents import LatentGroup, check_sizes
from spread_core.messages import autoguide
from spread_core.shared_docs import SharedDocs


class AutoImplicitShared(SharedDocs):
    r"""
    A guide over all continuous latents of a model that can be sampled but has no density.

    Latents outside plates are drawn jointly, in unconstrained space, at the auxiliary site
    ``_auto_latent``; those inside plates at one auxiliary site per plate stack, as ``_auto_data``
    or ``_auto_groups_data``, in the same plates. Each is an :class:`ImplicitDistribution` of

    .. math::
        u = m + s \odot (\epsilon_{1:d} + f(\epsilon, \operatorname{sign} \epsilon, h)), \qquad
        \epsilon \sim \mathcal{N}(0, I_{d + \mathrm{noise\_dim}}),

    f an MLP, which is zero at first: the guide starts as a Gaussian with location and scale of the
    prior. By the signs it can jump, so that modes part without draws between them. The latents
    themselves are ``Delta`` sites with the log-Jacobian of the bijection to their support, as in
    ``AutoContinuous``. Locally, m, s and the embedding h are params of every datum; with an
    ``encoder``, h are its features and m, s are linear in them. Train it with
    ``PriorContrastELBO`` or ``SemiImplicitELBO``.

    Groups of different plates are independent of each other given the data: where global and local
    latents depend on each other in the posterior, as scale and effects in a funnel do, write the
    guide by hand. Supports must not depend on other latents.

    :param model: the model.
    :param noise_dim: dimensions of the noise beyond those of the latents; ``max(8, d)`` by default.
    :param hidden: sizes of the hidden layers of f.
    :param encoder: for local latents, a callable of the model's arguments: a module (a
        ``torch.nn.Module``; in NumPyro of flax linen, flax nnx or equinox), trained with the guide,
        or a function. It returns features of shape batch + (number of features,), or a dict of them
        by plate names joined by ``_``. Plates then are as large as the features, so that batches
        may differ in size; features of all data are subsampled.
    :param init_samples: number of runs of the model that find location and scale of the prior, by
        quantiles. Plates that subsample, and amortised ones, share them.
    :param create_plates: as in other autoguides: a callable of the model's arguments that returns
        plates, for data subsampling.
    :param prefix: begins the names of auxiliary sites and params.
    :raises ValueError: if a size makes no sense; when it is first called, if latents are discrete
        or there are none.
    :raises TypeError: if encoder cannot be called.
    """

    #: Number of draws behind :meth:`median` and :meth:`quantiles`.
    num_quantile_draws = 1000

    prototype_trace: Any

    def __init__(
        self,
        model: Callable[..., Any],
        noise_dim: int | None = None,
        hidden: Sequence[int] = (64, 64),
        *,
        encoder: Callable[..., Any] | None = None,
        init_samples: int = 256,
        create_plates: Callable[..., Any] | None = None,
        prefix: str = "auto",
    ) -> None:
        options = self._parent_options(model, prefix) | {"create_plates": create_plates}
        super().__init__(**options)
        check_sizes(noise_dim, hidden, init_samples)
        self._bind_encoder(encoder)
        self.noise_dim, self.hidden, self.init_samples = noise_dim, tuple(hidden), init_samples
        self.prefix = prefix
        self.encoder = encoder
        self._groups: list[LatentGroup] = []

    def _parent_options(self, model: Any, prefix: str) -> dict[str, Any]:
        """Arguments of the backend's base class of autoguides."""
        raise NotImplementedError

    def _bind_encoder(self, encoder: Any) -> None:
        """Refuse what cannot be an encoder in this backend."""
        raise NotImplementedError

    @property
    def implicit_sites(self) -> list[str]:
        """
        Names of the auxiliary sites, the global one first: a critic may be given for each.

        :raises RuntimeError: before the guide has been called.
        """
        if self.prototype_trace is None:
            raise RuntimeError(autoguide.not_set_up())
        return [self._site_name(group) for group in self._groups]

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """
        Not available: an implicit guide has no density.

        :raises NotImplementedError: always, naming the alternatives.
        """
        raise NotImplementedError(autoguide.no_guide_density())

    def _site_name(self, group: LatentGroup) -> str:
        return f"_{self.prefix}_{group.key}"
