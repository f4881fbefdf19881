# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Log-ratios by classification: losses on logits, adapters, penalties, diagnostics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_spread.ratio import (
    R1,
    GradientPenalty,
    Regularizer,
    SiteValues,
    concat_sites,
    critic_report,
    log_ratio,
    logistic_loss,
    prior_log_odds,
    site_features,
)
from spread_analysis import critic_report as reference_report

LOGITS_P = np.array([0.3, -1.2, 2.0], np.float32)
LOGITS_Q = np.array([-0.5, 0.1, -2.0, 1.4, 0.0], np.float32)


def cross_entropy(logits, label):
    share = 1 / (1 + np.exp(-np.asarray(logits, dtype=float)))
    return -(label * np.log(share) + (1 - label) * np.log(1 - share))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
def test_loss_by_hand(pi):
    """Each side is averaged by itself: 3 data and 5 draws still stand for the stated pi."""
    expected = pi * cross_entropy(LOGITS_P, 1).mean()
    expected += (1 - pi) * cross_entropy(LOGITS_Q, 0).mean()
    assert float(logistic_loss(LOGITS_P, LOGITS_Q, pi)) == pytest.approx(expected, rel=1e-6)
    doubled = float(logistic_loss(np.tile(LOGITS_P, 2), LOGITS_Q, pi))
    assert doubled == pytest.approx(expected, rel=1e-6)


def test_weights_by_hand():
    w, v = np.array([1.0, 0.0, 3.0]), np.array([2.0, 1.0, 0.0, 0.5, 1.0])
    value = float(logistic_loss(LOGITS_P, LOGITS_Q, 0.3, w, v))
    expected = 0.3 * np.average(cross_entropy(LOGITS_P, 1), weights=w)
    expected += 0.7 * np.average(cross_entropy(LOGITS_Q, 0), weights=v)
    assert value == pytest.approx(expected, rel=1e-6)
    assert float(logistic_loss(LOGITS_P, LOGITS_Q, 0.3, 9 * w, v)) == pytest.approx(value)
    assert value != pytest.approx(float(logistic_loss(LOGITS_P, LOGITS_Q, 0.3)), rel=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weight_zero_hides_a_broken_logit(bad, smoothing):
    weights = jnp.array([0.0, 1.0, 1.0])

    def loss(logits, weights=None):
        return logistic_loss(logits, logits, 0.3, weights, weights, smoothing)

    value, grad = jax.value_and_grad(loss)(jnp.array([bad, 1.0, -2.0]), weights)
    expected, kept = jax.value_and_grad(loss)(jnp.array([1.0, -2.0]))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grad, [0, *kept], rtol=1e-6)


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
def test_minimum_is_entropy_less_js(pi):
    """P = (.7, .2, .1), Q = (.1, .3, .6): the optimal logits, and no others, give H(pi) - JS."""
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    m = pi * p + (1 - pi) * q
    js = pi * (p * np.log(p / m)).sum() + (1 - pi) * (q * np.log(q / m)).sum()
    entropy = -pi * math.log(pi) - (1 - pi) * math.log(1 - pi)

    def loss(logits):
        return logistic_loss(logits, logits, pi, jnp.asarray(p), jnp.asarray(q))

    value, grad = jax.value_and_grad(loss)(jnp.asarray(np.log(p / q) + prior_log_odds(pi)))
    assert entropy - float(value) == pytest.approx(js, abs=1e-6)
    assert float(jnp.abs(grad).max()) < 1e-6
    assert entropy - float(loss(jnp.asarray(np.log(p / q) + 0.3))) < js - 1e-4


def test_prior_odds_are_taken_off():
    logits = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(log_ratio(logits, 0.9), logits - math.log(9), rtol=1e-6)
    np.testing.assert_allclose(log_ratio(logits, 0.1), logits + math.log(9), rtol=1e-6)
    np.testing.assert_array_equal(log_ratio(logits), logits)
    assert prior_log_odds(1e-300) == pytest.approx(math.log(1e-300))


