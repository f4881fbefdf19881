# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit of both backends: same params and noise, same latents and log-densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpyro import handlers
from pyro import poutine
from twins import NumPyro, Pyro, assert_twins, flax_params, to_jax

RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(6, 3))
VECTORS = {"_auto_latent": 7, "_auto_data": 3}


def model_of(b):
    def model():
        b.sample("mu", b.dist.Normal(b.np.ones(3), 1.0))
        b.sample("tau", b.dist.HalfCauchy(5.0))
        b.sample("p", b.dist.Dirichlet(b.np.ones(4)))
        with b.plate("data", 6):
            b.sample("z", b.dist.Uniform(b.np.ones(()) * 2, b.np.ones(()) * 5))
            b.sample("w", b.dist.LogNormal(b.np.ones(2), 1.0).to_event(1))

    return model


def to_params(sampler, amortised):
    """Params of one group of the Pyro guide as NumPyro keeps them."""
    net = sampler.net
    params = {"net": {"layers": [flax_params(layer)["Dense_0"] for layer in net.layers]}}
    if net.context is not None:
        params["net"]["context"] = flax_params(net.context)["Dense_0"]["kernel"]
    if amortised:
        heads = {name: getattr(sampler, name) for name in ("loc", "scale")}
        params["heads"] = {name: flax_params(head)["Dense_0"] for name, head in heads.items()}
    else:
        params |= {name: to_jax(getattr(sampler, name)) for name in ("loc", "scale")}
        if net.context is not None:
            params["embedding"] = to_jax(sampler.embedding)
    return params


@pytest.fixture(params=[False, True], ids=["free", "amortised"])
def guides(request):
    """Both guides and the params of NumPyro's, which are those of Pyro's."""
    amortised = request.param
    encoders = [lambda: torch.tensor(FEATURES), lambda: FEATURES] if amortised else [None, None]
    options = {"noise_dim": 2, "hidden": (5, 4), "init_samples": 3}
    ours = Pyro.package.AutoImplicit(model_of(Pyro), encoder=encoders[0], **options)
    theirs = NumPyro.package.AutoImplicit(model_of(NumPyro), encoder=encoders[1], **options)
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
        expected = fn.fn(torch.tensor(noise))
        assert_twins(expected, other.fn(jnp.asarray(noise)))
        vectors[site] = expected[0].detach().numpy()
    conditions = {site: torch.tensor(vector) for site, vector in vectors.items()}
    nodes = poutine.trace(poutine.condition(ours, conditions)).get_trace().nodes
    given = {**params, **{site: jnp.asarray(vector) for site, vector in vectors.items()}}
    substituted = handlers.substitute(handlers.seed(theirs, 0), data=given)
    sites = handlers.trace(substituted).get_trace()
    for name in ("mu", "tau", "p", "z", "w"):
        assert_twins(nodes[name]["value"], sites[name]["value"], atol=0)
        density = nodes[name]["fn"].log_density
        assert_twins(density, np.broadcast_to(sites[name]["fn"].log_density, density.shape))


def test_same_names_and_way_back(guides):
    ours, theirs, _ = guides
    nodes, sites = traces(guides)
    assert ours.implicit_sites == theirs.implicit_sites == list(VECTORS)
    for site in VECTORS:
        infer, other = nodes[site]["infer"], sites[site]["infer"]
        assert infer["_covers"] == other["_covers"]
        values = {name: nodes[name]["value"].detach() for name in infer["_covers"]}
        got = other["_unconstrain"]({name: to_jax(value) for name, value in values.items()})
        assert_twins(infer["_unconstrain"](values), got, rtol=1e-9, atol=1e-9)


def test_the_net_can_jump():
    """With minus the noise and twice its sign as output, u is -2 or 2."""

    def model_of_one(b):
        return lambda: b.sample("z", b.dist.Normal(0.0, 1.0))

    options = {"noise_dim": 0, "hidden": (), "init_samples": 3}
    ours = Pyro.package.AutoImplicit(model_of_one(Pyro), **options)
    ours()
    sampler = ours.samplers.auto_latent
    with torch.no_grad():
        sampler.net.layers[0].weight.copy_(torch.tensor([[-1.0, 2.0]]))
    loc, scale = sampler.loc.detach(), sampler.scale.detach()
    draws = torch.stack([ours()["z"] for _ in range(20)]).detach()
    assert (((draws - loc) / scale).abs() - 2).abs().max() < 1e-5
    assert draws.std() > 0
    theirs = NumPyro.package.AutoImplicit(model_of_one(NumPyro), **options)
    handlers.seed(theirs, 0)()
    params = {f"auto_latent_{name}": value for name, value in to_params(sampler, False).items()}
    found = theirs.sample_posterior(jax.random.key(0), params, sample_shape=(20,))["z"]
    units = (found - to_jax(loc)) / to_jax(scale)
    np.testing.assert_allclose(abs(units), 2, atol=1e-5)
    assert found.std() > 0
