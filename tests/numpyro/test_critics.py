# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Ready-made critics in flax: shapes, gradients, closed forms and spectral norms."""

import importlib.util
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_spread.ratio import critics
from numpyro_spread.ratio.critics import ConvCritic, MLPCritic, QuadraticCritic, SeparableCritic

# name -> (constructor, number of features)
NETS = {
    "mlp": (MLPCritic, 3),
    "mlp-input-dim": (lambda: MLPCritic(input_dim=3), 3),
    "mlp-linear": (lambda: MLPCritic(hidden=()), 3),
    "mlp-list": (lambda: MLPCritic(hidden=[8, 8]), 3),
    "mlp-module": (lambda: MLPCritic(activation=nn.PReLU()), 3),
    "mlp-spectral": (lambda: MLPCritic(spectral_norm=True), 3),
    "quadratic": (QuadraticCritic, 3),
    "conv-digits": (lambda: ConvCritic((8, 8), (4, 8)), 64),
    "conv-mnist": (lambda: ConvCritic((28, 28), channels=(4, 8)), 784),
    "conv-colour": (lambda: ConvCritic((3, 9, 8), channels=(4, 5, 6)), 216),
    "conv-spectral": (lambda: ConvCritic((8, 8), (4, 8), spectral_norm=True), 64),
}
KEY = jax.random.key(0)


def normal(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("batch_shape", [(5,), (2, 5), (3, 1, 4), (0,), ()])
@pytest.mark.parametrize("name", NETS)
def test_one_logit_for_every_batch_element(name, batch_shape):
    """Found by abstract evaluation, as by a loss that looks for a critic's params."""
    make, features = NETS[name]
    x = jax.ShapeDtypeStruct((*batch_shape, features), jnp.float32)
    logits, variables = jax.eval_shape(make().init_with_output, KEY, x)
    assert logits.shape == (*batch_shape, 1)
    assert set(variables) == {"params"}  # no mutable state, which a loss would not keep


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_and_the_input_get_a_finite_gradient(name):
    make, features = NETS[name]
    critic = make()
    x = normal(6, features)
    # From zero, the quadratic critic has no gradient in its input.
    variables = jax.tree.map(lambda p: p + 0.1, jax.jit(critic.init)(KEY, x))

    @jax.jit
    def gradients(variables, x):
        return jax.grad(lambda v, x: jnp.square(critic.apply(v, x)).sum(), (0, 1))(variables, x)

    for gradient in jax.tree.leaves(gradients(variables, x)):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).sum() > 0


@pytest.mark.parametrize("name", ["mlp-spectral", "quadratic", "conv-digits"])
def test_logits_of_data_do_not_depend_on_each_other(name):
    make, features = NETS[name]
    critic = make()
    x = normal(4, features)
    variables = jax.jit(critic.init)(KEY, x)
    together = critic.apply(variables, x)[1]
    np.testing.assert_allclose(together, critic.apply(variables, x[1]), rtol=1e-4, atol=1e-5)


def test_the_default_activation_is_leaky():
    critic = MLPCritic(hidden=(1,))
    x = jnp.array([[2.0], [-2.0]])
    variables = jax.tree.map(jnp.ones_like, critic.init(KEY, x))
    # 1 + leaky(x + 1)
    np.testing.assert_allclose(critic.apply(variables, x)[:, 0], [4.0, 0.8], rtol=1e-6)


def test_the_quadratic_critic_holds_the_log_ratio_of_two_gaussians():
    with jax.enable_x64(True):
        factors = normal(2, 3, 3).astype(float)
        covariances = factors @ factors.mT + jnp.eye(3)
        loc_p, loc_q = normal(2, 3, seed=2).astype(float)
        precision_p, precision_q = jnp.linalg.inv(covariances)
        x = normal(20, 3, seed=3).astype(float)
        p = dist.MultivariateNormal(loc_p, covariances[0])
        q = dist.MultivariateNormal(loc_q, covariances[1])
        exact = p.log_prob(x) - q.log_prob(x)

        critic = QuadraticCritic()
        variables = critic.init(KEY, x)
        assert not critic.apply(variables, x).any()  # zero at the start
        params = {
            "matrix": 0.5 * (precision_q - precision_p),
            "vector": precision_p @ loc_p - precision_q @ loc_q,
            "constant": jnp.zeros(1),
        }
        params["constant"] = exact[0] - critic.apply({"params": params}, x)[0]
        logits = critic.apply({"params": params}, x)[:, 0]
        np.testing.assert_allclose(logits, exact, rtol=1e-10, atol=1e-10)


