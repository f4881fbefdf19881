# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Check that a site observes its noisy data in the form in which the noise was drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from spread_core.arguments import Key
from spread_core.messages import general, spreading
from spread_core.messages import noise as messages
from spread_core.noise.levels import level_name
from spread_core.patterns import key_of
from spread_core.use_of_data import layout


def check_observation(handed: Any, site: str, fn: Any, observed: Any) -> None:
    """
    Check what a site observes against the noise on its argument.

    Sites that got no noise are none of its business.

    :param handed: the noisy arguments, the backend's ``Handed``.
    :param site: name of the site.
    :param fn: its distribution.
    :param observed: what it observes, an array.
    :raises Learned: if the noise should have been drawn in another shape.
    :raises ValueError: if there is no shape in which it could have been drawn.
    """
    pattern = key_of(handed.located, site)
    if pattern is None:
        return
    key, kernel = handed.located[pattern], handed.noise[str(key_of(handed.noise, pattern))]
    event = tuple(fn.event_shape)
    batch_dim = np.ndim(observed) - len(event) - getattr(kernel, "_added_dims", 0)
    value = (*np.shape(observed)[: max(0, batch_dim)], *event)  # in the coordinates of x
    told = pattern in handed.levels
    by_event = told or kernel._at_events(len(event)) is not kernel
    if by_event and key not in handed.use.events:
        handed.use.see_events(key, len(event))
    drawn = handed.use.layouts.get(key, handed.shapes[key])
    is_drawn_alike = kernel._drawn_alike(drawn, value, len(event))
    if by_event and handed.use.events[key] != len(event):  # a site that shares the argument
        is_drawn_alike = False
    # A level that is told has the batch of the site, whatever the kernel needs.
    if (told or not is_drawn_alike) and key not in handed.use.layouts:
        wanted = layout(handed.shapes[key], value, event)
        if wanted is not None and wanted != drawn:
            handed.use.see_layout(key, wanted)
    if key in handed.undrawn:
        raise handed.undrawn[key]
    if is_drawn_alike:
        return
    try:
        kernel.spread(fn)  # its own refusal says more
    except (TypeError, ValueError, NotImplementedError) as error:
        raise type(error)(general.at_site(site, error)) from error
    kind = type(kernel).__name__
    raise ValueError(spreading.layout_misfit(site, kind, handed.shapes[key], value))


def check_told(
    asked: Collection[str], levels: Mapping[str, Any], located: Mapping[str, Key]
) -> None:
    """
    Refuse to leave out a level that was asked for, as that of a site with another one's data.

    :param asked: the sites that were asked for.
    :param levels: dict from site to level.
    :param located: dict from site to the place of its data.
    :raises NotImplementedError: naming the site.
    """
    for site in sorted(set(asked) - levels.keys()):
        first = next(other for other, key in located.items() if key == located[site])
        text = messages.level_shared(level_name(site), first)
        raise NotImplementedError(general.at_site(site, text))
