# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""How often PriorContrastELBO in NumPyro finds false evidence, and how often it sees it in vain."""

import warnings

import jax
import jax.numpy as jnp
import known_gaps
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import lax, random
from jax.scipy.linalg import solve_triangular
from jax.tree_util import Partial
from numpyro.infer import SVI, Trace_ELBO
from numpyro_contrast import Known

from numpyro_spread import FalseEvidenceWarning, PriorContrastELBO, concat_sites, two_player
from numpyro_spread.ratio import MLPCritic


def solve(tril, z):
    return solve_triangular(tril, z[..., None], lower=True)[..., 0]


def outcome(run):
    """The true gap of a finished run, whether it was warned of, and the held-out check."""
    x, loc, tril = map(jnp.asarray, known_gaps.guide_of(run))
    base = dist.Normal(jnp.zeros(run.dim), 1.0).to_event(1)
    fn = Partial(lambda loc, tril, eps: loc + (tril @ eps[..., None])[..., 0], loc, tril)

    def density(z):
        return known_gaps.log_q(z, loc, tril, solve, jnp.log)

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(run.dim), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z[..., :1], 1.0).to_event(1), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", Known(fn, base, (run.dim,), density))

    loss = PriorContrastELBO(concat_sites(MLPCritic([32, 32]), "z", "x"), adaptive=run.adaptive)
    optim = two_player(optax.sgd(0.0), optax.adam(run.rate))
    svi = SVI(model, loss.register(model, guide), optim, loss)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = svi.run(random.key(run.seed), known_gaps.NUM_STEPS, x, progress_bar=False)
        jax.block_until_ready(result.losses)
    warned = any(issubclass(each.category, FalseEvidenceWarning) for each in caught)

    def gap(key):
        exact = Trace_ELBO().loss(key, result.params, model, guide, x)
        return exact - loss.loss(key, result.params, model, guide, x)

    gaps = jax.jit(lambda keys: lax.map(gap, keys))(random.split(random.key(1), 300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FalseEvidenceWarning)
        report = loss.held_out_check(
            random.key(2), result.params, model, svi.guide, x, num_steps=100, num_draws=100
        )
    return float(gaps.mean()), warned, report


@pytest.mark.slow
def test_the_rates():
    known_gaps.check_rates([outcome(run) for run in known_gaps.RUNS])
