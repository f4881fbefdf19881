# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoAmortized of both backends: same params and uniform numbers, same draws and densities."""

import functools
import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
import optax
import pyro
import pyro.distributions
import pytest
import torch
from amortised_models import SHAPES, classes, heavy_scale, hierarchy, many_supports
from numpyro import handlers
from pyro import poutine

import numpyro_spread
import pyro_spread
from numpyro_spread._amortised_training import optimiser as of_numpyro
from pyro_spread._svi_training import optimiser as of_pyro
from spread_core.amortized import attention
from spread_core.amortized.training import Settings

RNG = np.random.default_rng(2)
PYRO = SimpleNamespace(
    sample=pyro.sample, plate=pyro.plate, mask=poutine.mask, dist=pyro.distributions, np=torch
)
NUMPYRO = SimpleNamespace(
    sample=numpyro.sample,
    plate=numpyro.plate,
    mask=handlers.mask,
    dist=numpyro.distributions,
    np=jnp,
)
OPTIONS = {
    "observed": "x",
    "hidden": (6, 5),
    "num_components": 3,
    "init_samples": 40,
    "exchangeable": True,
}
MASK = np.array([True, False, True, True])
CASES = {
    "supports": (many_supports, (RNG.normal(size=(2, 4, 2)),), {}),
    "classes": (classes, (np.array(1.3),), {}),
    "heavy": (heavy_scale, (30 * RNG.normal(size=4),), {"exchangeable": None}),
    "masked": (hierarchy, (RNG.normal(size=4), 4, MASK), {"ensemble": 3}),
}


def _host(tree):
    return jax.tree.map(lambda x: np.asarray(x.detach()), tree)


