# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Positive definite kernels k(x, y) of the two-sample losses, here on tensors.

    >>> import torch
    >>> GaussianKernel(1.0)(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    tensor([[1.0000, 0.3679]])
    >>> RationalQuadraticKernel(1.0)(torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]))
    tensor([[0.5000]])
    >>> LaplaceKernel(2.0)(torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]))
    tensor([[0.3679]])
"""

from spread_core.math import kernels
from spread_core.math.kernels import *
from spread_core.math.kernels import ConvolvedGaussianKernel as ConvolvedGaussianKernel

__all__: list[str] = []
__all__ += kernels.__all__
