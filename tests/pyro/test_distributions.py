# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Distributions without a usable density."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

from pyro_spread import DeterministicGenerator, ImplicitDistribution


def square(eps):
    return eps[..., :2] ** 2


def base(*shape):
    return dist.Normal(torch.zeros(*shape, 3), 1.0).to_event(1)


@pytest.mark.parametrize("batch_shape", [(), (1,), (5,), (4, 5)])
@pytest.mark.parametrize("sample_shape", [(), (7,), (2, 3)])
def test_implicit_shapes(batch_shape, sample_shape):
    for fn in (
        ImplicitDistribution(square, base(*batch_shape), (2,)),
        ImplicitDistribution(square, base(), (2,)).expand(batch_shape),
        ImplicitDistribution(square, base(), (2,)).expand(list(batch_shape)),
    ):
        assert fn.batch_shape == batch_shape
        assert fn.event_shape == (2,)
        assert fn.has_rsample
        for draw in (fn.sample, fn.rsample):
            value = draw(torch.Size(sample_shape))
            assert value.shape == (*sample_shape, *batch_shape, 2)
            assert fn.support.check(value).all()


def test_implicit_scalar_event():
    fn = ImplicitDistribution(torch.exp, dist.Normal(torch.zeros(4), 1.0), ())
    assert fn.sample().shape == (4,)
    assert fn.to_event(1).event_shape == (4,)
    assert fn.mask(torch.ones(4).bool()).sample().shape == (4,)


def test_implicit_noise_is_fresh_everywhere():
    fn = ImplicitDistribution(square, base(), (2,))
    assert not torch.equal(fn.sample(), fn.sample())
    for values in (fn.expand([10]).sample(), fn.sample((10,))):
        assert len(set(values[:, 0].tolist())) == 10
    with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 5, dim=-1):
        values = pyro.sample("z", fn)
    assert values.shape == (3, 5, 2)
    assert len(set(values[..., 0].flatten().tolist())) == 15


def test_implicit_sees_noise_of_the_full_shape_once():
    seen = []

    def fn(eps):
        seen.append(eps.shape)
        return eps.sum(-1)

    implicit = ImplicitDistribution(fn, base(), ())
    implicit.expand([4, 5])
    assert seen == []  # nothing is probed
    implicit.expand([4, 5]).sample((7,))
    assert seen == [(7, 4, 5, 3)]


def test_implicit_wrong_output_shape_names_both():
    fn = ImplicitDistribution(lambda eps: eps, base(5), (2,))
    with pytest.raises(ValueError, match=r"returned shape \(7, 5, 3\), expected \(7, 5, 2\)"):
        fn.sample((7,))


def test_implicit_has_no_density():
    fn = ImplicitDistribution(square, base(), (2,))
    for call in (fn.log_prob, fn.to_event(0).log_prob, fn.expand([2]).log_prob):
        with pytest.raises(NotImplementedError, match="PriorContrastELBO or JointContrastELBO"):
            call(torch.zeros(2, 2))


def test_implicit_gradients_reach_fn_and_base():
    net, loc = nn.Linear(3, 2), torch.zeros(3, requires_grad=True)
    fn = ImplicitDistribution(net, dist.Normal(loc, 1.0).to_event(1), (2,))
    fn.expand([5]).rsample().sum().backward()
    assert net.weight.grad.abs().sum() > 0
    assert loc.grad.abs().sum() > 0
    assert not fn.sample().requires_grad


def test_implicit_discrete_base():
    fn = ImplicitDistribution(lambda k: k[..., None] * 2.0, dist.Poisson(torch.ones(5)), (1,))
    assert fn.rsample((3,)).shape == (3, 5, 1)


def test_implicit_copies():
    fn = ImplicitDistribution(square, base(5), (2,))
    for twin in (copy.deepcopy(fn), pickle.loads(pickle.dumps(fn))):
        torch.manual_seed(0)
        expected = fn.sample()
        torch.manual_seed(0)
        assert torch.equal(twin.sample(), expected)


def test_implicit_in_predictive():
    def model():
        with pyro.plate("data", 5):
            return pyro.sample("z", ImplicitDistribution(square, base(), (2,)))

    for parallel in (False, True):
        z = Predictive(model, num_samples=6, parallel=parallel)()["z"]
        assert z.shape == (6, 5, 2)
        assert len(set(z[..., 0].flatten().tolist())) == 30


def test_implicit_under_a_stock_elbo_names_the_losses():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide():
        pyro.sample("z", ImplicitDistribution(square, base(), (2,)))

    svi = SVI(model, guide, pyro.optim.Adam({}), Trace_ELBO())
    with pytest.raises(NotImplementedError, match="PriorContrastELBO"):
        svi.step()


@pytest.mark.parametrize("event_dim", [0, 1, 2])
def test_generator_shapes(event_dim):
    v = torch.randn(4, 5)
    fn, stock = DeterministicGenerator(v, event_dim), dist.Delta(v, event_dim=event_dim)
    assert fn.batch_shape == stock.batch_shape
    assert fn.event_shape == stock.event_shape
    assert torch.equal(fn.sample(), v)
    assert torch.equal(fn.mean, v)
    wide = fn.expand((3, *fn.batch_shape))
    assert isinstance(wide, DeterministicGenerator)
    assert wide.sample((2,)).shape == (2, 3, 4, 5)


def test_generator_is_differentiable_and_copies():
    v = torch.ones(3, requires_grad=True)
    DeterministicGenerator(v).rsample().sum().backward()
    assert torch.equal(v.grad, torch.ones(3))
    twin = pickle.loads(pickle.dumps(DeterministicGenerator(torch.ones(3), event_dim=1)))
    assert twin.event_shape == (3,)


def test_generator_refuses_to_be_scored():
    fn = DeterministicGenerator(torch.zeros(3))
    for wrapped in (fn, fn.to_event(1), fn.expand([2, 3]), fn.mask(torch.tensor(True))):
        with pytest.raises(NotImplementedError) as caught:
            wrapped.log_prob(torch.zeros(2, 3))
        for name in ("DeterministicGenerator", "SpreadELBO({site: GaussianNoise(0.3)})", "MMD"):
            assert name in str(caught.value)


def test_generator_under_a_stock_elbo_names_the_losses():
    def model(x):
        pyro.sample("x", DeterministicGenerator(torch.zeros(3), event_dim=1), obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.Adam({}), Trace_ELBO())
    with pytest.raises(NotImplementedError, match="Use SpreadELBO"):
        svi.step(torch.zeros(3))
    assert Predictive(model, num_samples=2)(None)["x"].shape == (2, 3)
