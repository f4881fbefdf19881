# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Prior and posterior at one observation, of which rounds simulate."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax import random

from numpyro_spread._forward_runs import ForwardRuns
from numpyro_spread._inputs import as_array
from numpyro_spread._typing import Args, Kwargs, Model, RngKey
from numpyro_spread.autoguide.amortized import AutoAmortized
from numpyro_spread.simulate import run_model
from spread_analysis.simulating import Options
from spread_analysis.simulations import Simulations
from spread_core.amortized.proposals import ProgramPrior
from spread_core.inputs import converted

_CHUNK = 8192


def prior_of(
    model: Model, guide: AutoAmortized, observed: Mapping[str, Any], args: Args, kwargs: Kwargs
) -> ProgramPrior:
    """
    The prior of a model's latents.

    :param model: the model.
    :param guide: a guide of it, set up.
    :param observed: dict from data site to the observation.
    :param args: positional arguments of the model.
    :param kwargs: its keyword arguments.
    """
    args, kwargs = converted((args, kwargs), as_array)

    def program(seed: int, given: Mapping[str, Any]) -> ForwardRuns:
        found = ForwardRuns(model, args, kwargs, random.key(seed), given)
        found.batched = found.cannot_batch() is None
        return found

    return ProgramPrior(program, guide.supports, observed)


def simulate_at(
    latents: Mapping[str, Any],
    data_sites: Sequence[str],
    model: Model,
    args: Args,
    kwargs: Kwargs,
    seed: RngKey,
    progress_bar: bool,
) -> Simulations:
    """
    Run a model forward with its latents given.

    :param latents: dict from site to values, one a row.
    :param data_sites: what is drawn.
    :param model: the model.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :param seed: of all random numbers.
    :param progress_bar: whether to show one.
    """
    number = len(next(iter(latents.values())))
    size = min(number, 1000)
    options = Options(number, 1, seed, None, data_sites, size, progress_bar, latents)
    return run_model(options, model, *args, **kwargs)


class AtObservation:
    """
    The posterior at one observation.

    :param guide: the guide.
    :param params: its params.
    :param prior: of the model's latents, at the observation.
    """

    def __init__(
        self, guide: AutoAmortized, params: Mapping[str, Any], prior: ProgramPrior
    ) -> None:
        self.guide, self.params = copy.copy(guide), params
        first = prior.first
        self._row = Simulations(first.values, list(prior.observed), first.masks)

    def draw(self, number: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """
        Draws, and their log densities in nats.

        :param number: how many.
        :param seed: of the draws.
        """
        parts = []
        for k in range(-(-number // _CHUNK)):
            key = random.fold_in(random.key(seed), k)
            parts.append(self.guide.sample_rows(key, self.params, self._row, _CHUNK))
        drawn = {
            name: np.concatenate([np.asarray(part[name])[:, 0] for part in parts])[:number]
            for name in parts[0]
        }
        return drawn, self.log_prob(drawn)

    def log_prob(self, values: Mapping[str, Any]) -> np.ndarray:
        """
        Log densities, in nats.

        :param values: dict from site to values, one a row.
        """
        number = len(next(iter(values.values())))
        # Few sizes, each of which is compiled.
        size = min(_CHUNK, max(256, 1 << (number - 1).bit_length()))
        found = []
        for start in range(0, number, size):
            rows = np.minimum(np.arange(start, start + size), number - 1)
            part = {name: np.asarray(value)[rows][:, None] for name, value in values.items()}
            found.append(self.guide.log_prob_rows(self.params, self._row, part)[:, 0])
        return np.concatenate(found)[:number].astype(float)
