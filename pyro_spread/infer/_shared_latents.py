# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Warn of latents that all data share, where a loss assumes independent data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pyro_spread.infer._datum import data_plate, frames_of
from pyro_spread.infer._sites import is_latent, plain_name
from spread_core.messages import players
from spread_core.remembered import Remembered

_warned: Remembered[bool] = Remembered()


def warn_of_shared_latents(
    model: Callable[..., Any],
    sites: Mapping[str, Any],
    observed: Mapping[str, Any],
    dims: Mapping[str, int | None],
    of_guide: Collection[str],
) -> None:
    """
    Say once for every model that a latent outside the data's plate comes from its prior.

    :param model: the model.
    :param sites: dict from name to site of its trace.
    :param observed: the sites that are compared.
    :param dims: their dimensions that count the data.
    :param of_guide: names of the latents that the guide has drawn.
    """
    name, site = next(iter(observed.items()))
    dim = dims[name]
    if dim is None or _warned.get(model):
        return
    plate = data_plate(site)

    def is_shared(latent: Mapping[str, Any]) -> bool:
        if plate is not None:
            return plate not in {frame.name for frame in frames_of(latent)}
        return len(latent["fn"].batch_shape) < -dim

    for latent, site in sites.items():
        if latent in observed or latent in of_guide or not is_latent(site):
            continue
        if is_shared(site) and plain_name(site["fn"]) != "Delta":
            _warned.keep(model, True)
            warnings.warn(players.shared_draw(latent, plate), UserWarning, stacklevel=2)
            return
