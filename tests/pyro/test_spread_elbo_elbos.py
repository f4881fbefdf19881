# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every stock ELBO of Pyro: which work under SpreadELBO, and that they bound what they should."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormalMessenger

from pyro_spread import GaussianNoise, SpreadELBO

S, N = 0.5, 6

ENUM = {"strict_enumeration_warning": False}
JIT = {"ignore_jit_warnings": True}

# Name -> ELBO of so many particles. The values of all are exact for the model below.
WORKING = {
    "Trace": lambda n: infer.Trace_ELBO(n),
    "Trace-vectorised": lambda n: infer.Trace_ELBO(n, vectorize_particles=True),
    "TraceMeanField": lambda n: infer.TraceMeanField_ELBO(n),
    "TraceMeanField-vectorised": lambda n: infer.TraceMeanField_ELBO(n, vectorize_particles=True),
    "TraceGraph": lambda n: infer.TraceGraph_ELBO(n),
    "TraceEnum": lambda n: infer.TraceEnum_ELBO(n, **ENUM),
    "TraceEnum-vectorised": lambda n: infer.TraceEnum_ELBO(n, vectorize_particles=True, **ENUM),
    "TraceEnum-nesting-given": lambda n: infer.TraceEnum_ELBO(
        n, max_plate_nesting=1, vectorize_particles=True, **ENUM
    ),
    "TraceTMC": lambda n: infer.TraceTMC_ELBO(n, **ENUM),
    "Renyi": lambda n: infer.RenyiELBO(alpha=0, num_particles=max(n, 2)),
    "Renyi-half-vectorised": lambda n: infer.RenyiELBO(
        alpha=0.5, num_particles=max(n, 2), vectorize_particles=True
    ),
    "JitTrace": lambda n: infer.JitTrace_ELBO(n, **JIT),
    "JitTraceMeanField": lambda n: infer.JitTraceMeanField_ELBO(n, **JIT),
    "JitTraceGraph": lambda n: infer.JitTraceGraph_ELBO(n, **JIT),
    "JitTraceEnum": lambda n: infer.JitTraceEnum_ELBO(n, **JIT, **ENUM),
}
quiet = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


def make():
    """z ~ N(0, 1), x = a z, with the exact posterior as the guide; and what the guide is handed."""
    seen = []

    def model(x):
        a = pyro.param("a", torch.tensor(0.8))
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(a * z), obs=x)

    def guide(x):
        seen.append(x.detach())
        slope, width = pyro.param("slope", torch.tensor(SLOPE)), pyro.param("sd", torch.tensor(SD))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(slope * x, width))

    return model, guide, seen


SLOPE = 0.8 / (0.8**2 + S**2)
SD = math.sqrt(S**2 / (0.8**2 + S**2))
X = torch.linspace(-1.5, 1.0, N)


def expected_loss():
    """-E log N(x + s eps; 0, a² + s²) and the variance of one draw of it."""
    total = 0.8**2 + S**2
    mean = 0.5 * (N * math.log(2 * math.pi * total) + float((X**2).sum() + N * S**2) / total)
    variance = (2 * N * S**4 + 4 * S**2 * float((X**2).sum())) / (4 * total**2)
    return mean, variance


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("name", list(WORKING))
class TestWorking:
    pytestmark = quiet

    def test_trains_a_step(self, name, num_particles):
        model, guide, _ = make()
        elbo = SpreadELBO({"x": GaussianNoise(S)}, WORKING[name](num_particles))
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
        for _ in range(2):
            assert math.isfinite(svi.step(X))
        for param, start in (("a", 0.8), ("slope", SLOPE), ("sd", SD)):
            assert pyro.param(param).item() != pytest.approx(start, abs=1e-3)

    def test_value_is_the_expected_bound(self, name, num_particles):
        # The guide is exact, so every draw is -log p(y) but for what elbos integrate analytically.
        model, guide, _ = make()
        elbo = SpreadELBO({"x": GaussianNoise(S)}, WORKING[name](num_particles))
        n = 60
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), elbo)
        values = torch.tensor([svi.step(X) for _ in range(n)])
        mean, variance = expected_loss()
        particles = num_particles if "Renyi" not in name and "TMC" not in name else 1
        assert abs(values.mean() - mean) < 5 * math.sqrt(2 * variance / particles / n)
        assert values.std() > 0


