# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Posteriors of a simulator
=========================

Of theta one can draw from the prior, of x one can draw from a simulator, and no density is known.
``JointContrastELBO`` trains a guide that answers for every x at once, on a table of 10,000
simulations. Which divergence it takes of the guide's pairs (x, theta) from the table's is free:
``KL()`` with a guide that has a density needs no critic and is neural posterior estimation; with a
critic the guide may be any net of noise. A Gaussian r(theta | x), fitted first by the same loss,
shows guide and critic theta on the scale of the posterior; without it the critic is blind.

Theta and x are standardised; the box of a uniform prior is enforced on the draws at the end.

    python examples/pyro/simulator.py --num-seeds 3 --output simulator
"""

from __future__ import annotations

import copy
import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import LambdaLR
from torch import nn

from pyro_spread import (
    KL,
    ImplicitDistribution,
    JointContrastELBO,
    JSPi,
    ReverseKL,
    averaged_params,
    two_player,
)
from spread_analysis.simulator_study import (
    DENSITY,
    Fit,
    batches,
    compare,
    learning_rate_factor,
    parse_args,
)

DIVERGENCES = {"npe": KL(), "reverse-kl": ReverseKL(), "js": JSPi(0.5), "kl": KL()}


def mlp(num_inputs, num_hidden, num_outputs):
    return nn.Sequential(
        nn.Linear(num_inputs, num_hidden),
        nn.SiLU(),
        nn.Linear(num_hidden, num_hidden),
        nn.SiLU(),
        nn.Linear(num_hidden, num_outputs),
    )


class GaussianHead(nn.Module):
    """Mean and standard deviation of r(theta | x)."""

    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)
        self.net = mlp(dim, hidden_dim, 2 * dim)

    def forward(self, x):
        loc, log_scale = (self.linear(x) + self.net(x)).chunk(2, -1)
        return loc, log_scale.exp()


class ScaledCritic(nn.Module):
    """A critic of x and of theta as r(theta | x) sees it."""

    def __init__(self, head, dim, hidden_dim):
        super().__init__()
        self.head = head
        self.net = mlp(2 * dim, hidden_dim, 1)

    def forward(self, values, *args):
        x, theta = values["x"], values["theta"]
        loc, scale = self.head(x)
        return self.net(torch.cat([x, (theta - loc) / scale], -1)).squeeze(-1)


def model(x, theta, simulated):
    # A mini-batch of the table, in which prior and simulator have drawn already.
    with pyro.plate("data", len(x)):
        pyro.sample("theta", dist.Delta(theta, event_dim=1))
        pyro.sample("x", dist.Delta(simulated, event_dim=1), obs=x)


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")

    def tensors(*arrays):
        return [torch.from_numpy(array).to(device) for array in arrays]

    def adam(beta1, num_steps):
        return LambdaLR(
            {
                "optimizer": torch.optim.Adam,
                "optim_args": {"lr": args.learning_rate, "betas": (beta1, 0.999)},
                "lr_lambda": lambda step: learning_rate_factor(step / num_steps),
            }
        )

    def fit_density(net, guide, table, num_steps, seed):
        """Neural posterior estimation, up to where held-out simulations are likeliest."""
        train, held_out = table.split()
        check = tensors(held_out.x, held_out.theta, held_out.x)
        optim = adam(0.9, num_steps)
        svi = SVI(model, guide, optim, JointContrastELBO(divergence=KL()))
        least, best = float("inf"), None
        for chunk in batches(train, args.batch_size, num_steps, seed):
            for batch in zip(*tensors(*chunk), strict=True):
                svi.step(*batch)
                optim.step()
            value = svi.evaluate_loss(*check)
            if value < least:
                least, best = value, copy.deepcopy(net.state_dict())
        net.load_state_dict(best)
        pyro.clear_param_store()

    def fit(name, table, x, seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        dim = table.x.shape[1]
        start = time.perf_counter()

        head = GaussianHead(dim, args.hidden_dim).to(device)

        def gaussian_guide(x, *simulations):
            pyro.module("head", head)
            with pyro.plate("data", len(x)):
                pyro.sample("theta", dist.Normal(*head(x)).to_event(1))

        fit_density(head, gaussian_guide, table, args.head_steps, seed)
        head.requires_grad_(False)

        if name == DENSITY:
            net = mlp(dim, args.hidden_dim, args.num_components * (1 + 2 * dim)).to(device)

            def guide(x, *simulations):
                pyro.module("net", net)
                outputs = net(x).reshape(len(x), args.num_components, 1 + 2 * dim)
                weights, locs, log_scales = outputs.split([1, dim, dim], -1)
                loc, scale = (value[:, None] for value in head(x))
                normals = dist.Normal(loc + scale * locs, scale * log_scales.exp()).to_event(1)
                with pyro.plate("data", len(x)):
                    mixing = dist.Categorical(logits=weights.squeeze(-1))
                    pyro.sample("theta", dist.MixtureSameFamily(mixing, normals))

            fit_density(net, guide, table, args.num_steps, seed)
        else:
            noise_dim = dim + args.extra_noise_dim
            net = mlp(dim + noise_dim, args.hidden_dim, dim).to(device)
            noise = dist.Normal(torch.zeros(noise_dim, device=device), 1.0).to_event(1)

            def guide(x, *simulations):
                pyro.module("net", net)
                loc, scale = head(x)

                def sampler(eps):
                    inputs = torch.cat([x.expand(*eps.shape[:-1], dim), eps], -1)
                    return loc + scale * (eps[..., :dim] + net(inputs))

                with pyro.plate("data", len(x)):
                    pyro.sample("theta", ImplicitDistribution(sampler, noise, event_shape=(dim,)))

            critic = ScaledCritic(head, dim, args.hidden_dim).to(device)
            loss = JointContrastELBO(critic, DIVERGENCES[name])
            num_steps = args.critic_steps * args.num_steps
            optim = two_player(
                adam(0.5, num_steps), adam(0.5, num_steps), args.critic_steps, ema=args.ema
            )
            svi = SVI(model, loss.register(model, guide), optim, loss)
            for chunk in batches(table, args.batch_size, num_steps, seed):
                for batch in zip(*tensors(*chunk), strict=True):
                    svi.step(*batch)
                    optim.step()
            with averaged_params(svi):
                average = copy.deepcopy(net.state_dict())
            net.load_state_dict(average)
        seconds = time.perf_counter() - start

        def draw(num):
            repeated = torch.from_numpy(x).to(device).repeat_interleave(num, 0)
            with torch.no_grad():
                theta = pyro.poutine.trace(guide).get_trace(repeated).nodes["theta"]["value"]
            return theta.reshape(len(x), num, dim).cpu().numpy()

        return Fit(draw, seconds)

    return compare("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
