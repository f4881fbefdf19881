# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What critics see in NumPyro, and everything around a step: SVI's methods, modules, transforms."""

import math

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx
from jax import random
from numpyro import handlers
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Predictive
from numpyro.infer.autoguide import AutoDelta

from numpyro_spread import AdversarialDivergence, GaussianNoise, JSPi, concat_sites, two_player

X = jnp.linspace(-1.0, 2.0, 12).reshape(6, 2)
CRITIC = "discriminator$params"


def guide(*args, **kwargs):
    pass


def optim():
    return two_player(optax.sgd(0.1), optax.sgd(0.1))


SEEN = []


class Watch(linen.Module):
    """A critic that remembers what it was shown: data first, then draws."""

    @linen.compact
    def __call__(self, values, *args, **kwargs):
        plain = {name: jax.lax.stop_gradient(value) for name, value in values.items()}
        SEEN.append((plain, args, kwargs, values.arguments))
        weight = self.param("weight", linen.initializers.constant(0.3), ())
        shape = (*values.batch_shape, -1)
        return weight * sum(value.reshape(shape).sum(-1) for value in values.values())


def model(x):
    w = numpyro.param("w", 0.5)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Delta(w * z, event_dim=1), obs=x)


def look(model, *args, seed=0, noise=None, params=None, **kwargs):
    """Value and gradients, with what the critic saw on both sides."""
    SEEN.clear()
    params = {"w": jnp.asarray(0.5), CRITIC: {"weight": jnp.asarray(0.3)}, **(params or {})}
    loss = AdversarialDivergence(Watch(), noise=noise)
    value = loss.loss(random.key(seed), params, model, guide, *args, **kwargs)
    data, draws = SEEN[-2:]
    return float(value), data, draws


def run(model, *args, guide=guide, steps=3, critic=None, **options):
    loss = AdversarialDivergence(critic or concat_sites(linen.Dense(1), "x"), **options)
    svi = SVI(model, loss.register(model, guide), optim(), loss)
    return svi, svi.run(random.key(0), steps, *args, progress_bar=False)


# --- SVI's methods


def test_every_method_of_svi_serves():
    loss = AdversarialDivergence(concat_sites(linen.Dense(1), "x"), JSPi(0.3))
    svi = SVI(model, loss.register(model, guide), optim(), loss)
    state = svi.init(random.key(0), X)
    assert set(svi.get_params(state)) == {"w", CRITIC}
    one, value = jax.jit(svi.update)(state, X)
    other, same = jax.jit(svi.stable_update)(state, X)
    assert float(value) == pytest.approx(float(same), abs=1e-6)
    left, right = (jax.tree.leaves(svi.get_params(s)) for s in (one, other))
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    before = jax.tree.leaves(svi.get_params(one))
    assert 0 <= float(jax.jit(svi.evaluate)(one, X)) <= JSPi(0.3).upper + 1e-6
    for a, b in zip(before, jax.tree.leaves(svi.get_params(one)), strict=True):
        assert a is b
    scanned = svi.run(random.key(0), 20, X, progress_bar=False)
    shown = svi.run(random.key(0), 20, X, progress_bar=True)
    stable = svi.run(random.key(0), 20, X, progress_bar=False, stable_update=True)
    for result in (shown, stable):
        np.testing.assert_allclose(scanned.losses, result.losses, atol=1e-5)
        assert float(result.params["w"]) == pytest.approx(float(scanned.params["w"]), rel=1e-4)


def test_seeds_repeat_and_are_mapped_over():
    loss = AdversarialDivergence(
        concat_sites(linen.Dense(1), "x"), noise={"x": GaussianNoise(0.1)}, num_particles=2
    )
    svi = SVI(model, loss.register(model, guide), optim(), loss)
    keys = random.split(random.key(0), 3)

    def trained(key):
        return svi.run(key, 4, X, progress_bar=False).params["w"]

    mapped, train = jax.jit(jax.vmap(trained))(keys), jax.jit(trained)
    single = [train(key) for key in keys]
    np.testing.assert_allclose(mapped, single, rtol=1e-5)
    assert len(set(mapped.tolist())) == 3


class RawLinen(linen.Module):
    @linen.compact
    def __call__(self, values, x):
        return linen.Dense(1)(values["x"])[..., 0]


