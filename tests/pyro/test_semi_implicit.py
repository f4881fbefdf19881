# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The semi-implicit bound: what it computes, how it composes, what it refuses."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, poutine
from pyro.infer import SVI, Trace_ELBO
from pyro_semi_implicit import CASES, EPS, NOISE, average
from scipy import integrate, stats

from pyro_spread import GaussianNoise, ImplicitDistribution, LaplaceNoise, SemiImplicitELBO

pytestmark = pytest.mark.usefixtures("double")


def conjugate(s, x):
    """The model and an implicit guide whose spread is near the posterior: (t, sigma) beside it."""
    mean, sd = x / (1 + s**2), s / math.sqrt(1 + s**2)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, s), obs=torch.tensor(x))

    def guide():
        pyro.sample("z", ImplicitDistribution(lambda e: mean + 0.9 * sd * e, EPS, ()))

    return model, guide, mean, 0.9 * sd, 0.5 * sd


def exact_elbo(s, x, m, variance):
    """Of q = N(m, variance)."""
    likelihood = -0.5 * math.log(2 * math.pi * s**2) - ((x - m) ** 2 + variance) / (2 * s**2)
    prior = -0.5 * math.log(2 * math.pi) - (m**2 + variance) / 2
    return likelihood + prior + 0.5 * math.log(2 * math.pi * math.e * variance)


def affine(site="z", m=0.3, t=0.4, shape=(), event_dim=0):
    def guide(*args):
        eps = EPS.expand(shape).to_event(event_dim)
        loc = pyro.param("m", torch.tensor(m))
        scale = pyro.param("t", torch.tensor(t))
        event = shape[len(shape) - event_dim :]
        pyro.sample(site, ImplicitDistribution(lambda e: loc + scale * e, eps, event))

    return guide


def normal_model(x=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0) if x is None else x)


# --- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "x"), CASES)
def test_the_gap_to_the_exact_elbo_shrinks_with_k_and_log_p_is_a_ceiling(s, x):
    model, guide, m, t, sigma = conjugate(s, x)
    elbo = exact_elbo(s, x, m, t**2 + sigma**2)
    assert elbo < CASES[s, x]
    gaps, errors = [], []
    for k in (0, 2, 10, 100):
        # Particles are averaged inside: their number stands in for that of the calls.
        loss = SemiImplicitELBO(
            {"z": GaussianNoise(sigma)},
            k,
            Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=0),
        )
        value, error = average(loss, model, guide, n=30)
        assert value < CASES[s, x] + 4 * error
        gaps.append(elbo - value)
        errors.append(error)
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] - 3 * (errors[2] + errors[3])
    assert gaps[0] > 0.3
    assert -4 * errors[3] < gaps[3] < 0.05 + 4 * errors[3]


def test_without_further_draws_it_is_the_hierarchical_bound():
    # log k(z | psi_0) alone: E log N(z; psi, sigma²) is minus the entropy of the kernel.
    model, guide, m, t, sigma = conjugate(1.0, 2.0)
    loss = SemiImplicitELBO({"z": GaussianNoise(sigma)}, 0)
    value, error = average(loss, model, guide, n=1500)
    marginal = t**2 + sigma**2
    expected = exact_elbo(1.0, 2.0, m, marginal) - 0.5 * math.log(marginal / sigma**2)
    assert abs(value - expected) < 4 * error


def test_the_density_is_that_of_the_mixture():
    """Every draw by hand: the same seed gives the same psi and the same z."""
    trace = {}

    def model():
        trace["z"] = pyro.sample("z", dist.Normal(0.0, 1.0))

    psi = {}

    def fn(eps):
        psi["all"] = 0.3 + 0.4 * eps
        return psi["all"]

    def guide():
        pyro.sample("z", ImplicitDistribution(fn, EPS, ()))

    value = -SemiImplicitELBO(NOISE, 7).loss(model, guide)
    assert psi["all"].shape == (8,)
    log_q = dist.Normal(psi["all"], 0.3).log_prob(trace["z"]).exp().mean().log()
    expected = dist.Normal(0.0, 1.0).log_prob(trace["z"]) - log_q
    assert value == pytest.approx(float(expected), rel=1e-12)


def test_every_draw_carries_gradients():
    seen = {}

    def fn(eps):
        seen["psi"] = (0.3 + 0.4 * eps).requires_grad_()
        return seen["psi"]

    def guide():
        pyro.param("unused", torch.tensor(0.0))
        pyro.sample("z", ImplicitDistribution(fn, EPS, ()))

    SemiImplicitELBO(NOISE, 4).differentiable_loss(normal_model, guide).backward()
    assert seen["psi"].grad.shape == (5,)
    assert bool((seen["psi"].grad != 0).all())


