# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Posteriors of black boxes
=========================

An epidemic with an unknown rate of infection and of recovery, simulated outside of PyTorch: by
SciPy's ODE solver, which takes all runs at once, and by a program of its own, which is started for
each run. ``Simulator`` makes a site of either. ``JointContrastELBO`` with ``KL()`` trains a guide
that answers for every x at once, and is judged on simulations that it has not seen.

    python examples/pyro/black_box.py --simulators ode --output black-box
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from studies.black_box_study import NUM_DAYS, PRIOR, Fit, compare, parse_args
from torch import nn

from pyro_spread import KL, JointContrastELBO, Simulator


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")

    def fit(simulator, vectorized, num_steps, batch_size):
        pyro.clear_param_store()
        pyro.set_rng_seed(args.seed)

        def model(x):
            with pyro.plate("data", len(x)):
                rates = [
                    pyro.sample(name, dist.LogNormal(torch.tensor(loc, device=device), scale))
                    for name, (loc, scale) in PRIOR.items()
                ]
                counts = Simulator(
                    simulator, *rates, event_shape=(NUM_DAYS,), vectorized=vectorized
                )
                return torch.stack(rates, -1), pyro.sample("x", counts, obs=x)

        net = nn.Sequential(
            nn.Linear(NUM_DAYS, args.hidden_dim),
            nn.ReLU(),
            nn.Linear(args.hidden_dim, args.hidden_dim),
            nn.ReLU(),
            nn.Linear(args.hidden_dim, 2 * len(PRIOR)),
        ).to(device)

        def guide(x):
            pyro.module("net", net)
            locs, log_scales = net(x.log1p()).chunk(2, -1)
            with pyro.plate("data", len(x)):
                rates = [
                    pyro.sample(name, dist.LogNormal(prior[0] + loc, log_scale.exp()))
                    for (name, prior), loc, log_scale in zip(
                        PRIOR.items(), locs.unbind(-1), log_scales.unbind(-1), strict=True
                    )
                ]
            return torch.stack(rates, -1)

        loss = JointContrastELBO(divergence=KL())
        optim = pyro.optim.Adam({"lr": args.learning_rate})
        svi = SVI(model, loss.register(model, guide), optim, loss)
        batch = torch.zeros(batch_size, NUM_DAYS, device=device)
        for _ in range(num_steps):
            svi.step(batch)
        with torch.no_grad():
            unseen = torch.zeros(args.num_tests, NUM_DAYS, device=device)
            truth, x = pyro.poutine.uncondition(model)(unseen)
            draws = torch.stack([guide(x) for _ in range(args.num_draws)])
        return Fit(truth.cpu().numpy(), draws.cpu().numpy())

    return compare("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
