# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The semi-implicit bound in use: learned scales, Predictive, modules, and what it refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMessenger

from pyro_spread import (
    ChannelNoise,
    GaussianNoise,
    ImplicitDistribution,
    LowRankGaussianNoise,
    SemiImplicitELBO,
    TransformedNoise,
)

pytestmark = pytest.mark.usefixtures("double")

EPS = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
NOISE = {"z": GaussianNoise(0.3)}
DATA = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)
MANY = {"num_particles": 20, "vectorize_particles": True}


def model(x=DATA):
    with pyro.plate("data", 5):
        z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x=DATA):
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", 5):
        pyro.sample("z", ImplicitDistribution(lambda e: slope * DATA + 0.4 * e, EPS, ()))


def implicit(name="z", fn=lambda e: e, base=EPS, event_shape=()):
    return pyro.sample(name, ImplicitDistribution(fn, base, event_shape))


# --- scales that are learned ---------------------------------------------------------------------


def test_a_learned_scale_moves_to_the_optimum():
    # q = N(slope x, 0.16 + sigma²), the posterior N(x / 2, 1/2): sigma² = .34.
    def noise(x):
        return {"z": GaussianNoise(pyro.param("sigma", torch.tensor(0.2), constraints.positive))}

    loss = SemiImplicitELBO(noise, 50, Trace_ELBO(**MANY))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), loss)
    for _ in range(200):
        svi.step(DATA)
    assert pyro.param("sigma").item() == pytest.approx(math.sqrt(0.34), abs=0.06)


def test_a_scale_is_trained_where_nothing_else_is():
    def noise(x):
        return {"z": GaussianNoise(pyro.param("sigma", torch.tensor(0.2), constraints.positive))}

    def fixed(x):
        with pyro.plate("data", 5):
            implicit()

    SVI(model, fixed, pyro.optim.Adam({"lr": 0.1}), SemiImplicitELBO(noise)).step(DATA)
    assert pyro.param("sigma").item() != 0.2


def test_an_amortised_scale_gets_gradients():
    net = torch.nn.Linear(1, 1).double()

    def noise(x):
        pyro.module("net", net)
        return {"z": GaussianNoise(net(x[:, None])[:, 0].exp())}

    loss = SemiImplicitELBO(noise, elbo=Trace_ELBO(**MANY))
    loss.loss_and_grads(model, guide, DATA)
    assert all(bool((p.grad != 0).all()) for p in net.parameters())


def test_the_module_holds_a_kernels_parameter():
    scale = torch.nn.Parameter(torch.tensor(0.3))
    loss = SemiImplicitELBO({"z": GaussianNoise(scale)})
    net = torch.nn.Linear(1, 1).double()

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            with pyro.plate("data", 5):
                implicit(fn=lambda e: self.net(e[..., None])[..., 0])

    class Model(torch.nn.Module):
        def forward(self, x):
            model(x)

    module = loss(Model(), Guide())
    assert any(p is scale for p in module.parameters())
    assert any(p is net.weight for p in module.parameters())
    module(DATA).backward()
    assert float(scale.grad) != 0
    assert float(net.weight.grad) != 0


def test_a_kernel_that_couples_elements():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    def guide():
        implicit(base=EPS.expand([3]).to_event(1), event_shape=(3,))

    kernel = LowRankGaussianNoise(0.3, torch.ones(3, 1))
    assert math.isfinite(SemiImplicitELBO({"z": kernel}).loss(model, guide))


def test_noise_of_the_guide_may_be_discrete_if_it_is_fixed():
    # A mixture of two points, smoothed: the gradient in the points is exact.
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)

    def guide(x):
        points = pyro.param("points", ends)
        coin = dist.Bernoulli(torch.tensor(0.5)).expand([5])
        with pyro.plate("data", 5):
            implicit(fn=lambda e: points[e.long()], base=coin)

    SemiImplicitELBO(NOISE).loss_and_grads(model, guide, DATA)
    assert bool((pyro.param("points").grad != 0).all())


# --- draws ---------------------------------------------------------------------------------------


