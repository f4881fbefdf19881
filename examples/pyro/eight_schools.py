# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Eight schools with two modes
============================

The eight schools (Rubin 1981), with a scale tau that may be negative: since only the products
tau * eta are identified, the posterior of (tau, eta) has two mirror-image halves, which no Gaussian
guide can express and between which NUTS moves with difficulty. ``AutoImplicit`` makes a guide
without a density from the model, for mu and tau; given them eta gets a Gaussian, whose density
stays in the ELBO. ``PriorContrastELBO`` trains the guide against a critic, ``SemiImplicitELBO``
without one. For comparison ``contrast-all`` leaves all ten latents to ``AutoImplicit`` and the
critic. The exact moments come from quadrature.

    python examples/pyro/eight_schools.py --num-seeds 5 --output eight-schools
"""

from __future__ import annotations

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.optim import LambdaLR
from studies.comparison import learning_rate_factor
from studies.schools_study import MU_SCALE, TAU_SCALE, Fit, compare, parse_args
from torch import nn
from tqdm import trange

from pyro_spread import (
    AutoImplicit,
    GaussianNoise,
    PriorContrastELBO,
    SemiImplicitELBO,
    averaged_params,
    concat_sites,
    two_player,
)
from pyro_spread.ratio import MLPCritic
from spread_analysis.reference import EIGHT_SCHOOLS_EFFECTS, EIGHT_SCHOOLS_ERRORS


class Effects(nn.Module):
    """Mean and standard deviation of eta given mu and tau; those of the prior at first."""

    def __init__(self):
        super().__init__()
        sizes = [nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 16)]
        self.net = nn.Sequential(*sizes)
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, mu, tau):
        x = torch.stack([mu / MU_SCALE, tau / TAU_SCALE], -1)
        loc, log_scale = self.net(x).chunk(2, -1)
        return loc, log_scale.exp()


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    torch.set_default_device(device)
    effects = torch.tensor(EIGHT_SCHOOLS_EFFECTS, dtype=torch.float32)
    deviations = torch.tensor(EIGHT_SCHOOLS_ERRORS, dtype=torch.float32)

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, MU_SCALE))
        tau = pyro.sample("tau", dist.Normal(0.0, TAU_SCALE))
        eta = pyro.sample("eta", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        theta = pyro.deterministic("theta", mu[..., None] + tau[..., None] * eta, event_dim=1)
        pyro.sample("y", dist.Normal(theta, deviations).to_event(1), obs=y)

    def adam(rate, num_steps):
        settings = {"lr": rate, "betas": (0.5, 0.999)}
        return LambdaLR(
            {
                "optimizer": torch.optim.Adam,
                "optim_args": settings,
                "lr_lambda": lambda step: learning_rate_factor(step / (num_steps + 1)),
            }
        )

    def samples(draws):
        theta = draws["mu"][:, None] + draws["tau"][:, None] * draws["eta"]
        values = {"mu": draws["mu"], "tau": draws["tau"], "theta": theta}
        return {name: value.detach().cpu().numpy() for name, value in values.items()}

    def structured():
        hyperparameters = AutoImplicit(poutine.block(model, hide=["eta"]))
        net = Effects()

        def guide(y):
            pyro.module("effects", net)
            draws = hyperparameters(y)
            eta = dist.Normal(*net(draws["mu"], draws["tau"])).to_event(1)
            return {**draws, "eta": pyro.sample("eta", eta)}

        return guide

    def fit(method, seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        if method == "nuts":
            mcmc = MCMC(
                NUTS(model), args.num_draws, args.num_draws // 2, disable_progbar=args.smoke_test
            )
            mcmc.run(effects)
            return Fit(samples(mcmc.get_samples()), float("nan"))

        many = {"num_particles": args.num_particles, "vectorize_particles": True}
        num_steps = args.num_steps
        if method == "normal":
            guide, loss = AutoMultivariateNormal(model), Trace_ELBO(**many)
            optim = adam(args.learning_rate, num_steps)
        elif method == "semi-implicit":
            guide = structured()

            def noise(y):
                scale = pyro.param("scale", 0.3 * torch.ones(2), dist.constraints.positive)
                return {"_auto_latent": GaussianNoise(scale)}

            loss = SemiImplicitELBO(noise, args.num_mixture, Trace_ELBO(**many))
            optim = adam(args.learning_rate, num_steps)
        else:
            guide = structured() if method == "contrast" else AutoImplicit(model)
            critic = concat_sites(MLPCritic([args.hidden_dim] * 2))
            loss = PriorContrastELBO(critic, annealing=args.num_steps, **many)
            num_steps *= args.critic_steps
            optim = two_player(
                adam(args.learning_rate, num_steps),
                adam(args.critic_learning_rate, num_steps),
                args.critic_steps,
                ema=0.999,
            )
        svi = SVI(model, guide, optim, loss)
        for _ in trange(num_steps, desc=f"{method}, seed {seed}", mininterval=1):
            svi.step(effects)
            optim.step()

        estimate = -sum(svi.evaluate_loss(effects) for _ in range(50)) / 50
        is_contrast = method in ("contrast", "contrast-all")
        posterior = loss.spread_guide(model, guide) if method == "semi-implicit" else guide
        averaged = averaged_params(svi) if is_contrast else nullcontext()
        with torch.no_grad(), averaged, pyro.plate("draws", args.num_samples, dim=-1):
            draws = posterior(effects)
        return Fit(samples(draws), estimate)

    compare("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
