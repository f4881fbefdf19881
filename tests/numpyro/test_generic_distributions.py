# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What NumPyro asks of every distribution, asked of ours, of kernels' and of exact spreads."""

import copy
import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from every import KERNELS
from jax.test_util import check_grads

import numpyro_spread as ns
from numpyro_spread import (
    ChannelNoise,
    DeterministicGenerator,
    GaussianNoise,
    ImplicitDistribution,
    LowRankGaussianNoise,
    Simulator,
)

KEY = jax.random.key(0)
X = [[0.3, -0.5], [1.5, 0.2], [-0.7, 0.9]]
COLUMN = [0.3, 1.5, -0.7]
TRIL = [[1.0, 0.0], [0.4, 0.7]]
FACTOR = [[0.5], [-0.3]]
MATRIX = [[0.7, 0.1, 0.0], [0.2, 0.8, 0.3], [0.1, 0.1, 0.7]]
LOGITS = [[0.1, 0.5, -1.0], [0.0, 0.0, 0.3], [2.0, -1.0, 0.0]]


@dataclass(frozen=True)
class Entry:
    """
    A distribution of batch shape (3,).

    :param make: from its params to the distribution.
    :param params: their values by name.
    :param event_shape: its event shape.
    :param density: whether it has one.
    :param moments: whether it has a mean and a variance.
    :param listed: whether it is a kernel, whose integral ``test_every_kernel`` takes.
    """

    make: Callable[..., Any]
    params: dict[str, Any]
    event_shape: tuple[int, ...] = ()
    density: bool = True
    moments: bool = True
    discrete: bool = False
    listed: bool = False

    def arrays(self):
        return {name: jnp.asarray(value, jnp.float32) for name, value in self.params.items()}

    def __call__(self):
        return self.make(**self.arrays())


def affine(scale, shift, eps):
    return scale * jnp.exp(eps) + shift


def implicit(weight, shift):
    base = dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(1)
    return ImplicitDistribution(jax.tree_util.Partial(affine, weight, shift), base, (2,))


def run(rng, drift, start):
    return start + drift + rng.normal(size=2)


def simulator(drift, start):
    return Simulator(run, drift, start, event_shape=(2,), arg_event_dims=(0, 1), vectorized=False)


def diagonal(x, scale):
    return dist.Normal(x, scale).to_event(1)


def mixture(x, scale, s):
    components = dist.Normal(jnp.stack([x, x + 2.0], -1), scale)
    weights = dist.Categorical(logits=jnp.broadcast_to(jnp.array([0.3, -0.2], x.dtype), (3, 2)))
    return GaussianNoise(s).spread(dist.MixtureSameFamily(weights, components))


def from_kernel(kernel):
    """The distribution of y at three values of x, in x and the kernel's params."""
    params = {name: value for name, value in kernel.params.items() if name != "df"}
    x = kernel.x((3,))

    def make(x=x, **params):
        return kernel.build(ns, jnp.asarray, **params)(jnp.asarray(x), kernel.event_dim)

    return Entry(
        make,
        params if kernel.discrete else {"x": x, **params},
        kernel.y_shape,
        discrete=kernel.discrete,
        moments=not kernel.discrete,
        listed=True,
    )


