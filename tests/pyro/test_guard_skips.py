# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A guard that skips skips, whoever speaks first of NaN and inf in Pyro; all else still raises."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_spread import (
    KL,
    GaussianNoise,
    ImplicitDistribution,
    JointContrastELBO,
    NonFiniteError,
    PriorContrastELBO,
    SpreadELBO,
    concat_sites,
    finite_guard,
    guard_status,
)

X = torch.ones(5)
NAN = torch.tensor(math.nan)


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


def adam():
    return pyro.optim.Adam({"lr": 0.01})


def observing(make):
    """A model that observes x by ``make(w, bad)``, where bad is 0 or 1, and a guide of nothing."""

    def model(x, bad):
        w = pyro.param("w", torch.tensor(0.5))
        fn = make(w, bad)
        with pyro.plate("data", len(x)):
            pyro.sample("x", fn, obs=x)

    return model


def nan_if(bad):
    return NAN if bad else torch.tensor(0.0)


def log_of(x):
    if x < 0:
        raise ValueError("math domain error: log of a number that is not finite")
    return math.log(x)


def failing_backward(w, bad):
    def fail(grad):
        raise RuntimeError("Function 'LogBackward0' returned nan values in its 0th output.")

    if bad:
        w = w * 1.0
        w.register_hook(fail)
    return dist.Normal(w, 1.0)


# What goes wrong in the bad step: validated by torch, or found by the routine that meets it.
NUMBERS = {
    "scale inf": lambda w, bad: dist.Normal(0.0, (w + 200.0 * bad).exp()),
    "scale zero": lambda w, bad: dist.Normal(0.0, (w - 200.0 * bad).exp()),
    "loc nan": lambda w, bad: dist.Normal(w + nan_if(bad), 1.0),
    "df nan": lambda w, bad: dist.StudentT(w.exp() + nan_if(bad), 0.0, 1.0),
    "draw of nan": lambda w, bad: dist.Normal(torch.normal(0.0, w.detach() + nan_if(bad)) + w, 1.0),
    "bernoulli of nan": lambda w, bad: dist.Normal(
        w + torch.bernoulli(w.detach() + nan_if(bad)), 1.0
    ),
    "poisson of nan": lambda w, bad: dist.Normal(w + torch.poisson(w.detach() + nan_if(bad)), 1.0),
    "multinomial of nan": lambda w, bad: dist.Normal(
        w + torch.multinomial(torch.ones(3) + nan_if(bad), 1)[0], 1.0
    ),
    "cholesky of nan": lambda w, bad: dist.Normal(
        w + torch.linalg.cholesky(torch.eye(2) + nan_if(bad))[0, 0], 1.0
    ),
    "cholesky of a negative matrix": lambda w, bad: dist.Normal(
        torch.linalg.cholesky((w - 5 * bad) * torch.eye(2))[0, 0], 1.0
    ),
    "singular": lambda w, bad: dist.Normal(torch.inverse(w * (1 - bad) * torch.eye(2))[0, 0], 1.0),
    "numpy's cholesky": lambda w, bad: dist.Normal(
        w + float(np.linalg.cholesky((1 - 2 * bad) * np.eye(2))[0, 0]), 1.0
    ),
    "overflow": lambda w, bad: dist.Normal(w + math.exp(1000 * bad) - 1, 1.0),
    "division by zero": lambda w, bad: dist.Normal(w + 1 / (1 - bad), 1.0),
    "int of nan": lambda w, bad: dist.Normal(w + int(nan_if(bad).item()), 1.0),
    "the user's own": lambda w, bad: dist.Normal(w + log_of(1.0 - 2 * bad), 1.0),
    "bce of nan": lambda w, bad: dist.Normal(
        torch.nn.functional.binary_cross_entropy(w + nan_if(bad), torch.tensor(1.0)), 1.0
    ),
    "backward": failing_backward,
    "gaussian noise": lambda w, bad: GaussianNoise(1 - bad)(w.expand(5)),
}


@pytest.mark.parametrize("validation", [True, False], ids=["validated", "not validated"])
@pytest.mark.parametrize("what", NUMBERS)
def test_numbers(what, validation):
    model = observing(NUMBERS[what])
    with pyro.validation_enabled(validation):
        svi = finite_guard(SVI(model, lambda x, bad: None, adam(), Trace_ELBO()), "skip")
        svi.step(X, 0)
        before = pyro.param("w").item()
        assert math.isnan(svi.step(X, 1))
        assert pyro.param("w").item() == before
        status = guard_status(svi)
        assert status.skipped == 1
        assert 0 < len(status.last) < 700
        svi.step(X, 0)
        assert pyro.param("w").item() != before
        assert guard_status(svi).in_a_row == 0


@pytest.mark.parametrize("validation", [True, False], ids=["validated", "not validated"])
@pytest.mark.parametrize("big", [-200.0, 200.0])
def test_the_scale_of_a_guide(big, validation):
    def model(x, bad):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(z), obs=x)

    def guide(x, bad):
        scale = (pyro.param("s", torch.tensor(0.0)) + big * bad).exp()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, scale))

    with pyro.validation_enabled(validation):
        svi = SVI(model, guide, adam(), SpreadELBO({"x": GaussianNoise(0.3)}))
        svi = finite_guard(svi, "reduce")
        assert math.isfinite(svi.step(X, 0))
        assert math.isnan(svi.step(X, 1))
        assert guard_status(svi)[:3] == (1, 1, 0.5)


