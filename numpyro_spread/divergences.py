# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Divergences of the data P from the model Q, here on arrays of JAX.

    >>> import jax.numpy as jnp
    >>> JSPi(0.5).estimate(jnp.array([80.0]), jnp.array([-80.0]))
    Array(0.6931472, dtype=float32)
    >>> KL().generator_loss(jnp.array([0.0]))
    Array([-1.], dtype=float32)
    >>> non_saturating_loss(jnp.array([-80.0]))
    Array([80.], dtype=float32)
"""

from spread_core.math import divergences
from spread_core.math.divergences import *
from spread_core.math.ratio import non_saturating_loss

__all__ = ["non_saturating_loss"]
__all__ += divergences.__all__
