# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of PriorContrastELBO in Pyro, against stock ELBOs of guides with a density.

The critics here are told the log-ratio. Draws of an implicit guide and of its twin are the same
under the same seed, so that most comparisons are exact.
"""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro_contrast import (
    VALUES,
    Known,
    Told,
    affine,
    assert_equal,
    data,
    exact_loss,
    guide,
    log_ratio,
    model,
    normal,
    param,
    silent,
    total,
    value_and_grads,
)
from torch import nn
from torch.distributions import ExpTransform

from pyro_spread import (
    DeterministicGenerator,
    GaussianNoise,
    ImplicitDistribution,
    PriorContrastELBO,
    SpreadELBO,
)

pytestmark = pytest.mark.usefixtures("double")

# --- everything at once: hierarchy, global and local, with and without density

MIXED = {"mw": 0.2, "mv": -0.3, **VALUES}


def handler(how):
    mask = torch.tensor([True, False, True, True])
    return {
        "none": lambda: poutine.mask(mask=True),
        "mask": lambda: poutine.mask(mask=mask),
        "scale": lambda: poutine.scale(scale=torch.tensor([1.0, 0.5, 2.0, 3.0])),
        "number": lambda: poutine.scale(scale=0.3),
        "both": lambda: poutine.mask(mask=~mask),
    }[how]()


def subplate(x):
    return pyro.plate("data", len(x), subsample_size=4, dim=-1)


def mixed_model(x, how="none"):
    mu = param("mu")
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    v = pyro.sample("v", dist.Normal(mu + w, 1.0))
    with subplate(x) as indices, handler(how), handler("number" if how == "both" else "none"):
        z = pyro.sample("z", dist.Normal(mu * w + v, 1.0))
        a = pyro.sample("a", dist.Normal(z, 2.0))
        pyro.sample("x", dist.Normal(a + z, 0.5), obs=x[indices])


def log_q(site, p, value, w, x=None):
    if site == "v":
        return normal(value, p["mv"] + 0.3 * w, 0.4)
    return normal(value, p["m"] * x + w, p["s"])


def mixed_guide(x, how="none", twin=False, dense=False):
    p = {name: param(name, MIXED[name]) for name in ("mw", "mv", "m", "s")}
    q = {name: value.detach() for name, value in p.items()}
    base = dist.Normal(torch.zeros(()), 1.0)

    def implicit(site, loc, scale, x):
        if dense:
            return dist.Normal(loc, scale)
        fn = functools.partial(lambda loc, scale, eps: loc + scale * eps, loc, scale)
        if twin:
            return Known(fn, base, (), lambda value: log_q(site, q, value, w, x))
        return ImplicitDistribution(fn, base, ())

    w = pyro.sample("w", dist.Normal(p["mw"], 0.5))
    pyro.sample("v", implicit("v", p["mv"] + 0.3 * w, torch.tensor(0.4), None))
    with subplate(x) as indices, handler(how), handler("number" if how == "both" else "none"):
        at = x[indices]
        z = pyro.sample("z", implicit("z", p["m"] * at + w, p["s"], at))
        pyro.sample("a", dist.Normal(0.5 * z, 0.3))


def critic_v(values, *args, **kwargs):
    w = values.arguments["w"]
    assert not {"v", "z", "a"} & set(values.arguments)
    return log_q("v", MIXED, values["v"], w) - normal(values["v"], MIXED["mu"] + w, 1.0)


def critic_z(values, *args, **kwargs):
    w, v, x = (values.arguments[name] for name in ("w", "v", "x"))
    assert w.shape == v.shape == x.shape == values["z"].shape
    assert "a" not in values.arguments
    return log_q("z", MIXED, values["z"], w, x) - normal(values["z"], MIXED["mu"] * w + v, 1.0)


class Head(nn.Module):
    """The wrong Gaussian, on purpose."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.1))

    def forward(self, x, how="none"):
        scale = torch.full((), 0.9)
        return {"v": (self.loc, scale), "z": (0.5 * x + self.loc, scale - 0.1)}


def against_head(site):
    def fn(values, *args, **kwargs):
        x = values.arguments["x"] if site == "z" else None
        loc, scale = (0.1, 0.9) if site == "v" else (0.5 * x + 0.1, 0.8)
        value = loc + scale * values[site]
        return log_q(site, MIXED, value, values.arguments["w"], x) - normal(value, loc, scale)

    return fn