class RawNnx(nnx.Module):
    def __init__(self):
        self.net = nnx.Linear(2, 1, rngs=nnx.Rngs(0))

    def __call__(self, values, x):
        return self.net(values["x"])[..., 0]


class RawEquinox(equinox.Module):
    net: equinox.nn.Linear

    def __call__(self, values, x):
        return jax.vmap(self.net)(values["x"])[..., 0]


CRITICS = {
    "linen": lambda: concat_sites(linen.Dense(1), "x"),
    "nnx": lambda: concat_sites(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), "x"),
    "equinox": lambda: concat_sites(equinox.nn.MLP(2, 1, 4, 1, key=random.key(0)), "x"),
    "linen-raw": RawLinen,
    "nnx-raw": RawNnx,
    "equinox-raw": lambda: RawEquinox(equinox.nn.Linear(2, 1, key=random.key(0))),
}


@pytest.mark.parametrize("library", CRITICS)
def test_critics_of_every_library(library):
    loss = AdversarialDivergence(CRITICS[library]())
    svi = SVI(model, loss.register(model, guide), optim(), loss)
    state = svi.init(random.key(0), X)
    start = svi.get_params(state)
    state, _ = jax.jit(svi.update)(state, X)
    moved = svi.get_params(state)
    assert set(moved) == {"w", CRITIC}
    pairs = zip(jax.tree.leaves(start[CRITIC]), jax.tree.leaves(moved[CRITIC]), strict=True)
    changes = [float(jnp.abs(a - b).max()) for a, b in pairs]
    assert changes
    assert min(changes) > 0
    assert float(moved["w"]) != 0.5


def test_mutable_state_of_the_model():
    class Generator(linen.Module):
        @linen.compact
        def __call__(self, z):
            hidden = linen.Dense(4)(z)
            return linen.Dense(2)(linen.BatchNorm(use_running_average=False)(hidden))

    def with_state(x):
        net = flax_module("net", Generator(), mutable=["batch_stats"], input_shape=(6, 3))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
            numpyro.sample("x", dist.Delta(net(z), event_dim=1), obs=x)

    _, result = run(with_state, X)
    assert jnp.isfinite(result.losses).all()
    means = result.state.mutable_state["net$state"]["batch_stats"]["BatchNorm_0"]["mean"]
    assert jnp.abs(means).max() > 0
    with pytest.raises(NotImplementedError, match="mutable"):
        run(with_state, X, num_particles=2)


def test_drawing_is_clean():
    _, result = run(model, X, noise={"x": GaussianNoise(100.0)})
    predictive = Predictive(handlers.uncondition(model), params=result.params, num_samples=50)
    assert jnp.abs(predictive(random.key(1), X)["x"]).max() < 10


# --- what the critic sees


def test_data_are_seen_as_they_are_and_draws_differ():
    x = np.array(X)
    draws = []
    for seed in (0, 0, 1):
        _, data, fake = look(model, x, seed=seed)
        np.testing.assert_array_equal(_numbers(data)["x"], X)
        draws.append(_numbers(fake)["x"])
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).all()


def _numbers(side):
    return {name: np.asarray(_concrete(value)) for name, value in side[0].items()}


def _concrete(value):
    while hasattr(value, "primal"):
        value = value.primal
    return value


@pytest.mark.parametrize("by_call", [False, True])
def test_both_sides_are_spread_afresh(by_call):
    def still(x):
        numpyro.param("w", 0.5)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Delta(jnp.zeros((1000, 2)), event_dim=1), obs=x)

    kernels = {"x": GaussianNoise(0.1)}
    noise = (lambda x: kernels) if by_call else kernels
    found = []
    for seed in (0, 1):
        _, data, fake = look(still, jnp.ones((1000, 2)), seed=seed, noise=noise)
        found += [_numbers(data)["x"] - 1, _numbers(fake)["x"]]
    for i, one in enumerate(found):
        assert one.std() == pytest.approx(0.1, rel=0.1)
        for other in found[:i]:
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1


