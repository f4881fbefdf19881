# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Models, guides and losses that are trained on one rank and on two."""

import os
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from pyro import infer, poutine
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_spread import (
    KL,
    MMD,
    R1,
    R2,
    AdversarialDivergence,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    HingeCritic,
    ImplicitDistribution,
    JointContrastELBO,
    JSPi,
    LaplaceKernel,
    LeastSquaresCritic,
    MultiLevelNoise,
    PriorContrastELBO,
    RelativisticCritic,
    SemiImplicitELBO,
    SlicedWasserstein,
    SpreadELBO,
    WassersteinCritic,
    annealed,
    concat_sites,
    learned,
)

# No two sizes alike: a dimension of the size of a shard is the one over the data.
NUM_DATA, BATCH, X_DIM, Z_DIM, HIDDEN, STEPS = 60, 12, 3, 2, 8, 4
UNEVEN = {1: [12], 2: [5, 7]}
WORLD = int(os.environ.get("WORLD_SIZE", 1))
NOISE = {"x": GaussianNoise(0.3)}
LEVELS = {"x": MultiLevelNoise(GaussianNoise(0.3), [0.5, 2.0])}


def net(*sizes):
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _counted(mask):
    return True if mask is None else mask


class Model(PyroModule):
    """A deterministic decoder, whose noise may have a learned scale."""

    def __init__(self, scale=None, plain_plate=False, weight=1, global_latent=False):
        super().__init__()
        self.decoder = net(Z_DIM, HIDDEN, X_DIM)
        self.scale, self.plain_plate, self.weight = scale, plain_plate, weight
        if global_latent:
            self.shift = PyroSample(dist.Normal(torch.zeros(X_DIM), 1.0).to_event(1))

    def forward(self, x, mask=None):
        shift = getattr(self, "shift", 0.0)
        plate = (len(x),) if self.plain_plate else (NUM_DATA, len(x), x)
        scale, counted = poutine.scale(scale=self.weight), poutine.mask(mask=_counted(mask))
        with pyro.plate("data", *plate), scale, counted:
            z = pyro.sample("z", dist.Normal(torch.zeros(Z_DIM), 1.0).to_event(1))
            mean = self.decoder(z) + shift
            if self.scale is None:
                pyro.sample("x", dist.Delta(mean, event_dim=1), obs=x)
            else:
                pyro.sample("x", dist.Normal(mean, self.scale).to_event(1), obs=x)


class Guide(PyroModule):
    """A Normal of the encoder's, or an implicit distribution."""

    def __init__(self, implicit=False, plain_plate=False, weight=1, global_latent=False):
        super().__init__()
        self.implicit, self.plain_plate, self.weight = implicit, plain_plate, weight
        self.encoder = net(2 * X_DIM if implicit else X_DIM, HIDDEN, Z_DIM * (1 if implicit else 2))
        if global_latent:
            self.loc = nn.Parameter(torch.zeros(X_DIM))
            shift = PyroSample(lambda self: dist.Normal(self.loc, 0.5).to_event(1))
            self.shift = shift

    def forward(self, x, mask=None):
        getattr(self, "shift", None)
        plate = (len(x),) if self.plain_plate else (NUM_DATA, len(x), x)
        scale, counted = poutine.scale(scale=self.weight), poutine.mask(mask=_counted(mask))
        with pyro.plate("data", *plate), scale, counted:
            if self.implicit:

                def fn(eps):
                    return self.encoder(torch.cat([eps, x.expand(eps.shape)], -1))

                base = dist.Normal(torch.zeros(X_DIM), 1.0).to_event(1)
                fn_dist = ImplicitDistribution(fn, base, event_shape=(Z_DIM,))
            else:
                loc, log_scale = self.encoder(x).chunk(2, -1)
                fn_dist = dist.Normal(loc, log_scale.exp()).to_event(1)
            pyro.sample("z", fn_dist)


class AskingGuide(Guide):
    """One that is told the level of the noise."""

    def forward(self, x, mask=None, x_level=None):
        super().forward(x / (1 + x_level.unsqueeze(-1)), mask)


class Head(nn.Module):
    """The Gaussian of an adaptive contrast."""

    def __init__(self, batch_norm=False):
        super().__init__()
        self.net = nn.Linear(X_DIM, 2 * Z_DIM)
        if batch_norm:
            self.net = nn.Sequential(nn.BatchNorm1d(X_DIM), self.net)

    def forward(self, x, mask=None):
        loc, log_scale = self.net(x).chunk(2, -1)
        return loc, log_scale.exp()


class NoGuide(nn.Module):
    """Nothing to infer."""

    def forward(self, x, mask=None):
        pass


def critic(*names):
    sizes = {"x": X_DIM, "z": Z_DIM, "x_level": 1}
    return concat_sites(net(sum(sizes[name] for name in names), HIDDEN, 1), *names)


def generator():
    return Model(), NoGuide()


def learned_noise():
    scale = torch.tensor([0.3, 0.4, 0.5])
    return {"x": learned(GaussianNoise(scale), "trace", mean=net(X_DIM, HIDDEN, X_DIM))}


def encoder(scale=None, implicit=False, **options):
    def make():
        return Model(scale, **options), Guide(implicit, **options)

    return make


