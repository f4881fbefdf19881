# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The arguments of PriorContrastELBO that all parts of a step read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spread_core.messages import contrasts
from spread_core.moments import LEAST_DRAWS, default_critic_draws, default_moment_draws
from spread_core.validation import check_count

# Of images a few draws are what a whole step takes.
_MOST_NUMBERS, _LEAST_NORMALISER_DRAWS = 2**20, 16


def _within_memory(count: int, num_numbers: int) -> int:
    """
    A number of draws that are no more than a million numbers together, and at least one.

    :param count: how many are wanted.
    :param num_numbers: how many numbers one has.

    >>> _within_memory(100, 8), _within_memory(100, 2**16)
    (100, 16)
    """
    return max(1, min(count, _MOST_NUMBERS // max(1, num_numbers)))


@dataclass(frozen=True)
class ContrastOptions:
    """
    Arguments of a contrast loss, checked.

    :param critics: one critic for all implicit sites, or a dict from site to critic.
    :param head: the net that gives the moments of the Gaussian, or None.
    :param adaptive: whether guide draws are contrasted with a Gaussian, or with the prior.
    :param regularizer: penalty on the critics, or None.
    :param num_moment_draws: guide draws per datum for the moments; None chooses.
    :param num_critic_draws: guide draws per datum for the critic; None chooses.
    :param name: of the discriminator among the params.
    :param num_particles: number of draws of the guide per datum and step.
    :param at_once: whether all particles are drawn at once.
    :param full: whether the Gaussian has the whole covariance of vectors.
    :param num_normaliser_draws: contrast draws per datum with which the density that the critic
        stands for is normalised; 0 takes its logit as it is.
    """

    critics: Any
    head: Any = None
    adaptive: bool = True
    regularizer: Any = None
    num_moment_draws: int | None = None
    num_critic_draws: int | None = None
    name: str = "discriminator"
    num_particles: int = 1
    at_once: Any = False
    full: bool = False
    num_normaliser_draws: int = 0

    def __post_init__(self) -> None:
        check_count("num_particles", self.num_particles)
        if self.num_moment_draws is not None:
            check_count("num_moment_draws", self.num_moment_draws, 3)
        if self.num_critic_draws is not None:
            check_count("num_critic_draws", self.num_critic_draws)
        if self.head is not None and not self.adaptive:
            raise ValueError(contrasts.head_without_adaptive())

    @property
    def num_at_once(self) -> int:
        """Number of particles that are drawn at once."""
        return self.num_particles if self.at_once else 1

    @property
    def params_site(self) -> str:
        """The param site of the critics, in NumPyro."""
        return f"{self.name}$params"

    @property
    def head_site(self) -> str:
        """The param site of the head, in NumPyro."""
        return f"{self.name}$head"

    @property
    def is_by_site(self) -> bool:
        """Whether each implicit site has a critic of its own."""
        return isinstance(self.critics, Mapping)

    def key_of(self, site: str) -> str | None:
        """The key of the critic that judges an implicit site; None for a critic of all sites."""
        return site if self.is_by_site else None

    def critic(self, key: str | None) -> Any:
        """
        One critic.

        :param key: as :meth:`key_of` gives it.
        :raises ValueError: if there is none for this site.
        """
        if key is None:
            return self.critics
        if key not in self.critics:
            raise ValueError(contrasts.missing_critic(key, self.critics))
        return self.critics[key]

    def with_critics(self, critic: Any) -> ContrastOptions:
        """
        The same with another critic in every place.

        :param critic: the critic.
        """
        critics = dict.fromkeys(self.critics, critic) if self.is_by_site else critic
        return replace(self, critics=critics)

    def with_full_contrast(self) -> ContrastOptions:
        """The same with the whole covariance of the guide's draws, of which there are enough."""
        count = self.num_moment_draws and max(self.num_moment_draws, LEAST_DRAWS)
        return replace(self, adaptive=True, head=None, full=True, num_moment_draws=count)

    def sites_by_critic(self, sites: Iterable[str]) -> dict[str | None, tuple[str, ...]]:
        """Dict from the key of a critic to the implicit sites that it judges."""
        if self.is_by_site:
            return {site: (site,) for site in sites}
        return {None: tuple(sites)} if sites else {}

    def check_sites(self, implicit: Collection[str]) -> None:
        """
        Refuse a critic of a site that is not implicit.

        :param implicit: the guide's implicit sites.
        :raises ValueError: naming the site.
        """
        for site in self.critics if self.is_by_site else ():
            if site not in implicit:
                raise ValueError(contrasts.critic_for_unknown_site(site, implicit))

    def count_moment_draws(self, num_data: int) -> int:
        """Guide draws per datum from which the moments are taken."""
        return self.num_moment_draws or default_moment_draws(num_data)

    def count_spare_draws(self, num_data: int, num_numbers: int) -> int:
        """
        Guide draws per datum for a look at the gap, where none are drawn for moments.

        :param num_data: number of data.
        :param num_numbers: how many numbers a draw for all of them has.
        """
        return _within_memory(self.count_moment_draws(num_data), num_numbers)

    def count_normaliser_draws(self, num_numbers: int) -> int:
        """
        Contrast draws per datum with which the critic's density is normalised.

        :param num_numbers: how many numbers a draw for all data has.
        """
        count = _within_memory(self.num_normaliser_draws, num_numbers)
        return max(_LEAST_NORMALISER_DRAWS, count)

    def count_critic_draws(self, num_data: int) -> int:
        """Guide draws per datum from which a critic of one site learns."""
        return self.num_critic_draws or default_critic_draws(num_data)
