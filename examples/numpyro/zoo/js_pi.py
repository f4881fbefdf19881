# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
JS_pi for three pi
==================

The GAN's saturating loss for any class prior pi (Huszár 2015): from covering mass at small pi to
seeking modes at large pi. Unlike the rows of ``gan.py`` these have noise on both sides and R1.

    python examples/numpyro/zoo/js_pi.py --output zoo-js-pi
"""

from __future__ import annotations

from parts import train_generator
from studies.zoo import Settings, Trained, ZooData, main

from numpyro_spread import R1, AdversarialDivergence, GaussianNoise, JSPi, concat_sites


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    pi = float(row.removeprefix("js-pi-"))

    def loss(net):
        return AdversarialDivergence(
            concat_sites(net, "x"),
            JSPi(pi),
            # Pixels run from -1 to 1 here: twice the scale that those from 0 to 1 would have.
            noise={"x": GaussianNoise(1.5 * settings.noise_scale)},
            regularizer=R1(2.0, every=4),
        )

    return train_generator(data, settings, loss)


if __name__ == "__main__":
    main("numpyro", "js_pi", train)
