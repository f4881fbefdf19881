# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Divergences of the data P from the model Q, here on tensors.

    >>> import torch
    >>> JSPi(0.5).estimate(torch.tensor([80.0]), torch.tensor([-80.0]))
    tensor(0.6931)
    >>> KL().generator_loss(torch.tensor([0.0]))
    tensor([-1.])
    >>> non_saturating_loss(torch.tensor([-80.0]))
    tensor([80.])
"""

from spread_core.math import divergences
from spread_core.math.divergences import *
from spread_core.math.ratio import non_saturating_loss

__all__ = ["non_saturating_loss"]
__all__ += divergences.__all__