def test_label_smoothing_is_one_sided():
    value = float(logistic_loss(LOGITS_P, LOGITS_Q, 0.3, label_smoothing=0.1))
    expected = 0.3 * cross_entropy(LOGITS_P, 0.9).mean() + 0.7 * cross_entropy(LOGITS_Q, 0).mean()
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [17.0, 1e4])
def test_saturated_logits_in_float32(size):
    """A sigmoid before the logarithm has no gradient at a confidently wrong logit of 17."""
    logits = jnp.array([size, -size], jnp.float32)
    value, (p, q) = jax.value_and_grad(lambda p, q: logistic_loss(p, q, 0.25), (0, 1))(
        logits, logits
    )
    assert float(value) == pytest.approx(size / 2, rel=1e-6)
    assert float(p[1]) == pytest.approx(-0.25 / 2, rel=1e-6)
    assert float(q[0]) == pytest.approx(0.75 / 2, rel=1e-6)
    right = math.exp(-size) if size < 100 else 0.0
    assert float(p[0]) == pytest.approx(-0.25 / 2 * right, rel=1e-4, abs=1e-30)
    assert float(q[1]) == pytest.approx(0.75 / 2 * right, rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("pi", [0, 1, -0.1, 1.5, float("nan")])
def test_bad_pi(pi):
    for call in (lambda: log_ratio(LOGITS_P, pi), lambda: logistic_loss(LOGITS_P, LOGITS_Q, pi)):
        with pytest.raises(ValueError, match=rf"must lie in \(0, 1\), got {pi}"):
            call()


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_bad_label_smoothing(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got"):
        logistic_loss(LOGITS_P, LOGITS_Q, label_smoothing=smoothing)


# --- adapters ------------------------------------------------------------------------------------


class Keep:
    """A net that keeps what it got."""

    def __call__(self, x):
        self.got = x
        return x.sum(-1, keepdims=True)


def test_concat_sites_by_name_and_order():
    x, z = normal(5, 2, 3), normal(5, seed=1)
    values = SiteValues({"x": x, "z": z}, (5,))
    critic = concat_sites(Keep(), "z", "x")
    logits = critic(values)
    np.testing.assert_array_equal(critic.net.got, np.hstack([z[:, None], x.reshape(5, 6)]))
    np.testing.assert_allclose(logits, critic.net.got.sum(-1))
    every = concat_sites(Keep())
    every(values)
    np.testing.assert_array_equal(every.net.got, np.hstack([x.reshape(5, 6), z[:, None]]))


def test_arguments_by_position_and_keyword():
    x, c = normal(5, 2), np.arange(5)
    critic = concat_sites(Keep(), "c", "x")
    critic(SiteValues({"x": x}, (5,), {"c": c}), c)
    expected = np.hstack([c[:, None], x]).astype(np.float32)
    np.testing.assert_array_equal(critic.net.got, expected)
    assert critic.net.got.dtype == jnp.float32
    critic({"x": x}, c=c)
    np.testing.assert_array_equal(critic.net.got, expected)
    # A site wins over an argument of the same name, and what a loss has reduced over a keyword.
    np.testing.assert_array_equal(site_features(SiteValues({"x": x}, (5,), {"x": c}), "x"), x)
    values = SiteValues({"x": x}, (5,), {"c": c})
    np.testing.assert_array_equal(site_features(values, "c", {"c": c + 1}), c[:, None])


@pytest.mark.filterwarnings("error")
def test_doubles_of_numpy_are_taken_as_jax_holds_them():
    features = site_features({"x": np.zeros((2, 3)), "c": np.arange(2)}, "c")
    assert features.dtype == jnp.float32


def test_features_take_the_type_of_the_sites():
    values = SiteValues({"x": jnp.zeros(2, jnp.bfloat16)}, (2,), {"c": [True, False]})
    features = site_features(values, "c")
    assert features.dtype == jnp.bfloat16
    assert features.tolist() == [[1.0], [0.0]]
    assert site_features({"k": jnp.arange(2)}, "k").dtype == jnp.float32


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (2, 1, 3)])
def test_batch_shapes(batch):
    values = SiteValues({"x": normal(*batch, 2, 2), "y": np.zeros(batch, np.float32)}, batch)
    assert values.batch_ndim == len(batch)
    assert concat_sites(Keep())(values).shape == batch
    assert concat_sites(lambda h: h.sum(-1), "x")(values).shape == batch
    assert values.replaced({"y": values["y"]}).batch_shape == batch


