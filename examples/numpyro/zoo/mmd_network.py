# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
MMD network
===========

No critic: draws and data are compared by a kernel two-sample statistic (Li, Swersky, Zemel 2015;
Dziugaite, Roy, Ghahramani 2015), with four bandwidths up to the median distance of the data.

    python examples/numpyro/zoo/mmd_network.py --output zoo-mmd-network
"""

from __future__ import annotations

from parts import train_generator
from studies.gan_study import bandwidths
from studies.zoo import Settings, Trained, ZooData, main

from numpyro_spread import MMD, GaussianKernel


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    kernel = GaussianKernel(bandwidths(data.dataset))
    return train_generator(data, settings, lambda net: MMD(kernel), critic_steps=0)


if __name__ == "__main__":
    main("numpyro", "mmd_network", train)
