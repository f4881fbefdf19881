# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A kernel written outside of the packages, on nothing but their public base class."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from scipy import stats

import numpyro_spread
import pyro_spread

X, Y = np.array([-3.0, 0.5, 3.1]), np.array([3.0, 0.2, -3.0])
CONCENTRATION = 3.0


def own_kernel(package, dist):
    """Noise on angles, von Mises around x."""

    @dataclasses.dataclass(frozen=True, eq=False)
    class VonMisesNoise(package.SpreadNoise):
        concentration: float

        def conditional(self, x, event_dim):
            return dist.VonMises(x, self.concentration).to_event(event_dim)

    return VonMisesNoise


PyroNoise = own_kernel(pyro_spread, pyro_dist)
NumPyroNoise = own_kernel(numpyro_spread, numpyro_dist)


def test_its_density_is_the_same_called_and_spread():
    exact = stats.vonmises.logpdf(Y, CONCENTRATION, loc=X)
    x, y = torch.tensor(X), torch.tensor(Y)
    ours = PyroNoise(CONCENTRATION)
    np.testing.assert_allclose(ours(x).log_prob(y), exact, rtol=1e-6)
    delta = ours.spread(pyro_dist.Delta(x, event_dim=1))
    np.testing.assert_allclose(delta.log_prob(y), exact.sum(), rtol=1e-6)
    theirs = NumPyroNoise(CONCENTRATION)
    np.testing.assert_allclose(theirs(X).log_prob(Y), exact, rtol=1e-6)
    delta = theirs.spread(numpyro_dist.Delta(jnp.asarray(X), event_dim=1))
    np.testing.assert_allclose(delta.log_prob(Y), exact.sum(), rtol=1e-6)


def test_it_trains_under_the_spread_elbo_in_pyro():
    data = torch.tensor(stats.vonmises.rvs(20, loc=1.0, size=500, random_state=0))

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", pyro_dist.Delta(loc.expand(len(x))), obs=x)

    loss = pyro_spread.SpreadELBO({"x": PyroNoise(CONCENTRATION)})
    adam = pyro.optim.Adam({"lr": 0.05})
    svi = pyro.infer.SVI(model, lambda x: None, adam, loss)
    for _ in range(60):
        svi.step(data)
    assert abs(pyro.param("loc").item() - 1.0) < 0.1


def test_it_trains_under_the_spread_elbo_in_numpyro():
    data = jnp.asarray(stats.vonmises.rvs(20, loc=1.0, size=500, random_state=0))

    def model(x):
        loc = numpyro.param("loc", 0.0)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", numpyro_dist.Delta(jnp.full(len(x), loc)), obs=x)

    loss = numpyro_spread.SpreadELBO({"x": NumPyroNoise(CONCENTRATION)})
    adam = numpyro.optim.Adam(0.05)
    svi = numpyro.infer.SVI(model, lambda x: None, adam, loss)
    result = svi.run(jax.random.key(0), 60, data, progress_bar=False)
    assert abs(result.params["loc"] - 1.0) < 0.1


def test_its_params_cross_jit():
    def total(kernel):
        return kernel(X).log_prob(Y).sum()

    kernel = NumPyroNoise(jnp.asarray(CONCENTRATION))
    slope = jax.jit(jax.grad(total))(kernel).concentration
    with jax.disable_jit():
        step = 1e-5
        rise = total(NumPyroNoise(CONCENTRATION + step)) - total(NumPyroNoise(CONCENTRATION - step))
    np.testing.assert_allclose(slope, rise / (2 * step), rtol=1e-5)


def test_a_kernel_of_the_package_answers_too():
    ours = pyro_spread.LaplaceNoise(0.3).conditional(torch.tensor(X), 1)
    theirs = numpyro_spread.LaplaceNoise(0.3).conditional(jnp.asarray(X), 1)
    np.testing.assert_allclose(ours.log_prob(torch.tensor(Y)), theirs.log_prob(Y), rtol=1e-10)


@pytest.mark.parametrize("package", [pyro_spread, numpyro_spread])
def test_a_kernel_that_says_nothing_is_refused(package):
    class Silent(package.SpreadNoise):
        pass

    x = torch.zeros(3) if package is pyro_spread else jnp.zeros(3)
    with pytest.raises(NotImplementedError, match=r"Silent does not implement conditional\(x, e"):
        Silent()(x)
