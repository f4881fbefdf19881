# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A time series as a loop of any form, and as one event, is the same model to every loss."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

from pyro_spread import (
    KL,
    MMD,
    AdversarialDivergence,
    EnergyDistance,
    GaussianKernel,
    GaussianNoise,
    ImplicitDistribution,
    JointContrastELBO,
    JSPi,
    PriorContrastELBO,
    SemiImplicitELBO,
    SlicedWasserstein,
    SpreadELBO,
    WassersteinCritic,
    concat_sites,
)
from pyro_spread.ratio import MLPCritic

N, T = 6, 4
X = torch.randn(N, T, generator=torch.Generator().manual_seed(0))
EPS = torch.randn(N, T, generator=torch.Generator().manual_seed(1))
SITES, LATENTS = [f"x_{t}" for t in range(T)], [f"z_{t}" for t in range(T)]
NOISE = dict.fromkeys(SITES, GaussianNoise(0.3))
DATA = dict.fromkeys(SITES, "x")
FORMS = {
    "range": lambda: range(T),
    "markov": lambda: pyro.markov(range(T)),
    "plate": lambda: pyro.plate("time", T),
}


def critic(width, *sites):
    torch.manual_seed(5)
    return concat_sites(MLPCritic([4], input_dim=width), *sites)


def spread_elbo(elbo):
    return lambda: SpreadELBO(NOISE, elbo=elbo(), data=DATA)


#: What each loss is, and the guide that it takes.
LOSSES = {
    "mmd": (lambda: MMD(GaussianKernel(1.0)), None),
    "mmd-noise": (lambda: MMD(GaussianKernel(1.0), noise=NOISE), None),
    "energy": (EnergyDistance, None),
    "energy-noise": (lambda: EnergyDistance(noise=NOISE), None),
    "sliced": (lambda: SlicedWasserstein(5), None),
    "adversarial": (lambda: AdversarialDivergence(critic(T), JSPi(0.3)), None),
    "wasserstein": (lambda: WassersteinCritic(critic(T)), None),
    "spread": (spread_elbo(Trace_ELBO), "density"),
    "spread-graph": (spread_elbo(TraceGraph_ELBO), "density"),
    "spread-mean-field": (spread_elbo(TraceMeanField_ELBO), "density"),
    "prior": (lambda: PriorContrastELBO(critic(T, *LATENTS), adaptive=False), "implicit"),
    "prior-adaptive": (lambda: PriorContrastELBO(critic(T, *LATENTS)), "implicit"),
    "prior-each": (lambda: PriorContrastELBO({z: critic(1, z) for z in LATENTS}), "implicit"),
    "prior-spread": (
        lambda: PriorContrastELBO(critic(T, *LATENTS), noise=NOISE, data=DATA),
        "implicit",
    ),
    "joint": (lambda: JointContrastELBO(critic(2 * T)), "implicit"),
    "joint-js": (lambda: JointContrastELBO(critic(2 * T), JSPi(0.3)), "implicit"),
    "semi-implicit": (
        lambda: SemiImplicitELBO(dict.fromkeys(LATENTS, GaussianNoise(0.2)), num_mixture=3),
        "implicit",
    ),
}
COMPARE_DRAWS = [name for name, (_, guide) in LOSSES.items() if guide is None]


def param(name, value):
    return pyro.param(name, lambda: torch.as_tensor(value))


def run(form, step, plate_inside=False):
    """``step(t)`` in a loop of a form, inside of the plate of the data or around it."""
    data = pyro.plate("data", N)
    if plate_inside:
        for t in FORMS[form]():
            with data:
                step(t)
        return
    with data:
        for t in FORMS[form]():
            step(t)


def loop(form, **options):
    def model(x):
        a, s, z = param("a", 0.8), param("s", 0.5), torch.zeros(N)

        def step(t):
            nonlocal z
            z = pyro.sample(f"z_{t}", dist.Normal(a * z, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, s), obs=x[:, t])

        run(form, step, **options)

    return model


def guide_of(kind, form, **options):
    def guide(x):
        m = param("m", torch.linspace(-0.5, 0.5, T))

        def step(t):
            if kind == "implicit":
                base = dist.Normal(torch.zeros(N), 1.0)
                fn = ImplicitDistribution(lambda eps: m[t] * x[:, t] + eps, base, ())
            else:
                fn = dist.Normal(m[t] * x[:, t], 1.0)
            pyro.sample(f"z_{t}", fn)

        if kind is not None:
            run(form, step, **options)

    return guide


