# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""How data reach the loss, and what kinds of models, guides and noise it takes."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from pyro_spread import (
    ChannelNoise,
    DeterministicGenerator,
    GaussianNoise,
    LowRankGaussianNoise,
    SpreadELBO,
    TransformedNoise,
)

X = torch.linspace(-1, 1, 6)
OTHER = torch.full((6,), 7.0)
NOISE = {"x": GaussianNoise(0.3)}


def site(x, name="x"):
    with pyro.plate(f"{name}_data", x.shape[0]):
        pyro.sample(name, dist.Delta(torch.zeros(x.shape[0])), obs=x)


def first(x, other):
    site(x)
    seen.append((x, other))


def second(other, x):
    first(x, other)


def renamed(other, batch):
    first(batch, other)


def with_default(other, x=None, scale=1.0):
    first(x, other)


def rest(*args):
    first(args[0], args[1])


class Callable:
    def __call__(self, other, x):
        first(x, other)

    def method(self, other, x):
        first(x, other)


class Module(nn.Module):
    def forward(self, other, x):
        first(x, other)


seen: list = []


@pytest.fixture(autouse=True)
def _empty():
    seen.clear()


def ignore(*args, **kwargs):
    """A guide without latents."""


WAYS = {
    "by position": (first, (X, OTHER), {}, None),
    "by name": (second, (OTHER, X), {}, None),
    "by keyword": (second, (), {"x": X, "other": OTHER}, None),
    "mixed": (second, (OTHER,), {"x": X}, None),
    "data by position": (renamed, (OTHER, X), {}, {"x": "batch"}),
    "data by keyword": (renamed, (OTHER,), {"batch": X}, {"x": "batch"}),
    "data over its own name": (lambda x, y: first(y, x), (OTHER, X), {}, {"x": "y"}),
    "first as fallback": (lambda images, other: first(images, other), (X, OTHER), {}, None),
    "first by keyword as fallback": (
        lambda images, other: first(images, other), (), {"other": OTHER, "images": X}, None
    ),
    "default": (with_default, (OTHER, X), {}, None),
    "var-positional": (rest, (X, OTHER), {}, None),
    "partial": (functools.partial(second, OTHER), (X,), {}, None),
    "bound method": (Callable().method, (OTHER, X), {}, None),
    "callable object": (Callable(), (OTHER, X), {}, None),
    "module": (Module(), (OTHER, X), {}, None),
    "scaled": (poutine.scale(second, scale=0.5), (OTHER, X), {}, None),
    "scaled partial": (poutine.scale(functools.partial(second, OTHER), scale=0.5), (X,), {}, None),
    "keyword-only": (lambda *, x, other: first(x, other), (), {"other": OTHER, "x": X}, None),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_pass_data(way):
    model, args, kwargs, data = WAYS[way]
    loss = SpreadELBO(NOISE, data=data).loss(model, ignore, *args, **kwargs)
    assert 0 < loss < 200
    y, other = seen[-1]
    assert other is OTHER  # and only the data are replaced
    assert y is not X
    assert 0 < (y - X).abs().max() < 3


def test_several_sites():
    labels, pixels = torch.randint(3, (6,)), torch.randn(6, 2)

    def model(x, y, weights):
        assert weights is OTHER
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), obs=y)
            pyro.sample("x", dist.Delta(torch.zeros(2), event_dim=1), obs=x)
            pyro.sample("w", dist.Normal(0.0, 1.0), obs=OTHER)

    handed = {}

    def guide(x, y, weights):
        handed.update(x=x, y=y)

    channel = ChannelNoise.symmetric(3, 0.6)
    loss = SpreadELBO({"y": channel, "x": GaussianNoise(0.3)}).loss(
        model, guide, pixels, y=labels, weights=OTHER
    )
    expected = (
        dist.Normal(0, 0.3).log_prob(handed["x"]).sum()
        + channel.spread(dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        .log_prob(handed["y"])
        .sum()
        + dist.Normal(0, 1.0).log_prob(OTHER).sum()
    )
    assert loss == pytest.approx(-float(expected), rel=1e-5)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("kernel", ["gaussian", "low-rank"])
def test_reshaped_observations(flat, kernel):
    # Images in, vectors observed, and the reverse.
    noise = {
        "gaussian": GaussianNoise(0.3),
        "low-rank": LowRankGaussianNoise(0.3, torch.ones(6, 1)),
    }[kernel]
    x = torch.randn(5, 2, 3) if flat else torch.randn(5, 6)
    shape = (6,) if flat else (2, 3)

    def model(x):
        with pyro.plate("data", 5):
            fn = dist.Delta(torch.zeros(shape), event_dim=len(shape))
            pyro.sample("x", fn, obs=x.reshape(-1, *shape))

    assert SpreadELBO({"x": noise}).loss(model, ignore, x) < 1000


@pytest.mark.parametrize("images", [False, True])
def test_subsampled_and_reshaped(images):
    x = torch.randn(50, 6, 6) if images else torch.randn(50, 36)

    def model(x):
        with pyro.plate("data", 50, subsample_size=5) as ind:
            fn = dist.Delta(torch.zeros(36), event_dim=1)
            pyro.sample("x", fn, obs=x[ind].reshape(-1, 36))

    for _ in range(5):
        SpreadELBO(NOISE).loss(model, ignore, x)


def test_cast_observations():
    def model(x):
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Delta(torch.zeros(6)), obs=x.float())

    SpreadELBO(NOISE).loss(model, ignore, X.double())


