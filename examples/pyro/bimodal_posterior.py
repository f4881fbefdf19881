# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A posterior with two modes, and a guide without a density
=========================================================

z ~ N(0, 1), x ~ N(z^2, s^2) and x = 1 is seen: z is near 1 or near -1. A Normal guide has to choose
one of them. A guide that is a net of noise, z = g(eps), can be both, but has no density.
``PriorContrastELBO`` learns the density's ratio to a contrast by a critic; ``SemiImplicitELBO``
needs no critic and pays with a bound. All are compared with quadrature.

    python examples/pyro/bimodal_posterior.py --num-seeds 5 --output bimodal-posterior
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import LambdaLR
from studies.bimodal_study import Fit, compare, parse_args
from studies.comparison import learning_rate_factor
from torch import nn
from torch.distributions import constraints

from pyro_spread import (
    AutoImplicit,
    GaussianNoise,
    ImplicitDistribution,
    PriorContrastELBO,
    SemiImplicitELBO,
    concat_sites,
    two_player,
)
from pyro_spread.ratio import MLPCritic


def scaled(net):
    """
    Initialise the layers as flax does, so that they keep the variance of their inputs.

    PyTorch's own start is a third of that; guide and critic are slower then, and often lose a mode.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
    return net


class Sampler(nn.Module):
    """z = skip * eps_0 + net(eps, sign(eps)), at first N(0, 1); by the signs it can jump."""

    def __init__(self, noise_dim, hidden_dim):
        super().__init__()
        self.skip = nn.Parameter(torch.ones(()))
        self.net = scaled(
            nn.Sequential(
                nn.Linear(2 * noise_dim, hidden_dim),
                nn.Tanh(),
                nn.Linear(hidden_dim, hidden_dim),
                nn.Tanh(),
                nn.Linear(hidden_dim, 1),
            )
        )
        nn.init.zeros_(self.net[-1].weight)

    def forward(self, eps):
        shift = self.net(torch.cat([eps, eps.sign()], -1)).squeeze(-1)
        return self.skip * eps[..., 0] + shift


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    zero = torch.zeros((), device=device)

    def fit(name, case, seed):
        x = torch.tensor([case.observed], device=device)
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        sampler = Sampler(args.noise_dim, args.hidden_dim).to(device)
        noise = dist.Normal(torch.zeros(args.noise_dim, device=device), 1.0).to_event(1)

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(zero, 1.0))
                pyro.sample("x", dist.Normal(z**2, case.scale), obs=x)

        def implicit_guide(x):
            pyro.module("sampler", sampler)
            with pyro.plate("data", len(x)):
                pyro.sample("z", ImplicitDistribution(sampler, noise, event_shape=()))

        def normal_guide(x):
            loc = pyro.param("loc", lambda: torch.randn((), device=device))
            std = pyro.param("std", zero + 1.0, constraint=constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, std))

        def kernel(x):
            std = pyro.param("kernel", zero + args.kernel_scale, constraint=constraints.positive)
            return {"z": GaussianNoise(std)}

        particles = {
            "num_particles": args.num_particles,
            "vectorize_particles": True,
            "max_plate_nesting": 1,
        }
        guide, num_steps, critic_steps = implicit_guide, args.num_steps, 1
        adversarial = name in ("adaptive", "automatic", "plain")
        if adversarial:
            critic_steps = args.critic_steps
            num_steps = critic_steps * args.num_steps
            critic, site = MLPCritic([args.hidden_dim] * 2, input_dim=1).to(device), "z"
            if name == "automatic":  # with the nets as PyTorch starts them
                guide, site = AutoImplicit(model), "_auto_data"
            else:
                scaled(critic)
            loss = PriorContrastELBO(
                concat_sites(critic, site),
                adaptive=name != "plain",
                annealing=round(args.warm_up * num_steps),
                num_moment_draws=args.num_moment_draws,
                num_critic_draws=args.num_critic_draws,
                **particles,
            )
        elif name == "semi-implicit":
            loss = SemiImplicitELBO(kernel, args.num_mixture, Trace_ELBO(**particles))
        else:
            guide, loss = normal_guide, Trace_ELBO(**particles)

        def decay(step):
            return learning_rate_factor(step / num_steps)

        def adam(rate):
            settings = {"lr": rate, "betas": (0.5, 0.999)}
            return LambdaLR(
                {"optimizer": torch.optim.Adam, "optim_args": settings, "lr_lambda": decay}
            )

        optim = adam(args.learning_rate)
        if adversarial:
            optim = two_player(optim, adam(args.critic_learning_rate), critic_steps)
        svi = SVI(model, guide, optim, loss)
        for _ in range(num_steps):
            svi.step(x)
            optim.step()

        estimates = [-svi.evaluate_loss(x) for _ in range(args.num_evaluations)]
        posterior = loss.spread_guide(model, guide) if name == "semi-implicit" else guide
        with torch.no_grad():
            draws = Predictive(posterior, num_samples=args.num_draws, parallel=True)(x)["z"]
        return Fit(draws.flatten().cpu().numpy(), estimates)

    return compare("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
