# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The loss has a twin: with the same noise injected, the same value and the same gradients."""

import numpy as np
import pytest
from twins import BACKENDS, Pyro, assert_refused_alike, compare, numbers

RNG = np.random.default_rng(1)
N, D, K, SCALE = 6, 5, 2, 0.3
DATA = RNG.normal(size=(N, D))
NOISE, LATENT = numbers("noisy", N, D), numbers("z", N, K)
PARAMS = {
    "A": RNG.normal(size=(K, D)),
    "W": RNG.normal(size=(D, K)),
    "scale": 0.1 + RNG.random(K),
}


def program(b, size, batch):
    """Model and guide; every particle draws LATENT."""

    def model(x):
        A = b.param("A", PARAMS["A"])
        with b.plate("data", size, subsample_size=batch):
            z = b.sample("z", b.dist.Normal(b.np.zeros((batch, K)), 1.0).to_event(1))
            b.sample("x", b.dist.Delta(b.np.tanh(z @ A), event_dim=1), obs=x)

    def guide(x):
        W, scale = b.param("W", PARAMS["W"]), b.param("scale", PARAMS["scale"])
        with b.plate("data", size, subsample_size=batch):
            b.sample("z", b.normal("z", x @ W, scale, vmapped=False).to_event(1))

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
    def result(b):
        loss = b.package.SpreadELBO({"x": b.noise(SCALE)}, ELBOS[elbo](b.infer))
        return b.loss_and_grads(loss, *program(b, size, batch), DATA, params=PARAMS)

    compare(result)


def test_the_value_is_that_of_the_formula():
    """Both sides against the bound written by hand, so that the twins cannot agree on an error."""
    model, guide = program(Pyro, N, N)
    loss = Pyro.package.SpreadELBO({"x": Pyro.noise(SCALE)})
    value = Pyro.loss(loss, model, DATA, guide=guide)
    y = DATA + SCALE * NOISE
    z = y @ PARAMS["W"] + PARAMS["scale"] * LATENT
    log_likelihood = -0.5 * ((y - np.tanh(z @ PARAMS["A"])) / SCALE) ** 2 - np.log(
        SCALE * np.sqrt(2 * np.pi)
    )
    log_ratio = -0.5 * z**2 + 0.5 * LATENT**2 + np.log(PARAMS["scale"])
    np.testing.assert_allclose(-value, log_likelihood.sum() + log_ratio.sum(), rtol=1e-10)


def test_a_value_of_another_event_shape_is_refused_alike():
    """Broadcasting (N, 1) data against D outputs would score every element D times."""

    def mistake(b):
        model, guide = program(b, N, N)
        b.loss(
            b.package.SpreadELBO({"x": b.package.GaussianNoise(SCALE)}),
            model,
            np.zeros((N, 1)),
            guide=lambda x: guide(b.np.broadcast_to(x, (N, D))),
            params=PARAMS,
        )

    assert_refused_alike(mistake, r"site 'x'.*event shape", ValueError, lengthened=True)


def test_a_bare_kernel_is_not_taken_for_a_function_of_the_arguments():
    for b in BACKENDS:
        with pytest.raises(TypeError, match="noise must be a dict"):
            b.package.SpreadELBO(b.package.GaussianNoise(SCALE))


def test_data_names_are_checked_for_callable_noise_too():
    def mistake(b):
        model, guide = program(b, N, N)
        loss = b.package.SpreadELBO(
            lambda x: {"x": b.package.GaussianNoise(SCALE)}, data={"w": "x"}
        )
        b.loss(loss, model, DATA, guide=guide, params=PARAMS)

    assert_refused_alike(mistake, r"\['w'\], for which noise has no kernel", ValueError)
