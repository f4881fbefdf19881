# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Contract of the noise kernels and of the distributions without a density (NumPyro)."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from every import KERNELS, STATIONARY
from jax import random
from numpyro.distributions import transforms

import numpyro_spread as ns
from numpyro_spread import (
    ChannelNoise,
    DeterministicGenerator,
    GaussianNoise,
    ImplicitDistribution,
    LowRankGaussianNoise,
    TransformedNoise,
)

FACTOR = np.array([[0.5, 0.1], [-0.3, 0.2], [0.0, 0.4]], np.float32)


def listed(slow_variants=True):
    """The kernels of the one list; a second case of a class takes as long to compile again."""
    return [
        pytest.param(
            kernel, id=name, marks=pytest.mark.slow if kernel.variant and slow_variants else ()
        )
        for name, kernel in KERNELS.items()
    ]


every = pytest.mark.parametrize("case", listed())


def build(case):
    return case.build(ns, jnp.asarray)


def values(case, batch_shape=(5,)):
    return jnp.asarray(case.x(batch_shape))


@pytest.mark.parametrize("case", listed(slow_variants=False))
def test_call_has_the_shape_of_the_site(case):
    kernel, x = build(case), values(case)
    d = kernel(x, event_dim=case.event_dim)
    assert (d.batch_shape, d.event_shape) == ((5,), case.y_shape)
    y = d.sample(random.key(1), (7,))
    assert y.shape == (7, 5, *case.y_shape)
    assert d.log_prob(y).shape == (7, 5)
    assert kernel.draw(random.key(1), x).shape == (5, *case.y_shape)
    assert kernel.draw(random.key(1), x).dtype == x.dtype


@every
def test_spread_of_delta_is_the_conditional_inside_every_wrapper(case):
    kernel, x, dims = build(case), values(case), case.event_dim
    y = kernel(x, dims).sample(random.key(1))
    expected = kernel(x, dims).log_prob(y)
    mask = jnp.array([True, False, True, True, False])
    delta = dist.Delta(x, event_dim=dims)
    np.testing.assert_allclose(kernel.spread(delta).log_prob(y), expected, rtol=1e-5)
    for same in [
        dist.Delta(x).to_event(dims),
        DeterministicGenerator(x, event_dim=dims),
        DeterministicGenerator(x).to_event(dims),
        delta.expand((5,)),
        dist.Delta(x).expand(x.shape).to_event(dims),
        dist.Delta(x).mask(True).to_event(dims),
    ]:
        d = kernel.spread(same)
        assert (d.batch_shape, d.event_shape) == ((5,), case.y_shape)
        np.testing.assert_allclose(d.log_prob(y), expected, rtol=1e-5)
    d = kernel.spread(delta.mask(mask))
    np.testing.assert_allclose(d.log_prob(y), jnp.where(mask, expected, 0), rtol=1e-5)
    assert (kernel.spread(delta.mask(False)).log_prob(y) == 0).all()

    row = dist.Delta(x[0], event_dim=dims)
    wide = (4, 5, *case.event_shape)
    for expanded in [
        row.expand((4, 5)),
        dist.Delta(x[0]).to_event(dims).expand((4, 5)),
        dist.Delta(x[0]).expand(wide).to_event(dims),
    ]:
        d = kernel.spread(expanded)
        assert (d.batch_shape, d.event_shape) == ((4, 5), case.y_shape)
        draws = d.sample(random.key(2))
        assert draws.shape == (4, 5, *case.y_shape)
        np.testing.assert_allclose(
            d.log_prob(draws),
            kernel(jnp.broadcast_to(x[0], wide), dims).log_prob(draws),
            rtol=1e-5,
        )
        if not case.discrete:
            # Fresh noise in every copy.
            assert len(np.unique(np.asarray(draws).reshape(20, -1)[:, 0])) == 20