def _separable(**options):
    """A critic without hidden layers, params chosen by hand, and two data."""
    critic = SeparableCritic("x", "z", hidden=(), features=2, **options)
    values = {"x": jnp.array([[1.0, 2.0], [0.5, -1.0]]), "z": jnp.array([[3.0], [-2.0]])}
    kernels = {
        "left_embedding": ([[1.0, 2.0], [0.0, 1.0]], [0.0, 1.0]),
        "right_embedding": ([[1.0, -1.0]], [0.0, 2.0]),
        "left_head": ([[0.5], [0.5]], [0.25]),
        "right_head": ([[2.0]], [-1.0]),
    }
    params = {
        name: {"Dense_0": {"kernel": jnp.array(kernel), "bias": jnp.array(bias)}}
        for name, (kernel, bias) in kernels.items()
    }
    shapes = jax.tree.map(jnp.shape, critic.init(KEY, values)["params"])
    assert jax.tree.map(jnp.shape, params) == shapes
    return critic.apply({"params": params}, values)


def test_the_separable_critic_is_what_it_says():
    # theta = (1, 5), (.5, 1); s = (3, -1), (-2, 4); t_x = 1.75, 0; t_z = 5, -5; half = 4.5, 2
    with_square = _separable(add_half_square=True)
    np.testing.assert_allclose(with_square, [-2 + 6.75 + 4.5, 3 - 5 + 2.0], rtol=1e-6)
    np.testing.assert_allclose(_separable(), [-2 + 6.75, 3 - 5.0], rtol=1e-6)


def test_the_separable_critic_flattens_and_finds_model_arguments():
    critic = SeparableCritic("x", "z", hidden=(8,), features=4)
    x, z = normal(5, 2, 3), normal(5, 2, seed=2)
    variables = critic.init(KEY, {"x": x, "z": z})
    logits = critic.apply(variables, {"x": x, "z": z})
    assert logits.shape == (5,)
    np.testing.assert_allclose(critic.apply(variables, {"z": z}, x, x=x), logits)
    np.testing.assert_allclose(critic.apply(variables, {"z": z, "x": x.reshape(5, 6)}), logits)


def test_the_separable_critic_trains_all_four_nets():
    critic = SeparableCritic("x", "z", hidden=(8,), features=4)
    values = {"x": normal(5, 3), "z": normal(5, 2, seed=2)}
    variables = critic.init(KEY, values)
    gradients = jax.tree.leaves(jax.grad(lambda v: critic.apply(v, values).sum())(variables))
    assert len(gradients) == 16
    assert all(np.isfinite(g).all() and np.abs(g).sum() > 0 for g in gradients)


@pytest.mark.parametrize("shape", [(1, 7), (64, 64), (4, 4, 64, 128), (784, 256), (64, 1)])
def test_a_normalised_kernel_has_largest_singular_value_one(shape):
    """Seen through the layers themselves: an identity input gives the kernel that they use."""
    kernel = normal(*shape)
    matrix = kernel.reshape(-1, shape[-1])
    used = critics._normalised_dot(
        jnp.eye(len(matrix)), matrix, (((1,), (0,)), ((), ())), precision=None
    )
    assert np.linalg.norm(used, 2) == pytest.approx(1.0, rel=0.01)
    largest = critics._largest_singular_value(kernel)
    assert float(largest) == pytest.approx(np.linalg.norm(matrix, 2), rel=0.01)


