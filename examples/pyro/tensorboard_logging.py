# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Watching a run: progress bar, TensorBoard, report
=================================================

A small GAN on the digits. Every hundred steps ``diagnose`` looks at held-out images: the progress
bar shows the divergence estimate and the critic's accuracy, TensorBoard gets all its numbers,
samples and histograms of the log-ratio, and at the end ``report`` writes one HTML page.

    python examples/pyro/tensorboard_logging.py --output watched
    tensorboard --logdir watched
"""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive
from pyro.optim import Adam
from studies.tensorboard_study import parse_args
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import trange

from pyro_spread import (
    R1,
    AdversarialDivergence,
    GaussianNoise,
    History,
    JSPi,
    concat_sites,
    diagnose,
    report,
    two_player,
)
from pyro_spread.ratio import MLPCritic, log_ratio
from spread_analysis import load_dataset


class TensorBoardCallback:
    """A callback that writes numbers, samples and log-ratios to TensorBoard."""

    def __init__(self, folder):
        self.writer = SummaryWriter(folder)

    def __call__(self, step, numbers, logits, images, pi):
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        for side in ("data", "model"):
            values = log_ratio(getattr(logits, side), pi)
            self.writer.add_histogram(f"log_ratio/{side}", values, step)
        self.writer.add_images("samples", images, step)  # of shape (N, 1, height, width)


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    pyro.clear_param_store()
    pyro.set_rng_seed(args.seed)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    dataset = load_dataset("digits")
    train, test = (
        torch.from_numpy(images.reshape(-1, dataset.image_size)).to(device)
        for images in (dataset.train_images, dataset.test_images)
    )
    generator = nn.Sequential(
        nn.Linear(args.latent_dim, args.hidden_dim),
        nn.ReLU(),
        nn.Linear(args.hidden_dim, args.hidden_dim),
        nn.ReLU(),
        nn.Linear(args.hidden_dim, dataset.image_size),
        nn.Sigmoid(),
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

    divergence = JSPi(0.5)
    noise = {"x": GaussianNoise(args.noise_scale)}
    loss = AdversarialDivergence(critic, divergence, noise, regularizer=R1(args.gamma, every=4))
    settings = {"lr": args.learning_rate, "betas": (0.5, 0.999)}
    svi = SVI(model, loss.register(model, guide), two_player(Adam(settings), Adam(settings)), loss)

    callback, history, losses = TensorBoardCallback(output), History(), []
    with trange(1, args.num_steps + 1, mininterval=1) as progress:
        for step in progress:
            batch = train[torch.randint(len(train), (args.batch_size,), device=device)]
            losses.append(svi.step(batch))
            if step % args.every == 0:
                history.add(step, diagnose(svi, test))
                progress.set_postfix(history.postfix(), refresh=False)
                images = Predictive(model, num_samples=1)(None, 64)["x"].detach()
                logits = loss.logits(model, guide, test)
                callback(step, history.last, logits, images.reshape(64, 1, 8, 8), divergence.pi)
    callback.writer.close()

    page = report(
        output / "report.html",
        svi,
        test,
        losses=losses,
        history=history,
        image_shape=dataset.image_shape,
        title="A small GAN on the digits",
        settings=vars(args),
    )
    print(f"wrote {page.path}; {history.postfix()}")


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
