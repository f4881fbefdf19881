# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Kernels refuse what they cannot spread, and say what to do instead (NumPyro)."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms

from numpyro_spread import (
    ChannelNoise,
    GaussianNoise,
    LaplaceNoise,
    LogisticNoise,
    LowRankGaussianNoise,
    StudentTNoise,
    TransformedNoise,
)

FACTOR = np.array([[0.5, 0.1], [-0.3, 0.2], [0.0, 0.4]], np.float32)


def bad_kernels():
    nan, x3 = float("nan"), jnp.zeros((5, 3))
    circulant = sum(w * np.roll(np.eye(4), k, 0) for k, w in enumerate([0.25, 0.5, 0.25, 0.0]))
    absolute = transforms.AbsTransform()
    return {
        "scale_zero": (lambda: GaussianNoise(0.0), ValueError, "scale must be positive"),
        "scale_negative": (lambda: LaplaceNoise(-1), ValueError, "scale must be positive"),
        "scale_nan": (lambda: LogisticNoise(nan), ValueError, "scale must be positive"),
        "scale_inf": (lambda: GaussianNoise(np.inf), ValueError, "scale must be positive"),
        "scale_array": (lambda: GaussianNoise(np.array([1.0, 0])), ValueError, "scale must be"),
        "scale_subnormal": (
            lambda: GaussianNoise(1e-40)(x3), ValueError, "which float32 cannot hold"
        ),
        "df": (lambda: StudentTNoise(0.0, 1.0), ValueError, "df must be positive"),
        "scale_in_jit": (
            lambda: jax.jit(lambda x: GaussianNoise(-0.3)(x).mean)(x3), ValueError, "scale must be"
        ),
        "factor_vector": (lambda: LowRankGaussianNoise(1.0, np.ones(3)), ValueError, "D x R"),
        "factor_nan": (lambda: LowRankGaussianNoise(1.0, FACTOR * nan), ValueError, "NaN or inf"),
        "factor_scale": (
            lambda: LowRankGaussianNoise(np.ones(2), FACTOR), ValueError, "scalar or a vector"
        ),
        "factor_event": (
            lambda: LowRankGaussianNoise(1.0, FACTOR)(jnp.zeros((5, 4)), 1), ValueError,
            "has 4 element"
        ),
        "factor_no_event": (
            lambda: LowRankGaussianNoise(1.0, FACTOR)(x3, 0), ValueError, "to_event"
        ),
        "channel_shape": (lambda: ChannelNoise(np.ones((2, 3)) / 2), ValueError, "square"),
        "channel_rows": (
            lambda: ChannelNoise(np.array([[0.9, 0.1], [0.2, 0.8]])), ValueError, "column-stoch"
        ),
        "channel_negative": (
            lambda: ChannelNoise(np.array([[1.1, 0.0], [-0.1, 1.0]])), ValueError, "negative entry"
        ),
        "channel_nan": (lambda: ChannelNoise(np.full((2, 2), nan)), ValueError, "NaN"),
        "channel_circulant": (lambda: ChannelNoise(circulant), ValueError, "singular"),
        "channel_circulant_32": (
            lambda: ChannelNoise(jnp.asarray(circulant, jnp.float32)), ValueError, "singular"
        ),
        "flip_one": (lambda: ChannelNoise.symmetric(4, 1.0), ValueError, "flip = 1"),
        "flip_nan": (lambda: ChannelNoise.symmetric(4, nan), ValueError, r"\[0, 1\)"),
        "one_class": (lambda: ChannelNoise.symmetric(1, 0.1), ValueError, "num_classes"),
        "label_float": (lambda: ChannelNoise.symmetric(4, 0.1)(x3), TypeError, "class labels"),
        "label_range": (
            lambda: ChannelNoise.symmetric(4, 0.1)(jnp.array([0, 4])), ValueError, r"0\.\.3"
        ),
        "label_classes": (
            lambda: ChannelNoise.symmetric(4, 0.1).spread(dist.Categorical(np.ones(5) / 5)),
            ValueError, r"0\.\.3"
        ),
        "integer_value": (lambda: GaussianNoise(0.3)(jnp.arange(3)), TypeError, "ChannelNoise"),
        "scale_widens_event": (
            lambda: GaussianNoise(np.ones(3))(jnp.zeros((5, 1)), 1), ValueError, "does not fit"
        ),
        "scale_widens_batch": (
            lambda: GaussianNoise(np.ones((4, 1))).spread(dist.Delta(x3[:1], event_dim=1)),
            ValueError, "does not fit"
        ),
        "scale_misfit": (
            lambda: GaussianNoise(np.ones(2))(x3, 1), ValueError, r"\(2,\) does not fit"
        ),
        "event_dim": (lambda: GaussianNoise(0.3)(jnp.zeros(3), 2), ValueError, "event_dim=2"),
        "not_a_transform": (
            lambda: TransformedNoise(jnp.tanh, GaussianNoise(0.1)), TypeError, "plain function"
        ),
        "not_a_kernel": (
            lambda: TransformedNoise(transforms.ExpTransform(), 0.1), TypeError, "kernel"
        ),
        "complex": (
            lambda: TransformedNoise(transforms.RealFastFourierTransform(), GaussianNoise(0.1)),
            ValueError, "not a real array"
        ),
        "abs": (lambda: TransformedNoise(absolute, GaussianNoise(0.1)), ValueError, "injective"),
        "abs_inside": (
            lambda: TransformedNoise(
                transforms.ComposeTransform(
                    [transforms.ExpTransform(), transforms.IndependentTransform(absolute, 1)]
                ),
                GaussianNoise(0.1),
            ),
            ValueError, "injective"
        ),
        "affine": (
            lambda: TransformedNoise(transforms.AffineTransform(0.0, 0.0), GaussianNoise(0.1)),
            ValueError, "scale of 0"
        ),
        "power": (
            lambda: TransformedNoise(transforms.PowerTransform(0.0), GaussianNoise(0.1)),
            ValueError, "exponent of 0"
        ),
        "outside_domain": (
            lambda: TransformedNoise(transforms.PowerTransform(2.0), GaussianNoise(0.1))(-x3 - 1),
            ValueError, "domain"
        ),
        "not_stationary": (
            lambda: ChannelNoise.symmetric(4, 0.1).characteristic_function(1.0),
            NotImplementedError, "not stationary"
        ),
        "no_rule": (
            lambda: GaussianNoise(0.1).spread(dist.Gamma(1.0, 1.0)),
            NotImplementedError, "exact spread of Gamma"
        ),
        "no_rule_laplace": (
            lambda: LaplaceNoise(0.1).spread(dist.Normal(0.0, 1.0)),
            NotImplementedError, "LaplaceNoise has no exact spread of Normal"
        ),
        "delta_density": (
            lambda: GaussianNoise(0.1).spread(dist.Delta(x3, log_density=1.0)),
            NotImplementedError, "log_density"
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_kernels())
def test_bad_kernels_and_values_are_refused_with_the_way_out(name):
    make, error, text = bad_kernels()[name]
    with pytest.raises(error, match=text):
        make()


def test_a_channel_in_half_precision_is_judged_alike_with_and_without_jit():
    right = jnp.array([[0.9, 0.1], [0.1, 0.9]], jnp.bfloat16)
    wrong = jnp.array([[0.9, 0.1], [0.15, 0.9]], jnp.bfloat16)
    matrix = jax.jit(lambda given: ChannelNoise(given).matrix)
    assert (matrix(right) == ChannelNoise(right).matrix).all()
    assert jnp.isnan(matrix(wrong)).all()
    with pytest.raises(ValueError, match="its columns sum to"):
        ChannelNoise(wrong)
