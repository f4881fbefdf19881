# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the semi-implicit bound refuses, with the way out."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMessenger
from pyro_semi_implicit import DATA, EPS, NOISE, guide, implicit, model

from pyro_spread import (
    ChannelNoise,
    GaussianNoise,
    ImplicitDistribution,
    LowRankGaussianNoise,
    SemiImplicitELBO,
    TransformedNoise,
)

pytestmark = pytest.mark.usefixtures("double")


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

    for bad_guide in (outside, on_the_boundary):
        with pytest.raises(ValueError, match=r"guide site 'z': fn .* outside of the interior of"):
            SemiImplicitELBO(NOISE).loss(model, bad_guide)


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
