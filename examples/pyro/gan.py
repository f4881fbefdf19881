# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
One generator, many losses
==========================

A generator is a model without a likelihood: x = g(z), a point mass. Here one and the same model is
trained by unmodified SVI under adversarial divergences (JS_pi and KL), with a Wasserstein critic,
and by distances that need no critic; only ``loss=`` differs. On MNIST the adversarial divergences
lose classes, noise or not, unless R1 penalises the critic's gradient.

    python examples/pyro/gan.py --output gan
    python examples/pyro/gan.py --dataset mnist --data-dir DIR --losses js js-no-r1 energy
    python examples/pyro/gan.py --compile
"""

from __future__ import annotations

import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive
from pyro.optim import Adam
from studies.gan_study import (
    Fit,
    as_images,
    as_signed,
    bandwidths,
    batches,
    compare,
    parse_args,
)
from torch import nn
from tqdm import tqdm

from pyro_spread import (
    KL,
    MMD,
    R1,
    AdversarialDivergence,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    HingeCritic,
    JSPi,
    RelativisticCritic,
    ReverseKL,
    SlicedWasserstein,
    WassersteinCritic,
    adaptive,
    compiled,
    concat_sites,
    two_player,
)
from pyro_spread.ratio import MLPCritic


def adversarial(args, critic, divergence, generator="divergence", regularised=True, noise=None):
    return AdversarialDivergence(
        critic,
        divergence,
        noise={"x": noise or GaussianNoise(args.noise_scale)},
        generator=generator,
        regularizer=R1(args.gamma, every=4) if regularised else None,
    )


# Every loss that the model is trained by: this is all that differs.
LOSSES = {
    "js": lambda args, critic, _: adversarial(args, critic, JSPi(0.5)),
    "js-ns": lambda args, critic, _: adversarial(args, critic, JSPi(0.5), "non_saturating"),
    "js-no-r1": lambda args, critic, _: adversarial(args, critic, JSPi(0.5), regularised=False),
    "js-ns-no-r1": lambda args, critic, _: adversarial(
        args, critic, JSPi(0.5), "non_saturating", regularised=False
    ),
    # The scale that nobody picks: it keeps the critic right about three times in four.
    "js-adaptive": lambda args, critic, _: adversarial(
        args, critic, JSPi(0.5), noise=adaptive(GaussianNoise(1.0))
    ),
    "js-0.1": lambda args, critic, _: adversarial(args, critic, JSPi(0.1)),
    "js-0.9": lambda args, critic, _: adversarial(args, critic, JSPi(0.9)),
    "kl": lambda args, critic, _: adversarial(args, critic, KL()),
    "reverse-kl": lambda args, critic, _: adversarial(args, critic, ReverseKL()),
    "wasserstein": lambda args, critic, _: WassersteinCritic(critic),
    "hinge": lambda args, critic, _: HingeCritic(critic, regularizer=R1(args.gamma, every=4)),
    "relativistic": lambda args, critic, _: RelativisticCritic(critic, args.gamma),
    "mmd": lambda args, _, dataset: MMD(GaussianKernel(bandwidths(dataset))),
    "energy": lambda args, *_: EnergyDistance(),
    "sliced": lambda args, *_: SlicedWasserstein(),
}
WITHOUT_CRITIC = ("mmd", "energy", "sliced")


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")

    def fit(name, seed, dataset, num_samples):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        train = torch.from_numpy(as_signed(dataset.train_images)).to(device)
        generator = nn.Sequential(
            nn.Linear(args.latent_dim, args.hidden_dim),
            nn.ReLU(),
            nn.Linear(args.hidden_dim, args.hidden_dim),
            nn.ReLU(),
            nn.Linear(args.hidden_dim, dataset.image_size),
            nn.Tanh(),
        ).to(device)
        critic = concat_sites(MLPCritic([args.hidden_dim] * 2).to(device), "x")

        def model(x, num_images=0):
            pyro.module("generator", generator)
            prior = dist.Normal(torch.zeros(args.latent_dim, device=device), 1.0).to_event(1)
            with pyro.plate("data", num_images if x is None else len(x)):
                z = pyro.sample("z", prior)
                pyro.sample("x", dist.Delta(generator(z), event_dim=1), obs=x)

        def guide(x, num_images=0):
            pass  # nothing to infer: z is the generator's noise

        loss = LOSSES[name](args, critic, dataset)
        if args.compile:
            loss = compiled(loss)
        settings = {"lr": args.learning_rate, "betas": (0.5, 0.999)}
        optim = Adam(settings)
        if name not in WITHOUT_CRITIC:
            optim = two_player(optim, Adam(settings))
        svi = SVI(model, loss.register(model, guide), optim, loss)

        start = time.perf_counter()
        with tqdm(total=args.num_steps, desc=f"{name}, seed {seed}", mininterval=1) as progress:
            for chunk in batches(len(train), args.batch_size, args.num_steps, seed):
                for batch in torch.from_numpy(chunk).to(device):
                    value = svi.step(train[batch])
                progress.update(len(chunk))
                progress.set_postfix(loss=f"{value:.3f}", refresh=False)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            draws = Predictive(model, num_samples=1)(None, num_samples)
        return Fit(as_images(draws["x"][0].cpu().numpy()), seconds)

    compare("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