@every
def test_kernel_crosses_jit_vmap_pytree_and_pickle(case):
    kernel, x, dims = build(case), values(case), case.event_dim
    y = kernel(x, dims).sample(random.key(1))
    expected = kernel(x, dims).log_prob(y)

    def log_prob(k, x, y):
        return k(x, dims).log_prob(y)

    leaves, treedef = jax.tree.flatten(kernel)
    for other in [
        jax.tree.unflatten(treedef, leaves),
        pickle.loads(pickle.dumps(kernel)),
        jax.jit(lambda k: k)(kernel),
    ]:
        assert type(other) is type(kernel)
        np.testing.assert_allclose(log_prob(other, x, y), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(log_prob)(kernel, x, y), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(log_prob, (None, 0, 0))(kernel, x, y), expected, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(kernel.draw)(random.key(3), x), kernel.draw(random.key(3), x), rtol=1e-5
    )
    assert "Noise(" in repr(kernel)


@pytest.mark.parametrize("case", listed(slow_variants=False))
def test_kernel_is_immutable(case):
    kernel = build(case)
    name = kernel._fields()[0]
    with pytest.raises(AttributeError):
        setattr(kernel, name, 1.0)


@every
def test_gradient_reaches_value_and_parameters(case):
    if case.discrete:
        pytest.skip("labels have no gradient")
    kernel, x = build(case), values(case)
    y = kernel(x, case.event_dim).sample(random.key(1))
    arrays = jax.tree.map(jnp.asarray, kernel)
    gradient = jax.grad(
        lambda k, x: k(x, case.event_dim).log_prob(y).sum(), (0, 1), allow_int=True
    )(arrays, x)
    gradient = _floats(gradient[0]), gradient[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert any((leaf != 0).any() for leaf in gradient[0])
    assert (gradient[1] != 0).all()
    draws = jax.grad(lambda k: (k.draw(random.key(0), x) ** 2).sum(), allow_int=True)(arrays)
    assert any((leaf != 0).any() for leaf in _floats(draws))


def _floats(tree):
    """The leaves that can have a gradient: not the indices of a permutation."""
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0]


REPEATED = [("low_rank", jnp.float64), ("gaussian", jnp.float64)]  # the type x64 has anyhow
TYPED = {
    "gaussian": lambda: GaussianNoise(0.3),
    "low_rank": lambda: LowRankGaussianNoise(0.3, FACTOR),
    "transformed": lambda: TransformedNoise(transforms.ExpTransform(), GaussianNoise(0.3)),
    "transformed_event": lambda: TransformedNoise(
        transforms.LowerCholeskyAffine(
            jnp.zeros(3), jnp.array([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.2, 0.1, 2.0]])
        ),
        GaussianNoise(0.3),
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=pytest.mark.slow if (name, dtype) in REPEATED else ())
        for name in TYPED
        for dtype in (jnp.float32, jnp.float64)
    ],
)
def test_type_follows_the_data_under_x64(name, dtype):
    with jax.enable_x64(True):
        kernel = TYPED[name]()
        x = random.normal(random.key(0), (5, 3), dtype)
        assert kernel.draw(random.key(0), x).dtype == dtype
        assert kernel(x, 1).log_prob(x).dtype == dtype


@pytest.mark.parametrize("name", STATIONARY)
def test_characteristic_function_crosses_jit_and_vmap(name):
    case = KERNELS[name]
    value = build(case).characteristic_function
    shape = (case.size,) if build(case).coupled_dims else case.event_shape
    omega = 0.3 * random.normal(random.key(0), (4, *shape))
    np.testing.assert_allclose(jax.jit(value)(omega), value(omega), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(value)(omega), value(omega), rtol=1e-5)


def test_low_rank_equals_the_dense_covariance_and_flattens_images():
    kernel = LowRankGaussianNoise(0.3, FACTOR)
    covariance = 0.09 * np.eye(3) + FACTOR @ FACTOR.T
    x = random.normal(random.key(0), (5, 3))
    y = x + 0.7
    expected = dist.MultivariateNormal(x, covariance).log_prob(y)
    np.testing.assert_allclose(kernel(x, 1).log_prob(y), expected, rtol=1e-4)
    image = kernel(x.reshape(5, 1, 3, 1), 3)
    assert image.event_shape == (1, 3, 1)
    np.testing.assert_allclose(image.log_prob(y.reshape(5, 1, 3, 1)), expected, rtol=1e-4)
    omega = jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(
        kernel.characteristic_function(omega), np.exp(-0.5 * omega @ covariance @ omega), rtol=1e-5
    )
    draws = kernel(jnp.zeros(3), 1).sample(random.key(0), (200_000,))
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.01)


