# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What a model observes, and where its noise is drawn: eagerly and under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.distributions import transforms
from numpyro.infer.inspect import get_dependencies, get_model_relations

from numpyro_spread import (
    ChannelNoise,
    DeterministicGenerator,
    GaussianNoise,
    SpreadELBO,
    TransformedNoise,
    spread,
)

K = GaussianNoise(0.3)
VECTOR = GaussianNoise(jnp.linspace(0.2, 0.5, 4))
OTHER = "observes something other than the spread value"


def no_guide(*args, **kwargs):
    """No latents."""


def run(observe, x, kernel=K, event_dim=1, jit=False):
    def model(x):
        value = observe(x)
        fn = DeterministicGenerator(jnp.zeros(value.shape), event_dim)
        numpyro.sample("x", fn, obs=value)

    def loss(x):
        return SpreadELBO({"x": kernel}).loss(random.key(0), {}, model, no_guide, x)

    return (jax.jit(loss) if jit else loss)(x)


CHANGED = {
    "first differences": (lambda x: jnp.diff(x, axis=1, prepend=0.0), K),
    "one column rescaled": (lambda x: x.at[:, 3].multiply(2), K),
    "sorted": (lambda x: jnp.sort(x, 1), K),
    "sorted by index": (lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1), K),
    "chosen by its sum": (lambda x: jax.lax.cond(x.sum() > -1e9, lambda: x[::-1], lambda: x), K),
    "padded": (lambda x: jnp.pad(x[:, 1:], ((0, 0), (0, 1))), K),
    "behind a barrier": (
        lambda x: jax.lax.optimization_barrier((x, jnp.zeros(x.shape)))[1], K
    ),
    "an event turned": (lambda x: x[:, ::-1], VECTOR),
    "an event repeated and cut": (lambda x: jnp.tile(x, (1, 2))[:, 1:5], VECTOR),
    "an event permuted": (lambda x: x[:, jnp.array([1, 0, 2, 3])], VECTOR),
    "rows under scales by datum": (
        lambda x: x[::-1], GaussianNoise(jnp.linspace(0.2, 0.5, 16)[:, None])
    ),
    "elements under an affine map": (
        lambda x: x[:, ::-1],
        TransformedNoise(transforms.AffineTransform(0.0, jnp.linspace(0.5, 2, 4)), K),
    ),
}  # fmt: skip


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", CHANGED)
def test_changes_are_seen(name, jit):
    observe, kernel = CHANGED[name]
    with pytest.raises(ValueError, match=OTHER):
        run(observe, random.normal(random.key(1), (16, 4)), kernel, jit=jit)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("observe", "kernel"),
    [
        (lambda x: x[:, 1:3], K),
        (lambda x: x[:, ::-1].T.reshape(8, 8), K),
        (lambda x: jnp.concatenate([x[8:], x[:8]]), VECTOR),
        (lambda x: jnp.tile(x, (2, 2)), K),
        (lambda x: jnp.tile(x, (2, 1)), VECTOR),
        (lambda x: x[::-1], VECTOR),
        (lambda x: x[jnp.array([3, 1])], VECTOR),
    ],
)
def test_moves_are_right(observe, kernel, jit):
    assert np.isfinite(run(observe, random.normal(random.key(1), (16, 4)), kernel, jit=jit))


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_an_empty_observation_names_the_argument(jit):
    with pytest.raises(ValueError, match=r"shape \(16, 0\).*argument 'x'.*data=\{'x': \.\.\.\}"):
        run(lambda x: x[:, :0], jnp.ones((16, 4)), jit=jit)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_vector_scale_has_the_shape_of_the_site(jit):
    scale, x = jnp.linspace(0.1, 2.0, 16), jnp.zeros((5000, 1, 4, 4))
    value = run(lambda x: x.reshape(-1, 16), x, GaussianNoise(scale), jit=jit)
    entropy = 5000 * (0.5 * np.log(2 * np.pi) + 0.5 + np.log(scale)).sum()
    assert abs(value - entropy) < 5 * np.sqrt(5000 * 16 / 2)


