# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""MMD, EnergyDistance and SlicedWasserstein: what is the same in both backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from spread_core.loss_words import LossWords
from spread_core.messages import players, samples
from spread_core.shared_docs import SharedDocs
from spread_core.validation import check_count


class DiscrepancyShared(SharedDocs):
    """Base class of the losses that compare a batch of data with a batch of draws."""

    #: What is reported, and its unit.
    _value, _unit = "", ""
    #: The backend's Gaussian noise kernel.
    _gaussian: ClassVar[Any]

    def __init__(self, noise: Any, given: Sequence[str], num_particles: int) -> None:
        check_count("num_particles", num_particles)
        if isinstance(given, str) or not all(isinstance(name, str) for name in given):
            raise TypeError(players.bad_range("given", given, "a sequence of argument names"))
        options: dict[str, Any] = {"num_particles": num_particles}
        super().__init__(**options)
        self.noise = self._as_noise(noise)
        self.given = tuple(given)

    @staticmethod
    def _as_noise(noise: Any) -> Any:
        """The backend's check of the argument ``noise``."""
        raise NotImplementedError

    def describe(self) -> LossWords:
        """What the reported number is, and what is better."""
        return LossWords(type(self).__name__, self._value, self._unit, is_divergence=True)


class MMDShared(DiscrepancyShared):
    r"""
    Squared maximum mean discrepancy between the data P and the model Q, without a critic.

    .. math::
        E\,k(x, x') + E\,k(y, y') - 2 E\,k(x, y), \qquad x, x' \sim P, \; y, y' \sim Q,

    as the unbiased U-statistic over the batch [1, equation 3]: pairs of different samples only, so
    that its mean is zero where the two agree and single values may be negative. Here y are draws of
    the model at the sites it observes [2].

    Sites are concatenated, as are the arguments in ``given``; without these, a model of x given an
    argument is compared only on average over the arguments. With :class:`GaussianNoise` and a
    :class:`GaussianKernel` the noise is in closed form: the MMD of the spread distributions is that
    of the convolved kernel, and nothing is drawn. In all other cases, such as masked data or a
    scale for every datum, both sides get fresh noise.

    **References**

    [1] `A Kernel Two-Sample Test`, Arthur Gretton et al., JMLR 13, 2012.

    [2] `Training generative neural networks via Maximum Mean Discrepancy optimization`, Gintare
    Karolina Dziugaite, Daniel M. Roy, Zoubin Ghahramani, https://arxiv.org/abs/1505.03906

    :param kernel: a positive definite kernel: any callable from samples of shapes (n, d) and (m, d)
        to an (n, m) matrix, such as :class:`GaussianKernel`.
    :param noise: dict from observed site to noise kernel, or a callable that returns it.
    :param given: names of arguments of the model that are compared together with the sites.
    :param num_particles: number of draws of the model per datum and step.
    :param block_size: rows of the kernel matrix that are held at once; chosen if left out.
    :raises TypeError: if the kernel is not callable.
    """

    _value, _unit = "MMD², unbiased", ""

    def __init__(
        self,
        kernel: Callable[[Any, Any], Any],
        noise: Any = None,
        *,
        given: Sequence[str] = (),
        num_particles: int = 1,
        block_size: int | None = None,
    ) -> None:
        super().__init__(noise, given, num_particles)
        if not callable(kernel):
            raise TypeError(players.bad_range("MMD: kernel", kernel, "callable"))
        self.kernel = kernel
        self.block_size = block_size

    def _has_closed_form(self, noise: Any, event_shape: tuple[int, ...]) -> bool:
        """Whether the kernel can be convolved with the noise: one scale for every datum."""
        if type(noise) is not self._gaussian or not hasattr(self.kernel, "convolved"):
            return False
        # A scale for every datum would need a kernel for every pair.
        shape = getattr(noise.scale, "shape", ())
        return len(shape) <= len(event_shape) and all(
            size in (1, event) for size, event in zip(shape[::-1], event_shape[::-1], strict=False)
        )


class EnergyDistanceShared(DiscrepancyShared):
    r"""
    Energy distance between the data P and the model Q.

    .. math::
        2 E|x - y|^\beta - E|x - x'|^\beta - E|y - y'|^\beta, \qquad 0 < \beta < 2,

    as the unbiased U-statistic over the batch [1]: two samples are compared. It has no bandwidth to
    choose; it grows with the scale of x to the power :math:`\beta`, so that sites on larger scales
    weigh more.

    **References**

    [1] `Energy statistics: A class of statistics based on distances`, Gábor Székely, Maria Rizzo,
    Journal of Statistical Planning and Inference 143, 2013.

    :param beta: the power of the distance.
    :param noise: dict from observed site to noise kernel, or a callable that returns it.
    :param given: names of arguments of the model that are compared together with the sites.
    :param num_particles: number of draws of the model per datum and step.
    :param block_size: rows of the distance matrix that are held at once; chosen if left out.
    :raises ValueError: if beta is not inside (0, 2).
    """

    _value, _unit = "energy distance, unbiased", "units of x to the power beta"

    def __init__(
        self,
        beta: float = 1.0,
        noise: Any = None,
        *,
        given: Sequence[str] = (),
        num_particles: int = 1,
        block_size: int | None = None,
    ) -> None:
        super().__init__(noise, given, num_particles)
        if not 0 < beta < 2:
            raise ValueError(samples.bad_energy_power(beta))
        self.beta = beta
        self.block_size = block_size


class SlicedWassersteinShared(DiscrepancyShared):
    r"""
    Sliced Wasserstein distance between the data P and the model Q, to the power p.

    The mean over random directions :math:`\theta` on the sphere of the one-dimensional
    :math:`W_p^p(\theta^\top x, \theta^\top y)`, which sorting gives exactly [1, 2]. Fresh
    directions are drawn at every step. Unlike the other two losses it is biased upwards: two
    batches of one distribution are a positive distance apart.

    **References**

    [1] `Sliced and Radon Wasserstein Barycenters of Measures`, Nicolas Bonneel et al., Journal of
    Mathematical Imaging and Vision 51, 2015.

    [2] `Generative Modeling using the Sliced Wasserstein Distance`, Ishan Deshpande, Ziyu Zhang,
    Alexander Schwing, https://arxiv.org/abs/1803.11188

    :param num_projections: number of directions per step.
    :param noise: dict from observed site to noise kernel, or a callable that returns it.
    :param p: the order, at least 1; the value is in units of x to that power.
    :param given: names of arguments of the model that are compared together with the sites.
    :param num_particles: number of draws of the model per datum and step.
    :raises ValueError: if an argument is out of its range.
    """

    _value, _unit = "sliced Wasserstein", "units of x to the power p"

    def __init__(
        self,
        num_projections: int = 100,
        noise: Any = None,
        *,
        p: float = 2.0,
        given: Sequence[str] = (),
        num_particles: int = 1,
    ) -> None:
        super().__init__(noise, given, num_particles)
        check_count("num_projections", num_projections)
        if not 1 <= p < float("inf"):
            raise ValueError(samples.bad_order(p))
        self.num_projections = num_projections
        self.p = p
