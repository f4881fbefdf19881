# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Posteriors of a simulator
=========================

Of theta one can draw from the prior, of x one can draw from a simulator, and no density is known.
``JointContrastELBO`` trains a guide that answers for every x at once, on a table of 10,000
simulations. Which divergence it takes of the guide's pairs (x, theta) from the table's is free:
``KL()`` with a guide that has a density needs no critic and is neural posterior estimation; with a
critic the guide may be any net of noise. ``SemiImplicitELBO``, which trains such guides without a
critic elsewhere, scores the likelihood and so has nothing to say here.

All nets see theta less its linear regression on x, standardised: the posterior is narrow compared
with the prior, and a critic that sees theta on the scale of the prior is blind to its shape. The
box of a uniform prior is enforced on the draws at the end.

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
from studies.comparison import learning_rate_factor
from studies.simulator_study import CHECK_EVERY, DENSITY, Fit, compare, parse_args
from torch import nn

from pyro_spread import (
    KL,
    ImplicitDistribution,
    JointContrastELBO,
    JSPi,
    ReverseKL,
    averaged_params,
    concat_sites,
    two_player,
)

DIVERGENCES = {"reverse-kl": ReverseKL(), "js": JSPi(0.5), "kl": KL()}


def mlp(num_inputs, hidden_dim, num_outputs):
    return nn.Sequential(
        nn.Linear(num_inputs, hidden_dim),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden_dim, hidden_dim),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden_dim, num_outputs),
    )


def model(x, theta):
    # A mini-batch of the table, in which prior and simulator have drawn already.
    with pyro.plate("data", len(x)):
        pyro.sample("theta", dist.Delta(theta, event_dim=1))
        pyro.sample("x", dist.Delta(x, event_dim=1), obs=x)


def trainer(args):
    """A function that trains one guide: from loss, table, observations and seed to a ``Fit``."""
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")

    def adam(beta1, num_steps):
        return LambdaLR(
            {
                "optimizer": torch.optim.Adam,
                "optim_args": {"lr": args.learning_rate, "betas": (beta1, 0.999)},
                # Constant over the first half, then down to zero.
                "lr_lambda": lambda step: learning_rate_factor(step / num_steps),
            }
        )

    def train(svi, x, theta, num_steps):
        """Train on mini-batches of the table; yields at regular steps."""
        for step in range(1, num_steps + 1):
            rows = torch.randint(len(x), (args.batch_size,), device=device)
            svi.step(x[rows], theta[rows])
            svi.optim.step()
            if step % CHECK_EVERY == 0 or step == num_steps:
                yield

    def fit_density(dim, table, held_out):
        """Neural posterior estimation, up to where held-out simulations are likeliest."""
        num = args.num_components
        net = mlp(dim, args.hidden_dim, num * (1 + 2 * dim)).to(device)

        def guide(x, theta=None):
            pyro.module("net", net)
            weights, outputs = net(x).split([num, 2 * num * dim], -1)
            locs, log_scales = outputs.reshape(len(x), num, 2 * dim).chunk(2, -1)
            components = dist.Normal(locs, log_scales.exp()).to_event(1)
            mixing = dist.Categorical(logits=weights)
            with pyro.plate("data", len(x)):
                return pyro.sample("theta", dist.MixtureSameFamily(mixing, components))

        pyro.clear_param_store()
        svi = SVI(model, guide, adam(0.9, args.num_steps), JointContrastELBO(divergence=KL()))
        least, best = float("inf"), None
        for _ in train(svi, *table, args.num_steps):
            value = svi.evaluate_loss(*held_out)
            if value < least:
                least, best = value, copy.deepcopy(net.state_dict())
        net.load_state_dict(best)
        return guide

    def fit_implicit(name, dim, x, theta):
        noise_dim = dim + args.extra_noise_dim
        net = mlp(dim + noise_dim, args.hidden_dim, dim).to(device)
        noise = dist.Normal(torch.zeros(noise_dim, device=device), 1.0).to_event(1)

        def guide(x, theta=None):
            pyro.module("net", net)

            def sampler(eps):
                inputs = torch.cat([x.expand(*eps.shape[:-1], dim), eps], -1)
                return eps[..., :dim] + net(inputs)

            with pyro.plate("data", len(x)):
                return pyro.sample("theta", ImplicitDistribution(sampler, noise, (dim,)))

        pyro.clear_param_store()
        critic = mlp(2 * dim, args.hidden_dim, 1).to(device)
        loss = JointContrastELBO(concat_sites(critic, "x", "theta"), DIVERGENCES[name])
        num_steps = args.critic_steps * args.num_steps
        optim = two_player(
            adam(0.5, num_steps), adam(0.5, num_steps), args.critic_steps, ema=args.ema
        )
        svi = SVI(model, loss.register(model, guide), optim, loss)
        # The game has no loss to stop by: it sees all simulations, to the end.
        for _ in train(svi, x, theta, num_steps):
            pass
        with averaged_params(svi):
            average = copy.deepcopy(net.state_dict())
        net.load_state_dict(average)
        return guide

    def fit(name, table, x, seed):
        pyro.set_rng_seed(seed)
        dim = x.shape[1]
        start = time.perf_counter()

        def tensors(part):
            return [torch.from_numpy(value).to(device) for value in (part.x, part.theta)]

        parts = [tensors(part) for part in table.split()]
        if name == DENSITY:
            guide = fit_density(dim, *parts)
        else:
            guide = fit_implicit(name, dim, *(torch.cat(both) for both in zip(*parts, strict=True)))
        seconds = time.perf_counter() - start

        def draw(num):
            repeated = torch.from_numpy(x).to(device).repeat_interleave(num, 0)
            with torch.no_grad():
                return guide(repeated).reshape(len(x), num, dim).cpu().numpy()

        return Fit(draw, seconds)

    return fit


def main(args):
    return compare("pyro", args, trainer(args))


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