def test_arguments_reach_the_critic_and_are_subsampled():
    def conditional(x, label, *, size):
        w = numpyro.param("w", 0.5)
        with numpyro.plate("data", len(x), subsample_size=size) as rows:
            numpyro.sample("x", dist.Normal(w * label[rows], 1.0), obs=x[rows])

    x = jnp.arange(50.0)
    _, data, fake = look(conditional, x, 10 * x, size=8)
    for _, args, kwargs, arguments in (data, fake):
        assert args[0] is x
        assert kwargs == {"size": 8}
        np.testing.assert_array_equal(arguments["label"], 10 * arguments["x"])
    np.testing.assert_array_equal(_numbers(data)["x"], data[3]["x"])
    loss = AdversarialDivergence(concat_sites(linen.Dense(1), "x", "label"))
    svi = SVI(conditional, loss.register(conditional, guide), optim(), loss)
    state = svi.init(random.key(0), x, 10 * x, size=8)
    _, value = jax.jit(lambda state: svi.update(state, x, 10 * x, size=8))(state)
    assert jnp.isfinite(value)


def test_several_sites_nested_plates_and_the_scale_of_plates():
    def nested(x, y, size):
        w = numpyro.param("w", 0.5)
        with numpyro.plate("data", size, subsample_size=6, dim=-1):
            numpyro.sample("y", dist.Normal(w, 1.0), obs=y)
            with numpyro.plate("time", 4, dim=-2):
                numpyro.sample("x", dist.Normal(w * jnp.ones(3), 1.0).to_event(1), obs=x)

    x, y = random.normal(random.key(0), (4, 6, 3)), jnp.arange(6.0)
    values = set()
    for size in (6, 600):
        value, data, fake = look(nested, x, y, size)
        values.add(value)
        assert _numbers(fake)["x"].shape == (6, 4, 3)  # what is shared comes first
        np.testing.assert_array_equal(_numbers(data)["x"], jnp.moveaxis(x, 0, 1))
    assert len(values) == 1


def test_weights_of_the_data_count():
    def weighted(x, shifts, scale):
        w = numpyro.param("w", 0.5)
        with numpyro.plate("data", len(x)), handlers.scale(scale=scale):
            numpyro.sample("x", dist.Delta(w + shifts), obs=x)

    def grads(rows, scale):
        x, shifts = jnp.array([3.0, -1.0])[rows], jnp.array([0.0, 1.0])[rows]
        params = {"w": jnp.asarray(0.5), CRITIC: {"weight": jnp.asarray(0.3)}}
        loss = AdversarialDivergence(Watch())
        return jax.grad(lambda p: loss.loss(random.key(0), p, weighted, guide, x, shifts, scale))(
            params
        )

    one = grads(jnp.array([0, 1]), jnp.array([3.0, 1.0]))
    other = grads(jnp.array([0, 0, 0, 1]), jnp.ones(4))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-5)
        assert float(a) != 0


@pytest.mark.parametrize("noise", [None, {"x": GaussianNoise(0.1)}])
def test_masked_elements_are_hidden_and_may_be_nan(noise):
    def masked(x, mask):
        w = numpyro.param("w", 0.5)
        with numpyro.plate("data", len(x)):
            normal = dist.Normal(w * jnp.ones(2), 1.0)
            numpyro.sample("x", normal.mask(mask).to_event(1), obs=x)

    mask = np.ones((6, 2), bool)
    mask[0], mask[1, 0] = False, False
    x = np.where(mask, X, np.nan)
    value, data, fake = look(masked, x, mask, noise=noise)
    for side in (_numbers(data)["x"], _numbers(fake)["x"]):
        assert (side[~mask] == 0).all()
        assert (side[mask] != 0).all()
    assert math.isfinite(value)
    x[0] = 1e6
    assert look(masked, x, mask, noise=noise)[0] == value


def test_global_latents_come_from_the_guide():
    def hierarchical(x):
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 0.01))
            numpyro.sample("x", dist.Delta(m + z), obs=x)

    point = AutoDelta(handlers.block(hierarchical, hide=["z", "x"]))
    svi, result = run(hierarchical, X[:, 0], guide=point)
    assert set(result.params) == {"m_auto_loc", CRITIC}
    start = svi.get_params(svi.init(random.key(0), X[:, 0]))
    assert float(start["m_auto_loc"]) != float(result.params["m_auto_loc"])
    assert float(point.median(result.params)["m"]) == float(result.params["m_auto_loc"])


def test_discrete_latents_with_fixed_params_are_allowed():
    def mixture(x):
        w = numpyro.param("w", 0.5)
        with numpyro.plate("data", len(x)):
            c = numpyro.sample("c", dist.Categorical(jnp.ones(3) / 3))
            numpyro.sample("x", dist.Normal(w * c, 1.0), obs=x)

    assert float(run(mixture, X[:, 0])[1].params["w"]) != 0.5