def test_values_are_a_pytree():
    x, c = normal(3, 5, 2), np.arange(15.0).reshape(3, 5)
    critic = concat_sites(lambda h: (h**2).sum(-1), "x", "c")
    stacked = SiteValues({"x": x}, (5,), {"c": c})  # three particles of five data
    logits = jax.jit(jax.vmap(critic))(stacked)
    np.testing.assert_allclose(logits, (x**2).sum(-1) + c**2, rtol=1e-5)
    first = jax.tree.map(lambda leaf: leaf[0], stacked)
    assert isinstance(first, SiteValues)
    assert (first.batch_shape, dict(first.arguments).keys()) == ((5,), {"c"})
    grads = jax.grad(lambda v: critic(v).sum())(first)
    np.testing.assert_allclose(grads["x"], 2 * x[0], rtol=1e-5)
    np.testing.assert_allclose(grads.arguments["c"], 2 * c[0], rtol=1e-5)


VALUES = SiteValues({"x": jnp.zeros((5, 3))}, (5,), {"c": jnp.zeros(4), "none": None})
MISTAKES = [
    (lambda: concat_sites(lambda h: h)(VALUES), ValueError, r"returned shape \(5, 3\) for feat"),
    (lambda: concat_sites(jnp.mean)(VALUES), ValueError, r"\(\) for .* \(5,\) or \(5, 1"),
    (lambda: concat_sites(Keep(), "nope")(VALUES), ValueError, r"'nope'.*\['x'\].*\['c', 'none'\]"),
    (lambda: concat_sites(Keep(), "none")(VALUES), ValueError, "'none' is neither a site"),
    (lambda: concat_sites(Keep(), "c")(VALUES), ValueError, r"'c' of shape \(4,\) does not begin"),
    (lambda: concat_sites(3, "x"), TypeError, "discriminator must be callable.* got 3"),
    (lambda: concat_sites(Keep(), "x", 0), TypeError, "concat_sites: names must be strings, got 0"),
]


@pytest.mark.parametrize(("mistake", "kind", "match"), MISTAKES)
def test_adapter_mistakes(mistake, kind, match):
    with pytest.raises(kind, match=match):
        mistake()


# --- penalties -----------------------------------------------------------------------------------

MATRIX = jnp.array([[2.0, 0.5], [0.5, 1.0]])


def quadratic(matrix=MATRIX):
    """x'Ax / 2 of a symmetric A, whose gradient is A x."""
    return concat_sites(lambda x: 0.5 * (x @ matrix * x).sum(-1), "x")


def sides(num_data=6, num_model=6):
    x, y = normal(num_data, 2), normal(num_model, 2, seed=1)
    return SiteValues({"x": x}, (num_data,)), SiteValues({"x": y}, (num_model,))


def key(seed=0):
    return jax.random.key(seed)


def test_r1_by_hand():
    data, model = sides(6, 4)
    squares = ((data["x"] @ np.asarray(MATRIX)) ** 2).sum(-1)
    value = R1(gamma=3.0).penalty(key(), quadratic(), data, model)
    np.testing.assert_allclose(value, 1.5 * squares.mean(), rtol=1e-5)
    weights = jnp.array([0.0, 1.0, 2.0, 1.0, 0.0, 3.0])
    value = R1(gamma=3.0).penalty(key(), quadratic(), data, model, weights)
    np.testing.assert_allclose(value, 1.5 * np.average(squares, weights=weights), rtol=1e-5)


def test_r1_adds_up_sites():
    x, y = normal(5, 2), normal(5, seed=1)
    values = SiteValues({"x": x, "y": y, "unused": y}, (5,))
    value = R1(gamma=2.0).penalty(key(), lambda v: 3 * v["x"].sum(-1) + v["y"] ** 2, values, values)
    np.testing.assert_allclose(value, 9 * 2 + 4 * (y**2).mean(), rtol=1e-5)


