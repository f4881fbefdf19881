# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Penalties on the critic's loss: what is the same in both backends."""

from __future__ import annotations

from dataclasses import dataclass, field

from array_api_compat import array_namespace

from spread_core.math._arrays import Array
from spread_core.math.ratio import weighted_mean
from spread_core.messages import critics, players
from spread_core.shared_docs import SharedDocs
from spread_core.validation import check_count


@dataclass(frozen=True)
class RegularizerShared(SharedDocs):
    """Base class of penalties on the critic's loss."""

    #: On average, the penalty is computed at every ``every``-th step, and is then as much larger.
    every: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        check_count("every", self.every)


@dataclass(frozen=True)
class R1Shared(RegularizerShared):
    r"""
    :math:`\gamma/2 \; E_P |\nabla_x \mathrm{logit}(x)|^2` at the (noisy) data.

    It makes GAN training converge locally where training without it oscillates or collapses [1,
    equation 9]. With ``every=k`` it is computed at one step in k, chosen at random, and multiplied
    by k (lazy regularisation, [2, appendix B]).

    **References**

    [1] `Which Training Methods for GANs do actually Converge?`, Lars Mescheder, Andreas Geiger,
    Sebastian Nowozin, https://arxiv.org/abs/1801.04406

    [2] `Analyzing and Improving the Image Quality of StyleGAN`, Tero Karras et al.,
    https://arxiv.org/abs/1912.04958

    :param gamma: its weight.
    :param every: one step in that many has the penalty.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0:
            raise ValueError(players.bad_range("R1: gamma", self.gamma, "positive"))

    def _of_slopes(self, squared_norms: Array, weights: Array | None) -> Array:
        """
        The penalty, a scalar.

        :param squared_norms: of the critic's gradients at the data, of the batch shape.
        :param weights: of the data samples, of the batch shape.
        """
        return self.gamma / 2 * weighted_mean(squared_norms, weights)


@dataclass(frozen=True)
class R2Shared(RegularizerShared):
    r"""
    :math:`\gamma/2 \; E_Q |\nabla_y \mathrm{logit}(y)|^2` at the (noisy) draws of the model.

    The mirror image of :class:`R1` [1, equation 10]. Together, ``R1(1.0) + R2(1.0)``, they are the
    zero-centred penalties with which relativistic pairing converges [2].

    **References**

    [1] `Which Training Methods for GANs do actually Converge?`, Lars Mescheder, Andreas Geiger,
    Sebastian Nowozin, https://arxiv.org/abs/1801.04406

    [2] `The GAN is dead; long live the GAN!`, Nick Huang et al., https://arxiv.org/abs/2501.05441

    :param gamma: its weight.
    :param every: one step in that many has the penalty, which is then as much larger.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0:
            raise ValueError(players.bad_range("R2: gamma", self.gamma, "positive"))

    def _of_slopes(self, squared_norms: Array, weights: Array | None) -> Array:
        """
        The penalty, a scalar.

        :param squared_norms: of the critic's gradients at the draws, of the batch shape.
        :param weights: of the draws, of the batch shape.
        """
        return self.gamma / 2 * weighted_mean(squared_norms, weights)


@dataclass(frozen=True)
class SumOfPenaltiesShared(RegularizerShared):
    """
    Several penalties at once, as in ``R1(1.0) + R2(1.0)``.

    :param parts: the penalties, all with the same ``every``.
    """

    parts: tuple[RegularizerShared, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        turns = [part.every for part in self.parts]
        if any(every != self.every for every in turns):
            raise ValueError(critics.unequal_turns(turns))


@dataclass(frozen=True)
class GradientPenaltyShared(RegularizerShared):
    r"""
    :math:`\lambda\, E (|\nabla_x c(x)| - t)^2` at random points between data and model draws.

    With target :math:`t = 1` it is the gradient penalty of WGAN-GP [1, equation 3]. Datum i is
    paired with draw i, so both sides need equal numbers.

    **References**

    [1] `Improved Training of Wasserstein GANs`, Ishaan Gulrajani et al.,
    https://arxiv.org/abs/1704.00028

    :param weight: the factor lambda.
    :param target: the norm that is not penalised.
    :param every: one step in that many has the penalty, which is then as much larger.
    """

    weight: float = 10.0
    target: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weight > 0:
            raise ValueError(players.bad_range("GradientPenalty: weight", self.weight, "positive"))

    def _of_slopes(self, squared_norms: Array, weights: Array | None) -> Array:
        """
        The penalty, a scalar.

        :param squared_norms: of the critic's gradients between data and draws, of the batch shape.
        :param weights: of the data samples, of the batch shape.
        """
        xp = array_namespace(squared_norms)
        # The root's gradient is infinite at zero, where a critic that is still flat stands.
        norms = xp.sqrt(squared_norms + xp.finfo(squared_norms.dtype).smallest_normal ** 0.5)
        return self.weight * weighted_mean(xp.square(norms - self.target), weights)
