# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The losses. Each is used in an unmodified SVI."""

from numpyro_spread.infer import discrepancy
from numpyro_spread.infer.adversarial_divergence import AdversarialDivergence
from numpyro_spread.infer.contrast_elbo import PriorContrastELBO
from numpyro_spread.infer.discrepancy import *
from numpyro_spread.infer.hinge_critic import HingeCritic
from numpyro_spread.infer.joint_contrast_elbo import JointContrastELBO
from numpyro_spread.infer.least_squares_critic import LeastSquaresCritic
from numpyro_spread.infer.relativistic_critic import RelativisticCritic
from numpyro_spread.infer.semi_implicit_elbo import SemiImplicitELBO
from numpyro_spread.infer.spread_elbo import SpreadELBO
from numpyro_spread.infer.wasserstein_critic import WassersteinCritic

__all__ = [
    "AdversarialDivergence",
    "HingeCritic",
    "JointContrastELBO",
    "LeastSquaresCritic",
    "PriorContrastELBO",
    "RelativisticCritic",
    "SemiImplicitELBO",
    "SpreadELBO",
    "WassersteinCritic",
]
__all__ += discrepancy.__all__