@pytest.mark.parametrize("bad", ["point", "nan"])
def test_a_guide_that_has_collapsed(bad):
    def model(x, scale):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, scale):
        w = pyro.param("w", torch.tensor(1.0))
        base = dist.Normal(torch.zeros(()), 1.0)
        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(lambda e: x + w * scale * e, base, ()))

    loss = PriorContrastELBO(concat_sites(torch.nn.Linear(1, 1), "z"))
    svi = finite_guard(SVI(model, guide, adam(), loss), "skip")
    assert math.isfinite(svi.step(X, 1.0))
    assert math.isnan(svi.step(X, 0.0 if bad == "point" else math.nan))
    assert ("NaN" if bad == "nan" else "'z': all draws for a datum") in guard_status(svi).last


def test_an_optimiser_that_speaks_of_nan():
    class Strict(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            if strict[0]:
                raise RuntimeError("the total norm of the gradient is non-finite")

    strict = [False]
    model = observing(lambda w, bad: dist.Normal(w, 1.0))
    optim = pyro.optim.PyroOptim(Strict, {"lr": 0.1})
    svi = finite_guard(SVI(model, lambda x, bad: None, optim, Trace_ELBO()), "skip")
    svi.step(X, 0)
    before, strict[0] = pyro.param("w").item(), True
    svi.step(X, 0)
    assert pyro.param("w").item() == before
    assert guard_status(svi).skipped == 1


def raising(error):
    def make(w, bad):
        if bad:
            raise error
        return dist.Normal(w, 1.0)

    return make


# Mistakes in a program: skipping them would hide them.
MISTAKES = {
    "type": (raising(TypeError("unsupported operand")), TypeError, "operand"),
    "key": (raising(KeyError("nan")), KeyError, "nan"),
    "shape": (lambda w, bad: dist.Normal(w + torch.zeros(5 - bad), 1.0), ValueError, "hape"),
    "matmul": (
        lambda w, bad: dist.Normal(w + (torch.ones(2, 3) @ torch.ones(3 + bad, 1)).sum(), 1.0),
        RuntimeError,
        "cannot be multiplied",
    ),
    "not written": (raising(NotImplementedError("no gradient of inf")), NotImplementedError, "inf"),
    "Ctrl-C": (raising(KeyboardInterrupt()), KeyboardInterrupt, "^$"),
    "label": (
        lambda w, bad: dist.Bernoulli(w) if bad else dist.Normal(w, 1.0),
        ValueError,
        "within the support",
    ),
    "words": (raising(RuntimeError("information in a banana")), RuntimeError, "banana"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(what):
    make, error, message = MISTAKES[what]
    svi = SVI(observing(make), lambda x, bad: None, adam(), Trace_ELBO())
    svi = finite_guard(svi, "skip")
    svi.step(2 * X, 0)
    before = pyro.param("w").item()
    with pytest.raises(error, match=message) as caught:
        svi.step(2 * X, 1)
    assert not isinstance(caught.value, NonFiniteError)
    assert pyro.param("w").item() == before
    assert guard_status(svi).skipped == 0


def test_the_names_of_sites_are_no_numbers():
    def model(x):
        pyro.sample("nan", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))), obs=x)

    svi = finite_guard(SVI(model, lambda x: None, adam(), Trace_ELBO()), "skip")
    with pytest.raises(ValueError, match="within the support"):
        svi.step(torch.tensor(2.0))


def test_a_latent_at_the_edge_of_its_support():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            value = torch.full((5,), -200.0) + pyro.param("w", torch.tensor(0.0))
            pyro.sample("z", dist.Delta(value.exp()))  # zero in single precision

    svi = finite_guard(SVI(model, guide, adam(), Trace_ELBO()), "skip")
    assert math.isnan(svi.step(X))
    assert "within the support" in guard_status(svi).last


def test_skipping_for_ever_is_said():
    model = observing(lambda w, bad: dist.Normal(w + nan_if(bad), 1.0))
    svi = finite_guard(SVI(model, lambda x, bad: None, adam(), Trace_ELBO()), "skip")
    svi.step(X, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(9):
            svi.step(X, 1)
    assert not [each for each in caught if "finite_guard" in str(each.message)]
    text = "the last 10 steps were all skipped, so that nothing is learned.*loc.*'raise'.*NaN for"
    with pytest.warns(UserWarning, match=text):
        svi.step(X, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(89):
            svi.step(X, 1)
    assert not [each for each in caught if "finite_guard" in str(each.message)]
    with pytest.warns(UserWarning, match="the last 100 steps were all skipped"):
        svi.step(X, 1)
    assert len(str(guard_status(svi))) < 700


def test_a_simulator_that_returns_nan_for_part_of_its_prior():
    def model(x):
        with pyro.plate("data", len(x)):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta((theta + 1).sqrt()), obs=x)

    w = torch.nn.Linear(1, 2)

    def guide(x):
        pyro.module("w", w)
        loc, scale = w(x[:, None]).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("theta", dist.Normal(loc, scale.exp()))

    svi = SVI(model, guide, adam(), JointContrastELBO(divergence=KL()))
    svi = finite_guard(svi, "skip")
    for _ in range(9):
        svi.step(torch.zeros(300))
    with pytest.warns(UserWarning, match="simulator that returns NaN for part of its prior"):
        svi.step(torch.zeros(300))
    assert len(str(guard_status(svi))) < 700
