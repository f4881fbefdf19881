# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
JS_pi: from covering to mode seeking
====================================

A model that is too simple for its data must choose: cover all of them, or fit some of them well.
The weight pi in JS_pi decides (Huszar, https://arxiv.org/abs/1511.05101): near 0 the divergence
acts as KL[P||Q], near 1 as KL[Q||P]. Here an isotropic Gaussian is fitted to a correlated one, and
a single Gaussian to a mixture of two. Both are deterministic generators without a likelihood,
x = loc + std * eps, trained by SVI against a critic; the exact optima are known.

    python examples/pyro/js_interpolation.py --num-seeds 5 --output js-interpolation
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import LambdaLR
from studies.comparison import learning_rate_factor
from studies.interpolation_study import (
    CRITICS,
    MIXTURE_START,
    MODE,
    WIDTH,
    Fit,
    compare,
    gaussian_covariance,
    parse_args,
)

from pyro_spread import AdversarialDivergence, JSPi, concat_sites, two_player
from pyro_spread.ratio import MLPCritic, QuadraticCritic


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")
    root = torch.linalg.cholesky(torch.as_tensor(gaussian_covariance(), dtype=torch.float32))
    root = root.to(device)

    def draw_gaussian(num):
        return torch.randn(num, 2, device=device) @ root.T

    def isotropic_gaussian(x):
        log_std = pyro.param("log_std", x.new_zeros(()))
        with pyro.plate("data", len(x)):
            eps = pyro.sample("eps", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(log_std.exp() * eps, event_dim=1), obs=x)

    def draw_mixture(num):
        sign = torch.randint(2, (num,), device=device) * 2 - 1
        return MODE * sign + WIDTH * torch.randn(num, device=device)

    def single_gaussian(x):
        loc = pyro.param("loc", x.new_tensor(MIXTURE_START[0]))
        log_std = pyro.param("log_std", x.new_tensor(MIXTURE_START[1]).log())
        with pyro.plate("data", len(x)):
            eps = pyro.sample("eps", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Delta(loc + log_std.exp() * eps), obs=x)

    def guide(x):
        pass  # nothing to infer: the latent variables are the generator's noise

    def fit(problem, critic, pi, seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        draw, model = {
            "gaussian": (draw_gaussian, isotropic_gaussian),
            "mixture": (draw_mixture, single_gaussian),
        }[problem]
        net = MLPCritic([args.hidden_dim] * 2) if critic == "mlp" else QuadraticCritic()
        loss = AdversarialDivergence(concat_sites(net.to(device), "x"), JSPi(pi))

        critic_rate, critic_steps = CRITICS[critic]
        num_steps = args.warm_up + critic_steps * args.num_steps

        def decay(step):
            return learning_rate_factor(step / num_steps)

        def adam(rate, beta1, schedule):
            settings = {"lr": rate, "betas": (beta1, 0.999)}
            return LambdaLR(
                {"optimizer": torch.optim.Adam, "optim_args": settings, "lr_lambda": schedule}
            )

        # The critic has to know the first model before the model may follow it.
        generator = adam(args.learning_rate, 0.5, lambda s: decay(s) if s >= args.warm_up else 0.0)
        optim = two_player(generator, adam(critic_rate, 0.9, decay), critic_steps)
        svi = SVI(model, loss.register(model, guide), optim, loss)
        for _ in range(num_steps):
            svi.step(draw(args.batch_size))
            optim.step()

        loc = pyro.param("loc").item() if problem == "mixture" else 0.0
        std = pyro.param("log_std").exp().item()
        return Fit(loc, std, svi.evaluate_loss(draw(100_000)))

    return compare("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
