# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The semi-implicit bound where the support of the latent is constrained: densities and draws."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro_semi_implicit import CASES, EPS, NOISE, average
from scipy import integrate, stats

from pyro_spread import GaussianNoise, ImplicitDistribution, LogisticNoise, SemiImplicitELBO

pytestmark = pytest.mark.usefixtures("double")


def test_log_normal_latent_against_the_closed_form():
    # The first posterior of CASES, at a constrained site: u = log z is N(1, 1/2).
    def model():
        z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.log(), 1.0), obs=torch.tensor(2.0))

    def guide():
        pyro.sample("z", ImplicitDistribution(lambda e: (1 + 0.5 * e).exp(), EPS, ()))

    elbo = Trace_ELBO(200, vectorize_particles=True, max_plate_nesting=0)
    value, error = average(
        SemiImplicitELBO({"z": GaussianNoise(0.5)}, 100, elbo), model, guide, n=20
    )
    assert CASES[1.0, 2.0] - 0.03 < value < CASES[1.0, 2.0] + 4 * error


def test_half_normal_latent_against_quadrature():
    def model():
        z = pyro.sample("z", dist.HalfNormal(1.0))
        pyro.sample("x", dist.Normal(0.0, z + 0.1), obs=torch.tensor(1.5))

    def guide():
        pyro.sample("z", ImplicitDistribution(lambda e: (0.2 + 0.3 * e).exp(), EPS, ()))

    def joint(z):
        return stats.halfnorm.pdf(z) * stats.norm.pdf(1.5, 0, z + 0.1)

    def log_q(z):
        return stats.lognorm.logpdf(z, math.hypot(0.3, 0.4), scale=math.exp(0.2))

    log_p = math.log(integrate.quad(joint, 0, 20)[0])
    exact = integrate.quad(
        lambda z: math.exp(log_q(z)) * (math.log(joint(z)) - log_q(z)), 1e-4, 30, limit=200
    )[0]
    elbo = Trace_ELBO(200, vectorize_particles=True, max_plate_nesting=0)
    value, error = average(
        SemiImplicitELBO({"z": GaussianNoise(0.4)}, 100, elbo), model, guide, n=20
    )
    assert exact < log_p
    assert exact - 0.03 - 4 * error < value < exact + 4 * error


@pytest.mark.parametrize(
    ("prior", "fn", "base"),
    [
        (dist.Dirichlet(torch.ones(3)), lambda e: e.softmax(-1), EPS.expand([3]).to_event(1)),
        (dist.Uniform(1.0, 5.0), lambda e: 1 + 4 * e.sigmoid(), EPS),
        (dist.Uniform(torch.tensor([0.0, 1.0]), 5.0).to_event(1),
         lambda e: torch.tensor([0.0, 1.0]) + torch.tensor([5.0, 4.0]) * e.sigmoid(),
         EPS.expand([2]).to_event(1)),
        (dist.LKJCholesky(2), lambda e: torch.linalg.cholesky(
            torch.eye(2) + 0.5 * e.tanh()[..., None] * torch.tensor([[0.0, 1.0], [1.0, 0.0]])),
         EPS.expand([1]).to_event(1)),
    ],
    ids=["simplex", "interval", "intervals", "correlation"],
)  # fmt: skip
def test_the_density_integrates_to_one_on_other_supports(prior, fn, base):
    # E_q[p / q] = 1 for the mixture q, which needs its Jacobian, event dims included, to be right.
    seen = []

    def model():
        with pyro.plate("n", 4000):
            z = pyro.sample("z", prior)
            seen.append(z)

    def guide():
        with pyro.plate("n", 4000):
            pyro.sample("z", ImplicitDistribution(fn, base, prior.event_shape))

    loss = SemiImplicitELBO({"z": LogisticNoise(1.2)}, 6)  # tails as heavy as the prior
    loss.loss(model, guide)
    traces = list(loss._runner._get_traces(model, guide, (), {}))
    ((model_trace, guide_trace),) = traces
    log_w = model_trace.nodes["z"]["log_prob"] - guide_trace.nodes["z"]["log_prob"]
    assert log_w.shape == (4000,)
    weights = log_w.exp()
    assert abs(float(weights.mean()) - 1) < 5 * float(weights.std()) / math.sqrt(4000)
    assert float(weights.std()) < 3
    assert bool(prior.support.check(seen[-1]).all())


def test_draws_that_underflow_keep_their_density():
    def model():
        pyro.sample("z", dist.HalfNormal(torch.tensor(1.0)))

    def guide():
        pyro.sample("z", ImplicitDistribution(lambda e: (e - 700).exp(), EPS, ()))

    elbo = Trace_ELBO(50, vectorize_particles=True, max_plate_nesting=0)
    loss = SemiImplicitELBO({"z": GaussianNoise(60.0)}, 3, elbo)
    assert math.isfinite(loss.loss(model, guide))


def test_a_support_without_the_event_dims_of_its_site():
    # Pyro's flat priors have elementwise supports, whose Jacobian is one of elements.
    positive = dist.constraints.positive
    normal = dist.LogNormal(torch.zeros(2), 1.0).to_event(1)

    def proper():
        pyro.sample("z", normal)

    def flat():
        z = pyro.sample("z", dist.ImproperUniform(positive, (), (2,)))
        pyro.factor("density", normal.log_prob(z))

    def guide():
        eps = EPS.expand([2]).to_event(1)
        pyro.sample("z", ImplicitDistribution(torch.exp, eps, (2,)))

    values = []
    for model in (proper, flat):
        pyro.set_rng_seed(1)
        values.append(SemiImplicitELBO(NOISE, 3).loss(model, guide))
    assert values[0] == pytest.approx(values[1], rel=1e-12)