def test_low_rank_never_broadcasts_the_factor_to_the_batch():
    batch, size, rank = 64, 1000, 4
    kernel = LowRankGaussianNoise(0.3, np.ones((size, rank)))
    x = jnp.zeros((batch, size))
    shapes = []

    def collect(jaxpr):
        for equation in jaxpr.eqns:
            shapes.extend(v.aval.shape for v in equation.outvars)
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
            ):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    collect(inner)

    for fn in (lambda x: kernel(x, 1).log_prob(x), partial(kernel.draw, random.key(0))):
        collect(jax.make_jaxpr(fn)(x).jaxpr)
    assert max(np.prod(shape) for shape in shapes) < batch * size * rank


NORMALS = {
    "normal": lambda: dist.Normal(jnp.array([[0.1, -0.5, 2.0]]), 0.4).to_event(1),
    "normal_expanded": lambda: dist.Normal(0.2, 0.4).expand((1, 3)).to_event(1),
    "mvn": lambda: dist.MultivariateNormal(jnp.ones((1, 3)), 0.5 * jnp.eye(3) + 0.1),
    "low_rank_mvn": lambda: dist.LowRankMultivariateNormal(
        jnp.ones((1, 3)), jnp.ones((3, 1)), jnp.array([0.1, 0.2, 0.3])
    ),
}


@pytest.mark.parametrize("scale", [0.3, np.array([0.1, 0.3, 1.0])], ids=["scalar", "vector"])
@pytest.mark.parametrize("factor", [None, FACTOR], ids=["gaussian", "low rank"])
@pytest.mark.parametrize("normal", NORMALS)
def test_gaussian_kernels_add_their_covariance(scale, factor, normal):
    kernel = GaussianNoise(scale) if factor is None else LowRankGaussianNoise(scale, factor)
    fn = NORMALS[normal]()
    scale = np.broadcast_to(np.asarray(kernel.scale), (3,))
    added = np.diag(scale**2)
    if isinstance(kernel, LowRankGaussianNoise):
        added = added + FACTOR @ FACTOR.T
    base = fn
    covariance = base.covariance_matrix if hasattr(base, "covariance_matrix") else 0.16 * np.eye(3)
    expected = dist.MultivariateNormal(fn.mean, covariance + added)
    y = jnp.array([[0.3, 1.0, -1.0]])
    spread = kernel.spread(fn)
    assert (spread.batch_shape, spread.event_shape) == ((1,), (3,))
    np.testing.assert_allclose(spread.log_prob(y), expected.log_prob(y), rtol=1e-4)


def test_channel_multiplies_the_class_probabilities():
    kernel = ChannelNoise(
        np.array([[0.7, 0.2, 0, 0], [0.3, 0.8, 0, 0], [0, 0, 0.9, 0.2], [0, 0, 0.1, 0.8]])
    )
    p = np.array([0.1, 0.2, 0.3, 0.4])
    for fn in (dist.Categorical(probs=p), dist.Categorical(logits=np.log(p))):
        np.testing.assert_allclose(
            kernel.spread(fn).probs, np.asarray(kernel.matrix) @ p, rtol=1e-5
        )
    wrapped = kernel.spread(dist.Categorical(p).expand((2, 3)).to_event(1))
    assert (wrapped.batch_shape, wrapped.event_shape) == ((2,), (3,))


