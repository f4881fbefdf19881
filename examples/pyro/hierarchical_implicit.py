# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A hierarchical model whose likelihood is a simulator
====================================================

Groups of measurements, each with its own location theta, all from one population with mean mu and
standard deviation tau. The measurements' noise is g-and-k: easy to simulate, without a closed
density. ``JointContrastELBO`` with ``ReverseKL()`` is the likelihood-free variational inference of
Tran et al. (https://arxiv.org/abs/1702.08896): mu and tau keep the densities of their priors and of
their Normal guides, while theta, local and drawn by a net that is fed noise, needs none. A critic
tells groups with the guide's theta from groups that the model makes from its own theta. It is given
log p(theta | mu, tau), which is known, and learns the rest. Where the likelihood is missing there
is no critic-free bound, and no semi-implicit one.

This simulator is simple enough for quadrature, which gives the exact posterior to compare with.

    python examples/pyro/hierarchical_implicit.py --num-seeds 3 --output hierarchical-implicit
"""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import LambdaLR
from studies.comparison import learning_rate_factor
from studies.hierarchy_study import (
    LOG_TAU_PRIOR,
    MU_PRIOR,
    Fit,
    compare,
    g_and_k,
    parse_args,
)
from torch import nn

from pyro_spread import (
    ImplicitDistribution,
    JointContrastELBO,
    ReverseKL,
    averaged_params,
    concat_sites,
    two_player,
)


def mlp(num_inputs, num_hidden):
    return nn.Sequential(
        nn.Linear(num_inputs, num_hidden),
        nn.SiLU(),
        nn.Linear(num_hidden, num_hidden),
        nn.SiLU(),
        nn.Linear(num_hidden, 1),
        nn.Flatten(-2),
    )


class Sampler(nn.Module):
    """Theta of a group from its measurements and noise; at first near their median."""

    def __init__(self, group_size, num_noise, hidden_dim):
        super().__init__()
        self.net = mlp(group_size + num_noise, hidden_dim)

    def forward(self, x, eps):
        centre = x.quantile(0.5, -1)  # torch.median is the lower one of two
        inputs = (x.sort(-1).values - centre[..., None]).expand(*eps.shape[:-1], -1)
        return centre + 0.2 * (eps[..., 0] + self.net(torch.cat([inputs, eps], -1)))


class Critic(nn.Module):
    """
    A net of residuals and theta, plus the known part of the log-ratio: -log p(theta | mu, tau).

    What one group tells of mu is far below what a net would resolve, but it counts for all groups.
    """

    def __init__(self, group_size, hidden_dim):
        super().__init__()
        self.net = mlp(group_size + 1, hidden_dim)

    def forward(self, inputs):
        x, (theta, mu, log_tau) = inputs[..., :-3], inputs[..., -3:].split(1, -1)
        net = self.net(torch.cat([x.sort(-1).values - theta, theta], -1))
        return net - dist.Normal(mu, log_tau.exp()).log_prob(theta)[..., 0]


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    torch.set_default_device(device)
    num_noise = 4

    def program(sampler, batch_size):
        """Model and guide for mini-batches of this many groups."""

        def groups(x):
            return pyro.plate("groups", len(x), subsample_size=min(batch_size, len(x)))

        def model(x):
            mu = pyro.sample("mu", dist.Normal(*MU_PRIOR))
            log_tau = pyro.sample("log_tau", dist.Normal(*LOG_TAU_PRIOR))
            with groups(x) as index:
                theta = pyro.sample("theta", dist.Normal(mu, log_tau.exp()))
                noise = dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1)
                simulator = ImplicitDistribution(
                    lambda z: theta[..., None] + g_and_k(z, torch.tanh), noise, (x.shape[1],)
                )
                pyro.sample("x", simulator, obs=x[index])

        def guide(x):
            pyro.module("sampler", sampler)
            draws = {}
            for name in ("mu", "log_tau"):
                loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
                log_scale = pyro.param(f"{name}_log_scale", torch.tensor(-2.0))
                draws[name] = pyro.sample(name, dist.Normal(loc, log_scale.exp()))
            with groups(x) as index:
                noise = dist.Normal(torch.zeros(num_noise), 1.0).to_event(1)
                theta = ImplicitDistribution(functools.partial(sampler, x[index]), noise, ())
                draws["theta"] = pyro.sample("theta", theta)
            return draws

        return model, guide

    def adam(rate, num_steps):
        return LambdaLR(
            {
                "optimizer": torch.optim.Adam,
                "optim_args": {"lr": rate, "betas": (0.5, 0.999)},
                "lr_lambda": lambda step: learning_rate_factor(step / num_steps),
            }
        )

    def fit(data, seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        x = torch.as_tensor(data, dtype=torch.float32, device=device)
        sampler = Sampler(x.shape[1], num_noise, args.hidden_dim)
        critic = concat_sites(Critic(x.shape[1], args.hidden_dim), "x", "theta", "mu", "log_tau")
        loss = JointContrastELBO(critic, ReverseKL(), num_particles=args.num_particles)
        num_steps = args.critic_steps * args.num_steps
        optim = two_player(
            adam(args.learning_rate, num_steps),
            adam(args.critic_learning_rate, num_steps),
            args.critic_steps,
            ema=0.999,
        )
        svi = SVI(*program(sampler, args.batch_size), optim, loss)
        for _ in range(num_steps):
            svi.step(x)
            optim.step()
        _, whole_guide = program(sampler, len(x))
        with torch.no_grad(), averaged_params(svi), pyro.plate("draws", args.num_draws, dim=-2):
            draws = whole_guide(x)
        mu, log_tau, theta = (draws[name].cpu().numpy() for name in ("mu", "log_tau", "theta"))
        return Fit(mu[:, 0], log_tau[:, 0], theta)

    compare("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