ENTRIES = {
    "implicit": Entry(
        implicit, {"weight": [0.5, 1.5], "shift": [1.0, -1.0]}, (2,), density=False, moments=False
    ),
    "simulator": Entry(
        simulator, {"drift": COLUMN, "start": X}, (2,), density=False, moments=False
    ),
    "generator": Entry(
        lambda x: DeterministicGenerator(x, event_dim=1), {"x": X}, (2,), density=False
    ),
    **{name: from_kernel(kernel) for name, kernel in KERNELS.items() if not kernel.variant},
    "spread normal": Entry(
        lambda x, scale, s: GaussianNoise(s).spread(dist.Normal(x, scale)),
        {"x": COLUMN, "scale": 0.6, "s": 0.4},
    ),
    "spread diagonal": Entry(
        lambda x, scale, s: GaussianNoise(s).spread(diagonal(x, scale)),
        {"x": X, "scale": 0.6, "s": 0.4},
        (2,),
    ),
    "spread full": Entry(
        lambda x, tril, s: GaussianNoise(s).spread(
            # Steps along single entries stay below the diagonal.
            dist.MultivariateNormal(x, scale_tril=jnp.tril(tril))
        ),
        {"x": X, "tril": TRIL, "s": 0.4},
        (2,),
    ),
    "low rank of diagonal": Entry(
        lambda x, scale, s, f: LowRankGaussianNoise(s, f).spread(diagonal(x, scale)),
        {"x": X, "scale": 0.6, "s": 0.4, "f": FACTOR},
        (2,),
    ),
    "spread mixture": Entry(mixture, {"x": COLUMN, "scale": 0.6, "s": 0.4}),
    "spread channel": Entry(
        lambda matrix, logits: ChannelNoise(matrix).spread(dist.Categorical(logits=logits)),
        {"matrix": MATRIX, "logits": LOGITS},
        discrete=True,
        moments=False,
    ),
}
# Every operation is compiled once for each, so that the default suite takes few.
FAST = {"implicit", "simulator", "channel"}


def only(**wanted):
    return [
        pytest.param(entry, id=name, marks=[] if name in FAST else pytest.mark.slow)
        for name, entry in ENTRIES.items()
        if all(getattr(entry, key) == value for key, value in wanted.items())
    ]


every = pytest.mark.parametrize("entry", only())
scored = pytest.mark.parametrize("entry", only(density=True))


def close(one, other, rtol=1e-4, atol=1e-5):
    np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@every
def test_shapes_types_and_support(entry):
    fn = entry()
    assert fn.batch_shape == (3,)
    assert fn.event_shape == entry.event_shape
    assert fn.event_dim == len(entry.event_shape)
    for sample_shape in ((), (4, 2)):
        value = fn.sample(KEY, sample_shape)
        assert value.shape == fn.shape(sample_shape) == (*sample_shape, 3, *entry.event_shape)
        assert jnp.issubdtype(value.dtype, jnp.integer) == entry.discrete
        assert entry.discrete or value.dtype == jnp.float32
        inside = fn.support(value)
        assert jnp.shape(inside) == (*sample_shape, 3)
        assert np.all(inside)
    np.testing.assert_array_equal(fn(rng_key=KEY), fn.sample(KEY))
    assert fn.has_enumerate_support == entry.discrete
    assert fn.is_discrete == entry.discrete
    assert fn.support.is_discrete == entry.discrete


@every
def test_reparametrised_draws_carry_gradients_of_all_params(entry):
    fn = entry()
    if not fn.has_rsample:
        assert entry.discrete or isinstance(fn, dist.MixtureSameFamily | Simulator)
        with pytest.raises(NotImplementedError):
            fn.rsample(KEY)
        return

    def total(params):
        value = entry.make(**params).rsample(KEY, (5,))
        return (value * jnp.cos(jnp.arange(value.size).reshape(value.shape))).sum()

    for grad in jax.tree.leaves(jax.grad(total)(entry.arrays())):
        assert np.isfinite(grad).all()
        assert np.any(grad)


@scored
def test_log_prob_broadcasts_and_crosses_jit(entry):
    fn = entry()
    value = fn.sample(KEY, (4, 2))
    log_prob = fn.log_prob(value)
    assert log_prob.shape == (4, 2, 3)
    assert np.isfinite(log_prob).all()
    close(fn.log_prob(value[1]), log_prob[1])
    one = value[:, :, :1]
    close(fn.log_prob(one), fn.log_prob(jnp.broadcast_to(one, value.shape)))
    # Built inside, and handed in as an argument.
    close(jax.jit(lambda p, v: entry.make(**p).log_prob(v))(entry.arrays(), value), log_prob)
    close(jax.jit(lambda d, v: d.log_prob(v))(fn, value), log_prob)


