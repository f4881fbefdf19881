# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Positive definite kernels k(x, y) of the two-sample losses, here on arrays of JAX.

    >>> import jax.numpy as jnp
    >>> matrix = GaussianKernel(1.0)(jnp.zeros((1, 2)), jnp.array([[0.0, 0.0], [1.0, 1.0]]))
    >>> print(matrix.round(2))
    [[1.   0.37]]
    >>> print(RationalQuadraticKernel(1.0)(jnp.zeros((1, 2)), jnp.array([[1.0, 1.0]])))
    [[0.5]]
    >>> print(LaplaceKernel(2.0)(jnp.zeros((1, 2)), jnp.array([[1.0, 1.0]])).round(2))
    [[0.37]]
"""

from numpyro_spread._pytree import register_fields
from spread_core.math.kernels import *  # noqa: F403  # what is public there is public here
from spread_core.math.kernels import __all__ as __all__
from spread_core.math.kernels import register_classes

register_classes("jax", register_fields)