@pytest.mark.parametrize("name", [name for name in WORKING if "Jit" not in name])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_value_at_the_draw_that_was_handed(name, num_particles):
    if "MeanField" in name:
        pytest.skip("its KL is analytic: right on average only")
    model, guide, seen = make()
    loss = SpreadELBO({"x": GaussianNoise(S)}, WORKING[name](num_particles))
    value = loss.loss(model, guide, X)
    draws = {tuple(y.tolist()) for y in seen}
    marginal = dist.Normal(0.0, math.sqrt(0.8**2 + S**2))
    expected = -sum(float(marginal.log_prob(torch.tensor(y)).sum()) for y in draws) / len(draws)
    assert value == pytest.approx(expected, rel=1e-5)
    assert len(draws) == (1 if "Renyi" in name or "TMC" in name else num_particles)


def test_tail_adaptive_trains():
    model, guide, _ = make()
    elbo = infer.TraceTailAdaptive_ELBO(num_particles=4, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), SpreadELBO({"x": GaussianNoise(S)}, elbo))
    assert svi.step(X) == math.inf  # stock: it has gradients only, and reports inf
    assert pyro.param("a").item() != pytest.approx(0.8, abs=1e-3)
    assert pyro.param("slope").item() != pytest.approx(SLOPE, abs=1e-3)


def test_renyi_is_tighter_with_more_particles():
    # A wrong guide: the importance-weighted bound approaches log p(y) from below.
    def guide(x):
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(torch.zeros(N), 1.0))

    model, _, _ = make()

    def bound(n):
        elbo = infer.RenyiELBO(alpha=0, num_particles=n, vectorize_particles=True)
        loss = SpreadELBO({"x": GaussianNoise(S)}, elbo)
        return sum(loss.loss(model, guide, X) for _ in range(60)) / 60

    few, many = bound(2), bound(200)
    mean, variance = expected_loss()
    assert few > many + 0.5
    assert abs(many - mean) < 5 * math.sqrt(variance / 60) + 0.2


def refused():
    kernel = pyro.contrib.gp.kernels.RBF(1)
    return {
        "Trace_MMD": (infer.Trace_MMD(kernel, 1.0), "no bound on log p"),
        "ReweightedWakeSleep": (infer.ReweightedWakeSleep(), "sleep phase draws data"),
        "SpreadELBO": (SpreadELBO({"x": GaussianNoise(S)}), "how its particles share noise"),
    }


@pytest.mark.parametrize("name", ["Trace_MMD", "ReweightedWakeSleep", "SpreadELBO"])
def test_refused(name):
    import pyro.contrib.gp  # noqa: F401

    elbo, why = refused()[name]
    with pytest.raises(NotImplementedError, match=f"SpreadELBO cannot wrap {name}: .*{why}"):
        SpreadELBO({"x": GaussianNoise(S)}, elbo)


def test_unknown_elbo_is_refused_and_a_subclass_is_not():
    class Own(infer.Trace_ELBO):
        pass

    class Foreign(infer.ELBO):
        pass

    Foreign.__abstractmethods__ = frozenset()
    SpreadELBO({"x": GaussianNoise(S)}, Own())
    with pytest.raises(NotImplementedError, match=r"Foreign.*Subclass one of the stock ELBOs"):
        SpreadELBO({"x": GaussianNoise(S)}, Foreign())


@pytest.mark.parametrize("bad", [infer.Trace_ELBO, infer.EnergyDistance(), lambda *args: 0.0, 0.3])
def test_not_an_elbo(bad):
    with pytest.raises(TypeError, match=r"elbo must be an instance of pyro\.infer\.ELBO"):
        SpreadELBO({"x": GaussianNoise(S)}, bad)


def test_messenger_guides_are_refused():
    model, _, _ = make()
    with pytest.raises(NotImplementedError, match=r"AutoMessenger guide.*Use an AutoGuide"):
        SpreadELBO({"x": GaussianNoise(S)}).loss(model, AutoNormalMessenger(model), X)


@pytest.mark.parametrize("name", ["Renyi", "Renyi-half-vectorised"])
def test_losses_without_a_differentiable_form(name):
    model, guide, _ = make()
    loss = SpreadELBO({"x": GaussianNoise(S)}, WORKING[name](2))
    with pytest.raises(NotImplementedError, match=r"no differentiable_loss\. Use it through SVI"):
        loss.differentiable_loss(model, guide, X)


def test_the_given_elbo_is_not_changed():
    model, guide, _ = make()
    elbo = infer.TraceEnum_ELBO(3, vectorize_particles=True, **ENUM)
    before = dict(vars(elbo))
    SpreadELBO({"x": GaussianNoise(S)}, elbo).loss_and_grads(model, guide, X)
    assert vars(elbo) == before