def value_and_grads(loss, model, guide):
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    value = loss.loss_and_grads(model, guide, X)
    named = pyro.get_param_store().named_parameters()
    return value, {name: p.grad.clone() for name, p in named if p.grad is not None}


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5, abs=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, grad in one[1].items():
        torch.testing.assert_close(grad, other[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_every_form_of_the_loop_is_the_same_model(name):
    make, kind = LOSSES[name]
    expected = value_and_grads(make(), loop("range"), guide_of(kind, "range"))
    assert len(expected[1]) > 1
    for form, options in (("markov", {}), ("plate", {}), ("markov", {"plate_inside": True})):
        model, guide = loop(form, **options), guide_of(kind, form, **options)
        assert_same(value_and_grads(make(), model, guide), expected)
    # Here the loop is the outermost plate: densities may be had, but data cannot be counted.
    model, guide = (loop("plate", plate_inside=True), guide_of(kind, "plate", plate_inside=True))
    if kind is None or name.startswith("joint"):
        pyro.clear_param_store()
        with pytest.raises(ValueError, match=r"'x_0': its outermost plate 'time' .*sequential"):
            make().loss_and_grads(model, guide, X)
    else:
        assert_same(value_and_grads(make(), model, guide), expected)


def given_draws(form):
    def model(x):
        a, s, z = param("a", 0.8), param("s", 0.5), torch.zeros(N)

        def step(t):
            nonlocal z
            z = pyro.sample(f"z_{t}", dist.Delta(a * z + EPS[:, t]))
            pyro.sample(f"x_{t}", dist.Delta(s * z), obs=x[:, t])

        run(form, step)

    return model


def one_event(x):
    a, s, z = param("a", 0.8), param("s", 0.5), [torch.zeros(N)]
    for t in range(T):
        z.append(a * z[-1] + EPS[:, t])
    with pyro.plate("data", N):
        path = pyro.sample("z", dist.Delta(torch.stack(z[1:], -1), event_dim=1))
        pyro.sample("x", dist.Delta(s * path, event_dim=1), obs=x)


@pytest.mark.parametrize("name", [name for name in COMPARE_DRAWS if name != "energy-noise"])
def test_a_series_is_one_datum(name):
    of_event = LOSSES[name][0]()
    if of_event.noise:
        of_event.noise = {"x": GaussianNoise(0.3)}
    expected = value_and_grads(of_event, one_event, guide_of(None, "range"))
    for form in FORMS:
        loss = LOSSES[name][0]()
        assert_same(value_and_grads(loss, given_draws(form), guide_of(None, form)), expected)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO])
def test_a_point_estimate_of_a_series_is_that_of_its_event(elbo):
    def event_model(x):
        a, s = param("a", 0.8), param("s", 0.5)
        with pyro.plate("data", N):
            fn = dist.Normal(torch.zeros(N, T), 1.0).to_event(1)
            z = pyro.sample("z", fn)
            pyro.sample("x", dist.Normal(a * z, s).to_event(1), obs=x)

    def steps(form):
        def model(x):
            a, s = param("a", 0.8), param("s", 0.5)

            def step(t):
                z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(a * z, s), obs=x[:, t])

            run(form, step)

        return model

    def event_guide(x):
        with pyro.plate("data", N):
            pyro.sample("z", dist.Delta(param("m", EPS.clone()), event_dim=1))

    def guide(form):
        def of_steps(x):
            m = param("m", EPS.clone())
            run(form, lambda t: pyro.sample(f"z_{t}", dist.Delta(m[:, t])))

        return of_steps

    loss = SpreadELBO({"x": GaussianNoise(0.3)}, elbo=elbo())
    expected = value_and_grads(loss, event_model, event_guide)
    for form in FORMS:
        loss = SpreadELBO(NOISE, elbo=elbo(), data=DATA)
        assert_same(value_and_grads(loss, steps(form), guide(form)), expected)


@pytest.mark.parametrize("form", FORMS)
def test_guards_are_alive_inside_of_the_loop(form):
    def discrete(x):
        def step(t):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(torch.sigmoid(param("a", 0.8))))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

        run(form, step)

    def own(x):
        def step(t):
            z = pyro.sample(f"z_{t}", dist.Normal(param("a", 0.8), 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=z.detach())

        run(form, step)

    def random_delta(x):
        m = param("m", 0.5)
        run(form, lambda t: pyro.sample(f"z_{t}", dist.Delta(m * torch.randn(N))))

    none = guide_of(None, form)
    for loss in (EnergyDistance(), AdversarialDivergence(critic(T))):
        with pytest.raises(NotImplementedError, match="latent site 'z_0': draws of Bernoulli"):
            loss.loss_and_grads(discrete, none, X)
        with pytest.raises(ValueError, match=r"site 'x_0': what it observes changes"):
            loss.loss_and_grads(own, none, X)
    with pytest.raises(ValueError, match=r"guide site 'z_\d' is a Delta at a function of random"):
        PriorContrastELBO(critic(T, *LATENTS)).loss_and_grads(loop(form), random_delta, X)
    with pytest.raises(NotImplementedError, match="latent site 'z_0'"):
        JointContrastELBO(critic(2 * T)).loss_and_grads(discrete, guide_of("implicit", form), X)


def test_parts_of_one_argument_cannot_be_simulated():
    with pytest.raises(ValueError, match="'x_0' and 'x_1' would both take their data from"):
        JointContrastELBO(divergence=KL(), data=DATA).loss(
            loop("markov"), guide_of("density", "markov"), X
        )
