# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
One model, trained by several processes
=======================================

``loss(model, guide)`` is a complete ``nn.Module``, critic included, so that PyTorch's own
DistributedDataParallel trains it: torchrun starts the processes, each takes its part of every
batch, and the gradient is that of the whole batch. Three losses stand for all: ``spread`` is a sum
over the data, ``adversarial`` a mean with a critic, and ``mmd`` compares all samples with all, for
which the processes gather them.

    python examples/pyro/distributed.py
    torchrun --standalone --nproc-per-node 2 examples/pyro/distributed.py --loss adversarial
    torchrun --standalone --nproc-per-node 8 examples/pyro/distributed.py --cuda

Three things to get right:

- the plate of the data has the size of *all* data, and the rank's part of the batch is its
  subsample; of ``plate("data", len(x))`` DDP would make a sum over the batch divided by the number
  of ranks;
- every rank has the same params (DDP sees to it) but a random state of its own;
- params are those of modules: DDP does not see what ``pyro.param`` makes.
"""

from __future__ import annotations

import os

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from studies.distributed_study import digits, parse_args, write_summary
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pyro_spread import (
    MMD,
    AdversarialDivergence,
    GaussianKernel,
    GaussianNoise,
    SpreadELBO,
    concat_sites,
)
from pyro_spread.ratio import MLPCritic


class Model(PyroModule):
    """A deterministic decoder: the likelihood of almost every image is zero."""

    def __init__(self, num_data, num_pixels, latent_dim, hidden_dim):
        super().__init__()
        self.num_data, self.latent_dim = num_data, latent_dim
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, num_pixels),
            nn.Sigmoid(),
        )

    def forward(self, x):
        prior = dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1)
        with pyro.plate("data", self.num_data, subsample=x):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Delta(self.decoder(z), event_dim=1), obs=x)


class Guide(PyroModule):
    """The encoder."""

    def __init__(self, num_data, num_pixels, latent_dim, hidden_dim):
        super().__init__()
        self.num_data = num_data
        self.encoder = nn.Sequential(
            nn.Linear(num_pixels, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 2 * latent_dim)
        )

    def forward(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", self.num_data, subsample=x):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class NoGuide(nn.Module):
    """Empty guide: z is the generator's noise."""

    def forward(self, x):
        pass


def build(args, num_data, num_pixels):
    """The loss with model, guide and critic as one module; the same on all ranks."""
    pyro.set_rng_seed(args.seed)
    sizes = (num_data, num_pixels, args.latent_dim, args.hidden_dim)
    model, guide = Model(*sizes), NoGuide()
    noise = {"x": GaussianNoise(args.noise_scale)}
    if args.loss == "spread":
        guide, loss = Guide(*sizes), SpreadELBO(noise)
    elif args.loss == "adversarial":
        critic = concat_sites(MLPCritic([args.hidden_dim]), "x")
        loss = AdversarialDivergence(critic, noise=noise)
    else:
        loss = MMD(GaussianKernel([0.5, 1.0, 2.0]), noise)
    module = loss(model, guide)
    with torch.no_grad():  # layers that wait for their input see it before DDP looks for params
        module(torch.rand(2, num_pixels))
    return module


def make_optimizer(args, module):
    """Adam for both players; the critic may have different settings."""
    critic = getattr(module, "discriminator", nn.Module())
    theirs = list(critic.parameters())
    rest = [p for p in module.parameters() if not any(p is other for other in theirs)]
    groups = [{"params": rest}]
    if theirs:
        groups[0]["betas"] = (0.5, 0.999)
        groups.append({"params": theirs, "lr": 2 * args.learning_rate})
    return torch.optim.Adam(groups, args.learning_rate)


def average(value):
    """Average over all ranks."""
    value = value.detach().clone()
    if distributed.is_initialized():
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return value


def main(args):
    world_size = int(os.environ.get("WORLD_SIZE", 1))  # torchrun says so
    rank, device = int(os.environ.get("RANK", 0)), torch.device("cpu")
    if args.cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size > 1:
        distributed.init_process_group("nccl" if args.cuda else "gloo")
    train, test = (torch.from_numpy(images) for images in digits())

    module = build(args, len(train), train.shape[1]).to(device)
    optimizer = make_optimizer(args, module)
    ranked = module
    sampler = DistributedSampler(train, world_size, rank, seed=args.seed, drop_last=True)
    if world_size > 1:
        ranked = DistributedDataParallel(module, [device] if args.cuda else None)
    loader = DataLoader(
        TensorDataset(train), args.batch_size // world_size, sampler=sampler, drop_last=True
    )
    pyro.set_rng_seed(args.seed + rank)  # from here on each rank draws noise of its own

    steps, epoch = 0, 0
    while steps < args.num_steps:
        sampler.set_epoch(epoch)  # another order
        for (x,) in loader:
            optimizer.zero_grad()
            loss = ranked(x.to(device))
            loss.backward()
            optimizer.step()
            steps += 1
            if steps % max(1, args.num_steps // 8) == 0:
                value = float(average(loss))
                if rank == 0:
                    print(f"step {steps}: {value:.4f}", flush=True)
            if steps == args.num_steps:
                break
        epoch += 1

    # First what needs every rank, then what rank 0 computes alone.
    params = nn.utils.parameters_to_vector(module.parameters()).detach()
    apart = average((params - average(params)).abs().max())
    noise = torch.zeros(world_size, device=device)
    noise[rank] = torch.randn(())
    noise = average(noise) * world_size
    if rank == 0:
        with torch.no_grad():
            held_out = float(module(test.to(device)))
        write_summary(
            args,
            world_size=world_size,
            held_out_loss=held_out,
            params_differ_by=float(apart),
            next_draw_of_each_rank=noise.tolist(),
        )
    if world_size > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(parse_args(__doc__.strip().split("\n")[0]))
