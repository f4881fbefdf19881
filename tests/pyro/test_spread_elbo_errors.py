# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every error of the loss: it names site or argument and the way out, and nothing has changed."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from pyro_spread import (
    ChannelNoise,
    GaussianNoise,
    LaplaceNoise,
    LowRankGaussianNoise,
    SpreadELBO,
    TransformedNoise,
    spread,
)

N, D = 6, 3
X = torch.linspace(-1, 1, N * D).reshape(N, D)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
GAUSSIAN = {"x": GaussianNoise(0.3)}
CHANNEL = ChannelNoise.symmetric(3, 0.3)


def guide(x, *args, **kwargs):
    slope = pyro.param("slope", torch.tensor(0.1))
    with pyro.plate("data", N):
        shift = x.float().reshape(N, -1).mean(1)
        pyro.sample("z", dist.Normal(torch.nan_to_num(slope * shift, 0.0, 0.0, 0.0), 0.5))


def lambda_guide(x):
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def make(observe=lambda x: x, fn=lambda z: dist.Delta(z[:, None].expand(N, D), event_dim=1)):
    def model(x, *args, **kwargs):
        weight = pyro.param("weight", torch.tensor(0.5))
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", fn(weight * z), obs=observe(x))

    return model


def normal(z):
    return dist.Normal(z[:, None].expand(N, D), 1.0).to_event(1)


def two_deltas(x):
    make()(x)
    pyro.sample("frame", dist.Delta(torch.zeros(())), obs=torch.zeros(()) + 1)


def without_x(x):
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def without_site(x):
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[:, 0])


def bad_entry(value):
    x = X.clone()
    x[2, 1] = value
    return x


def noisy_inside(x):
    with spread(noise=GAUSSIAN):
        make()(x)


def exp_domain():
    return TransformedNoise(
        torch.distributions.PowerTransform(torch.tensor(2.0)), GaussianNoise(0.1)
    )


