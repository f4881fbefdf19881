# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Programs that do more than compute from their arguments: compiled, they are right or refused."""

import functools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_spread import GaussianNoise, SpreadELBO, compiled

AS_IT_IS = functools.partial(compiled, disable=True)
X, Y = torch.arange(12.0).reshape(6, 2), torch.ones(6, 2)


def nothing(*args):
    pass


def observe(loc, y):
    with pyro.plate("data", 6):
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


def runs(make, calls, how=AS_IT_IS, guide=nothing, loss=Trace_ELBO):
    """Losses of the calls, and the params after them."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(make(), guide, pyro.optim.SGD({"lr": 1e-3}), how(loss()))
    losses = [call(svi) for call in calls]
    return losses, {n: p.detach().clone() for n, p in pyro.get_param_store().items()}


def assert_right(make, calls, guide=nothing, loss=Trace_ELBO):
    one, other = (runs(make, calls, how, guide, loss) for how in (lambda loss: loss, AS_IT_IS))
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    torch.testing.assert_close(one[1], other[1])


def step(*args):
    return lambda svi: svi.step(*args)


def weight():
    return pyro.param("w", torch.tensor(0.5))


def test_one_tensor_in_two_places_and_then_two():
    def make():
        return lambda x, y: observe(weight() * x, y)

    assert_right(make, [step(X, X)] * 3 + [step(X, Y)] * 3)


def test_an_argument_that_is_closed_over_too():
    def make():
        return lambda x: observe(weight() * X, x)

    assert_right(make, [step(X)] * 3 + [step(Y)] * 3)


def test_a_param_with_two_names():
    def make():
        net = nn.Linear(2, 2)

        def model(x):
            pyro.module("b", net)
            observe(pyro.module("a", net)(x), x)

        return model

    assert_right(make, [step(Y)] * 5)


def test_handlers_around_the_step():
    def scaled(scale):
        def call(svi):
            with poutine.scale(scale=scale):
                return svi.step(X)

        return call

    def make():
        return lambda x: observe(weight() * x, x)

    assert_right(make, [scaled(1.0 + k) for k in range(4)])


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, x):
        self.steps += 1
        with poutine.scale(scale=min(1.0, self.steps / 10)):
            observe(weight() * x, x)


class Shaped(nn.Module):
    """A net whose shape is set from outside: by a part, or by a function."""

    def __init__(self):
        super().__init__()
        self.net, self.function = nn.Sequential(nn.ReLU()), torch.relu

    def forward(self, x):
        observe(self.net(weight() * x - 2) + self.function(weight() * x - 3), x)


def test_parts_and_functions_that_are_replaced():
    def other_part(svi):
        svi.model.net[0] = nn.Tanh()
        return svi.step(X)

    def other_function(svi):
        svi.model.function = torch.sin
        return svi.step(X)

    steps = [step(X)] * 3
    assert_right(Shaped, [*steps, other_part, *steps, other_function, *steps])


class Scaled:
    """A program with a number on it that is no module."""

    def __init__(self):
        self.scale = 1.0

    def __call__(self, x):
        observe(self.scale * weight() * x, x)

    def method(self, x):
        self(x)


class ScaledModule(Scaled, nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.scale = 1.0


@pytest.mark.parametrize(
    "make", [Scaled, lambda: Scaled().method, lambda: ScaledModule().method],
    ids=["object", "method", "method of a module"],
)  # fmt: skip
def test_numbers_on_what_is_called(make):
    def other_scale(svi):
        getattr(svi.model, "__self__", svi.model).scale = 3.0
        return svi.step(X)

    assert_right(make, [step(X)] * 3 + [other_scale] + [step(X)] * 3)


def test_a_kernel_that_is_replaced():
    def make():
        return lambda x: observe(weight() * x, x)

    def other_kernel(svi):
        svi.loss_and_grads.__self__.noise["y"] = GaussianNoise(5.0)
        return svi.step(X)

    calls = [step(X)] * 3 + [other_kernel] + [step(X)] * 3
    assert_right(make, calls, loss=lambda: SpreadELBO({"y": GaussianNoise(0.5)}))


def test_a_count_in_the_model():
    assert_right(Counting, [step(X)] * 5)


def test_arguments_that_change_inside():
    class Batch:
        def __init__(self, x):
            self.x = x

    def make():
        return lambda batch: observe(weight() * batch.x, batch.x)

    def refilled(k):
        def call(svi):
            batch.x = k * Y
            return svi.step(batch)

        return call

    batch = Batch(X)
    assert_right(make, [refilled(k) for k in range(5)])


def test_gradients_reach_arguments():
    encoder = nn.Linear(2, 2)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            observe(self.w * x, Y)

    class Nothing(nn.Module):
        def forward(self, x):
            pass

    module = AS_IT_IS(Trace_ELBO())(Model(), Nothing())
    for _ in range(3):
        encoder.zero_grad()
        module(encoder(X)).backward()
        assert encoder.weight.grad.any()


def refused(make, match, elbo=Trace_ELBO, guide=nothing):
    pyro.clear_param_store()
    svi = SVI(make(), guide, pyro.optim.SGD({"lr": 1e-3}), AS_IT_IS(elbo()))
    svi.step(X)
    with pytest.raises(NotImplementedError, match=match):
        svi.step(X)


def test_tensors_that_are_trained_elsewhere():
    net = nn.Linear(2, 2)

    def make():
        return lambda x: observe(weight() * net(x), x)

    refused(make, r"shape \((2, 2|2,)\) that requires a gradient and is no parameter")


def test_buffers_that_are_replaced():
    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(2))

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            observe(weight() * x + self.mean, x)

    refused(Averaged, "puts a new tensor in the place of a buffer")


def test_a_decaying_baseline():
    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        observe(weight() * z * x, x)

    def guide(x):
        p = pyro.param("p", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
        kind = {"baseline": {"use_decaying_avg_baseline": True}}
        pyro.sample("z", dist.Bernoulli(p), infer=kind)

    refused(lambda: model, "changes '__baseline_avg", infer.TraceGraph_ELBO, guide)


def test_rejection_sampling():
    def make():
        def model(x):
            with pyro.plate("angles", 3):
                z = pyro.sample("z", dist.VonMises(torch.tensor(2.0), torch.tensor(3.0)))
            observe(weight() * z.sum() * x, x)

        return model

    refused(make, r"von_mises.py\", line \d+", guide=make())


def test_several_losses():
    def model(x):
        z = pyro.sample("z", dist.Normal(weight(), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    elbo = functools.partial(infer.ReweightedWakeSleep, num_particles=3, max_plate_nesting=1)
    refused(lambda: model, "ReweightedWakeSleep reports several losses", elbo, guide)


def test_a_pickle():
    twin = pickle.loads(pickle.dumps(AS_IT_IS(Trace_ELBO(num_particles=2))))
    assert type(twin).__name__ == "Trace_ELBO"
    assert type(twin) is not Trace_ELBO
    assert twin.num_particles == 2
