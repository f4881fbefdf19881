# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Delta-PCA: noise on both sides cancels
======================================

A linear decoder without output noise, x = A z, has no likelihood. Spread by Gaussian noise of any
scale s on both sides, its optimum is that of the clean data, A A' = U_k L_k U_k' (Zhang et al.,
https://arxiv.org/abs/1811.08968, section 4). With noise on the model's side only, as in a VAE of
fixed output variance, every eigenvalue comes out smaller by s^2.

    python examples/pyro/delta_pca.py --output delta-pca
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from studies.pca_study import PCARun, compare, parse_args
from tqdm import trange

from pyro_spread import GaussianNoise, SpreadELBO


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")

    def fit(x, start, scale, both_sides, seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        data = torch.as_tensor(x, dtype=torch.float32, device=device)
        first = torch.as_tensor(start, dtype=torch.float32, device=device)
        eye = torch.eye(first.shape[1], device=device)

        def model(x):
            A = pyro.param("A", lambda: first.clone())
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(eye)), 1.0).to_event(1))
                mean = z @ A.T
                # One-sided noise: the data stay clean and the likelihood gets the variance.
                likelihood = (
                    dist.Delta(mean, event_dim=1)
                    if both_sides
                    else dist.Normal(mean, scale).to_event(1)
                )
                pyro.sample("x", likelihood, obs=x)

        def guide(x):
            # A linear Gaussian guide in the coordinates of the decoder's exact posterior. The noise
            # of its z cancels in the gradient of A where the guide is exact, at V = L = I.
            A = pyro.param("A", lambda: first.clone())
            V = pyro.param("V", lambda: eye.clone())
            L = pyro.param("L", lambda: eye.clone(), constraint=constraints.lower_cholesky)
            inverse = torch.linalg.inv(A.T @ A + scale**2 * eye)
            tril = scale * torch.linalg.cholesky(inverse) @ L
            with pyro.plate("data", x.shape[0]):
                mean = x @ A @ inverse @ V.T
                pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=tril))

        # The first gradients, of size 1/s^2, would fill Adam's second moment and stop it for long:
        # clip them at one per datum. The decay lets the noise of the steps average out.
        decay = 0.003 ** (1 / args.num_steps)
        optim = ClippedAdam({"lr": args.learning_rate, "lrd": decay, "clip_norm": len(data)})
        loss = SpreadELBO({"x": GaussianNoise(scale)}) if both_sides else Trace_ELBO()
        svi = SVI(model, guide, optim, loss=loss)
        steps, products = [], []
        progress = trange(args.num_steps, desc=f"s={scale:g}{'' if both_sides else ' one side'}")
        for step in progress:
            bound = -svi.step(data) / len(data)
            if step % 20 == 0 or step == args.num_steps - 1:
                A = pyro.param("A").detach().double().cpu().numpy()
                steps.append(step + 1)
                products.append(A @ A.T)
                progress.set_postfix(bound=f"{bound:.3f}")
        return PCARun(np.array(steps), np.stack(products))

    return compare("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