# Name -> (model, noise, data, error, parts of the message).
WRONG = {
    "a Delta that no kernel covers": (
        two_deltas, GAUSSIAN, X, ValueError, ["site 'frame'", "observed Delta",
        "SpreadELBO({'frame': GaussianNoise(0.3)})"],
    ),
    "a site that does not exist": (
        make(fn=normal), {"pixels": GaussianNoise(0.3)}, X, ValueError,
        ["the site 'pixels'", "no sample site of that name", "observed sites are ['x']"],
    ),
    "a model without the site": (
        without_site, GAUSSIAN, X, ValueError, ["names the site 'x'", "observed sites are ['y']"],
    ),
    "a site that is not observed": (
        make(observe=lambda x: None), GAUSSIAN, X, ValueError,
        ["site 'x', which the model does not observe", "Give it obs="],
    ),
    "a scale that does not fit": (
        make(), {"x": GaussianNoise(torch.ones(4))}, X, ValueError,
        ["site 'x': GaussianNoise", "scale of shape (4,)", "Use a scalar scale"],
    ),
    "a scale that fits the data but not the event": (
        make(observe=lambda x: x[:, :1], fn=lambda z: dist.Delta(z[:, None], event_dim=1)),
        {"x": GaussianNoise(torch.ones(3))}, X, ValueError, ["site 'x'", "scale of shape (3,)"],
    ),
    "a factor that does not fit": (
        make(), {"x": LowRankGaussianNoise(0.3, torch.ones(4, 1))}, X, ValueError,
        ["site 'x'", "factor of shape (4, 1)", "first dimension must be"],
    ),
    "a correlated kernel without event dims": (
        make(observe=lambda x: x[:, 0], fn=lambda z: dist.Delta(z)),
        {"x": LowRankGaussianNoise(0.3, torch.ones(3, 1))}, X, ValueError,
        ["site 'x'", "Declare them as event dimensions"],
    ),
    "NaN": (make(), GAUSSIAN, bad_entry(math.nan), ValueError,
            ["site 'x'", "argument 'x' contains NaN or inf", "masked out"]),
    "inf": (make(), GAUSSIAN, bad_entry(math.inf), ValueError, ["argument 'x' contains NaN"]),
    "minus inf": (make(), GAUSSIAN, bad_entry(-math.inf), ValueError, ["contains NaN or inf"]),
    "integers under a continuous kernel": (
        make(), GAUSSIAN, (X * 10).long(), TypeError,
        ["site 'x': GaussianNoise", "integer type torch.int64", "use ChannelNoise"],
    ),
    "floats under a channel": (
        make(), {"x": CHANNEL}, X, TypeError,
        ["site 'x': ChannelNoise", "torch.float32", "Convert the labels"],
    ),
    "labels out of range": (
        make(fn=lambda z: dist.Categorical(torch.ones(N, 3))), {"x": CHANNEL}, LABELS + 1,
        ValueError, ["site 'x'", "0..2", "from 1 to 3"],
    ),
    "data outside the domain of the transform": (
        make(), {"x": exp_domain()}, X, ValueError, ["site 'x'", "PowerTransform", "Rescale"],
    ),
    "clean data captured from outside": (
        make(observe=lambda x: X), GAUSSIAN, X, ValueError,
        ["site 'x': the model observes something other than the spread value", "captured from"],
    ),
    "clean data, a subset": (
        make(observe=lambda x: X[:, :1], fn=lambda z: dist.Delta(z[:, None], event_dim=1)),
        GAUSSIAN, X, ValueError, ["observes something other than the spread value"],
    ),
    "clean labels captured from outside": (
        make(observe=lambda x: LABELS.repeat(20), fn=lambda z: dist.Categorical(
            torch.ones(120, 3)).to_event(1)),
        {"x": CHANNEL}, LABELS.repeat(20), ValueError, ["observes something other than"],
    ),
    "transformed in the model": (
        make(observe=lambda x: 2 * x), GAUSSIAN, X, ValueError,
        ["not a transformed copy", "preprocessing before"],
    ),
    "rounded in the model": (
        make(observe=lambda x: x.round()), GAUSSIAN, X, ValueError, ["not a transformed copy"],
    ),
    "conditioned on clean data": (
        pyro.condition(make(observe=lambda x: None), {"x": X}), GAUSSIAN, X, ValueError,
        ["observes something other than the spread value"],
    ),
    "spread already, outside": (
        spread(make(), GAUSSIAN), GAUSSIAN, X, ValueError,
        ["site 'x' is spread already", "hand it the model as it is"],
    ),
    "spread already, inside": (noisy_inside, GAUSSIAN, X, ValueError, ["is spread already"]),
    "no exact spread": (
        make(fn=lambda z: dist.Gamma(torch.ones(N, D), 1.0).to_event(1)), GAUSSIAN, X.abs() + 1,
        NotImplementedError, ["site 'x'", "GaussianNoise", "Gamma", "The way out"],
    ),
    "laplace of a normal": (
        make(fn=normal),
        {"x": LaplaceNoise(0.3)}, X, NotImplementedError, ["site 'x'", "LaplaceNoise", "Normal"],
    ),
    "data narrower than the event": (
        make(), GAUSSIAN, X[:, :1], ValueError,
        ["site 'x'", "shape (6, 1)", "event shape (3,)"],
    ),
    "data wider than the event": (
        make(), GAUSSIAN, torch.randn(N, 4), ValueError, ["site 'x'", "event shape (3,)"],
    ),
    "not a tensor": (
        make(), GAUSSIAN, np.ma.masked_array(X.numpy()), ValueError,
        ["site 'x': the model argument 'x' is of type MaskedArray, not a torch.Tensor", "data="],
    ),
    "a list": (make(), GAUSSIAN, [X], ValueError, ["argument 'x' is of type list"]),
}  # fmt: skip

ELBOS = {
    "Trace": Trace_ELBO,
    "Trace-vectorised": lambda: Trace_ELBO(2, vectorize_particles=True),
    "TraceMeanField": TraceMeanField_ELBO,
    "TraceEnum": lambda: TraceEnum_ELBO(strict_enumeration_warning=False),
    "JitTrace": lambda: JitTrace_ELBO(ignore_jit_warnings=True),
}


def state():
    """Everything an error must leave as it was."""
    store = pyro.get_param_store()
    params = {name: store[name].detach().clone() for name in store}
    grads = {name: copy.deepcopy(store[name].unconstrained().grad) for name in store}
    return params, grads


def assert_same(before, after):
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys()
        for name in old:
            if old[name] is None or new[name] is None:
                assert new[name] is None or not new[name].any()
            else:
                assert torch.equal(old[name], new[name])


def optimiser_state(svi):
    return copy.deepcopy(svi.optim.get_state())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("name", WRONG)
def test_message_and_nothing_done(name, elbo):
    model, noise, x, error, parts = WRONG[name]
    if elbo == "JitTrace" and name in CHECKED_ONLY_EAGERLY:
        pytest.skip("values are checked eagerly only: a compiled graph has none")
    kept = copy.deepcopy(x)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), SpreadELBO(noise, ELBOS[elbo]()))
    with pytest.raises(error) as caught:
        svi.step(x)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert list(pyro.get_param_store()) == []
    assert svi.optim.get_state() == {}
    if isinstance(x, torch.Tensor):
        torch.testing.assert_close(x, kept, rtol=0, atol=0, equal_nan=True)
    assert len(pyro.poutine.runtime._PYRO_STACK) == 0


