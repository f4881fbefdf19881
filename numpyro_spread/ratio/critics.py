# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Ready-made critics in flax linen: nets whose logit is large for values from the data."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spread_core.critic_arguments import (
    check_activation,
    check_features,
    check_image,
    check_input_dim,
    check_size,
    check_sizes,
)
from spread_core.messages import general, players

try:
    import flax.linen as nn
except ImportError as error:
    raise ImportError(general.missing_extra("numpyro_spread", "flax", error)) from error

from numpyro_spread.ratio.adapters import site_features

# Within 0.4 % of the largest singular value for random matrices up to 784 x 512, whose spectrum has
# no gap. Still some fifteen times cheaper on the CPU than an SVD of them.
_POWER_ITERATIONS = 100


def leaky_relu(x: jax.Array) -> jax.Array:
    """Leaky ReLU of slope 0.2, the activation of DCGAN's critic and of most since."""
    return nn.leaky_relu(x, 0.2)


def _largest_singular_value(kernel: jax.Array) -> jax.Array:
    """
    The largest singular value of a kernel as a matrix of all else by output features; its gradient
    is u vᵀ.

    It is computed afresh from a fixed start, since a loss keeps a critic's params only: there is
    no place for the running vector that ``flax.linen.SpectralNorm`` carries along.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    fixed = lax.stop_gradient(matrix)
    gram = fixed.T @ fixed  # the smaller of the two, made once: each step is one product with it
    tiny = jnp.finfo(gram.dtype).tiny

    def normalised(v: jax.Array) -> jax.Array:
        return v / jnp.maximum(jnp.linalg.norm(v), tiny)

    start = np.random.default_rng(0).normal(size=gram.shape[0])
    v = lax.fori_loop(
        0, _POWER_ITERATIONS, lambda _, v: normalised(gram @ v), jnp.asarray(start, gram.dtype)
    )
    u = normalised(fixed @ v)
    return u @ matrix @ v


def _with_normalised_kernel(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """``product`` of an input and a kernel that is divided by its largest singular value."""

    @functools.wraps(product)
    def normalised_product(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        norm = _largest_singular_value(kernel)
        return product(x, kernel / jnp.where(norm > 0, norm, 1), *args, **kwargs)

    return normalised_product


_normalised_dot = _with_normalised_kernel(lax.dot_general)
_normalised_convolution = _with_normalised_kernel(lax.conv_general_dilated)


def _dense(width: int, spectral_norm: bool) -> nn.Dense:
    return nn.Dense(width, dot_general=_normalised_dot if spectral_norm else None)


class _MLP(nn.Module):
    """Dense layers with an activation between them."""

    hidden: Sequence[int]
    out_features: int
    activation: Callable[[jax.Array], jax.Array] = leaky_relu
    spectral_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.hidden:
            x = self.activation(_dense(width, self.spectral_norm)(x))
        return _dense(self.out_features, self.spectral_norm)(x)


class MLPCritic(nn.Module):
    r"""
    A multilayer perceptron from features to one logit.

    For use as ``concat_sites(MLPCritic(), "x")``. Layers are initialised as ``flax.linen.Dense``
    does.

        >>> import jax, jax.numpy as jnp
        >>> critic = MLPCritic(hidden=(32, 32))
        >>> x = jnp.ones((7, 5, 3))
        >>> critic.apply(critic.init(jax.random.key(0), x), x).shape
        (7, 5, 1)

    With ``spectral_norm`` every kernel is divided by its largest singular value [1], so that the
    critic is 1-Lipschitz if the activation is. The singular value is found afresh at every call, by
    100 power iterations from a fixed start, so the critic has no mutable state; that costs more
    than the running estimate of ``flax.linen.SpectralNorm``, most of all for wide layers.

    **References**

    [1] `Spectral Normalization for Generative Adversarial Networks`, Takeru Miyato, Toshiki
    Kataoka, Masanori Koyama, Yuichi Yoshida, https://arxiv.org/abs/1802.05957

    :param hidden: widths of the hidden layers; ``()`` gives a linear critic.
    :param activation: function, or module, applied after every hidden layer; leaky ReLU of slope
        0.2 by default.
    :param spectral_norm: whether to normalise the kernels of all layers.
    :param input_dim: number of features, to have inputs checked.
    :raises TypeError: if ``activation`` is not a function.
    :raises ValueError: if ``hidden`` or ``input_dim`` are not positive integers.
    """

    hidden: Sequence[int] = (64, 64)
    activation: Callable[[jax.Array], jax.Array] = leaky_relu
    spectral_norm: bool = False
    input_dim: int | None = None

    def __post_init__(self) -> None:
        check_sizes("MLPCritic", "hidden", self.hidden)
        check_input_dim("MLPCritic", self.input_dim)
        check_activation("MLPCritic", self.activation, "flax.linen.relu")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """
        Logits of shape batch + (1,).

        :param x: features of shape batch + (features,), with any number of batch dimensions.
        :raises ValueError: if there are not ``input_dim`` features.
        """
        check_features("MLPCritic", jnp.shape(x), self.input_dim)
        return _MLP(self.hidden, 1, self.activation, self.spectral_norm, name="layers")(x)


class QuadraticCritic(nn.Module):
    r"""
    The quadratic form :math:`x^\top A x + b^\top x + c`: the exact critic for two Gaussians.

    For :math:`P = N(m_p, S_p)` and :math:`Q = N(m_q, S_q)` the log-ratio :math:`\log P/Q` has
    :math:`A = (S_q^{-1} - S_p^{-1})/2` and :math:`b = S_p^{-1} m_p - S_q^{-1} m_q`. All parameters
    start at zero, where both sides are held to be the same. Only the symmetric part of ``matrix``
    counts.

        >>> import jax, jax.numpy as jnp
        >>> critic = QuadraticCritic()
        >>> variables = critic.init(jax.random.key(0), jnp.ones((7, 5, 3)))
        >>> variables["params"]["matrix"].shape
        (3, 3)

    :param input_dim: number of features, to have inputs checked.
    :raises ValueError: if ``input_dim`` is not a positive integer.
    """

    input_dim: int | None = None

    def __post_init__(self) -> None:
        check_input_dim("QuadraticCritic", self.input_dim)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """
        Logits of shape batch + (1,).

        :param x: features of shape batch + (features,), with any number of batch dimensions.
        :raises ValueError: if there are not ``input_dim`` features.
        """
        check_features("QuadraticCritic", jnp.shape(x), self.input_dim)
        size = jnp.shape(x)[-1]
        matrix = self.param("matrix", nn.initializers.zeros, (size, size))
        vector = self.param("vector", nn.initializers.zeros, (size,))
        constant = self.param("constant", nn.initializers.zeros, (1,))
        return ((x @ matrix + vector) * x).sum(-1, keepdims=True) + constant


class ConvCritic(nn.Module):
    r"""
    Strided convolutions and one dense layer, from a flat image to one logit.

    Every convolution is 4 x 4 with stride 2 and halves the image, followed by a leaky ReLU of slope
    0.2, as in the critic of DCGAN [1], but without its batch norm: that would couple the logits of
    different data. Layers are initialised as flax does.

        >>> import jax, jax.numpy as jnp
        >>> critic = ConvCritic((28, 28))
        >>> x = jnp.ones((7, 5, 28 * 28))
        >>> critic.apply(critic.init(jax.random.key(0), x), x).shape
        (7, 5, 1)

    **References**

    [1] `Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
    Networks`, Alec Radford, Luke Metz, Soumith Chintala, https://arxiv.org/abs/1511.06434

    :param image_shape: (H, W) or (C, H, W): the shape that the flat features had.
    :param channels: channels of every convolution.
    :param spectral_norm: whether to divide every kernel by its largest singular value; see
        :class:`MLPCritic`. A convolution's is that of the matrix of output channels by all else.
    :raises ValueError: if ``image_shape`` or ``channels`` are not positive integers, or there are
        more convolutions than the image can be halved.
    """

    image_shape: Sequence[int]
    channels: Sequence[int] = (64, 128)
    spectral_norm: bool = False

    def __post_init__(self) -> None:
        check_sizes("ConvCritic", "channels", self.channels)
        self.image_shape = check_image(self.image_shape, self.channels)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """
        Logits of shape batch + (1,).

        :param x: images flattened to batch + (C * H * W,), with any number of batch dimensions.
        :raises ValueError: if the features are not as many as the image has.
        """
        batch_shape = jnp.shape(x)[:-1]
        if jnp.shape(x)[-1:] != (math.prod(self.image_shape),):
            raise ValueError(players.critic_image_misfit(jnp.shape(x), self.image_shape))
        # Channels come first in the features, as in PyTorch, and last in flax's convolutions.
        x = jnp.moveaxis(x.reshape(-1, *self.image_shape), 1, -1)
        convolution = _normalised_convolution if self.spectral_norm else None
        for width in self.channels:
            layer = nn.Conv(width, (4, 4), strides=2, padding=1, conv_general_dilated=convolution)
            x = leaky_relu(layer(x))
        x = jnp.moveaxis(x, -1, 1)
        x = x.reshape(*batch_shape, math.prod(x.shape[1:]))
        return _dense(1, self.spectral_norm)(x)


class SeparableCritic(nn.Module):
    r"""
    The critic of Adversarial Variational Bayes:
    :math:`\theta(x)^\top s(z) + t_x(x) + t_z(z)`, with :math:`|z|^2/2` added on request.

    A full discriminator, which takes the dict of contrasted sites and needs no adapter. Embeddings
    :math:`\theta, s` and heads :math:`t_x, t_z` are perceptrons with leaky ReLU of slope 0.2. They
    meet in one inner product only, which suits log-ratios such as
    :math:`\log q(z|x)/p(z)` in wide nets [1]. There the half square is :math:`-\log p(z)` of a
    standard normal prior up to a constant, which the nets then need not learn.

        >>> import jax, jax.numpy as jnp
        >>> critic = SeparableCritic("x", "z")
        >>> values = {"x": jnp.ones((7, 28, 28)), "z": jnp.ones((7, 2))}
        >>> critic.apply(critic.init(jax.random.key(0), values), values).shape
        (7,)

    **References**

    [1] `Adversarial Variational Bayes: Unifying Variational Autoencoders and Generative Adversarial
    Networks`, Lars Mescheder, Sebastian Nowozin, Andreas Geiger, https://arxiv.org/abs/1701.04722

    :param left: name of x: a contrasted site, or else an argument of the model.
    :param right: name of z, likewise.
    :param hidden: widths of the hidden layers, the same in all four nets.
    :param features: length of the embeddings.
    :param add_half_square: whether to add half the squared norm of ``right``.
    :raises ValueError: if ``hidden`` or ``features`` are not positive integers.
    """

    left: str
    right: str
    hidden: Sequence[int] = (256, 256)
    features: int = 64
    add_half_square: bool = False

    def __post_init__(self) -> None:
        check_sizes("SeparableCritic", "hidden", self.hidden)
        check_size("SeparableCritic", "features", self.features)
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Mapping[str, jax.Array], *args: Any, **kwargs: Any) -> jax.Array:
        """
        Logits of the batch shape.

        :param values: dict from site to value. Names that it lacks are looked up among the model's
            arguments: ``values.arguments``, then ``kwargs``.
        :raises ValueError: if a name is found nowhere.
        """
        x = site_features(values, self.left, kwargs)
        z = site_features(values, self.right, kwargs)
        left = _MLP(self.hidden, self.features, name="left_embedding")(x)
        right = _MLP(self.hidden, self.features, name="right_embedding")(z)
        logits = (left * right).sum(-1)
        logits += _MLP(self.hidden, 1, name="left_head")(x).squeeze(-1)
        logits += _MLP(self.hidden, 1, name="right_head")(z).squeeze(-1)
        return logits + 0.5 * jnp.square(z).sum(-1) if self.add_half_square else logits
