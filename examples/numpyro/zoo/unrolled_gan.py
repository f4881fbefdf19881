# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Unrolled GAN
============

The generator looks ahead: its gradient passes through five gradient steps that the critic would
take in answer (Metz et al. 2017). A generator that puts all its mass where the critic is fooled at
present gains little by it. The critic itself moves as in ``gan.py``; no noise, no penalty.

    python examples/numpyro/zoo/unrolled_gan.py --output zoo-unrolled-gan
"""

from __future__ import annotations

from parts import train_generator
from studies.zoo import Settings, Trained, ZooData, main

from numpyro_spread import AdversarialDivergence, JSPi, concat_sites

NUM_STEPS_AHEAD = 5
# With longer steps than this the critic, which has no penalty, jumps.
STEP_SIZE = 0.02


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    def loss(net):
        return AdversarialDivergence(
            concat_sites(net, "x"),
            JSPi(0.5),
            unroll=NUM_STEPS_AHEAD,
            unroll_step_size=STEP_SIZE,
        )

    return train_generator(data, settings, loss)


if __name__ == "__main__":
    main("numpyro", "unrolled_gan", train)
