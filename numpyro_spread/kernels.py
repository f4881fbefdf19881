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
from spread_core.math import kernels
from spread_core.math.kernels import *
from spread_core.math.kernels import ConvolvedGaussianKernel as ConvolvedGaussianKernel

__all__: list[str] = []
__all__ += kernels.__all__

kernels.register_classes("jax", register_fields)
