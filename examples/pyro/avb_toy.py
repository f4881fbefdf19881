# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Adversarial variational Bayes on four points
============================================

The example of Mescheder et al. (https://arxiv.org/abs/1701.04722, section 4.1): four images of four
pixels, each with another pixel on, and two latent variables. To give each image the probability 1/4
the codes of the four must share out the prior among them, without gaps or overlap. Gaussian codes,
those of a VAE, cannot. An encoder that is also fed noise can, but has no density: here it is
trained by ``PriorContrastELBO`` with a critic, and by ``SemiImplicitELBO`` without one. The
codes of an image are only log 4 nats away from the prior, which is a fine contrast then:
``adaptive=False``.

    python examples/pyro/avb_toy.py --num-seeds 3 --output avb-toy
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import LambdaLR
from studies.avb_toy_study import Fit, batch, compare, latent_grid, parse_args
from studies.comparison import learning_rate_factor
from torch import nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_spread import (
    GaussianNoise,
    ImplicitDistribution,
    PriorContrastELBO,
    SemiImplicitELBO,
    concat_sites,
    two_player,
)
from pyro_spread.ratio import MLPCritic


def mlp(num_inputs, hidden_dim, num_outputs):
    return nn.Sequential(
        nn.Linear(num_inputs, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, num_outputs),
    )


class Encoder(nn.Module):
    """z = eps + net(x, eps) with as many of the eps as there are z, at first nearly the prior."""

    def __init__(self, noise_dim, hidden_dim):
        super().__init__()
        self.net = mlp(4 + noise_dim, hidden_dim, 2)

    def forward(self, x, eps):
        x = x.expand(*eps.shape[:-1], 4)
        return eps[..., :2] + self.net(torch.cat([x, eps], -1))


class Moments(nn.Module):
    """Mean and standard deviation given x: the VAE's encoder."""

    def __init__(self, hidden_dim):
        super().__init__()
        self.net = mlp(4, hidden_dim, 4)

    def forward(self, x):
        loc, scale = self.net(x).chunk(2, -1)
        return loc, softplus(scale + 0.55)  # a standard deviation near one at first


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    x = torch.from_numpy(batch(args.copies)).to(device)
    prior = dist.Normal(torch.zeros(2, device=device), 1.0).to_event(1)
    noise = dist.Normal(torch.zeros(args.noise_dim, device=device), 1.0).to_event(1)

    def fit(name, seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        decoder = mlp(2, args.hidden_dim, 4).to(device)
        encoder = Encoder(args.noise_dim, args.hidden_dim).to(device)
        moments = Moments(args.hidden_dim).to(device)

        def model(x):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior)
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def implicit_guide(x):
            pyro.module("encoder", encoder)
            with pyro.plate("data", len(x)):
                encode = ImplicitDistribution(lambda eps: encoder(x, eps), noise, event_shape=(2,))
                return pyro.sample("z", encode)

        def gaussian_guide(x):
            pyro.module("moments", moments)
            with pyro.plate("data", len(x)):
                return pyro.sample("z", dist.Normal(*moments(x)).to_event(1))

        def kernel(x):
            std = torch.tensor(args.kernel_scale, device=device)
            return {"z": GaussianNoise(pyro.param("kernel", std, constraint=constraints.positive))}

        guide, critic_steps = implicit_guide, 1
        if name == "avb":
            critic_steps = args.critic_steps
            critic = MLPCritic([args.hidden_dim] * 2).to(device)
            loss = PriorContrastELBO(concat_sites(critic, "x", "z"), adaptive=False)
        elif name == "semi-implicit":
            loss = SemiImplicitELBO(kernel, args.num_mixture)
        else:
            guide, loss = gaussian_guide, Trace_ELBO()
        num_steps = critic_steps * args.num_steps

        def decay(step):
            return learning_rate_factor(step / num_steps)

        def adam(rate):
            settings = {"lr": rate, "betas": (0.5, 0.999)}
            return LambdaLR(
                {"optimizer": torch.optim.Adam, "optim_args": settings, "lr_lambda": decay}
            )

        optim = adam(args.learning_rate)
        if name == "avb":
            optim = two_player(optim, adam(args.critic_learning_rate), critic_steps)
        svi = SVI(model, guide, optim, loss)
        for _ in range(num_steps):
            svi.step(x)
            optim.step()

        losses = [svi.evaluate_loss(x) / len(x) for _ in range(args.num_evaluations)]
        posterior = loss.spread_guide(model, guide) if name == "semi-implicit" else guide
        with torch.no_grad():
            codes = posterior(torch.eye(4, device=device).repeat(args.num_draws, 1))
            grid_logits = decoder(torch.from_numpy(latent_grid()).to(device))
        codes = codes.reshape(args.num_draws, 4, 2).transpose(0, 1)
        return Fit(codes.cpu().numpy(), grid_logits.cpu().numpy(), -sum(losses) / len(losses))

    return compare("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