def test_the_guide_itself_has_no_noise_and_the_spread_guide_has():
    loss = SemiImplicitELBO({"z": GaussianNoise(0.3)})

    def exact(x=DATA):
        with pyro.plate("data", 5):
            implicit(fn=lambda e: DATA + 0 * e)

    clean = Predictive(exact, num_samples=20)(DATA)["z"]
    assert torch.equal(clean, DATA.expand(20, 5))
    for parallel in (False, True):
        spread = loss.spread_guide(model, exact)
        noisy = Predictive(spread, num_samples=400, parallel=parallel)(DATA)["z"]
        residual = noisy.reshape(400, 5) - DATA
        assert float(residual.std()) == pytest.approx(0.3, rel=0.1)
        assert len(torch.unique(residual)) == 2000


def test_predictive_of_the_model_through_the_spread_guide():
    loss = SemiImplicitELBO(NOISE)
    spread = loss.spread_guide(model, guide)
    draws = Predictive(model, guide=spread, num_samples=7)(None)
    assert draws["x"].shape == (7, 5)


def test_the_spread_guide_respects_the_support():
    def model():
        pyro.sample("z", dist.HalfNormal(1.0))

    def guide():
        implicit(fn=lambda e: e.exp())

    spread = SemiImplicitELBO({"z": GaussianNoise(2.0)}).spread_guide(model, guide)
    draws = torch.stack([poutine.trace(spread).get_trace().nodes["z"]["value"] for _ in range(50)])
    assert bool((draws > 0).all())
    assert float(draws.log().std()) > 1.5  # sqrt(1 + 4) with the noise, 1 without


def test_register_returns_the_guide():
    assert SemiImplicitELBO(NOISE).register(model, guide) is guide


def test_the_look_at_the_model_leaves_the_random_state():
    loss = SemiImplicitELBO(NOISE)
    values = []

    def fresh(x):  # a model that no other test has shown
        model(x)

    for _ in range(2):
        pyro.set_rng_seed(1)
        values.append(loss.loss(fresh, guide, DATA))
    assert values[0] == values[1]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [None, {}, GaussianNoise(0.3), 0.3])
def test_noise_must_be_a_dict_of_kernels(noise):
    with pytest.raises(TypeError, match="implicit guide site to a noise kernel, such as"):
        SemiImplicitELBO(noise)


def test_a_value_that_is_no_kernel():
    with pytest.raises(TypeError, match=r"site 'z': expected a noise kernel"):
        SemiImplicitELBO({"z": 0.3})


@pytest.mark.parametrize("num_mixture", [-1, 2.0, "3", None, True])
def test_num_mixture_must_be_a_count(num_mixture):
    with pytest.raises(ValueError, match=r"num_mixture must be an integer of at least 0, got"):
        SemiImplicitELBO(NOISE, num_mixture)


def test_discrete_kernels():
    channel = ChannelNoise.symmetric(3, 0.2)
    hidden = TransformedNoise(torch.distributions.transforms.ExpTransform(), channel)
    for kernel in (channel, hidden):
        with pytest.raises(ValueError, match=r"site 'z': ChannelNoise is a discrete kernel"):
            SemiImplicitELBO({"z": kernel})
        loss = SemiImplicitELBO(lambda x, kernel=kernel: {"z": kernel})
        with pytest.raises(ValueError, match=r"site 'z': ChannelNoise is a discrete kernel"):
            loss.loss(model, guide, DATA)


@pytest.mark.parametrize(
    ("elbo", "why"),
    [
        (infer.ReweightedWakeSleep, "sleep phase"),
        (infer.Trace_MMD, "no bound"),
        (infer.TraceTMC_ELBO, "recombines"),
        (infer.TraceTailAdaptive_ELBO, "no lower bound"),
    ],
)
def test_elbos_that_do_not_work(elbo, why):
    made = elbo.__new__(elbo)  # their arguments do not matter
    with pytest.raises(NotImplementedError, match=f"cannot wrap {elbo.__name__}: .*{why}"):
        SemiImplicitELBO(NOISE, elbo=made)