@scored
def test_log_prob_is_differentiable(entry):
    value = entry().sample(KEY)

    def log_prob(params):
        return entry.make(**params).log_prob(value).sum()

    grads = jax.grad(log_prob)(entry.arrays())
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))
    if not entry.discrete:
        # Columns of a channel sum to one, so that steps along single entries leave the simplex.
        with jax.enable_x64(True):
            params = {name: jnp.asarray(v, jnp.float64) for name, v in entry.params.items()}
            check_grads(log_prob, (params,), order=1, modes=["rev"], rtol=1e-4, atol=1e-4)


@every
def test_is_a_pytree(entry):
    fn = entry()
    leaves, structure = jax.tree.flatten(fn)
    again = jax.tree.unflatten(structure, leaves)
    mapped = jax.tree.map(lambda leaf: leaf, fn)
    crossed = jax.jit(lambda d: d)(fn)
    for twin in (again, mapped, crossed, copy.deepcopy(fn), pickle.loads(pickle.dumps(fn))):
        assert type(twin) is type(fn)
        assert twin.batch_shape == fn.batch_shape
        assert twin.event_shape == fn.event_shape
        close(twin.sample(KEY, (2,)), fn.sample(KEY, (2,)))
        if entry.density:
            close(twin.log_prob(fn.sample(KEY)), fn.log_prob(fn.sample(KEY)))


@every
def test_scan_carries_it(entry):
    _, values = jax.lax.scan(lambda d, key: (d, d.sample(key)), entry(), jax.random.split(KEY, 3))
    close(values[0], entry().sample(jax.random.split(KEY, 3)[0]))


@every
def test_vmap_over_construction_and_draws(entry):
    params = entry.arrays()
    shifted = [
        {name: value * (1.0 if entry.discrete else factor) for name, value in params.items()}
        for factor in (1.0, 1.1)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *shifted)
    keys = jax.random.split(KEY, 2)
    draws = jax.vmap(lambda p, key: entry.make(**p).sample(key))(stacked, keys)
    for i in range(2):
        close(draws[i], entry.make(**shifted[i]).sample(keys[i]))
    if entry.density:
        scores = jax.vmap(lambda p, v: entry.make(**p).log_prob(v))(stacked, draws)
        for i in range(2):
            close(scores[i], entry.make(**shifted[i]).log_prob(draws[i]), atol=1e-4)


@every
def test_expand_is_idempotent_and_leaves_the_original(entry):
    fn = entry()
    assert fn.expand(fn.batch_shape).batch_shape == (3,)
    once = fn.expand((2, 3))
    for wide in (fn.expand((4, 2, 3)), once.expand((4, 2, 3))):
        assert wide.batch_shape == (4, 2, 3)
        assert wide.event_shape == fn.event_shape
        value = wide.sample(KEY, (2,))
        assert value.shape == (2, 4, 2, 3, *entry.event_shape)
        if entry.density:
            close(wide.log_prob(value), fn.log_prob(value))
        if not entry.discrete and not isinstance(fn, DeterministicGenerator):
            assert np.any(value[:, 0] != value[:, 1])  # draws, not copies
    assert fn.batch_shape == (3,)
    assert fn.expand_by([2]).batch_shape == (2, 3)
    with pytest.raises(ValueError, match=r"."):
        fn.expand((4,)).sample(KEY)


@every
def test_to_event_and_mask(entry):
    fn = entry()
    value = fn.sample(KEY, (2,))
    moved = fn.to_event(1)
    assert moved.batch_shape == ()
    assert moved.event_shape == (3, *entry.event_shape)
    assert fn.to_event(0) is fn
    mask = jnp.array([True, False, True])
    masked = fn.mask(mask)
    assert masked.sample(KEY).shape == fn.shape()
    assert masked.expand((2, 3)).batch_shape == (2, 3)
    if not entry.density:
        for one in (fn, moved, masked, fn.expand((2, 3))):
            with pytest.raises(NotImplementedError, match=r"SpreadELBO|(Prior|Joint)ContrastELBO"):
                one.log_prob(one.sample(KEY))
        return
    close(moved.log_prob(value), fn.log_prob(value).sum(-1))
    close(masked.log_prob(value), jnp.where(mask, fn.log_prob(value), 0.0))
    assert not np.any(fn.mask(False).log_prob(value))


