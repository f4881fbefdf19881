# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Wasserstein GAN
===============

The critic is held to slope one by a penalty on its gradient (Arjovsky et al. 2017; Gulrajani et al.
2017), and moves three times for each step of the generator.

    python examples/pyro/zoo/wasserstein_gan.py --output zoo-wasserstein-gan
"""

from __future__ import annotations

from parts import train_generator
from studies.zoo import Settings, Trained, ZooData, main

from pyro_spread import WassersteinCritic, concat_sites


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    return train_generator(
        data, settings, lambda net: WassersteinCritic(concat_sites(net, "x")), critic_steps=3
    )


if __name__ == "__main__":
    main("pyro", "wasserstein_gan", train)