def test_transformed_site_changes_the_event_shape():
    x = torch.randn(5, 3)
    noise = TransformedNoise(torch.distributions.StickBreakingTransform(), GaussianNoise(0.1))

    def model(x):
        assert x.shape == (5, 4)
        with pyro.plate("data", 5):
            pyro.sample("x", dist.Delta(torch.zeros(3), event_dim=1), obs=x)

    SpreadELBO({"x": noise}).loss(model, ignore, x)


def vae(latents=2, wrap=dist.Delta):
    decoder, encoder = nn.Linear(latents, 6), nn.Linear(6, latents)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latents), 1.0).to_event(1))
            pyro.sample("x", wrap(decoder(z), event_dim=1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return model, guide, decoder, encoder


@pytest.mark.parametrize("wrap", [dist.Delta, DeterministicGenerator])
def test_networks_under_svi(wrap):
    model, guide, decoder, encoder = vae(wrap=wrap)
    before = [decoder.weight.clone(), encoder.weight.clone()]
    loss = SpreadELBO(NOISE)
    assert loss.register(model, guide) is guide
    svi = SVI(model, loss.register(model, guide), pyro.optim.Adam({"lr": 0.05}), loss)
    x = torch.randn(32, 6)
    start = sum(svi.evaluate_loss(x) for _ in range(10)) / 10
    for _ in range(50):
        svi.step(x)
    assert sum(svi.evaluate_loss(x) for _ in range(10)) / 10 < start
    for old, new in zip(before, [decoder.weight, encoder.weight], strict=True):
        assert not torch.equal(old, new)


class Generator(PyroModule):
    def __init__(self):
        super().__init__()
        self.decoder = PyroModule[nn.Linear](2, 6)
        self.shift = PyroParam(torch.ones(6), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(self.decoder(z) + self.shift, event_dim=1), obs=x)


class Encoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = PyroModule[nn.Linear](6, 2)

    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.net(x), 0.5).to_event(1))


def test_pyro_modules_under_svi():
    model, guide = Generator(), Encoder()
    before = {name: p.detach().clone() for name, p in (*model.named_parameters(),)}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), SpreadELBO(NOISE))
    svi.step(torch.randn(8, 6))
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_complete_module_with_one_fused_optimiser():
    scale = nn.Parameter(torch.tensor(0.3))
    inner = nn.Parameter(torch.full((6,), 0.3))
    flow = dist.transforms.affine_coupling(6, hidden_dims=[4])
    model, guide = Generator(), Encoder()
    loss = SpreadELBO({"x": TransformedNoise(flow, GaussianNoise(inner))})(model, guide)
    assert isinstance(loss, nn.Module)
    expected = [*model.parameters(), *guide.parameters(), *flow.parameters(), inner]
    assert {id(p) for p in loss.parameters()} == {id(p) for p in expected}
    plain = SpreadELBO({"x": GaussianNoise(scale)})(model, guide)
    assert any(p is scale for p in plain.parameters())
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.01, fused=True)
    before = [p.detach().clone() for p in expected]
    x = torch.randn(8, 6)
    for _ in range(2):
        optimiser.zero_grad()
        loss(x).backward()
        optimiser.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, expected, strict=True))
    assert loss(x) != loss(x)  # fresh noise
    loss.load_state_dict(loss.state_dict())