def test_gradients_of_the_bound_point_at_the_posterior():
    # At large K and small sigma the optimum in (m, t) is the exact posterior N(1, 1/2).
    guide = affine(m=0.0, t=1.0)
    loss = SemiImplicitELBO(
        {"z": GaussianNoise(0.4)}, 30, Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=0)
    )
    svi = SVI(normal_model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
    for _ in range(400):
        svi.step()
    assert pyro.param("m").item() == pytest.approx(1.0, abs=0.1)
    variance = pyro.param("t").item() ** 2 + 0.4**2
    assert variance == pytest.approx(0.5, abs=0.12)
    fine = SemiImplicitELBO(
        {"z": GaussianNoise(0.4)},
        300,
        Trace_ELBO(300, vectorize_particles=True, max_plate_nesting=0),
    )
    value, error = average(fine, normal_model, guide, n=20)
    assert CASES[1.0, 2.0] - 0.03 < value < CASES[1.0, 2.0] + 4 * error


# --- how it composes -----------------------------------------------------------------------------

ELBOS = {
    "Trace": lambda: Trace_ELBO(),
    "Trace, particles": lambda: Trace_ELBO(num_particles=3),
    "Trace, vectorised": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
    "Graph": lambda: infer.TraceGraph_ELBO(),
    "MeanField": lambda: infer.TraceMeanField_ELBO(),
    "Enum": lambda: infer.TraceEnum_ELBO(strict_enumeration_warning=False),
    "Jit": lambda: infer.JitTrace_ELBO(ignore_jit_warnings=True),
}


@pytest.mark.parametrize("name", ELBOS)
def test_stock_elbos_agree(name):
    guide = affine()
    value, error = average(SemiImplicitELBO(NOISE, 5, ELBOS[name]()), normal_model, guide, n=200)
    expected, its_error = average(SemiImplicitELBO(NOISE, 5), normal_model, guide, n=600)
    assert abs(value - expected) < 4 * math.hypot(error, its_error)
    loss = SemiImplicitELBO(NOISE, 5, ELBOS[name]())
    loss.loss_and_grads(normal_model, guide)
    assert float(pyro.param("t").grad) != 0


def test_the_importance_weighted_bound_is_tighter_and_below_log_p():
    guide = affine()
    plain, _ = average(SemiImplicitELBO(NOISE, 5), normal_model, guide)
    elbo = infer.RenyiELBO(alpha=0.0, num_particles=50, vectorize_particles=True)
    value, error = average(SemiImplicitELBO(NOISE, 5, elbo), normal_model, guide, n=200)
    assert plain + 0.1 < value < CASES[1.0, 2.0] + 4 * error


def test_vectorised_particles_draw_independently():
    shapes, draws = [], []

    def fn(eps):
        shapes.append(tuple(eps.shape))
        draws.append(eps)
        return eps

    def guide():
        pyro.sample("z", ImplicitDistribution(fn, EPS, ()))

    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=0)
    SemiImplicitELBO(NOISE, 2, elbo).loss(normal_model, guide)
    assert shapes[-1] == (3, 4)
    assert len(torch.unique(draws[-1])) == 12


def test_plates_scale_and_subsample():
    data = torch.linspace(-1, 1, 6)

    def model(size):
        with pyro.plate("data", 6, subsample_size=size) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(len(index)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])

    def guide(size):
        with pyro.plate("data", 6, subsample_size=size) as index:
            loc = 0.5 * data[index]
            pyro.sample("z", ImplicitDistribution(lambda e: loc + 0.5 * e, EPS.expand([1]), ()))

    loss = SemiImplicitELBO({"z": GaussianNoise(0.4)}, 10)
    full, error = average(loss, model, guide, 6)
    part, its_error = average(loss, model, guide, 2, n=1200)
    assert abs(full - part) < 4 * math.hypot(error, its_error)
    assert full < float(dist.Normal(0.0, math.sqrt(2)).log_prob(data).sum())


MASK = torch.tensor([True, False, True])


@pytest.mark.parametrize("how", ["distribution", "handler"])
def test_masked_elements_count_for_nothing(how):
    data = torch.tensor([0.5, math.inf, -1.0])  # what is masked may be anything

    def handler():
        return poutine.mask(mask=MASK) if how == "handler" else poutine.mask(mask=True)

    def masked(fn):
        return fn.mask(MASK) if how == "distribution" else fn

    def model():
        with pyro.plate("data", 3), handler():
            z = pyro.sample("z", masked(dist.Normal(torch.zeros(3), 1.0)))
            x = torch.where(MASK, data, torch.zeros(3))
            pyro.sample("x", masked(dist.Normal(z, 1.0)), obs=x)

    def guide():
        with pyro.plate("data", 3), handler():
            m = pyro.param("masked", torch.zeros(3))
            fn = ImplicitDistribution(lambda e: m + 0.5 * e, EPS.expand([3]), ())
            pyro.sample("z", masked(fn))

    loss = SemiImplicitELBO({"z": GaussianNoise(0.4)}, 10)
    loss.loss_and_grads(model, guide)
    grad = pyro.param("masked").grad
    assert float(grad[1]) == 0
    assert bool((grad[MASK] != 0).all())
    value, error = average(loss, model, guide)
    assert value < float(dist.Normal(0.0, math.sqrt(2)).log_prob(data[MASK]).sum()) + 4 * error