def test_the_gradient_of_the_largest_singular_value_is_that_of_the_exact_one():
    with jax.enable_x64(True):
        kernel = normal(6, 4).astype(float)
        ours = jax.grad(critics._largest_singular_value)(kernel)
        exact = jax.grad(lambda kernel: jnp.linalg.norm(kernel, ord=2))(kernel)
        np.testing.assert_allclose(ours, exact, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp-spectral", "conv-spectral"])
def test_a_normalised_critic_ignores_the_size_of_its_kernels(name):
    make, features = NETS[name]
    critic = make()
    x = normal(4, features)
    variables = critic.init(KEY, x)
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, p: 7.0 * p if path[-1].key == "kernel" else p, variables
    )
    expected = critic.apply(variables, x)
    np.testing.assert_allclose(critic.apply(scaled, x), expected, rtol=1e-4, atol=1e-6)


def test_a_normalised_critic_is_1_lipschitz():
    critic = MLPCritic(spectral_norm=True)
    x = 10 * normal(50, 3)
    variables = jax.tree.map(lambda p: 5 * p, critic.init(KEY, x))
    slopes = jax.vmap(jax.grad(lambda x: critic.apply(variables, x)[0]))(x)
    assert np.linalg.norm(slopes, axis=-1).max() <= 1.02


def test_a_kernel_of_zeros_stays_finite():
    gradient = jax.grad(
        lambda kernel: critics._normalised_dot(
            jnp.ones((2, 3)), kernel, (((1,), (0,)), ((), ()))
        ).sum()
    )(jnp.zeros((3, 4)))
    assert np.isfinite(gradient).all()


BAD = [
    (lambda: MLPCritic(hidden=64), ValueError, r"MLPCritic: hidden must be a tuple.*got 64\."),
    (lambda: MLPCritic(hidden=(64, 0)), ValueError, r"hidden must be.*got \(64, 0\)"),
    (lambda: MLPCritic(input_dim=0), ValueError, "input_dim must be a positive integer, got 0"),
    (lambda: MLPCritic(activation=nn.PReLU), TypeError, "activation must be a function.*PReLU"),
    (lambda: MLPCritic(activation="relu"), TypeError, "activation must be a function.*got 'relu'"),
    (lambda: QuadraticCritic(input_dim=-1), ValueError, "QuadraticCritic: input_dim .* got -1"),
    (lambda: ConvCritic((64,)), ValueError, r"image_shape must be \(H, W\) or .*got \(64,\)"),
    (lambda: ConvCritic((8, -8)), ValueError, r"image_shape must be .*got \(8, -8\)"),
    (lambda: ConvCritic((8, 8), channels=64), ValueError, r"channels must be a tuple.*got 64\."),
    (lambda: ConvCritic((8, 8), channels=(8,) * 4), ValueError, r"halve the image 4 times.*\(8, 8"),
    (lambda: SeparableCritic("x", "z", hidden=3), ValueError, "SeparableCritic: hidden .* got 3"),
    (
        lambda: SeparableCritic("x", "z", features=0),
        ValueError,
        "features must be a positive integer, got 0",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_arguments_are_refused_where_they_are_given(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_features_that_are_no_image_name_both_shapes():
    message = r"shape \(5, 63\).*\(1, 8, 8\).*last dimension must be 64"
    with pytest.raises(ValueError, match=message):
        ConvCritic((8, 8)).init(KEY, jnp.zeros((5, 63)))
    with pytest.raises(ValueError, match=r"shape \(5, 8, 8\)"):
        ConvCritic((8, 8)).init(KEY, jnp.zeros((5, 8, 8)))


@pytest.mark.parametrize("critic", [MLPCritic, QuadraticCritic])
def test_other_features_than_promised_are_an_error(critic):
    with pytest.raises(ValueError, match=r"features of shape \(5, 4\).*input_dim=3"):
        critic(input_dim=3).init(KEY, jnp.zeros((5, 4)))


def test_an_unknown_name_is_an_error_that_names_it():
    values = {"x": jnp.zeros((5, 2)), "z": jnp.zeros((5, 2))}
    with pytest.raises(ValueError, match="'w'"):
        SeparableCritic("x", "w").init(KEY, values)


def test_without_flax_the_message_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "flax"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flax", None)
    spec = importlib.util.spec_from_file_location("critics_without_flax", critics.__file__)
    with pytest.raises(ImportError, match=r"extra 'flax'.*pip install 'pyro-spread\[flax\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