@pytest.mark.parametrize("entry", only(discrete=True))
def test_enumerated_support_has_probability_one(entry):
    fn = entry()
    for expand, shape in ((True, (3, 3)), (False, (3, 1))):
        values = fn.enumerate_support(expand=expand)
        assert values.shape == shape
        close(jnp.exp(fn.log_prob(values)).sum(0), jnp.ones(3))


@pytest.mark.parametrize("entry", only(moments=True))
def test_mean_and_variance_are_those_of_draws(entry):
    fn, count = entry(), 20000
    try:
        mean, variance = np.asarray(fn.mean), np.asarray(fn.variance)
    except NotImplementedError:
        pytest.skip("has no moments in closed form")
    if not np.isfinite(variance).all():
        pytest.skip("has no finite variance")
    draws = np.asarray(fn.sample(KEY, (count,)), np.float64)
    assert mean.shape == variance.shape == fn.shape()
    error = np.sqrt(variance / count)
    assert np.all(np.abs(draws.mean(0) - mean) <= 5 * error + 1e-6)
    fourth = ((draws - mean) ** 4).mean(0)
    spread = np.sqrt(np.maximum(fourth - variance**2, 0) / count)
    assert np.all(np.abs(draws.var(0) - variance) <= 6 * spread + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("entry", only(event_shape=(), discrete=False, listed=False))
def test_density_integrates_to_one(entry):
    with jax.enable_x64(True):
        params = {name: jnp.asarray(value, jnp.float64) for name, value in entry.params.items()}
        fn = entry.make(**params)
        pieces = [-200.0, -20.0, -5.0, -1.0, 0.0, 1.0, 2.0, 5.0, 20.0, 200.0]
        positive = not bool(fn.support(jnp.full(3, -1.0)).all())
        nodes = [p for p in pieces if p >= 0.0] if positive else pieces
        points, weights = np.polynomial.legendre.leggauss(200)
        total = 0.0
        for a, b in itertools.pairwise(nodes):
            y = (b - a) / 2 * points + (a + b) / 2
            density = np.exp(fn.log_prob(jnp.asarray(y)[:, None]))
            total = total + (weights * (b - a) / 2) @ density
        np.testing.assert_allclose(total, 1.0, atol=2e-4)


@scored
def test_entropy_is_minus_the_expected_log_density(entry):
    fn = entry()
    try:
        entropy = fn.entropy()
    except NotImplementedError:
        return
    surprise = -np.asarray(fn.log_prob(fn.sample(KEY, (20000,))), np.float64)
    # NumPyro's own are of the scale's shape, without that of the location.
    assert jnp.broadcast_shapes(entropy.shape, fn.batch_shape) == (3,)
    error = surprise.std(0) / 20000**0.5
    assert np.all(np.abs(surprise.mean(0) - entropy) < 5 * error + 1e-5)


@scored
def test_type_follows_params_under_x64(entry):
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            params = {name: jnp.asarray(value, dtype) for name, value in entry.params.items()}
            fn = entry.make(**params)
            value = fn.sample(KEY)
            assert entry.discrete or value.dtype == dtype or dtype == jnp.float32
            value = value if entry.discrete else value.astype(dtype)
            assert fn.log_prob(value).dtype == dtype


def test_stock_kl_divergences_are_as_they_were():
    registry = dist.kl.kl_divergence.funcs
    for pair, rule in registry.items():
        for part in (*pair, rule):
            assert not part.__module__.startswith("numpyro_spread")
