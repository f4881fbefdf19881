# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A generator conditional on the class
====================================

The model takes the class as an argument, one-hot: x = g(z, label). It has no likelihood. The critic
sees the image and that same argument, ``concat_sites(net, "x", "label")``, so that an image of
another class than the one asked for gives the generator away.

    python examples/pyro/conditional.py --output conditional
    python examples/pyro/conditional.py --dataset mnist --data-dir DIR --num-seeds 1
"""

from __future__ import annotations

import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive
from pyro.optim import Adam
from studies.conditional_study import compare_conditional
from studies.gan_study import Fit, as_images, as_signed, batches, parse_args
from torch import nn
from tqdm import tqdm

from pyro_spread import R1, AdversarialDivergence, GaussianNoise, JSPi, concat_sites, two_player
from pyro_spread.ratio import MLPCritic


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")

    def fit(seed, dataset, asked):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        train = torch.from_numpy(as_signed(dataset.train_images)).to(device)
        one_hot = torch.eye(int(asked.max()) + 1, device=device)
        train_labels = one_hot[torch.from_numpy(dataset.train_labels)]
        generator = nn.Sequential(
            nn.Linear(args.latent_dim + len(one_hot), args.hidden_dim),
            nn.ReLU(),
            nn.Linear(args.hidden_dim, args.hidden_dim),
            nn.ReLU(),
            nn.Linear(args.hidden_dim, dataset.image_size),
            nn.Tanh(),
        ).to(device)

        def model(x, label):
            pyro.module("generator", generator)
            prior = dist.Normal(torch.zeros(args.latent_dim, device=device), 1.0).to_event(1)
            with pyro.plate("data", len(label)):
                z = pyro.sample("z", prior)
                image = generator(torch.cat([z, label], -1))
                pyro.sample("x", dist.Delta(image, event_dim=1), obs=x)

        def guide(x, label):
            pass  # nothing to infer: z is the generator's noise

        loss = AdversarialDivergence(
            concat_sites(MLPCritic([args.hidden_dim] * 2).to(device), "x", "label"),
            JSPi(0.5),
            noise={"x": GaussianNoise(args.noise_scale)},
            regularizer=R1(args.gamma, every=4),
        )
        settings = {"lr": args.learning_rate, "betas": (0.5, 0.999)}
        optim = two_player(Adam(settings), Adam(settings))
        svi = SVI(model, loss.register(model, guide), optim, loss)

        start = time.perf_counter()
        with tqdm(total=args.num_steps, desc=f"pyro, seed {seed}", mininterval=1) as progress:
            for chunk in batches(len(train), args.batch_size, args.num_steps, seed):
                for batch in torch.from_numpy(chunk).to(device):
                    value = svi.step(train[batch], train_labels[batch])
                progress.set_postfix(loss=f"{value:.3f}", refresh=False)
                progress.update(len(chunk))
        seconds = time.perf_counter() - start
        with torch.no_grad():
            draws = Predictive(model, num_samples=1)(None, one_hot[torch.from_numpy(asked)])
        return Fit(as_images(draws["x"][0].cpu().numpy()), seconds)

    compare_conditional("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0], program="conditional"))
