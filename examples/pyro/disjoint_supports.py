# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Disjoint supports: the gradient that vanishes, and the noise that brings it back
================================================================================

Data on the line x1 = a of the plane, a model on the line x1 = theta. The two have no point in
common, wherever theta is: every critic can be perfect, JS_pi is stuck at H(pi) and its gradient is
zero (Arjovsky et al., https://arxiv.org/abs/1701.07875, example 1). After Gaussian noise of scale s
on both sides the divergence tells how far the lines are apart, KL = (a - theta)^2 / (2 s^2), and is
zero where they meet (Zhang et al., https://arxiv.org/abs/1811.08968). The two runs differ in the
argument noise= alone.

The generator is trained by plain gradient descent, whose steps show the gradient as it is.

    python examples/pyro/disjoint_supports.py --num-seeds 5 --output disjoint-supports
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import LambdaLR
from studies.comparison import learning_rate_factor
from studies.supports_study import Run, compare, parse_args

from pyro_spread import AdversarialDivergence, GaussianNoise, JSPi, concat_sites, two_player
from pyro_spread.ratio import MLPCritic


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    num_steps = args.warm_up + args.critic_steps * args.num_steps

    def draw(num):
        x2 = torch.randn(num, device=device)
        return torch.stack([torch.full_like(x2, args.distance), x2], -1)

    def model(x):
        theta = pyro.param("theta", x.new_zeros(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            line = torch.stack([theta.expand_as(z), z], -1)
            pyro.sample("x", dist.Delta(line, event_dim=1), obs=x)

    def guide(x):
        pass

    def decay(step):
        return learning_rate_factor(step / num_steps)

    def scheduled(optimizer, rate, schedule):
        settings = {"optimizer": optimizer, "optim_args": {"lr": rate}, "lr_lambda": schedule}
        return LambdaLR(settings)

    def fit(noise_scale, seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        critic = concat_sites(MLPCritic([args.hidden_dim] * 2).to(device), "x")
        noise = None if noise_scale is None else {"x": GaussianNoise(noise_scale)}
        loss = AdversarialDivergence(critic, JSPi(args.pi), noise)
        # At first the critic learns alone.
        generator = scheduled(
            torch.optim.SGD,
            args.learning_rate,
            lambda step: decay(step) if step >= args.warm_up else 0.0,
        )
        optim = two_player(
            generator,
            scheduled(torch.optim.Adam, args.critic_learning_rate, decay),
            args.critic_steps,
        )
        svi = SVI(model, loss.register(model, guide), optim, loss)
        theta, losses = np.zeros(num_steps), np.zeros(num_steps)
        for step in range(num_steps):
            losses[step] = svi.step(draw(args.batch_size))
            theta[step] = pyro.param("theta").item()
            optim.step()
        return Run(theta, losses)

    return compare("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