def prior(**options):
    return PriorContrastELBO(critic("x", "z"), num_moment_draws=16, num_critic_draws=4, **options)


def joint(divergence=None, **options):
    return JointContrastELBO(critic("x", "z"), divergence, NOISE, **options)


implicit = encoder(0.5, implicit=True)
# Name, nets, loss, options of the run.
CASES = {
    "spread": (encoder(), lambda: SpreadELBO(NOISE), {}),
    "spread_mean_field": (
        encoder(0.5),
        lambda: SpreadELBO(NOISE, infer.TraceMeanField_ELBO(num_particles=2)),
        {},
    ),
    "spread_masked": (encoder(), lambda: SpreadELBO(NOISE), {"masked": True}),
    "spread_global_latent": (
        encoder(global_latent=True),
        lambda: SpreadELBO(NOISE),
        {"shared": True},
    ),
    "spread_plain_plate": (
        encoder(plain_plate=True),
        lambda: SpreadELBO(NOISE),
        {"sgd": 1e-3 * WORLD},
    ),
    "spread_scaled": (
        encoder(plain_plate=True, weight=WORLD, global_latent=True),
        lambda: SpreadELBO(NOISE),
        {"sizes": UNEVEN, "shared": True},
    ),
    "adversarial": (generator, lambda: AdversarialDivergence(critic("x"), noise=NOISE), {}),
    "adversarial_two_pass": (
        generator,
        lambda: AdversarialDivergence(
            critic("x"), JSPi(0.3), NOISE, regularizer=R1(1.0, every=2), update="two_pass"
        ),
        {"masked": True},
    ),
    "adversarial_uneven": (
        generator,
        lambda: AdversarialDivergence(
            critic("x"), KL(), NOISE, regularizer=R1(1.0), num_particles=2
        ),
        {"sizes": UNEVEN},
    ),
    "spread_levels_told": (lambda: (Model(), AskingGuide()), lambda: SpreadELBO(LEVELS), {}),
    "adversarial_levels_told": (
        generator,
        lambda: AdversarialDivergence(critic("x", "x_level"), noise=LEVELS),
        {"masked": True, "sizes": UNEVEN},
    ),
    "adversarial_learned": (
        generator,
        lambda: AdversarialDivergence(critic("x"), noise=learned_noise()),
        {"masked": True, "sizes": UNEVEN},
    ),
    "adversarial_annealed": (
        generator,
        lambda: AdversarialDivergence(
            critic("x"), noise=annealed(NOISE, lambda step: 0.5**step), regularizer=R1() + R2(0.3)
        ),
        {"masked": True, "sizes": UNEVEN},
    ),
    "wasserstein": (generator, lambda: WassersteinCritic(critic("x"), noise=NOISE), {}),
    "wasserstein_masked": (
        generator,
        lambda: WassersteinCritic(critic("x"), noise=NOISE),
        {"masked": True, "sizes": UNEVEN},
    ),
    "hinge": (generator, lambda: HingeCritic(critic("x"), regularizer=R1(0.3)), {}),
    "least_squares_masked": (
        generator,
        lambda: LeastSquaresCritic(critic("x"), NOISE, regularizer=R2(0.3)),
        {"masked": True, "sizes": UNEVEN},
    ),
    "relativistic_masked": (
        generator,
        lambda: RelativisticCritic(critic("x"), noise=NOISE),
        {"masked": True, "sizes": UNEVEN},
    ),
    "prior_plain": (implicit, lambda: prior(adaptive=False, regularizer=R1(0.1)), {}),
    "prior_adaptive": (implicit, lambda: prior(noise=NOISE), {}),
    "prior_default_draws": (implicit, lambda: PriorContrastELBO(critic("x", "z")), {}),
    "prior_masked": (implicit, lambda: prior(head=Head()), {"masked": True}),
    "prior_masked_shard": (
        implicit,
        lambda: prior(regularizer=R1(0.1)),
        {"masked": True, "masked_shard": True, "unused": True},
    ),
    "joint": (implicit, joint, {}),
    "joint_masked": (implicit, lambda: joint(regularizer=R1(1.0)), {"masked": True}),
    "joint_ali": (implicit, lambda: joint(JSPi(0.5)), {"masked": True, "sizes": UNEVEN}),
    "joint_npe": (
        encoder(0.5),
        lambda: JointContrastELBO(divergence=KL()),
        {"masked": True, "sizes": UNEVEN, "unused": True},
    ),
    "semi_implicit": (
        implicit,
        lambda: SemiImplicitELBO({"z": GaussianNoise(0.2)}, num_mixture=4),
        {},
    ),
    "mmd": (generator, lambda: MMD(GaussianKernel([0.5, 1.0]), NOISE), {}),
    "mmd_masked": (
        generator,
        lambda: MMD(LaplaceKernel(1.0), NOISE, num_particles=2, block_size=4),
        {"masked": True, "sizes": UNEVEN},
    ),
    "energy": (generator, lambda: EnergyDistance(noise=NOISE), {}),
    "energy_uneven": (generator, EnergyDistance, {"sizes": UNEVEN}),
    "sliced": (generator, lambda: SlicedWasserstein(10, NOISE), {}),
    "sliced_masked": (
        generator,
        lambda: SlicedWasserstein(10, p=1.0),
        {"masked": True, "sizes": UNEVEN},
    ),
}
