# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit of both backends: same params and noise, same latents and log-densities."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from numpyro import handlers
from pyro import poutine

import numpyro_spread
import pyro_spread

RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(6, 3))
VECTORS = {"_auto_latent": 7, "_auto_data": 3}


def model(ppl, dist, ones):
    ppl.sample("mu", dist.Normal(ones(3), 1.0))
    ppl.sample("tau", dist.HalfCauchy(5.0))
    ppl.sample("p", dist.Dirichlet(ones(4)))
    with ppl.plate("data", 6):
        ppl.sample("z", dist.Uniform(ones(()) * 2, ones(()) * 5))
        ppl.sample("w", dist.LogNormal(ones(2), 1.0).to_event(1))


def our_model():
    model(pyro, pdist, torch.ones)


def their_model():
    model(numpyro, ndist, jnp.ones)


def to_jax(tensor):
    return jnp.asarray(tensor.detach().numpy())


def to_params(sampler, amortised):
    """Params of one group of the Pyro guide as NumPyro keeps them."""
    layers = [
        {"kernel": to_jax(layer.weight).T, "bias": to_jax(layer.bias)}
        for layer in sampler.net.layers
    ]
    params = {"net": {"layers": layers}}
    if sampler.net.context is not None:
        params["net"]["context"] = to_jax(sampler.net.context.weight).T
    if amortised:
        params["heads"] = {
            name: {
                "kernel": to_jax(getattr(sampler, name).weight).T,
                "bias": to_jax(getattr(sampler, name).bias),
            }
            for name in ("loc", "scale")
        }
    else:
        params |= {name: to_jax(getattr(sampler, name)) for name in ("loc", "scale")}
        if sampler.net.context is not None:
            params["embedding"] = to_jax(sampler.embedding)
    return params


@pytest.fixture(params=[False, True], ids=["free", "amortised"])
def guides(request):
    """Both guides and the params of NumPyro's, which are those of Pyro's."""
    amortised = request.param
    encoders = [lambda: torch.tensor(FEATURES), lambda: FEATURES] if amortised else [None, None]
    options = {"noise_dim": 2, "hidden": (5, 4), "init_samples": 3}
    ours = pyro_spread.AutoImplicit(our_model, encoder=encoders[0], **options)
    theirs = numpyro_spread.AutoImplicit(their_model, encoder=encoders[1], **options)
    ours()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(parameter + 0.3 * torch.randn_like(parameter))
    params = {}
    for key in ("latent", "data"):
        sampler = getattr(ours.samplers, f"auto_{key}")
        group = to_params(sampler, amortised and key == "data")
        params |= {f"auto_{key}_{name}": value for name, value in group.items()}
    return ours, theirs, params


def traces(guides):
    ours, theirs, params = guides
    first = handlers.substitute(handlers.seed(theirs, 0), data=params)
    sites = handlers.trace(first).get_trace()
    nodes = poutine.trace(ours).get_trace().nodes
    return nodes, sites


def test_params_have_the_same_names_and_shapes(guides):
    _, theirs, params = guides
    sites = handlers.trace(handlers.seed(theirs, 0)).get_trace()
    own = {name: site["value"] for name, site in sites.items() if site["type"] == "param"}
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, params)


def test_same_noise_same_vectors_latents_and_densities(guides):
    ours, theirs, params = guides
    nodes, sites = traces(guides)
    vectors = {}
    for site, size in VECTORS.items():
        fn, other = nodes[site]["fn"], sites[site]["fn"]
        noise = RNG.normal(size=(4, *fn.base_dist.shape()))
        assert noise.shape[-1] == size + 2
        expected = fn.fn(torch.tensor(noise)).detach().numpy()
        np.testing.assert_allclose(other.fn(jnp.asarray(noise)), expected, rtol=1e-10, atol=1e-12)
        vectors[site] = expected[0]
    conditions = {site: torch.tensor(vector) for site, vector in vectors.items()}
    nodes = poutine.trace(poutine.condition(ours, conditions)).get_trace().nodes
    given = {**params, **{site: jnp.asarray(vector) for site, vector in vectors.items()}}
    substituted = handlers.substitute(handlers.seed(theirs, 0), data=given)
    sites = handlers.trace(substituted).get_trace()
    for name in ("mu", "tau", "p", "z", "w"):
        value, density = nodes[name]["value"], nodes[name]["fn"].log_density
        np.testing.assert_allclose(sites[name]["value"], value.detach().numpy(), rtol=1e-10)
        got = np.broadcast_to(sites[name]["fn"].log_density, density.shape)
        np.testing.assert_allclose(got, density.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_same_names_and_way_back(guides):
    ours, theirs, _ = guides
    nodes, sites = traces(guides)
    assert ours.implicit_sites == theirs.implicit_sites == list(VECTORS)
    for site in VECTORS:
        infer, other = nodes[site]["infer"], sites[site]["infer"]
        assert infer["_covers"] == other["_covers"]
        values = {name: nodes[name]["value"].detach() for name in infer["_covers"]}
        expected = infer["_unconstrain"](values).numpy()
        got = other["_unconstrain"]({name: to_jax(value) for name, value in values.items()})
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
