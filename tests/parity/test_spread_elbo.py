# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The loss has a twin: with the same noise injected, the same value and the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import numpyro.infer
import pyro
import pyro.distributions as pyro_dist
import pyro.infer
import pytest
import torch

import numpyro_spread
import pyro_spread

RNG = np.random.default_rng(1)
N, D, K, SCALE = 6, 5, 2, 0.3
DATA = RNG.normal(size=(N, D))
LABELS = RNG.integers(0, 3, size=N)
NOISE = RNG.normal(size=(N, D))
LATENT = RNG.normal(size=(N, K))
PARAMS = {
    "A": RNG.normal(size=(K, D)),
    "W": RNG.normal(size=(D, K)),
    "scale": 0.1 + RNG.random(K),
}


class InjectedTorchNormal(pyro_dist.Normal):
    """A reparametrised normal whose standard noise is given."""

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * torch.as_tensor(LATENT)[: self.loc.shape[0]]


class InjectedJaxNormal(numpyro_dist.Normal):
    """Its twin."""

    def sample(self, key, sample_shape=()):
        return self.loc + self.scale * jnp.asarray(LATENT)[: self.loc.shape[0]]

    rsample = sample


class InjectedTorchNoise(pyro_spread.GaussianNoise):
    def draw(self, x):
        return x + self.scale * torch.as_tensor(NOISE)[: x.shape[0]]


class InjectedJaxNoise(numpyro_spread.GaussianNoise):
    def draw(self, rng_key, x):
        return x + self.scale * jnp.asarray(NOISE)[: x.shape[0]]


def torch_pair(size, batch):
    def model(x):
        A = pyro.param("A", torch.tensor(PARAMS["A"]))
        with pyro.plate("data", size, subsample_size=batch):
            z = pyro.sample("z", pyro_dist.Normal(torch.zeros(batch, K), 1.0).to_event(1))
            pyro.sample("x", pyro_dist.Delta(torch.tanh(z @ A), event_dim=1), obs=x)

    def guide(x):
        W = pyro.param("W", torch.tensor(PARAMS["W"]))
        scale = pyro.param("scale", torch.tensor(PARAMS["scale"]))
        with pyro.plate("data", size, subsample_size=batch):
            pyro.sample("z", InjectedTorchNormal(x @ W, scale).to_event(1))

    return model, guide


def jax_pair(size, batch):
    def model(x):
        A = numpyro.param("A", jnp.asarray(PARAMS["A"]))
        with numpyro.plate("data", size, subsample_size=batch):
            z = numpyro.sample("z", numpyro_dist.Normal(jnp.zeros((batch, K)), 1.0).to_event(1))
            numpyro.sample("x", numpyro_dist.Delta(jnp.tanh(z @ A), event_dim=1), obs=x)

    def guide(x):
        W = numpyro.param("W", jnp.asarray(PARAMS["W"]))
        scale = numpyro.param("scale", jnp.asarray(PARAMS["scale"]))
        with numpyro.plate("data", size, subsample_size=batch):
            numpyro.sample("z", InjectedJaxNormal(x @ W, scale).to_event(1))

    return model, guide


ELBOS = {
    "Trace": lambda infer: infer.Trace_ELBO(),
    "Trace, 3 particles": lambda infer: infer.Trace_ELBO(num_particles=3),
    "TraceMeanField": lambda infer: infer.TraceMeanField_ELBO(),
    "TraceGraph": lambda infer: infer.TraceGraph_ELBO(),
    "Renyi": lambda infer: infer.RenyiELBO(alpha=0.5, num_particles=2),
}


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize(("size", "batch"), [(N, N), (10 * N, N)], ids=["full", "mini-batch"])
def test_value_and_gradients(elbo, size, batch):
    ours = pyro_spread.SpreadELBO({"x": InjectedTorchNoise(SCALE)}, ELBOS[elbo](pyro.infer))
    value = ours.loss_and_grads(*torch_pair(size, batch), torch.tensor(DATA))
    store = pyro.get_param_store()
    grads = {name: store[name].unconstrained().grad for name in PARAMS}

    theirs = numpyro_spread.SpreadELBO({"x": InjectedJaxNoise(SCALE)}, ELBOS[elbo](numpyro.infer))
    params = {name: jnp.asarray(v) for name, v in PARAMS.items()}

    def loss(params):
        return theirs.loss(jax.random.key(0), params, *jax_pair(size, batch), jnp.asarray(DATA))

    other_value, other_grads = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, other_value, rtol=1e-10)
    for name in PARAMS:
        np.testing.assert_allclose(grads[name].numpy(), other_grads[name], rtol=1e-10, atol=1e-10)


def test_the_value_is_that_of_the_formula():
    """Both sides against the bound written by hand, so that the twins cannot agree on an error."""
    ours = pyro_spread.SpreadELBO({"x": InjectedTorchNoise(SCALE)})
    value = ours.loss(*torch_pair(N, N), torch.tensor(DATA))
    y = DATA + SCALE * NOISE
    z = y @ PARAMS["W"] + PARAMS["scale"] * LATENT
    log_likelihood = -0.5 * ((y - np.tanh(z @ PARAMS["A"])) / SCALE) ** 2 - np.log(
        SCALE * np.sqrt(2 * np.pi)
    )
    log_ratio = -0.5 * z**2 + 0.5 * LATENT**2 + np.log(PARAMS["scale"])
    np.testing.assert_allclose(-value, log_likelihood.sum() + log_ratio.sum(), rtol=1e-10)


def test_a_value_of_another_event_shape_is_refused_alike():
    """Broadcasting (N, 1) data against D outputs would score every element D times."""
    model, guide = torch_pair(N, N)
    with pytest.raises(ValueError, match=r"site 'x'.*event shape") as ours:
        pyro_spread.SpreadELBO({"x": pyro_spread.GaussianNoise(SCALE)}).loss(
            model, lambda x: guide(x.expand(N, D)), torch.zeros(N, 1)
        )
    model, guide = jax_pair(N, N)
    params = {name: jnp.asarray(v) for name, v in PARAMS.items()}
    with pytest.raises(ValueError, match=r"site 'x'.*event shape") as theirs:
        numpyro_spread.SpreadELBO({"x": numpyro_spread.GaussianNoise(SCALE)}).loss(
            jax.random.key(0),
            params,
            model,
            lambda x: guide(jnp.broadcast_to(x, (N, D))),
            jnp.zeros((N, 1)),
        )
    # Pyro's trace adds the shapes of the sites to the message.
    assert str(ours.value).startswith(str(theirs.value))


def test_a_bare_kernel_is_not_taken_for_a_function_of_the_arguments():
    for package in (pyro_spread, numpyro_spread):
        with pytest.raises(TypeError, match="noise must be a dict"):
            package.SpreadELBO(package.GaussianNoise(SCALE))


def test_data_names_are_checked_for_callable_noise_too():
    def noise(package):
        return lambda x: {"x": package.GaussianNoise(SCALE)}

    params = {name: jnp.asarray(v) for name, v in PARAMS.items()}
    with pytest.raises(ValueError, match=r"\['w'\], for which noise has no kernel") as ours:
        pyro_spread.SpreadELBO(noise(pyro_spread), data={"w": "x"}).loss(
            *torch_pair(N, N), torch.tensor(DATA)
        )
    with pytest.raises(ValueError, match=r"\['w'\], for which noise has no kernel") as theirs:
        numpyro_spread.SpreadELBO(noise(numpyro_spread), data={"w": "x"}).loss(
            jax.random.key(0), params, *jax_pair(N, N), jnp.asarray(DATA)
        )
    assert str(ours.value) == str(theirs.value)
