# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A kernel written outside of the packages, on nothing but their public base class."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
from scipy import stats
from twins import BACKENDS, NumPyro, Pyro, compare, in_both, no_guide

X, Y = np.array([-3.0, 0.5, 3.1]), np.array([3.0, 0.2, -3.0])
CONCENTRATION = 3.0


def own_kernel(b):
    """Noise on angles, von Mises around x."""

    @dataclasses.dataclass(frozen=True, eq=False)
    class VonMisesNoise(b.package.SpreadNoise):
        concentration: float

        def conditional(self, x, event_dim):
            return b.dist.VonMises(x, self.concentration).to_event(event_dim)

    return VonMisesNoise


OWN = {b: own_kernel(b) for b in BACKENDS}


@in_both
def test_its_density_is_the_same_called_and_spread(b):
    exact = stats.vonmises.logpdf(Y, CONCENTRATION, loc=X)
    x, y, noise = b.array(X), b.array(Y), OWN[b](CONCENTRATION)
    np.testing.assert_allclose(noise(x).log_prob(y), exact, rtol=1e-6)
    delta = noise.spread(b.dist.Delta(x, event_dim=1))
    np.testing.assert_allclose(delta.log_prob(y), exact.sum(), rtol=1e-6)


@in_both
def test_it_trains_under_the_spread_elbo(b):
    data = b.array(stats.vonmises.rvs(20, loc=1.0, size=500, random_state=0))

    def model(x):
        loc = b.param("loc", 0.0)
        with b.plate("data", len(x)):
            b.sample("x", b.dist.Delta(b.np.broadcast_to(loc, (len(x),))), obs=x)

    loss = b.package.SpreadELBO({"x": OWN[b](CONCENTRATION)})
    if b is Pyro:
        pyro.clear_param_store()
        svi = pyro.infer.SVI(model, no_guide, pyro.optim.Adam({"lr": 0.05}), loss)
        for _ in range(60):
            svi.step(data)
        loc = pyro.param("loc").item()
    else:
        svi = numpyro.infer.SVI(model, no_guide, numpyro.optim.Adam(0.05), loss)
        loc = svi.run(*b.key, 60, data, progress_bar=False).params["loc"]
    assert abs(loc - 1.0) < 0.1


def test_its_params_cross_jit():
    def total(kernel):
        return kernel(X).log_prob(Y).sum()

    kernel = OWN[NumPyro](jnp.asarray(CONCENTRATION))
    slope = jax.jit(jax.grad(total))(kernel).concentration
    with jax.disable_jit():
        step = 1e-5
        rise = total(OWN[NumPyro](CONCENTRATION + step)) - total(OWN[NumPyro](CONCENTRATION - step))
    np.testing.assert_allclose(slope, rise / (2 * step), rtol=1e-5)


def test_a_kernel_of_the_package_answers_too():
    compare(
        lambda b: b.package.LaplaceNoise(0.3).conditional(b.array(X), 1).log_prob(b.array(Y)),
    )


@in_both
def test_a_kernel_that_says_nothing_is_refused(b):
    class Silent(b.package.SpreadNoise):
        pass

    with pytest.raises(NotImplementedError, match=r"Silent does not implement conditional\(x, e"):
        Silent()(b.np.zeros(3))
