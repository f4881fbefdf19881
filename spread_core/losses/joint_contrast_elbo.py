# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""JointContrastELBO: what is the same in both backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spread_core.loss_words import NOT_A_BOUND, LossWords, divergence_name
from spread_core.math.divergences import KL, Divergence, ReverseKL
from spread_core.messages import contrasts, players
from spread_core.messages import simulations as tables
from spread_core.paths import Where
from spread_core.shared_docs import SharedDocs
from spread_core.simulated import Table
from spread_core.validation import check_count


class JointContrastShared(SharedDocs):
    r"""
    Divergence between the model's pairs (x, z) and the guide's, learned from draws of both.

    As in every loss, P is the side with the data and Q the model. P pairs data with the guide's
    draws, :math:`p_{data}(x)\, q(z \mid x)`. Q runs the model forward: it draws z' and then x'
    given z'. A critic learns :math:`\log P/Q` by distinguishing the pairs, so neither likelihood,
    prior nor guide needs a density. The divergence is that of the guide from the model, D(Q || P).
    Three are well known:

    - ``ReverseKL()``, ``KL[guide || model]``: :math:`\mathrm{KL}[P \| Q]`, minus the ELBO up to the
      entropy of the data: the likelihood-free variational inference of [1], the joint contrast of
      [2];
    - ``JSPi(pi)``: at 1/2 adversarially learned inference and BiGAN [3, 4];
    - ``KL()``, ``KL[model || guide]``: :math:`\mathrm{KL}[Q \| P]`. If the guide has a density,
      this is neural posterior estimation [5]: :math:`-E_Q \log q(z' \mid x')` is minimised
      directly, and no critic is needed and none trained.

    Latents in no plate of the data are global: they keep their densities, both sides share the
    guide's draws, and the critic may look them up by name (hierarchical implicit models [1],
    ``ReverseKL()`` only). A pair of the model is always x' with the z' that produced it.

    The reported value is the divergence, an **adversarial estimate and not a bound**, in nats: for
    ``ReverseKL()`` scaled by plates and summed over the data, with the globals' KL, as minus an
    ELBO is; otherwise the mean over the data. For neural posterior estimation it is the mean of
    :math:`-\log q(z' \mid x')` over the batch dims that all its sites share: with a global latent
    the data are one.

    **References**

    [1] `Hierarchical Implicit Models and Likelihood-Free Variational Inference`, Dustin Tran,
    Rajesh Ranganath, David M. Blei, https://arxiv.org/abs/1702.08896

    [2] `Variational Inference using Implicit Distributions`, Ferenc Huszar,
    https://arxiv.org/abs/1702.08235

    [3] `Adversarially Learned Inference`, Vincent Dumoulin et al., https://arxiv.org/abs/1606.00704

    [4] `Adversarial Feature Learning`, Jeff Donahue, Philipp Krähenbühl, Trevor Darrell,
    https://arxiv.org/abs/1605.09782

    [5] `Fast epsilon-free Inference of Simulation Models with Bayesian Conditional Density
    Estimation`, George Papamakarios, Iain Murray, https://arxiv.org/abs/1605.06376

    :param discriminator: a module called as ``discriminator(values, *args, **kwargs)``, where
        ``values`` is a dict of data and local latents; it returns one logit for every pair, large
        for those of the guide. On the model's pairs ``args`` still are the data: look at
        ``values``. May be left out with ``KL()`` and a guide with a density.
    :param divergence: D(model || guide), so that ``KL()`` is ``KL[model || guide]``;
        ``ReverseKL()`` by default. Its ``pi`` is the share of the model's pairs.
    :param noise: dict from observed site to noise kernel, or a callable that returns one. Data and
        the model's x' pass through it, with fresh draws; guide and critic see the noisy ones.
    :param data: dict from site to the name of the model argument that carries its data. Left out:
        the argument of the site's name, else the first.
    :param exclude_invalid_x: whether simulations that are NaN or inf are left out, for ``KL()``
        without a discriminator; otherwise they are an error. What is learned is the posterior given
        that the simulator succeeds, which for data that were observed, and so are finite, is the
        posterior itself. One :class:`InvalidSimulationsWarning` says how many there are. As ``sbi``
        calls it.
    :param regularizer: penalty on the discriminator's gradient, such as ``R1(1.0)``.
    :param simulations: a table of runs of the model, :class:`Simulations`, for ``KL()`` without a
        discriminator: every step takes ``num_particles`` of its rows, at random and with
        replacement, instead of running the model. Rows that failed are never taken. Its arrays lie
        on the backend's default device.
    :param num_particles: number of draws of guide and model per datum and step, 1 by default. With
        ``simulations`` the number of rows, 256 by default and at most all: each then once.
    :param vectorize_particles: whether particles are run at once; left out, as in the backend's own
        ELBO. Every particle is a run of the whole model, latents outside of plates included. In
        NumPyro (True by default) by ``vmap``; False is one after another, a function another way.
        In Pyro (False by default) in an outermost plate, for ``KL()`` without a discriminator. A
        model or guide in which particles would not keep apart is run one by one, and that is said.
    :param name: of the discriminator among the params; in NumPyro they are at ``name$params``.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of its range, or the discriminator is missing.
    :raises NotImplementedError: if the divergence has no gradient.
    """

    #: The backend's noise on the data, and its arrays from those of NumPy.
    _spreading_class: Any = None
    _as_array: Any = None

    vectorize_particles: Any

    def __init__(
        self,
        discriminator: Any = None,
        divergence: Divergence | None = None,
        noise: Any = None,
        *,
        data: Mapping[str, Where] | None = None,
        regularizer: Any = None,
        exclude_invalid_x: bool = False,
        simulations: Any = None,
        num_particles: int | None = None,
        vectorize_particles: Any = None,
        name: str = "discriminator",
    ) -> None:
        # Before the table is copied: of another loss it cannot be.
        if simulations is not None and not (discriminator is None and isinstance(divergence, KL)):
            raise ValueError(tables.table_without_forward())
        table = None if simulations is None else Table(simulations, self._as_array)
        if table is not None:
            num_particles = table.rows_per_step(num_particles)
        num_particles = 1 if num_particles is None else num_particles
        check_count("num_particles", num_particles)
        options: dict[str, Any] = {"num_particles": num_particles}
        if vectorize_particles is not None:
            options["vectorize_particles"] = vectorize_particles
        super().__init__(**options)
        self.simulations, self._table = simulations, table
        divergence = ReverseKL() if divergence is None else divergence
        if not isinstance(divergence, Divergence):
            raise TypeError(players.no_divergence(divergence))
        self._check_players(discriminator, divergence, regularizer)
        if discriminator is None and not isinstance(divergence, KL):
            raise ValueError(contrasts.joint_nothing_implicit(type(divergence).__name__))
        if exclude_invalid_x and (discriminator is not None or not isinstance(divergence, KL)):
            raise ValueError(tables.exclude_without_forward())
        self.discriminator = discriminator
        self.divergence = divergence
        self.regularizer = regularizer
        self.exclude_invalid_x = bool(exclude_invalid_x)
        self.name = name
        self._spreading = self._spreading_class(noise, None if noise is None else data)
        self.noise, self.data = self._spreading.noise, dict(data or {})
        self._set_up()

    def _check_players(self, discriminator: Any, divergence: Divergence, regularizer: Any) -> None:
        """The backend's checks: of critic and penalty, and that the divergence has a gradient."""
        raise NotImplementedError

    def _set_up(self) -> None:
        """Whatever else the backend keeps."""
        raise NotImplementedError

    @property
    def _pi(self) -> float:
        """Share of the guide's pairs, whose label is one, among the critic's samples."""
        return 1 - float(self.divergence.pi)

    def on_table(self, simulations: Any, num_particles: int) -> Any:
        """
        The same loss with another table of simulations.

        :param simulations: the table.
        :param num_particles: number of its rows in a step.
        :raises ValueError: if the loss trains a discriminator.
        """
        return type(self)(
            self.discriminator,
            self.divergence,
            self.noise or None,
            data=self.data or None,
            simulations=simulations,
            num_particles=num_particles,
            vectorize_particles=self.vectorize_particles,
            name=self.name,
        )

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        name = type(self).__name__
        if self.discriminator is None:
            reason = "The guide has a density: no critic is needed, and none trained."
            value = "minus the guide's log density at the model's latents"
            return LossWords(name, value, no_critic=reason)
        return LossWords(
            name,
            f"{divergence_name(self.divergence)} of the pairs (x, z)",
            caution=NOT_A_BOUND,
            is_divergence=True,
            sides=("guide's pairs", "model's pairs"),
            pi=self._pi,
        )

    def _check_globals(self, global_sites: tuple[str, ...]) -> None:
        """
        Refuse latents that all data share, except under ``ReverseKL()``.

        :param global_sites: their names.
        :raises ValueError: naming the first.
        """
        if global_sites and not isinstance(self.divergence, ReverseKL):
            name = type(self.divergence).__name__
            raise ValueError(contrasts.joint_global_divergence(global_sites[0], name))