def _assert_close(found, expected):
    """To ten digits of the largest number."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * (1 + np.abs(expected).max()))


def _numbers(shape):
    # With others a correlation is so near to 1 that its density loses digits.
    return np.random.default_rng(6 + sum(shape)).uniform(size=shape)


@pytest.fixture(params=list(CASES))
def guides(request, monkeypatch):
    """Both guides, the params of both, and the arguments; uniform numbers are those of a table."""
    model, args, options = CASES[request.param]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    ours = pyro_spread.AutoAmortized(model(PYRO), **(OPTIONS | options))
    theirs = numpyro_spread.AutoAmortized(model(NUMPYRO), **(OPTIONS | options))
    ours(*args)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.data_sites(*args)
    theirs.set_structure(ours.structure())
    uniform = jax.random.uniform
    monkeypatch.setattr(
        torch, "rand", lambda shape, **options: torch.as_tensor(_numbers(shape), **options)
    )
    monkeypatch.setattr(
        jax.random,
        "uniform",
        lambda key, shape=(), *rest, **more: (
            jnp.asarray(_numbers(shape)) if shape else uniform(key, shape, *rest, **more)
        ),
    )
    return ours, theirs, jax.tree.map(jnp.asarray, _host(ours.params())), args


def test_params_have_the_same_names_and_shapes(guides):
    _, theirs, params, args = guides

    def start():
        sites = handlers.trace(handlers.seed(theirs, 0)).get_trace(*args)
        return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

    assert jax.tree.map(jnp.shape, jax.eval_shape(start)) == jax.tree.map(jnp.shape, params)


def test_samples_and_their_log_prob(guides):
    ours, theirs, params, args = guides
    drawn = ours.sample_posterior(*args, sample_shape=(3,))
    key = jax.random.key(0)
    others = theirs.sample_posterior(key, params, *args, sample_shape=(3,))
    for name, value in drawn.items():
        _assert_close(others[name], _host(value))
    expected = _host(ours.log_prob(drawn, *args))
    _assert_close(theirs.log_prob(params, others, *args), expected)


def test_draws_densities_and_gradients(guides):
    ours, theirs, params, args = guides
    names = [n for n, support in ours.supports.items() if not support.is_discrete]
    weights = {name: RNG.normal(size=SHAPES.get(name, ())) for name in names}
    assert set(ours.supports) == set(theirs.supports)

    def jax_sum(nets):
        program = handlers.substitute(handlers.seed(theirs, 0), data=params | nets)
        sites = handlers.trace(program).get_trace(*args)
        values = {n: sites[n]["value"] for n in theirs.supports}
        scores = {n: sites[n]["fn"].log_prob(value) for n, value in values.items()}
        each = [(weights[n] * values[n]).sum() + scores[n].sum() for n in names]
        return sum(each, jnp.zeros(())), (values, scores)

    nodes = poutine.trace(ours).get_trace(*args).nodes
    expected_values = {n: nodes[n]["value"] for n in ours.supports}
    expected_scores = {n: nodes[n]["fn"].log_prob(x) for n, x in expected_values.items()}
    nets = {n: own for n, own in params.items() if n != ours.standardisation_name}
    found, (values, scores) = jax.jit(jax.grad(jax_sum, has_aux=True))(nets)
    for name in ours.supports:
        _assert_close(values[name], _host(expected_values[name]))
        _assert_close(scores[name], _host(expected_scores[name]))
    if not names:
        return  # nothing is differentiable
    each = [(torch.as_tensor(weights[n]) * expected_values[n]).sum() for n in names]
    sum(each + [expected_scores[n].sum() for n in names]).backward()
    for name, own in found.items():
        net = getattr(ours.nets, name)
        for key, gradient in own.items():
            expected = getattr(net, key).grad
            expected = np.zeros(gradient.shape) if expected is None else _host(expected)
            _assert_close(gradient, expected)


def test_standardisation(guides):
    ours, theirs, _, args = guides
    simulated = _host(ours.simulated(30, args, {}))
    expected, found = ours.fitted(*simulated), theirs.fitted(*simulated)
    # Products of matrices depend on where in memory they stand.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    jax.tree.map(same, found, expected)


def test_same_names_and_arguments():
    names = set(dir(numpyro_spread.AutoAmortized)) - set(dir(numpyro.infer.autoguide.AutoGuide))
    for name in sorted(names):
        if name.startswith("_"):
            continue
        ours = inspect.getattr_static(pyro_spread.AutoAmortized, name)
        theirs = inspect.getattr_static(numpyro_spread.AutoAmortized, name)
        if callable(ours):
            expected = [
                p for p in inspect.signature(theirs).parameters if p not in ("rng_key", "params")
            ]
            found = [p for p in inspect.signature(ours).parameters if p != "params"]
            assert found == expected, name


def test_svi_trains_with_the_same_optimiser():
    settings = Settings(2000, 1, 8, epochs=2)
    gradients = np.float32(np.random.default_rng(0).normal(size=(30, 4)))
    optim, param = of_pyro(settings), torch.zeros(4, requires_grad=True, dtype=torch.float32)
    for gradient in gradients:
        param.grad = torch.as_tensor(gradient)
        optim([param])
        optim.step()
    optim, found = of_numpyro(settings), jnp.zeros(4)
    state = optim.init(found)
    for gradient in gradients:
        updates, state = optim.update(jnp.asarray(gradient), state)
        found = optax.apply_updates(found, updates)
    assert np.abs(found).max() > 1e-3
    np.testing.assert_allclose(param.detach().numpy(), found, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_torch(masked):
    rng, (members, rows, count, size) = np.random.default_rng(3), (2, 3, 5, 7)
    params = attention.initial(lambda shape: rng.normal(size=shape), members, size, "pool ")
    elements = rng.normal(size=(members, rows, count, size))
    mask = rng.random((members, rows, count)) < 0.5 if masked else np.ones((1, 1, 1), bool)
    mask = mask | (np.arange(count) == 1)

    def attended(array):
        own = {name: array(value) for name, value in params.items()}
        return attention.attend(own, "pool ", array(elements), array(mask) if masked else None)

    found = [attended(torch.as_tensor), attended(jnp.asarray)]
    for member in range(members):
        own = {name[5:]: torch.as_tensor(value[member]) for name, value in params.items()}
        width = own["queries"].shape[1]
        net = torch.nn.MultiheadAttention(
            width, 4, kdim=size, vdim=size, bias=False, batch_first=True, dtype=torch.float64
        )
        net.q_proj_weight.data = torch.eye(width, dtype=torch.float64)
        net.k_proj_weight.data, net.v_proj_weight.data = own["keys"].T, own["values"].T
        net.out_proj.weight.data = own["out"].T
        z, queries = torch.as_tensor(elements[member]), own["queries"].expand(rows, -1, -1)
        hidden = ~torch.as_tensor(mask)[member] if masked else None
        h = queries + net(queries, z, z, key_padding_mask=hidden)[0]
        expected = (h + torch.nn.functional.silu(h @ own["weight"])).reshape(rows, -1)
        for one in found:
            np.testing.assert_allclose(one[member], expected.detach(), rtol=1e-10)