def test_bayesian_weights_and_autoguides():
    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.weight = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))

        def forward(self, inputs, x=None):
            weight = self.weight  # a global latent: read outside of the plate
            with pyro.plate("data", inputs.shape[0]):
                return pyro.sample("x", dist.Delta(inputs @ weight), obs=x)

    inputs = torch.randn(60, 2)
    x = inputs @ torch.tensor([1.0, -2.0])
    for kind in (AutoNormal, AutoMultivariateNormal, AutoDelta):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        model = Regression()
        guide = kind(model)
        loss = SpreadELBO({"x": GaussianNoise(0.3)}, data={"x": "x"})
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss)
        for _ in range(150):
            svi.step(inputs, x)
        weight = guide.median(inputs, x)["weight"]
        assert torch.allclose(weight, torch.tensor([1.0, -2.0]), atol=0.3)
        clean = Predictive(model, guide=guide, num_samples=3)(inputs)
        weights = clean["weight"].reshape(3, 2)
        torch.testing.assert_close(clean["x"].reshape(3, 60), weights @ inputs.mT)


@pytest.mark.parametrize("reparam", ["loc-scale", "transform"])
def test_reparametrised_latents(reparam):
    # They leave observed Deltas behind, which are not data.
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.1))
        with pyro.plate("data", 6):
            if reparam == "transform":
                affine = torch.distributions.AffineTransform(loc, 2.0)
                fn = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [affine])
            else:
                fn = dist.Normal(loc, 2.0)
            z = pyro.sample("z", fn)
            pyro.sample("x", dist.Delta(z), obs=x)

    config = {"z": LocScaleReparam(0.0) if reparam == "loc-scale" else TransformReparam()}
    model = poutine.reparam(model, config=config)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), SpreadELBO(NOISE))
    for _ in range(2):
        assert svi.step(X) < float("inf")


def test_callable_noise_with_an_annealed_argument():
    scales, residuals = [0.1, 100.0, 0.001], []

    def model(x, scale):
        site(x)
        residuals.append((x - X).abs().mean())

    def noise(x, scale):
        assert x is X  # clean
        return {"x": GaussianNoise(scale)}

    loss = SpreadELBO(noise)
    for scale in scales:
        loss.loss(model, ignore, X, scale)
    assert residuals[2] < residuals[0] < residuals[1]
    for scale, residual in zip(scales, residuals, strict=True):
        assert 0.1 * scale < residual < 3 * scale  # the kernel that is really used


def test_params_of_callable_noise_are_trained():
    def noise(x):
        return {"x": GaussianNoise(pyro.param("s", torch.tensor(0.3), constraints.positive))}

    model, guide, *_ = vae()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), SpreadELBO(noise, Trace_ELBO(2)))
    svi.step(torch.randn(8, 6))
    first_step = pyro.param("s").item()
    svi.step(torch.randn(8, 6))
    assert first_step != pytest.approx(0.3, abs=1e-3)
    assert pyro.param("s").item() != pytest.approx(first_step, abs=1e-4)


def test_learnable_kernel_gets_its_gradient_through_both_sides():
    # y = x + s eps against N(g, s²): (y - g)²/(2 s²) + log s. Its gradient at g = x is 1/s: the
    # residual scales with s, so only the normaliser remains. With y detached it would vary.
    scale = nn.Parameter(torch.tensor(0.5))

    def model(x):
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Delta(X), obs=x)

    SpreadELBO({"x": GaussianNoise(scale)}).differentiable_loss(model, ignore, X).backward()
    assert scale.grad.item() == pytest.approx(6 / 0.5, rel=1e-4)


def test_observed_deltas_with_a_density_of_their_own():
    def model(x):
        pyro.deterministic("twice", 2 * x)
        pyro.factor("prior", -x.square().sum())
        pyro.sample("masked", dist.Delta(torch.zeros(6)).to_event(1).mask(False), obs=x)
        site(x)

    assert SpreadELBO(NOISE).loss(model, ignore, X) < float("inf")


def test_single_datum():
    SpreadELBO(NOISE).loss(lambda x: site(x), ignore, X[:1])
    SpreadELBO(NOISE).loss(lambda x: site(x), ignore, X[:1].double())