def mixed_loss(contrast, **options):
    if contrast == "prior":
        critics = {"v": Told(critic_v), "z": Told(critic_z)}
        return PriorContrastELBO(critics, adaptive=False, **options)
    critics = {"v": Told(against_head("v")), "z": Told(against_head("z"))}
    return PriorContrastELBO(critics, head=Head(), **options)


PARTICLES = {
    "one": {},
    "three": {"num_particles": 3},
    "at once": {"num_particles": 3, "vectorize_particles": True},
    "nesting": {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1},
}


@pytest.mark.parametrize("how", ["none", "mask", "scale", "number", "both"])
@pytest.mark.parametrize("contrast", ["prior", "head"])
@pytest.mark.parametrize("particles", ["one", "three", "at once"])
def test_mixed_sites_equal_the_twin_that_has_a_density(contrast, how, particles):
    twin = functools.partial(mixed_guide, twin=True)
    options = PARTICLES[particles]
    x = data()
    ours = value_and_grads(mixed_loss(contrast, **options), mixed_model, mixed_guide, x, how)
    stock = value_and_grads(Trace_ELBO(**options), mixed_model, twin, x, how)
    assert_equal(ours, stock)
    if how == "none":  # other draws give other values: the comparison says something
        other = value_and_grads(Trace_ELBO(**options), mixed_model, twin, x, how, seed=1)
        assert abs(other[0] - stock[0]) > 0.1


@pytest.mark.parametrize("how", ["none", "mask", "scale"])
@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("adaptive", [True, False])
def test_without_implicit_sites_it_is_the_stock_elbo(how, particles, adaptive):
    dense = functools.partial(mixed_guide, dense=True)
    options, x = PARTICLES[particles], data()
    loss = PriorContrastELBO(Told(total), adaptive=adaptive, **options)
    ours = value_and_grads(loss, mixed_model, dense, x, how)
    stock = Trace_ELBO(**options)
    assert_equal(ours, value_and_grads(stock, mixed_model, dense, x, how), 1e-12)
    assert ours[1]["discriminator$$$gain"] is None
    values = []
    for method in (loss.loss, loss.differentiable_loss, stock.loss):
        pyro.set_rng_seed(3)
        values.append(torch.as_tensor(method(mixed_model, dense, x, how)).item())
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)


@pytest.mark.parametrize("implicit", [False, True])
def test_the_loss_as_a_module_is_the_same(implicit):
    class Model(nn.Module):
        def forward(self, x):
            model(x)

    class Guide(nn.Module):
        def forward(self, x):
            if implicit:
                guide(x)
            else:
                with pyro.plate("data", len(x)):
                    pyro.sample("z", dist.Normal(param("m") * x, param("s")))

    loss = PriorContrastELBO(Told(log_ratio), adaptive=False)
    pyro.set_rng_seed(0)
    value = loss(Model(), Guide())(data())
    value.backward()
    grads = {name: p.grad.clone() for name, p in pyro.get_param_store()._params.items()}
    grads["discriminator$$$gain"], loss.discriminator.gain.grad = loss.discriminator.gain.grad, None
    stock = loss if implicit else Trace_ELBO()
    assert_equal((value.item(), grads), value_and_grads(stock, model, Guide(), data()), 1e-12)


# --- masks and plates at the distribution


@pytest.mark.parametrize("where", ["distribution", "handler", "twice"])
def test_masked_elements_have_no_term(where):
    mask = torch.tensor([True, False, True, True, False, True])
    other = torch.tensor([True, True, True, True, True, False])

    def masked(guide_or_model):
        def run(x, twin=False):
            s = param("s") if guide_or_model == "guide" else param("mu")
            outer = mask if where == "handler" else torch.ones(6, dtype=torch.bool)
            with pyro.plate("data", 6), poutine.mask(mask=outer):
                if guide_or_model == "guide":
                    fn = affine(param("m") * x, s, twin)
                else:
                    fn = dist.Normal(s, 1.0).expand([6])
                if where != "handler":
                    fn = fn.mask(mask)
                if where == "twice":
                    fn = fn.mask(other)
                z = pyro.sample("z", fn)
                if guide_or_model == "model":
                    pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        return run

    loss = PriorContrastELBO(Told(log_ratio), adaptive=False, num_critic_draws=3)
    ours = value_and_grads(loss, masked("model"), masked("guide"), data())
    twin = functools.partial(masked("guide"), twin=True)
    assert_equal(ours, value_and_grads(Trace_ELBO(), masked("model"), twin, data()))
    logits = loss.logits(masked("model"), masked("guide"), data())
    wanted = mask & other if where == "twice" else mask
    assert torch.equal(logits.weights_p, wanted.double().expand(3, 6))