@pytest.mark.parametrize("scale", [0.3, np.array([0.1, 0.3, 1.0])], ids=["scalar", "vector"])
def test_mixtures_are_spread_component_by_component(scale):
    kernel, y = GaussianNoise(scale), jnp.array([0.5, -0.5, 1.0])
    weights, locs = jnp.array([0.3, 0.7]), jnp.array([[0.0, 1.0, 2.0], [1.0, -1.0, 0.5]])
    full = jnp.broadcast_to(jnp.hypot(jnp.asarray(scale), 0.2), (3,))
    parts = [dist.Normal(loc, 0.2).to_event(1) for loc in locs]
    spread_parts = [dist.Normal(loc, full).to_event(1) for loc in locs]
    expected = dist.MixtureGeneral(dist.Categorical(weights), spread_parts).log_prob(y)
    general = dist.MixtureGeneral(dist.Categorical(weights), parts)
    same = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, 0.2).to_event(1))
    np.testing.assert_allclose(kernel.spread(general).log_prob(y), expected, rtol=1e-5)
    np.testing.assert_allclose(kernel.spread(same).log_prob(y), expected, rtol=1e-5)
    # The mixture is inside the event: its components stand to the right of the event dimension.
    inside = dist.MixtureSameFamily(
        dist.Categorical(jnp.broadcast_to(weights, (3, 2))), dist.Normal(locs.T, 0.2)
    ).to_event(1)
    by_hand = jnp.logaddexp(
        jnp.log(0.3) + dist.Normal(locs[0], full).log_prob(y),
        jnp.log(0.7) + dist.Normal(locs[1], full).log_prob(y),
    ).sum()
    np.testing.assert_allclose(kernel.spread(inside).log_prob(y), by_hand, rtol=1e-5)


def test_transform_may_change_the_shape():
    kernel = TransformedNoise(transforms.ZeroSumTransform(1), GaussianNoise(0.1))
    d = kernel(jnp.zeros((5, 3)), 1)
    assert (d.batch_shape, d.event_shape) == ((5,), (4,))
    assert kernel.draw(random.key(0), jnp.zeros((5, 3))).shape == (5, 4)


def linear(weight, eps):
    return eps @ weight


class TestImplicitDistribution:
    base = staticmethod(lambda: dist.Normal(jnp.zeros((4, 3)), 1.0).to_event(1))

    def make(self, weight=None):
        weight = jnp.ones((3, 2)) if weight is None else weight
        return ImplicitDistribution(partial(linear, weight), self.base(), (2,))

    def test_shapes(self):
        d = self.make()
        assert (d.batch_shape, d.event_shape) == ((4,), (2,))
        assert d.sample(random.key(0), (7,)).shape == (7, 4, 2)
        assert d.expand((5, 4)).sample(random.key(0)).shape == (5, 4, 2)
        assert d.to_event(1).event_shape == (4, 2)
        assert d.support(d.sample(random.key(0))).shape == (4,)
        assert d.has_rsample

    def test_copies_draw_fresh_noise(self):
        draws = np.asarray(self.make().expand((100, 4)).sample(random.key(0)))
        assert len(np.unique(draws[..., 0])) == 400

    def test_is_a_pytree_with_the_arrays_of_fn_among_its_leaves(self):
        def draw(d):
            return d.sample(random.key(0)).sum()

        d = self.make()
        assert any(leaf.shape == (3, 2) for leaf in jax.tree.leaves(d))
        np.testing.assert_allclose(jax.jit(draw)(d), draw(d), rtol=1e-5)
        gradient = jax.grad(lambda w: draw(self.make(w)))(jnp.ones((3, 2)))
        assert (gradient != 0).all()
        _, stacked = jax.lax.scan(lambda c, _: (c, draw(d)), 0.0, None, length=3)
        assert stacked.shape == (3,)
        keys = random.split(random.key(0), 6)
        assert jax.vmap(lambda k: d.sample(k))(keys).shape == (6, 4, 2)

    def test_errors(self):
        with pytest.raises(NotImplementedError, match="PriorContrastELBO"):
            self.make().log_prob(jnp.zeros((4, 2)))
        wrong = ImplicitDistribution(lambda eps: eps, self.base(), (2,))
        with pytest.raises(ValueError, match=r"returned shape \(4, 3\), expected \(4, 2\)"):
            wrong.sample(random.key(0))


def test_generator_refuses_to_be_scored():
    d = DeterministicGenerator(jnp.zeros((5, 2)), event_dim=1)
    for fn in (d, d.expand((3, 5)), d.to_event(1), d.mask(jnp.ones(5, bool))):
        with pytest.raises(NotImplementedError, match="SpreadELBO"):
            fn.log_prob(jnp.zeros((5, 2)))
    assert jax.jit(lambda d: d.v)(d).shape == (5, 2)
    assert d.sample(random.key(0), (3,)).shape == (3, 5, 2)


def test_public_names():
    assert all(hasattr(ns, name) for name in ns.__all__)
