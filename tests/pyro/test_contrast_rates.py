# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""How often PriorContrastELBO in Pyro finds false evidence, and how often it sees it in vain."""

import warnings

import known_gaps
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro_contrast import Known

from pyro_spread import FalseEvidenceWarning, PriorContrastELBO, concat_sites, two_player
from pyro_spread.ratio import MLPCritic


def solve(tril, z):
    return torch.linalg.solve_triangular(tril, z[..., None], upper=False)[..., 0]


def outcome(run):
    """The true gap of a finished run, whether it was warned of, and the held-out check."""
    pyro.clear_param_store()
    pyro.set_rng_seed(run.seed)
    x, loc, tril = (torch.tensor(each, dtype=torch.float32) for each in known_gaps.guide_of(run))
    base = dist.Normal(torch.zeros(run.dim), 1.0).to_event(1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(run.dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1], 1.0).to_event(1), obs=x)

    def guide(x):
        fn = Known(
            lambda eps: loc + (tril @ eps[..., None])[..., 0],
            base,
            (run.dim,),
            lambda z: known_gaps.log_q(z, loc, tril, solve, torch.log),
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn)

    critic = concat_sites(MLPCritic([32, 32], input_dim=run.dim + 1), "z", "x")
    loss = PriorContrastELBO(critic, adaptive=run.adaptive)
    adam = pyro.optim.Adam({"lr": run.rate})
    svi = SVI(model, guide, two_player(pyro.optim.SGD({"lr": 0.0}), adam), loss)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(known_gaps.NUM_STEPS):
            svi.step(x)
    warned = any(issubclass(each.category, FalseEvidenceWarning) for each in caught)
    gaps = []
    for seed in range(300):
        pyro.set_rng_seed(seed)
        exact = Trace_ELBO().loss(model, guide, x)
        pyro.set_rng_seed(seed)
        gaps.append(exact - loss.loss(model, guide, x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FalseEvidenceWarning)
        report = loss.held_out_check(model, guide, x, num_steps=100, num_draws=100)
    return sum(gaps) / len(gaps), warned, report


@pytest.mark.slow
def test_the_rates():
    known_gaps.check_rates([outcome(run) for run in known_gaps.RUNS])