def test_a_dict_without_a_way_into_it_is_told_of_one():
    def model(batch):
        numpyro.sample("x", dist.Delta(jnp.zeros(3), event_dim=1), obs=batch["image"])

    batch = {"image": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"type dict.*with a dot: data=\{'x': 'batch\.image'\}"):
        SpreadELBO({"x": K}).loss(random.key(0), {}, model, no_guide, batch)


def test_patterns_and_data_inside_of_a_batch():
    def series(batch):
        x = batch["x"]
        for t in range(x.shape[1]):
            numpyro.sample(f"x_{t}", dist.Delta(jnp.zeros(len(x))), obs=x[:, t])

    loss = SpreadELBO({"x_*": K}, data={"x_*": "batch.x"})
    for length in (9, 7):
        batch = {"x": jnp.ones((4, length)), "other": 1}
        assert np.isfinite(loss.loss(random.key(0), {}, series, no_guide, batch))
        spread(series, {"x_*": K})
    nothing = SpreadELBO({"x_*": K, "y_*": K}, data={"x_*": "batch.x", "y_*": "batch.x"})
    with pytest.raises(ValueError, match=r"named 'y_\*', but the model observes none"):
        nothing.loss(random.key(0), {}, series, no_guide, batch)


def _widest_draw(jaxpr):
    sizes = [0]
    for equation in jaxpr.eqns:
        if equation.primitive.name == "random_bits":
            sizes.append(equation.outvars[0].aval.size)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                sizes.append(_widest_draw(inner))
    return max(sizes)


@pytest.mark.parametrize("reads", ["rows", "neighbours"])
def test_noise_is_drawn_where_the_indices_point(reads):
    def model(x):
        with numpyro.plate("data", 1000, subsample_size=10) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Delta(z[:, None] * jnp.ones(2), event_dim=1), obs=x[index])

    def guide(x):
        with numpyro.plate("data", 1000, subsample_size=10) as index:
            mine = x[index] if reads == "rows" else x[(index + 1) % 1000]
            numpyro.sample("z", dist.Normal(mine.mean(1), 0.01))

    loss, x = SpreadELBO({"x": GaussianNoise(0.01)}), jnp.arange(1000.0)[:, None] * jnp.ones(2)

    def run(key):
        return loss.loss(key, {}, model, guide, x)

    first = run(random.key(0))
    widest = _widest_draw(jax.make_jaxpr(run)(random.key(0)).jaxpr)
    assert widest == (20 if reads == "rows" else 2000)
    np.testing.assert_allclose(jax.jit(run)(random.key(0)), run(random.key(0)), rtol=1e-4)
    assert np.isfinite(first)
    if reads == "rows":  # guide and model see one y: else these would be apart by 1e4
        prior = 100 * 0.5 * (np.arange(1000.0) ** 2).mean() * 10
        assert abs(first - prior) < prior


def test_structure_may_be_asked_of_what_has_no_density():
    def model(x):
        w = numpyro.param("w", 2.0)
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", DeterministicGenerator(w * z), obs=x)

    for fn in (model, spread(model, {"x": K})):
        relations = get_model_relations(fn, (jnp.zeros(3),))
        assert relations["sample_sample"] == {"z": [], "x": ["z"]}
        assert relations["sample_param"]["x"] == ["w"]
        assert set(get_dependencies(fn, (jnp.zeros(3),))["posterior_dependencies"]["z"]) == {
            "z",
            "x",
        }


def test_a_label_out_of_range_is_no_label_under_jit():
    channel, labels = ChannelNoise.symmetric(3, 0.9), jnp.array([-1, 3, 300])
    drawn = jax.jit(lambda x: channel.draw(random.key(0), x))(labels)
    np.testing.assert_array_equal(drawn, [3, 3, 3])
    for x, y in ((labels, jnp.zeros(3, int)), (jnp.zeros(3, int), drawn)):
        assert not np.isfinite(jax.jit(lambda x, y: channel(x).log_prob(y))(x, y)).any()
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, but the Categorical has 4"):
        channel.spread(dist.Categorical(jnp.ones(4) / 4))


def test_a_transform_that_is_not_injective_has_a_name():
    with pytest.raises(ValueError, match="the inverse of AbsTransform is not injective"):
        TransformedNoise(transforms.AbsTransform().inv, K)