@pytest.mark.parametrize("target", [1.0, 0.0, 7.0])
def test_gradient_penalty_of_a_linear_critic(target):
    data, model = sides()
    w = jnp.array([3.0, -4.0])
    value = GradientPenalty(2.0, target).penalty(key(), lambda v: v["x"] @ w, data, model)
    assert float(value) == pytest.approx(2 * (5 - target) ** 2, rel=1e-5)


def test_gradient_penalty_looks_between_the_sides():
    """The critic's gradient 2x is t * data between data d and draws 0, with t uniform."""
    data = SiteValues({"x": jnp.full((4000, 1), 3.0), "y": jnp.full(4000, 3.0)}, (4000,))
    model = data.replaced({"x": jnp.zeros((4000, 1)), "y": jnp.zeros(4000)})
    points = []

    def critic(values):
        jax.debug.callback(lambda x, y: points.append((x, y)), values["x"][:, 0], values["y"])
        return jnp.square(values["x"]).sum(-1) / 2

    value = GradientPenalty(1.0, target=0.0).penalty(key(), critic, data, model)
    jax.effects_barrier()
    assert float(value) == pytest.approx(3.0, rel=0.06)  # 9 E t²
    x, y = points[0]
    np.testing.assert_array_equal(x, y)  # one point of the joint space
    assert 0 <= x.min() < 0.1 < 2.9 < x.max() <= 3


@pytest.mark.parametrize("penalty", [R1(), GradientPenalty(target=0.5)])
def test_penalties_train_the_critic_only(penalty):
    data, model = sides()

    def loss(matrix, data, model):
        return penalty.penalty(key(), quadratic(matrix), data, model)

    grads = jax.jit(jax.grad(loss, (0, 1, 2)))(MATRIX, data, model)
    assert float(jnp.abs(grads[0]).min()) > 0
    assert not jnp.any(grads[1]["x"])
    assert not jnp.any(grads[2]["x"])


def test_flat_critic_has_a_finite_penalty():
    data, model = sides()

    def loss(w):
        return GradientPenalty(10.0).penalty(key(), lambda v: v["x"] @ w, data, model)

    value, grad = jax.value_and_grad(loss)(jnp.zeros(2))
    assert float(value) == pytest.approx(10.0, rel=1e-5)
    assert jnp.isfinite(grad).all()


REFUSALS = [
    (lambda: R1(0.0), "R1: gamma must be positive, got 0.0"),
    (lambda: R1(float("nan")), "R1: gamma must be positive"),
    (lambda: GradientPenalty(-1.0), "GradientPenalty: weight must be positive, got -1.0"),
    (lambda: R1(every=0), "every must be a positive integer, got 0"),
    (lambda: GradientPenalty(every=1.5), "every must be a positive integer, got 1.5"),
    (
        lambda: GradientPenalty().penalty(key(), quadratic(), *sides(6, 4)),
        r"site 'x': .* shapes are \(6, 2\) and \(4, 2\)",
    ),
]


@pytest.mark.parametrize(("mistake", "match"), REFUSALS)
def test_penalty_mistakes(mistake, match):
    with pytest.raises(ValueError, match=match):
        mistake()


def test_a_penalty_must_say_what_it_is():
    with pytest.raises(NotImplementedError):
        Regularizer().penalty(key(), quadratic(), *sides())


# --- diagnostics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_report_of_arrays(dtype):
    p, q = jnp.asarray(normal(4, 5), dtype), jnp.asarray(normal(3, 2, 2, seed=1) - 1, dtype)
    mask = jnp.arange(20).reshape(4, 5) > 4
    report = critic_report(p, q, 0.3, 5, mask)
    arrays = [np.asarray(t, dtype=float).ravel() for t in (p, q, mask)]
    assert repr(report) == repr(reference_report(arrays[0], arrays[1], 0.3, 5, arrays[2]))
    assert repr(critic_report(p, q)) != repr(report)
