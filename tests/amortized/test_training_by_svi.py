# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Which params training keeps, and what SVI trains from the table alone."""

from types import SimpleNamespace

import flax.linen
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
import optax
import pyro
import pyro.distributions
import pytest
import torch
from pyro.infer import Trace_ELBO

import numpyro_spread
import pyro_spread
from spread_core.amortized.layout import Variable, group_variables
from spread_core.amortized.training import Best, worth_it

BACKENDS = {
    "pyro": (pyro_spread, pyro, pyro.distributions, torch.as_tensor),
    "numpyro": (numpyro_spread, numpyro, numpyro.distributions, jnp.asarray),
}
OPTIMS = {
    "pyro": lambda: pyro.optim.Adam({"lr": 5e-3}),
    "numpyro": lambda: optax.adam(5e-3),
}
QUICK = {"progress_bar": False, "ensemble": 1, "max_steps": 200, "observed": "x"}


@pytest.fixture(params=BACKENDS)
def backend(request):
    spread, ppl, dist, array = BACKENDS[request.param]
    return SimpleNamespace(
        spread=spread, ppl=ppl, dist=dist, array=array, optim=OPTIMS[request.param]
    )


@pytest.fixture
def model(backend):
    def model(x=None):
        theta = backend.ppl.sample("theta", backend.dist.Normal(0.0, 1.0))
        backend.ppl.sample("x", backend.dist.Normal(theta, 0.5), obs=x)

    return model


@pytest.fixture
def table(backend, model):
    return backend.spread.simulate(model, 1500, observed="x", seed=3)


def moments(posterior, x):
    draws = np.asarray(posterior.sample(x, num_samples=4000)["theta"])
    return draws.mean(), draws.std()


def test_an_optimiser_of_ones_own(backend, model, table):
    runs = []

    def counted(x=None):
        runs.append(1)
        return model(x)

    # Params of another guide, of the model, and of the guide stay apart.
    pyro.clear_param_store()
    pyro.param("own", torch.ones(1))
    if backend.ppl is pyro:
        pyro_spread.AutoAmortized(model, observed="x", init_samples=20)(torch.tensor(0.0))
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    posterior = backend.spread.amortize(counted, simulations=table, optim=backend.optim(), **QUICK)
    assert len(runs) < 500  # a look at every step, no simulations
    after = pyro.get_param_store()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    pyro.clear_param_store()
    mean, sd = moments(posterior, backend.array(np.float32(1.0)))
    assert abs(mean - 0.8) < 0.08
    assert abs(sd / 0.2**0.5 - 1) < 0.15
    assert posterior.record["held_out"] <= posterior.record["first"]
    assert posterior.record["epochs"] >= 2


def test_a_loss_of_ones_own(backend, model, table):
    spread = backend.spread
    loss = spread.JointContrastELBO(divergence=spread.KL(), noise={"x": spread.GaussianNoise(1.0)})
    runs = []

    def counted(x=None):
        runs.append(1)
        return model(x)

    posterior = spread.amortize(counted, simulations=table, loss=loss, **QUICK)
    assert len(runs) < 800  # not one for every row
    # The posterior given the data with the noise.
    mean, sd = moments(posterior, backend.array(np.float32(1.0)))
    assert abs(mean - 1 / 2.25) < 0.12
    assert abs(sd / (1.25 / 2.25) ** 0.5 - 1) < 0.15
    assert loss.simulations is None  # it is the user's


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_no_better_than_the_start_is_the_start(backend, model, table):
    far = {"numpyro": lambda: optax.sgd(1e3), "pyro": lambda: pyro.optim.SGD({"lr": 1e3})}
    optim = far[backend.ppl.__name__]()
    options = {"simulations": table, "optim": optim, "patience": 2, **QUICK}
    with pytest.warns(
        UserWarning, match=r"ended in NaN for latents \['theta'\], and the params from"
    ):
        posterior = backend.spread.amortize(model, **options)
    assert posterior.record["epochs"] == 2
    assert posterior.record["held_out"] == posterior.record["first"]
    mean, _ = moments(posterior, backend.array(np.float32(1.0)))  # the regression
    assert abs(mean - 0.8) < 0.1