def test_elbos_that_are_not_known():
    class Own(infer.elbo.ELBO):
        def _get_trace(self, *args):
            pass

    with pytest.raises(NotImplementedError, match=r"cannot wrap Own: .*Subclass"):
        SemiImplicitELBO(NOISE, elbo=Own())
    with pytest.raises(TypeError, match=r"elbo must be an instance of pyro\.infer\.ELBO"):
        SemiImplicitELBO(NOISE, elbo=Trace_ELBO)


def test_elbos_without_a_differentiable_loss():
    loss = SemiImplicitELBO(NOISE, elbo=infer.TraceGraph_ELBO())
    with pytest.raises(NotImplementedError, match="TraceGraph_ELBO: it has no differentiable_loss"):
        loss.differentiable_loss(model, guide, DATA)


def test_messenger_guides():
    class Guide(AutoMessenger):
        def get_posterior(self, name, prior):
            return prior

    with pytest.raises(NotImplementedError, match="cannot use an AutoMessenger guide"):
        SemiImplicitELBO(NOISE).loss(model, Guide(model), DATA)


def test_a_site_the_guide_does_not_have():
    loss = SemiImplicitELBO({**NOISE, "w": GaussianNoise(0.1)})
    with pytest.raises(ValueError, match=r"names the site 'w', but .*implicit sites are \['z'\]"):
        loss.loss(model, guide, DATA)
    assert "slope" not in pyro.get_param_store()


def test_a_site_with_a_density():
    def guide(x):
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Normal(torch.zeros(5), 1.0))

    with pytest.raises(ValueError, match=r"guide site 'z', which is a Normal .*Drop it"):
        SemiImplicitELBO(NOISE).loss(model, guide, DATA)


def test_a_site_whose_value_is_given():
    def observed(x):
        with pyro.plate("data", 5):
            pyro.sample("z", ImplicitDistribution(lambda e: e, EPS, ()), obs=x)

    def replayed(x):
        with poutine.block():
            trace = poutine.trace(guide).get_trace(x)
        poutine.replay(guide, trace=trace)(x)

    for fixed in (observed, replayed):
        with pytest.raises(ValueError, match=r"guide site 'z', whose value is observed or set"):
            SemiImplicitELBO(NOISE).loss(model, fixed, DATA)


def test_an_implicit_site_without_a_kernel():
    def two(x):
        guide(x)
        implicit("w")

    with pytest.raises(ValueError, match=r"'w' is an Impl.* kernels for \['z'\].*PriorContrast"):
        SemiImplicitELBO(NOISE).loss(model, two, DATA)


def test_fn_that_takes_one_draw_only():
    def single(x):
        with pyro.plate("data", 5):
            implicit(fn=lambda e: torch.stack([e, DATA]).sum(0))

    with pytest.raises(ValueError, match=r"guide site 'z': .*leading sample dimensions, .*\(11,\)"):
        SemiImplicitELBO(NOISE).loss(model, single, DATA)


def test_fn_that_is_simply_wrong_keeps_its_own_error():
    def wrong(x):
        with pyro.plate("data", 5):
            implicit(fn=lambda e: e @ torch.zeros(7, 7))

    with pytest.raises(RuntimeError, match=r"size mismatch|cannot be multiplied"):
        SemiImplicitELBO(NOISE).loss(model, wrong, DATA)


def test_a_mask_inside_of_the_event():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide():
        fn = ImplicitDistribution(lambda e: e, EPS.expand([2]), ())
        pyro.sample("z", fn.mask(torch.tensor([True, False])).to_event(1))

    with pytest.raises(ValueError, match=r"guide site 'z': the mask is inside of to_event"):
        SemiImplicitELBO(NOISE).loss(model, guide)


@pytest.mark.parametrize("kernel", [GaussianNoise(torch.full((3, 5), 0.3)),
                                    GaussianNoise(torch.full((11, 5), 0.3)),
                                    TransformedNoise(
                                        dist.transforms.AffineTransform(torch.zeros(3, 1), 1.0),
                                        GaussianNoise(0.3))])  # fmt: skip
def test_a_kernel_that_changes_the_shape(kernel):
    with pytest.raises(ValueError, match=r"guide site 'z': its kernel turns .* \(5,\) into"):
        SemiImplicitELBO({"z": kernel}).loss(model, guide, DATA)


