# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Deterministic ICA: where EM stands still
========================================

Independent component analysis with Laplace sources, x = A z + g e, and next to no output noise g.
EM freezes as g vanishes: the posterior of z is then a point, and the M-step returns the A that it
came from. On spread data it moves (Zhang et al., https://arxiv.org/abs/1811.08968), and so does SVI
with SpreadELBO instead of Trace_ELBO. The problems, one per seed and output noise, are independent
and sit in a plate of their own.

    python examples/pyro/ica.py --output ica
    python examples/pyro/ica.py --paper --output ica-paper
"""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from studies.ica_study import compare, parse_args
from torch import nn
from tqdm import trange

from pyro_spread import GaussianNoise, SpreadELBO


class Encoder(nn.Module):
    """Full-covariance Gaussian over z given y, with one small net per problem."""

    def __init__(self, start: torch.Tensor, hidden_dim: int) -> None:
        super().__init__()
        problems, dim, num_sources = start.shape
        self.num_sources = num_sources
        rows, columns = torch.tril_indices(num_sources, num_sources)
        self.rows, self.columns = rows.to(start.device), columns.to(start.device)
        sizes = (dim, hidden_dim, hidden_dim, num_sources + len(rows))
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            self.weights.append(start.new_empty(problems, fan_in, fan_out).normal_() / fan_in**0.5)
            self.biases.append(start.new_zeros(problems, 1, fan_out))
        # It begins at a linear guide: the net adds nothing, and the linear map inverts the start.
        self.weights[-1].data.zero_()
        eye = torch.eye(num_sources, device=start.device)
        self.linear = nn.Parameter(start @ torch.linalg.inv(start.mT @ start + eye))

    def forward(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = y
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h.tanh() if i else h, weight)
        loc, entries = h[..., : self.num_sources], h[..., self.num_sources :]
        tril = h.new_zeros(*h.shape[:-1], self.num_sources, self.num_sources)
        tril[..., self.rows, self.columns] = torch.where(
            self.rows == self.columns, (entries - 1).exp(), entries
        )
        return y @ self.linear + loc, tril


def main(args):
    torch.set_num_threads(args.num_threads)
    device = torch.device("cuda" if args.cuda else "cpu")

    def fit(problems, description):
        pyro.clear_param_store()
        pyro.set_rng_seed(args.seed)
        data, start, g = (
            torch.as_tensor(part, dtype=torch.float32, device=device)
            for part in (problems.data, problems.start, problems.output_noise[:, None, None])
        )
        num_problems, num_data, _ = data.shape
        num_sources = start.shape[-1]
        encoder = Encoder(start, args.hidden_dim)
        rate = 2**-0.5

        def model(x):
            A = pyro.param("A", lambda: start.clone())
            with pyro.plate("problems", num_problems, dim=-2), pyro.plate("data", x.shape[1]):
                z = pyro.sample("z", dist.Laplace(x.new_zeros(num_sources), rate).to_event(1))
                pyro.sample("x", dist.Normal(z @ A.mT, g).to_event(1), obs=x)

        def guide(x):
            pyro.module("encoder", encoder)
            with pyro.plate("problems", num_problems, dim=-2), pyro.plate("data", x.shape[1]):
                loc, tril = encoder(x)
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))

        optim = ClippedAdam(
            {
                "lr": args.learning_rate,
                "lrd": 0.05 ** (1 / args.num_steps),
                "clip_norm": float(min(args.batch_size, num_data)),
            }
        )
        svi = SVI(model, guide, optim, loss=SpreadELBO({"x": GaussianNoise(args.noise_scale)}))
        total, count = torch.zeros_like(start), 0
        progress = trange(args.num_steps, desc=description)
        for step in progress:
            batch = data
            if num_data > args.batch_size:
                batch = data[:, torch.randint(num_data, (args.batch_size,), device=device)]
            bound = -svi.step(batch) / batch[..., 0].numel()
            # Steps of a constant size move about the optimum: average the last quarter.
            if step >= 0.75 * args.num_steps:
                total, count = total + pyro.param("A").detach(), count + 1
            if step % 20 == 0:
                progress.set_postfix(bound=f"{bound:.3f}")
        return (total / count).double().cpu().numpy()

    return compare("pyro", args, fit)


if __name__ == "__main__":
    main(parse_args("pyro", __doc__.strip().split("\n")[0]))