def test_a_mask_of_false_takes_a_site_out():
    def off(program):
        def run(x):
            with poutine.mask(mask=False):
                program(x)

        return run

    def half(x):
        guide(x)
        pyro.sample("y", affine(0.0, 1.0).mask(False))

    def half_model(x):
        model(x)
        pyro.sample("y", dist.Normal(0.0, 1.0).mask(False))

    for adaptive in (True, False):
        loss = PriorContrastELBO(Told(total), adaptive=adaptive)
        value, grads = value_and_grads(loss, off(model), off(guide), data())
        assert value == 0
        assert all(grad is None or not grad.any() for grad in grads.values())
    loss = PriorContrastELBO({"z": Told(log_ratio)}, adaptive=False)
    ours = value_and_grads(loss, half_model, half, data())
    assert ours[0] == value_and_grads(loss, model, guide, data())[0]


@pytest.mark.parametrize("vectorize", [False, True])
def test_nested_plates_and_events(vectorize):
    x = torch.arange(24.0).reshape(3, 4, 2) / 10
    factor = torch.tensor([1.0, -0.5])

    def plates():
        return pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 8, subsample_size=4, dim=-1)

    def nested_model(x):
        rows, columns = plates()
        with columns:
            c = pyro.sample("c", dist.Normal(0.0, 2.0))
            with rows:
                z = pyro.sample("z", dist.Normal(c[..., None] * factor, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def nested_guide(x, twin=False):
        m, s = param("m"), param("s")
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        fixed = m.detach(), s.detach()
        rows, columns = plates()
        with columns:
            c = pyro.sample("c", affine(m, s, twin))

            def fn(eps):
                return m * x + s * eps + c[..., None]

            def known(value):
                return normal(value, fixed[0] * x + c[..., None], fixed[1]).sum(-1)

            with rows:
                if twin:
                    pyro.sample("z", Known(fn, base, (2,), known))
                else:
                    pyro.sample("z", ImplicitDistribution(fn, base, (2,)))

    def of_c(values, x):
        return normal(values["c"], 0.7, 0.6) - normal(values["c"], 0.0, 2.0)

    def of_z(values, x):
        c = values.arguments["c"]
        assert c.shape == values["z"].shape[:-1]
        q = normal(values["z"], 0.7 * values.arguments["x"] + c[..., None], 0.6)
        return (q - normal(values["z"], c[..., None] * factor, 1.0)).sum(-1)

    options = {"num_particles": 2, "vectorize_particles": vectorize}
    loss = PriorContrastELBO({"c": Told(of_c), "z": Told(of_z)}, adaptive=False, **options)
    ours = value_and_grads(loss, nested_model, nested_guide, x)
    twin = functools.partial(nested_guide, twin=True)
    assert_equal(ours, value_and_grads(Trace_ELBO(**options), nested_model, twin, x))


def test_a_transformed_implicit_distribution():
    def positive(x):
        m, s = param("m"), param("s")
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(affine(m * x, s), [ExpTransform()]))

    def twin(x):
        m, s = param("m"), param("s")
        fixed = dist.LogNormal(m.detach() * x, s.detach())
        base = dist.Normal(torch.zeros(()), 1.0)
        fn = Known(lambda e: (m * x + s * e).exp(), base, (), fixed.log_prob)
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn)

    def positive_model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(param("mu"), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def critic(values, x):
        z, at = values["z"], values.arguments["x"]
        ratio = dist.LogNormal(0.7 * at, 0.6).log_prob(z) - dist.LogNormal(0.3, 1.0).log_prob(z)
        return ratio

    loss = PriorContrastELBO(Told(critic), adaptive=False)
    ours = value_and_grads(loss, positive_model, positive, data())
    assert_equal(ours, value_and_grads(Trace_ELBO(), positive_model, twin, data()))


# --- noise


@pytest.mark.parametrize("likelihood", [dist.Delta, DeterministicGenerator])
@pytest.mark.parametrize("particles", ["one", "three", "at once"])
def test_noise_is_that_of_the_spread_elbo(likelihood, particles):
    handed = {"model": [], "guide": []}

    def spread_model(x):
        handed["model"].append(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(param("mu"), 1.0))
            pyro.sample("x", likelihood(2 * z), obs=x)

    def spread_guide(x, twin=False):
        handed["guide"].append(x)
        guide(x, twin)

    def critic(values, y):
        assert torch.equal(values.arguments["x"], y)
        return log_ratio(values, y)

    noise, options, x = {"x": GaussianNoise(0.3)}, PARTICLES[particles], data()
    # Noise makes particles come one by one: each has its own data.
    loss = PriorContrastELBO(Told(critic), noise, adaptive=False, num_critic_draws=1, **options)
    pyro.set_rng_seed(0)
    loss.loss(spread_model, spread_guide, x)
    count = options.get("num_particles", 1)
    assert handed["guide"].pop(0) is x  # a look for deltas, at the data as they are
    assert len(handed["guide"]) == len({float(y[0]) for y in handed["guide"]}) == count
    for y in handed["guide"]:
        assert 0.05 < (y - x).std() < 0.6
    # The model may run again, for the gradient of the prior.
    assert {id(y) for y in handed["model"]} == {id(y) for y in handed["guide"]}
    ours = value_and_grads(loss, spread_model, spread_guide, x)
    looped = Trace_ELBO(num_particles=options.get("num_particles", 1))
    stock = SpreadELBO(noise, looped)
    twin = functools.partial(spread_guide, twin=True)
    assert_equal(ours, value_and_grads(stock, spread_model, twin, x))


# --- the adaptive contrast


def mean_and_error(values):
    values = torch.stack(values)
    return values.mean(0), values.std(0) / len(values) ** 0.5


@pytest.mark.parametrize("num_draws", [4, 32])
def test_a_gaussian_guide_needs_no_critic_whatever_the_number_of_draws(num_draws):
    options = {"num_particles": 4000, "vectorize_particles": True, "max_plate_nesting": 1}
    loss = PriorContrastELBO(Told(silent), num_moment_draws=num_draws, **options)
    found = []
    for seed in range(16):
        value, grads = value_and_grads(loss, model, guide, data(), seed=seed)
        found.append(torch.stack([torch.tensor(value), *(grads[name] for name in VALUES)]))
    mean, error = mean_and_error(found)
    exact = [torch.tensor(value, requires_grad=True) for value in VALUES.values()]
    value = exact_loss(*exact, data())
    wanted = torch.stack([value.detach(), *torch.autograd.grad(value, exact)])
    assert (error < 0.08).all()
    assert error[0] < 0.03
    assert ((mean - wanted).abs() < 4.5 * error).all(), (mean - wanted) / error


def test_with_a_head_that_knows_the_guide_the_density_is_exact():
    class RightHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.m, self.s = (nn.Parameter(torch.tensor(VALUES[name])) for name in "ms")

        def forward(self, x):
            return self.m * x, self.s

    loss = PriorContrastELBO(Told(silent), head=RightHead(), num_critic_draws=1)
    ours = value_and_grads(loss, model, guide, data())
    twin = functools.partial(guide, twin=True)
    stock = value_and_grads(Trace_ELBO(), model, twin, data())
    assert_equal(ours, stock, 1e-6)
    # The head fits the guide's draws by maximum likelihood; its pull is on its own params only.
    pyro.set_rng_seed(0)
    z = data() * 0.7 + 0.6 * torch.randn(6)
    m, s = (torch.tensor(VALUES[name], requires_grad=True) for name in "ms")
    (-normal(z, m * data(), s).mean()).backward()
    torch.testing.assert_close(ours[1]["discriminator$$$head$$$m"], m.grad)
    torch.testing.assert_close(ours[1]["discriminator$$$head$$$s"], s.grad)