CHECKED_ONLY_EAGERLY = {
    "clean data captured from outside",
    "clean data, a subset",
    "clean labels captured from outside",
    "transformed in the model",
    "rounded in the model",
    "conditioned on clean data",
}


@pytest.mark.parametrize(
    "bad",
    [bad_entry(math.nan), (X * 10).long(), X.tolist(), X[:, :2]],
    ids=["nan", "integers", "list", "shape"],
)
def test_training_goes_on_after_an_error(bad):
    svi = SVI(make(), guide, pyro.optim.Adam({"lr": 0.1}), SpreadELBO(GAUSSIAN))
    svi.step(X)
    params, optimiser = state(), optimiser_state(svi)
    with pytest.raises((TypeError, ValueError)):
        svi.step(bad)
    assert_same(params, state())
    assert str(optimiser) == str(optimiser_state(svi))
    torch.manual_seed(1)
    after_error = svi.step(X)
    # Exactly as if the error had never been.
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    twin = SVI(make(), guide, pyro.optim.Adam({"lr": 0.1}), SpreadELBO(GAUSSIAN))
    twin.step(X)
    torch.manual_seed(1)
    assert twin.step(X) == after_error


def test_the_same_loss_works_after_an_error():
    for elbo in ELBOS.values():
        pyro.clear_param_store()
        loss = SpreadELBO(GAUSSIAN, elbo())
        with pytest.raises(ValueError, match="NaN"):
            loss.loss(make(), guide, bad_entry(math.nan))
        assert math.isfinite(loss.loss(make(), guide, X))


def test_new_params_of_callable_noise_are_forgotten():
    def noise(x):
        return {"y": GaussianNoise(pyro.param("s", torch.tensor(0.3)))}

    with pytest.raises(ValueError, match="no sample site"):
        SpreadELBO(noise).loss(without_x, guide, X)
    assert list(pyro.get_param_store()) == []


@pytest.mark.parametrize("bad", [GaussianNoise(0.3), None, {"x": 0.3}])
def test_callable_noise_must_return_the_dict(bad):
    with pytest.raises(TypeError, match="noise kernel"):
        SpreadELBO(lambda x: bad).loss(make(), guide, X)


def test_scale_that_turns_invalid_in_callable_noise():
    with pytest.raises(ValueError, match=r"scale must be positive and finite, got -0\.1"):
        SpreadELBO(lambda x: {"x": GaussianNoise(-0.1)}).loss(make(), guide, X)


def test_large_finite_data_are_not_refused():
    x = torch.full((N, D), 1e38)  # their sum overflows float32
    assert math.isfinite(SpreadELBO({"x": LaplaceNoise(1e36)}).loss(make(), lambda_guide, x))


@pytest.mark.parametrize(
    ("noise", "data", "args", "message"),
    [
        (
            GAUSSIAN,
            {"x": "images"},
            (X,),
            "'images' carries it, but this call has no such argument",
        ),
        ({**GAUSSIAN, "y": GaussianNoise(0.1)}, None, (X,), "would both take their data from.*'x'"),
        (GAUSSIAN, None, (), "called without arguments.*instead of capturing it"),
    ],
)
def test_data_cannot_be_found(noise, data, args, message):
    def model(x=X):
        make()(x)

    with pytest.raises(ValueError, match=message):
        SpreadELBO(noise, data=data).loss(model, guide, *args)


def test_data_names_a_site_without_a_kernel():
    with pytest.raises(ValueError, match=r"data= names the site\(s\) \['y'\]"):
        SpreadELBO(GAUSSIAN, data={"y": "labels"})


def test_compiled_losses_take_data_by_position():
    loss = SpreadELBO(GAUSSIAN, JitTrace_ELBO(ignore_jit_warnings=True))
    with pytest.raises(ValueError, match=r"'x': JitTrace_ELBO takes tensors by position.*'x='"):
        loss.loss_and_grads(make(), guide, x=X)


def test_captured_data_in_a_subsampled_plate():
    def model(x):
        with pyro.plate("data", N, subsample_size=2) as ind:
            pyro.sample("x", dist.Delta(torch.zeros(D), event_dim=1), obs=X[ind])

    with pytest.raises(ValueError, match="observes something other than"):
        SpreadELBO(GAUSSIAN).loss(model, lambda x: None, X)