def test_a_kernel_that_does_not_fit():
    with pytest.raises(ValueError, match=r"site 'z': LowRankGaussianNoise couples"):
        SemiImplicitELBO({"z": LowRankGaussianNoise(0.3, torch.ones(5, 1))}).loss(
            model, guide, DATA
        )


def test_learned_noise_without_a_gradient():
    def guide(x):
        p = pyro.param("p", torch.tensor(0.5))
        with pyro.plate("data", 5):
            implicit(fn=lambda e: e, base=dist.Bernoulli(p))

    with pytest.raises(NotImplementedError, match=r"latent site 'z': draws of Bernoulli"):
        SemiImplicitELBO(NOISE).loss(model, guide, DATA)


def test_draws_outside_of_the_support():
    def model():
        z = pyro.sample("z", dist.HalfNormal(1.0))
        pyro.sample("x", dist.Normal(0.0, z), obs=torch.tensor(1.0))

    def outside():
        implicit(fn=lambda e: e - 10)

    def on_the_boundary():
        implicit(fn=lambda e: 0 * e)

    for guide in (outside, on_the_boundary):
        with pytest.raises(ValueError, match=r"guide site 'z': fn .* outside of the interior of"):
            SemiImplicitELBO(NOISE).loss(model, guide)


def test_discrete_supports():
    def model():
        pyro.sample("z", dist.Poisson(1.0))

    with pytest.raises(NotImplementedError, match=r"site 'z': no bijection from unconstrained"):
        SemiImplicitELBO(NOISE).loss(model, implicit)


def moving_with_data(x):
    pyro.sample("z", dist.Uniform(0.0, x.max()))


def moving_with_a_latent(x):
    top = pyro.sample("top", dist.Uniform(4.0, 5.0))
    pyro.sample("z", dist.Uniform(0.0, top))


def moving_with_a_param(x):
    pyro.sample("z", dist.Uniform(0.0, pyro.param("top", torch.tensor(2.0))))


def differing_in_a_plate(x):
    with pyro.plate("data", 2):
        pyro.sample("z", dist.Uniform(0.0, torch.tensor([2.0, 3.0])))


@pytest.mark.parametrize(
    "model", [moving_with_data, moving_with_a_latent, moving_with_a_param, differing_in_a_plate]
)
def test_supports_that_move(model):
    def guide(x):
        if model is moving_with_a_latent:
            pyro.sample("top", dist.Uniform(4.0, 5.0))
        if model is differing_in_a_plate:
            with pyro.plate("data", 2):
                implicit(fn=torch.sigmoid)
        else:
            implicit(fn=torch.sigmoid)

    loss = SemiImplicitELBO(NOISE)
    for _ in range(2):  # it stays an error
        with pytest.raises(ValueError, match=r"site 'z': the bounds of its support in the model"):
            _ = [loss.loss(model, guide, DATA + shift) for shift in (3, 4)]


def test_after_a_moved_support_the_model_is_looked_at_again():
    loss = SemiImplicitELBO(NOISE)

    def guide(x):
        implicit(fn=torch.sigmoid)

    assert math.isfinite(loss.loss(moving_with_data, guide, DATA + 3))
    with pytest.raises(ValueError, match="bounds of its support"):
        loss.loss(moving_with_data, guide, DATA + 4)
    assert math.isfinite(loss.loss(moving_with_data, guide, DATA + 4))


def test_bounds_that_a_plate_expands_are_fixed():
    def model(n):
        with pyro.plate("data", n):
            pyro.sample("z", dist.Uniform(torch.zeros(n), 2.0))

    def guide(n):
        with pyro.plate("data", n):
            implicit(fn=torch.sigmoid)

    loss = SemiImplicitELBO(NOISE)
    assert all(math.isfinite(loss.loss(model, guide, n)) for n in (4, 3))


def test_a_model_that_cannot_be_a_key():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            model(x)

    assert math.isfinite(SemiImplicitELBO(NOISE).loss(Unhashable(), guide, DATA))