GROUPS = group_variables(
    [Variable(name, (), shape, {}, {}) for name, shape in (("a", (2,)), ("b", ()))]
)


def losses(*members):
    return {"global": np.array(members)}


def test_a_start_that_is_no_number_is_worse_than_any():
    best = Best(losses([np.nan, 1.0, np.inf], [2.0, 1.0, 3.0]), 2)
    better = best.update(losses([5.0, np.nan, 4.0], [1.0, 1.0, -np.inf]))["global"]
    np.testing.assert_array_equal(better, [[True, False, True], [True, False, False]])
    np.testing.assert_array_equal(best.least["global"], [[5.0, 1.0, 4.0], [1.0, 1.0, 3.0]])
    with pytest.warns(UserWarning, match=r"ended in NaN for latents \['a', 'b'\]"):
        best.check(GROUPS)
    best.update(losses([5.0, 1.0, 4.0], [1.0, 1.0, 3.0]))
    best.check(GROUPS)
    assert best.record(2) == {"epochs": 2, "first": None, "held_out": 7.5}  # no NaN in files
    gains = losses([[np.nan, 1.0], [0.0, 1.0], [3.0, 4.0]], [[np.inf, np.inf], [9, 10], [-1, 0]])
    found = worth_it(gains, {})["global"]
    np.testing.assert_array_equal(found, [[True, True, True], [True, True, False]])


def test_a_member_without_a_finite_loss_is_refused():
    best = Best(losses([np.nan, 1.0, 1.0], [2.0, 1.0, 3.0]), 2)
    best.update(losses([np.inf, 0.5, 1.0], [1.0, 1.0, 3.0]))
    with pytest.raises(ValueError, match=r"loss of latents \['a'\] of 1 of the 2 members .* was"):
        best.check(GROUPS)
    with pytest.raises(ValueError, match=r"loss of latents \['a', 'b'\] was never finite, so that"):
        Best.of_one(np.nan, 2).check(GROUPS)


