# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
GAN: saturating, non-saturating, several critic steps
=====================================================

A generator and a critic that tells its draws from data (Goodfellow et al. 2014), as published: no
noise, no penalty. The saturating loss has the gradient of JS; the non-saturating one has not, but
is stronger where the critic wins. In the third row the critic moves three times as often.

    python examples/pyro/zoo/gan.py --output zoo-gan
"""

from __future__ import annotations

from parts import train_generator
from studies.zoo import Settings, Trained, ZooData, main

from pyro_spread import AdversarialDivergence, JSPi, concat_sites


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    generator = "divergence" if row == "gan-saturating" else "non_saturating"

    def loss(net):
        return AdversarialDivergence(concat_sites(net, "x"), JSPi(0.5), generator=generator)

    return train_generator(data, settings, loss, critic_steps=3 if row == "gan-k-steps" else 1)


if __name__ == "__main__":
    main("pyro", "gan", train)
