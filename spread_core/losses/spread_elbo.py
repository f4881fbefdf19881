# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""SpreadELBO: what is the same in both backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from spread_core.losses.over_stock_elbo import OverStockELBO
from spread_core.messages import spreading
from spread_core.paths import Where


class SpreadELBOShared(OverStockELBO):
    r"""
    Evidence lower bound of the spread model, for models whose likelihood is zero almost everywhere.

    Data and model pass through the same noise kernel :math:`k(y \mid x)`, and the stock ``elbo`` is
    evaluated on the result [1, section 4]. With :math:`p(x \mid z) = \delta(x - g(z))`,

    .. math::
        \mathbb{E}_{p(x)\, k(y|x)}\Big[ \mathbb{E}_{q(z|y)} \log k(y \mid g(z))
        - \mathrm{KL}[q(z \mid y) \,\|\, p(z)] \Big]
        \le \mathbb{E}\, \log \tilde p(y),

    in nats, and maximising it minimises :math:`\mathrm{KL}[\tilde p_{data} \| \tilde p_{model}]`,
    which is zero only where the clean distributions agree. At every step and for every particle a
    fresh :math:`y \sim k(y \mid x)` is drawn and passed to model and guide **instead of** x, so the
    likelihood is evaluated at y. Importance-weighted bounds (Renyi, tail-adaptive, TMC, a guide of
    several samples) share one y among the particles of a step, since all of them must bound the
    same :math:`\log \tilde p(y)`. The model needs no change. At test time no noise is added: where
    the model takes ``x=None`` and then draws, ``Predictive`` with ``x=None`` gives clean samples.
    Under a plate that subsamples full data inside the model, noise is drawn for the rows that are
    taken, and for all of them only if model or guide read them all.

    **References**

    [1] `Spread Divergence`, Mingtian Zhang, Peter Hayes, Tom Bird, Raza Habib, David Barber,
    https://arxiv.org/abs/1811.08968

    :param noise: dict from observed site to noise kernel, or to noise of ``learned``, in which
        ``"x_*"`` stands for all observed sites of such a name; or a callable that returns kernels,
        called with the model's (clean) arguments at every draw, in which params may be used (in
        NumPyro if the guide goes through :meth:`register`). A scale that is an argument of the
        model reaches the kernel that way; ``annealed`` needs no argument.
    :param elbo: the stock ELBO to evaluate; ``Trace_ELBO()`` by default.
    :param data: dict from site to the name of the model argument that carries its data, or to a
        way into one: ``"batch.image"`` or ``("batch", "image")``. Left out: the argument of the
        site's name, else the first.
    :raises TypeError: if noise is not such a dict or elbo not an ELBO.
    :raises NotImplementedError: if elbo is one that cannot be spread, saying why.
    """

    _value = "minus the ELBO of the spread data"
    _unknown = "how its particles share noise"
    #: From ``noise``, ``data``, whether noise is learned and levels are told to what draws it.
    _make_spreading: ClassVar[Any]

    def __init__(
        self, noise: Any, elbo: Any = None, data: Mapping[str, Where] | None = None
    ) -> None:
        self.elbo = self._checked(elbo)
        super().__init__(**self._options())
        if noise is None:
            raise TypeError(spreading.bad_noise_argument(noise))
        self._spreading = self._make_spreading(noise, data, True, True)
        self.noise, self.data = self._spreading.noise, self._spreading.data
        self._prepare()

    def _options(self) -> dict[str, Any]:
        """Arguments of the backend's base class of losses."""
        return {"num_particles": self.elbo.num_particles}

    def _prepare(self) -> None:
        """Copy the stock ELBO, with its particles on a draw of the noise each."""
        raise NotImplementedError