@pytest.mark.parametrize("wrap", ["to_event", "event_shape", "mask outside", "transformed"])
def test_wrappers_around_the_implicit_distribution(wrap):
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(1.0))

    def fn():
        one = ImplicitDistribution(lambda e: 0.3 + 0.5 * e, EPS.expand([2]), ())
        if wrap == "to_event":
            return one.to_event(1)
        if wrap == "mask outside":
            return one.to_event(1).mask(torch.tensor(True))
        whole = EPS.expand([2]).to_event(1)
        if wrap == "event_shape":
            return ImplicitDistribution(lambda e: 0.3 + 0.5 * e, whole, (2,))
        shift = dist.transforms.AffineTransform(0.3, 0.5)
        return dist.TransformedDistribution(ImplicitDistribution(lambda e: e, whole, (2,)), shift)

    loss = SemiImplicitELBO({"z": GaussianNoise(0.4)}, 4)
    reference = ImplicitDistribution(lambda e: 0.3 + 0.5 * e, EPS.expand([2]).to_event(1), (2,))
    values = []
    for make in (fn, lambda: reference):
        pyro.set_rng_seed(3)
        values.append(loss.loss(model, lambda make=make: pyro.sample("z", make())))
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_two_implicit_sites_and_one_with_a_density():
    # x = a + b + c + noise; the guide factorises, so its exact ELBO is in closed form.
    def model():
        total = sum(pyro.sample(site, dist.Normal(0.0, 1.0)) for site in "abc")
        pyro.sample("x", dist.Normal(total, 1.0), obs=torch.tensor(2.0))

    def guide():
        for site in "ab":
            pyro.sample(site, ImplicitDistribution(lambda e: 0.5 + 0.3 * e, EPS, ()))
        pyro.sample("c", dist.Normal(0.5, 0.5))

    noise = {"a": GaussianNoise(0.4), "b": LaplaceNoise(0.3)}
    elbo = Trace_ELBO(300, vectorize_particles=True, max_plate_nesting=0)
    value, error = average(SemiImplicitELBO(noise, 200, elbo), model, guide, n=10)
    # The marginal of b has no closed form, its entropy is a quadrature.
    grid = np.linspace(-6, 7, 20001)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    density = sum(
        w * stats.laplace.pdf(grid, 0.5 + 0.3 * n, 0.3) for n, w in zip(nodes, weights, strict=True)
    ) / math.sqrt(2 * math.pi)
    entropy_b = -integrate.trapezoid(density * np.log(density), grid)
    variances = [0.25, 0.3**2 + 2 * 0.3**2, 0.25]
    entropies = 2 * 0.5 * math.log(2 * math.pi * math.e * 0.25) + entropy_b
    priors = sum(-0.5 * math.log(2 * math.pi) - (0.25 + v) / 2 for v in variances)
    likelihood = -0.5 * math.log(2 * math.pi) - (0.5**2 + sum(variances)) / 2
    expected = likelihood + priors + entropies
    assert expected - 0.03 - 4 * error < value < expected + 4 * error


def test_an_auxiliary_site_is_in_unconstrained_space():
    # As AutoContinuous does it: the latent is a function of an auxiliary site, with its Jacobian.
    def model():
        z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.log(), 1.0), obs=torch.tensor(2.0))

    def guide():
        u = pyro.sample(
            "_u",
            ImplicitDistribution(lambda e: 1 + 0.5 * e, EPS, ()),
            infer={"is_auxiliary": True},
        )
        pyro.sample("z", dist.Delta(u.exp(), log_density=-u))

    elbo = Trace_ELBO(200, vectorize_particles=True, max_plate_nesting=0)
    loss = SemiImplicitELBO({"_u": GaussianNoise(0.5)}, 100, elbo)
    value, error = average(loss, model, guide, n=20)
    # Exact: q(u) = N(1, 1/2) is the posterior of u, so that the bound is nearly tight.
    assert CASES[1.0, 2.0] - 0.03 < value < CASES[1.0, 2.0] + 4 * error
