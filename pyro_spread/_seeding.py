# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Random numbers of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
from pyro.util import get_rng_state, set_rng_state


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """
    Random numbers from a seed, after which the global ones go on as before.

    :param seed: the seed.
    """
    before = get_rng_state()
    pyro.set_rng_seed(seed)
    try:
        yield
    finally:
        set_rng_state(before)
