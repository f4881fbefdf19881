# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Ready-made critics: nets whose logit is large for values from the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrizations

from pyro_spread.ratio.adapters import site_features
from spread_core.critic_arguments import (
    check_activation,
    check_features,
    check_image,
    check_input_dim,
    check_size,
    check_sizes,
)
from spread_core.messages import players


def leaky_relu(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU of slope 0.2, the activation of DCGAN's critic and of most since."""
    return nn.functional.leaky_relu(x, 0.2)


class _MLP(nn.Module):
    """Linear layers with an activation between them; the first takes its size from its input."""

    def __init__(
        self,
        hidden: Sequence[int],
        out_features: int,
        activation: Callable[[torch.Tensor], torch.Tensor] = leaky_relu,
        spectral_norm: bool = False,
        input_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList()
        size = input_dim
        for width in (*hidden, out_features):
            layer: nn.Module = nn.LazyLinear(width) if size is None else nn.Linear(size, width)
            if spectral_norm and size is not None:
                layer = parametrizations.spectral_norm(layer)
            self.layers.append(layer)
            size = width
        self._first_is_raw = spectral_norm and input_dim is None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._first_is_raw:
            # A lazy layer has no weight to normalise before it has seen an input.
            self.layers[0](x)
            self.layers[0] = parametrizations.spectral_norm(self.layers[0])
            self._first_is_raw = False
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class MLPCritic(_MLP):
    r"""
    A multilayer perceptron from features to one logit.

    For use as ``concat_sites(MLPCritic(), "x")``. The first layer takes its size from the first
    input, so no sizes are needed; layers are initialised as ``torch.nn.Linear`` does.

        >>> import torch
        >>> critic = MLPCritic(hidden=(32, 32))
        >>> critic(torch.randn(7, 5, 3)).shape
        torch.Size([7, 5, 1])

    With ``spectral_norm`` every weight is divided by its largest singular value [1], so that the
    critic is 1-Lipschitz if the activation is. PyTorch's parametrisation is used: it
    improves its estimate of the singular value by one power iteration at every call in train mode.

    **References**

    [1] `Spectral Normalization for Generative Adversarial Networks`, Takeru Miyato, Toshiki
    Kataoka, Masanori Koyama, Yuichi Yoshida, https://arxiv.org/abs/1802.05957

    :param hidden: widths of the hidden layers; ``()`` gives a linear critic.
    :param activation: function, or module, applied after every hidden layer; leaky ReLU of slope
        0.2 by default.
    :param spectral_norm: whether to normalise the weights of all layers.
    :param input_dim: number of features. Needed only to load a state dict with spectral norm
        before the first call, and to have inputs checked.
    :raises TypeError: if ``activation`` is not a function.
    :raises ValueError: if ``hidden`` or ``input_dim`` are not positive integers.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[torch.Tensor], torch.Tensor] = leaky_relu,
        spectral_norm: bool = False,
        *,
        input_dim: int | None = None,
    ) -> None:
        check_sizes("MLPCritic", "hidden", hidden)
        check_input_dim("MLPCritic", input_dim)
        check_activation("MLPCritic", activation, "torch.nn.ReLU()")
        super().__init__(hidden, 1, activation, spectral_norm, input_dim)
        self.input_dim = input_dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Logits of shape batch + (1,).

        :param x: features of shape batch + (features,), with any number of batch dimensions.
        :raises ValueError: if there are not ``input_dim`` features.
        """
        check_features("MLPCritic", x.shape, self.input_dim)
        return super().forward(x)


class QuadraticCritic(LazyModuleMixin, nn.Module):
    r"""
    The quadratic form :math:`x^\top A x + b^\top x + c`: the exact critic for two Gaussians.

    For :math:`P = N(m_p, S_p)` and :math:`Q = N(m_q, S_q)` the log-ratio :math:`\log P/Q` has
    :math:`A = (S_q^{-1} - S_p^{-1})/2` and :math:`b = S_p^{-1} m_p - S_q^{-1} m_q`. All parameters
    start at zero, where both sides are held to be the same. Only the symmetric part of ``matrix``
    counts.

        >>> import torch
        >>> critic = QuadraticCritic()
        >>> critic(torch.randn(7, 5, 3)).shape
        torch.Size([7, 5, 1])
        >>> critic.matrix.shape
        torch.Size([3, 3])

    :param input_dim: number of features; left out, that of the first input.
    :raises ValueError: if ``input_dim`` is not a positive integer.
    """

    matrix: Any  # uninitialised parameters until the first input
    vector: Any

    def __init__(self, *, input_dim: int | None = None) -> None:
        check_input_dim("QuadraticCritic", input_dim)
        super().__init__()
        self.input_dim = input_dim
        if input_dim is None:
            self.matrix = UninitializedParameter()
            self.vector = UninitializedParameter()
        else:
            self.matrix = nn.Parameter(torch.zeros(input_dim, input_dim))
            self.vector = nn.Parameter(torch.zeros(input_dim))
        self.constant = nn.Parameter(torch.zeros(1))

    def initialize_parameters(self, x: torch.Tensor) -> None:
        """Give the parameters the size of ``x``; PyTorch calls this before the first forward."""
        if self.has_uninitialized_params():
            size = x.shape[-1]
            self.matrix.materialize((size, size))
            self.vector.materialize((size,))
            nn.init.zeros_(self.matrix)
            nn.init.zeros_(self.vector)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Logits of shape batch + (1,).

        :param x: features of shape batch + (features,), with any number of batch dimensions.
        :raises ValueError: if there are not ``input_dim`` features.
        """
        check_features("QuadraticCritic", x.shape, self.input_dim)
        return ((x @ self.matrix + self.vector) * x).sum(-1, keepdim=True) + self.constant


class ConvCritic(nn.Module):
    r"""
    Strided convolutions and one linear layer, from a flat image to one logit.

    Every convolution is 4 x 4 with stride 2 and halves the image, followed by a leaky ReLU of slope
    0.2, as in the critic of DCGAN [1], but without its batch norm: that would couple the logits of
    different data. Layers are initialised as PyTorch does.

        >>> import torch
        >>> critic = ConvCritic((28, 28))
        >>> critic(torch.randn(7, 5, 28 * 28)).shape
        torch.Size([7, 5, 1])

    **References**

    [1] `Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
    Networks`, Alec Radford, Luke Metz, Soumith Chintala, https://arxiv.org/abs/1511.06434

    :param image_shape: (H, W) or (C, H, W): the shape that the flat features had.
    :param channels: channels of every convolution.
    :param spectral_norm: whether to divide every weight by its largest singular value; see
        :class:`MLPCritic`. A convolution's is that of the matrix of output channels by all else.
    :raises ValueError: if ``image_shape`` or ``channels`` are not positive integers, or there are
        more convolutions than the image can be halved.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int] = (64, 128),
        spectral_norm: bool = False,
    ) -> None:
        check_sizes("ConvCritic", "channels", channels)
        full_shape = check_image(image_shape, channels)
        super().__init__()
        self.image_shape = full_shape
        normalise = parametrizations.spectral_norm if spectral_norm else nn.Identity()
        layers: list[nn.Module] = []
        before, height, width = full_shape
        for after in channels:
            layers.append(normalise(nn.Conv2d(before, after, 4, stride=2, padding=1)))
            layers.append(nn.LeakyReLU(0.2))
            before, height, width = after, height // 2, width // 2
        last = normalise(nn.Linear(before * height * width, 1))
        self.layers = nn.Sequential(*layers, nn.Flatten(), last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Logits of shape batch + (1,).

        :param x: images flattened to batch + (C * H * W,), with any number of batch dimensions.
        :raises ValueError: if the features are not as many as the image has.
        """
        if x.shape[-1:] != (math.prod(self.image_shape),):
            raise ValueError(players.critic_image_misfit(x.shape, self.image_shape))
        logits = self.layers(x.reshape(-1, *self.image_shape))
        return logits.reshape(*x.shape[:-1], 1)


class SeparableCritic(nn.Module):
    r"""
    The critic of Adversarial Variational Bayes:
    :math:`\theta(x)^\top s(z) + t_x(x) + t_z(z)`, with :math:`|z|^2/2` added on request.

    A full discriminator, which takes the dict of contrasted sites and needs no adapter. Embeddings
    :math:`\theta, s` and heads :math:`t_x, t_z` are perceptrons with leaky ReLU of slope 0.2. They
    meet in one inner product only, which suits log-ratios such as
    :math:`\log q(z|x)/p(z)` in wide nets [1]. There the half square is :math:`-\log p(z)` of a
    standard normal prior up to a constant, which the nets then need not learn.

        >>> import torch
        >>> critic = SeparableCritic("x", "z")
        >>> critic({"x": torch.randn(7, 28, 28), "z": torch.randn(7, 2)}).shape
        torch.Size([7])

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

    def __init__(
        self,
        left: str,
        right: str,
        hidden: Sequence[int] = (256, 256),
        features: int = 64,
        add_half_square: bool = False,
    ) -> None:
        check_sizes("SeparableCritic", "hidden", hidden)
        check_size("SeparableCritic", "features", features)
        super().__init__()
        self.left = left
        self.right = right
        self.add_half_square = add_half_square
        self.left_embedding = _MLP(hidden, features)
        self.right_embedding = _MLP(hidden, features)
        self.left_head = _MLP(hidden, 1)
        self.right_head = _MLP(hidden, 1)

    def forward(self, values: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """
        Logits of the batch shape.

        :param values: dict from site to value. Names that it lacks are looked up among the model's
            arguments: ``values.arguments``, then ``kwargs``.
        :raises ValueError: if a name is found nowhere.
        """
        x = site_features(values, self.left, kwargs)
        z = site_features(values, self.right, kwargs)
        logits = (self.left_embedding(x) * self.right_embedding(z)).sum(-1)
        logits = logits + self.left_head(x).squeeze(-1) + self.right_head(z).squeeze(-1)
        return logits + 0.5 * z.square().sum(-1) if self.add_half_square else logits