class Log(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(torch.log(2.0 - x))


@pytest.mark.parametrize("by_svi", [False, True])
@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_training_that_is_never_finite_is_refused(backend, model, table, by_svi):
    # Of large data there is no logarithm.
    made = {
        "pyro": Log(torch.nn.Linear(1, 2)),
        "numpyro": flax.linen.Sequential([lambda x: jnp.log(2.0 - x), flax.linen.Dense(2)]),
    }[backend.ppl.__name__]
    guide = backend.spread.AutoAmortized(model, observed="x", embedding=made)
    options = {"optim": backend.optim()} if by_svi else {}
    with pytest.raises(ValueError, match=r"loss of latents \['theta'\] was never finite"):
        backend.spread.amortize(model, simulations=table, guide=guide, **options, **QUICK)


@pytest.mark.parametrize("density", ["mixture", "maf"])
def test_simulations_outside_of_the_support_are_refused(backend, density):
    def model(x=None):
        z = backend.ppl.sample("z", backend.dist.Uniform(0.0, 1.0))
        w = backend.ppl.sample("w", backend.dist.HalfNormal(1.0))
        k = backend.ppl.sample("k", backend.dist.Bernoulli(0.5))
        backend.ppl.sample("x", backend.dist.Normal(z + w + k, 0.5), obs=x)

    rng = np.random.default_rng(0)
    columns = {"z": rng.random(60), "w": rng.random(60), "k": rng.integers(0, 2, 60)}
    columns["z"][:2] = 0.0, 1.0  # ends are inside
    data = {"x": rng.normal(size=60)}
    data["x"][5] = np.nan
    for name, value in {"z": 1.5, "w": -0.1, "k": 2}.items():
        bad = {
            key: np.where(np.arange(60) == 7, value, v) if key == name else v.copy()
            for key, v in columns.items()
        }
        bad[name][5] = value  # of a run that failed
        table = backend.spread.Simulations.from_dict(bad, data)
        guide = backend.spread.AutoAmortized(model, observed="x", density=density)
        with pytest.raises(
            ValueError, match=f"'{name}' lies outside of its support in 1 of 59 sim"
        ):
            backend.spread.amortize(model, guide=guide, simulations=table, **QUICK)
    table = backend.spread.Simulations.from_dict(columns, data)
    guide = backend.spread.AutoAmortized(model, observed="x", density=density)
    guide.data_sites()
    guide.check_supports(guide.columns_of(table)[0], table)


def test_refused(backend, model, table):
    spread = backend.spread
    options = {"simulations": table, **QUICK}
    elbo = Trace_ELBO() if backend.ppl is pyro else numpyro.infer.Trace_ELBO()
    with pytest.raises(TypeError, match="loss must be a JointContrastELBO, got"):
        spread.amortize(model, loss=elbo, **options)
    critic = torch.nn.Linear(2, 1) if backend.ppl is pyro else flax.linen.Dense(1)
    loss = spread.JointContrastELBO(critic)
    with pytest.raises(ValueError, match="a discriminator needs fresh runs of the model"):
        spread.amortize(model, loss=loss, **options)
    noise = {"x": spread.annealed(spread.GaussianNoise(1.0), lambda step: 0.9**step)}
    loss = spread.JointContrastELBO(divergence=spread.KL(), noise=noise)
    with pytest.raises(
        ValueError, match=r"site 'x': amortize: noise of annealed.*the kernel inside"
    ):
        spread.amortize(model, loss=loss, **options)
    with pytest.raises(TypeError, match=r"guide must be an AutoAmortized, which reads its data"):
        spread.amortize(model, guide=lambda x=None: None, **options)
    guide = spread.AutoAmortized(model, observed="x")
    with pytest.raises(
        ValueError, match=r"observed names \['y'\], but the guide conditions on \['x"
    ):
        spread.amortize(model, guide=guide, **options | {"observed": "y"})
    with pytest.raises(ValueError, match="the model observes nothing at these arguments"):
        spread.amortize(model, **options | {"observed": []})
    with pytest.raises(ValueError, match="patience must be a positive integer"):
        spread.amortize(model, patience=0, **options)
    with pytest.raises(ValueError, match="max_steps must be a positive integer"):
        spread.amortize(model, **options | {"max_steps": 0})


def test_tables_that_are_none_of_the_model_are_refused(backend, model, table):
    spread, columns = backend.spread, dict(table.values)
    with pytest.raises(
        TypeError, match=r"simulations must be a table, got .*Simulations.from_dict"
    ):
        spread.amortize(model, simulations=columns, **QUICK)
    with pytest.raises(ValueError, match="1 simulations that did not fail, too few to train on"):
        spread.amortize(model, simulations=table.take([0]), **QUICK)
    for name in columns:
        wide = spread.Simulations(columns | {name: columns[name][:, None]})
        with pytest.raises(ValueError, match=rf"shape \(1,\) at site '{name}', .* draws \(\);"):
            spread.amortize(model, simulations=wide, **QUICK)


def test_sites_without_elements_are_refused(backend):
    def model(size, x=None):
        zeros = backend.array(np.zeros(size, np.float32))
        theta = backend.ppl.sample("theta", backend.dist.Normal(zeros, 1.0).to_event(1))
        backend.ppl.sample("x", backend.dist.Normal(theta.sum(), 1.0), obs=x)

    guide = backend.spread.AutoAmortized(model, observed="x")
    with pytest.raises(ValueError, match="Site 'theta' has no elements at these arguments"):
        guide.data_sites(0)
    assert guide.data_sites(2) == ("x",)
