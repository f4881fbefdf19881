# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a kernel, a value or a shape is said where it is made, with the way out."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import transforms

from pyro_spread import (
    ChannelNoise,
    GaussianNoise,
    LaplaceNoise,
    LogisticNoise,
    LowRankGaussianNoise,
    StudentTNoise,
    TransformedNoise,
)

WITH_SCALE = {
    "GaussianNoise": GaussianNoise,
    "LaplaceNoise": LaplaceNoise,
    "StudentTNoise": lambda scale: StudentTNoise(2.0, scale),
    "LogisticNoise": LogisticNoise,
    "LowRankGaussianNoise": lambda scale: LowRankGaussianNoise(scale, torch.ones(2, 1)),
}
BAD = [0, 0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, 0.0]), torch.tensor([math.nan, 1.0])]


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("name", WITH_SCALE)
def test_scale(name, bad):
    with pytest.raises(ValueError, match=f"{name}: scale must be positive and finite"):
        WITH_SCALE[name](bad)


@pytest.mark.parametrize("name", WITH_SCALE)
def test_scale_of_a_learned_parameter(name):
    with pytest.raises(ValueError, match="needs a positive constraint"):
        WITH_SCALE[name](torch.nn.Parameter(torch.tensor(-0.1)))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_degrees_of_freedom(bad):
    with pytest.raises(ValueError, match="StudentTNoise: df must be positive"):
        StudentTNoise(bad, 1.0)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (torch.ones(3), r"D x R matrix.*\(3,\)"),
        (torch.ones(1, 3, 2), r"D x R matrix.*\(1, 3, 2\)"),
        (torch.tensor([[1.0], [math.nan]]), "factor contains NaN or inf"),
    ],
)
def test_factor(factor, message):
    with pytest.raises(ValueError, match=message):
        LowRankGaussianNoise(0.1, factor)


def test_low_rank_scale_shape():
    with pytest.raises(ValueError, match=r"scale of shape \(3,\) with factor of shape \(2, 1\)"):
        LowRankGaussianNoise(torch.ones(3), torch.ones(2, 1))


CIRCULANT = torch.tensor([0.25, 0.5, 0.25, 0.0])[(torch.arange(4)[:, None] - torch.arange(4)) % 4]
CHANNELS = [
    (torch.ones(3), r"must be square .* got shape \(3,\)"),
    (torch.ones(2, 3), r"must be square .* got shape \(2, 3\)"),
    (torch.ones(1, 1), r"at least 2 x 2"),
    (torch.tensor([[0.9, 0.2], [0.2, 0.8]]), "columns sum to"),
    (torch.tensor([[1.1, 0.0], [-0.1, 1.0]]), "negative entry"),
    (torch.tensor([[math.nan, 0.0], [1.0, 1.0]]), "NaN or inf"),
    (torch.tensor([[0.9, 0.1], [0.4, 0.6]]), "row-stochastic matrix needs transposing"),
    (torch.full((3, 3), 1 / 3), "singular"),
    (CIRCULANT, "singular"),
]


@pytest.mark.parametrize(("matrix", "message"), CHANNELS)
def test_channel(matrix, message):
    with pytest.raises(ValueError, match=message) as caught:
        ChannelNoise(matrix)
    assert "ChannelNoise" in str(caught.value)


def test_channel_of_many_classes_in_single_precision():
    # Columns of rounded softmax output are fine; so is a nearly clean channel.
    ChannelNoise(torch.softmax(3 * torch.eye(200), 0))
    ChannelNoise.symmetric(200, 0.99)
    ChannelNoise(torch.eye(2))


def test_a_channel_in_half_precision_may_miss_one_by_its_rounding():
    ChannelNoise(torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="its columns sum to"):
        ChannelNoise(torch.tensor([[0.9, 0.1], [0.15, 0.9]], dtype=torch.bfloat16))


@pytest.mark.parametrize("flip", [1.0, 1, 1.5, -0.1, math.nan])
def test_flip(flip):
    with pytest.raises(ValueError, match=r"flip must lie in \[0, 1\)"):
        ChannelNoise.symmetric(4, flip)


@pytest.mark.parametrize("num_classes", [1, 0, -2, 2.5])
def test_num_classes(num_classes):
    with pytest.raises(ValueError, match="at least 2, got"):
        ChannelNoise.symmetric(num_classes, 0.1)


NOT_INJECTIVE = {
    "AbsTransform": transforms.AbsTransform(),
    "SoftmaxTransform": transforms.SoftmaxTransform(),
    "AffineTransform": transforms.AffineTransform(1.0, 0.0),
    "PowerTransform": transforms.PowerTransform(torch.tensor(0.0)),
    "ComposeTransform": transforms.ComposeTransform(
        [transforms.ExpTransform(), transforms.AffineTransform(0.0, torch.tensor([1.0, 0.0]))]
    ),
    "IndependentTransform": transforms.IndependentTransform(transforms.AbsTransform(), 1),
}


@pytest.mark.parametrize("name", NOT_INJECTIVE)
def test_transform(name):
    with pytest.raises(ValueError, match=f"{name} is not injective .* Use an invertible transform"):
        TransformedNoise(NOT_INJECTIVE[name], GaussianNoise(0.1))


def test_not_a_transform_or_a_kernel():
    with pytest.raises(TypeError, match=r"must be a torch\.distributions\.transforms\.Transform"):
        TransformedNoise(torch.exp, GaussianNoise(0.1))
    with pytest.raises(TypeError, match="expected a noise kernel such as GaussianNoise"):
        TransformedNoise(transforms.ExpTransform(), 0.1)


def test_outside_the_domain():
    # x² is injective on positive numbers only.
    noise = TransformedNoise(transforms.PowerTransform(torch.tensor(2.0)), GaussianNoise(0.1))
    for call in (noise, noise.draw, lambda x: noise.spread(dist.Delta(x))):
        with pytest.raises(ValueError, match="leaves the domain of PowerTransform"):
            call(torch.tensor([1.0, -1.0]))


def test_type_of_the_value(case):
    noise = case.make(torch.float32)
    wrong = torch.zeros(case.event_shape, dtype=torch.float32 if case.discrete else torch.int64)
    name = type(noise).__name__ if not isinstance(noise, TransformedNoise) else ""
    for call in (
        lambda: noise(wrong, case.event_dim),
        lambda: noise.draw(wrong),
        lambda: noise.spread(dist.Delta(wrong, event_dim=case.event_dim)),
    ):
        with pytest.raises(TypeError, match=f"{name}.*type torch") as caught:
            call()
        assert "Convert the" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.float64])
def test_labels_must_be_integers(dtype):
    with pytest.raises(TypeError, match="class labels"):
        ChannelNoise.symmetric(2, 0.1).draw(torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype):
    x = torch.tensor([0, 1, 1], dtype=dtype)
    assert ChannelNoise.symmetric(2, 0.1)(x).log_prob(x).shape == (3,)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range(label):
    with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.2, got values from .*{label}"):
        ChannelNoise.symmetric(3, 0.1).draw(torch.tensor([1, label]))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        ChannelNoise.symmetric(3, 0.1).spread(dist.Categorical(torch.ones(4)))


@pytest.mark.parametrize("shape", [(4,), (3, 1), (2, 3)])
def test_scale_does_not_fit_the_event(shape):
    noise, x = GaussianNoise(torch.ones(shape)), torch.zeros(2, 5)
    for call in (
        lambda: noise(x, 1),
        lambda: noise.draw(x),
        lambda: noise.spread(dist.Delta(x, event_dim=1)),
        lambda: noise.spread(dist.Normal(x, 1.0).to_event(1)),
        lambda: noise.spread(dist.MultivariateNormal(x, torch.eye(5))),
    ):
        with pytest.raises(ValueError, match="GaussianNoise: a scale of shape"):
            call()


def test_vector_scale_never_widens_a_scalar_site():
    noise, v = GaussianNoise(torch.ones(3)), torch.zeros(())
    for fn in (dist.Delta(v), dist.Normal(v, 1.0), dist.Delta(torch.zeros(1), event_dim=1)):
        with pytest.raises(ValueError, match=r"scale of shape \(3,\) does not fit"):
            noise.spread(fn)


def test_scale_never_widens_the_batch_of_a_site():
    noise, x = GaussianNoise(torch.ones(5, 1, 1)), torch.zeros(2, 3)
    for call in (lambda: noise.draw(x), lambda: noise.spread(dist.Delta(x, event_dim=1))):
        with pytest.raises(ValueError, match=r"scale of shape \(5, 1, 1\) does not fit"):
            call()


def test_event_dims():
    with pytest.raises(ValueError, match="event_dim=2, but the value has only 1"):
        GaussianNoise(0.1)(torch.zeros(3), 2)
    noise = LowRankGaussianNoise(0.1, torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"Declare them as event dimensions: \.to_event\(1\)"):
        noise(torch.zeros(3))
    with pytest.raises(ValueError, match="couples the last 1 dimension"):
        noise.spread(dist.Delta(torch.zeros(3)))
    for shape in ((4,), (3, 3)):
        with pytest.raises(ValueError, match=r"factor of shape \(3, 1\) does not fit"):
            noise(torch.zeros(shape), len(shape))
    with pytest.raises(ValueError, match="Its first dimension must be 4"):
        noise.draw(torch.zeros(5, 4))


def test_a_learned_scale_that_turns_negative_is_refused_where_it_is_used():
    scale = torch.nn.Parameter(torch.tensor(0.3))
    noise = GaussianNoise(scale)
    with torch.no_grad():
        scale.fill_(-0.1)
    with pytest.raises(ValueError, match="scale"):
        noise(torch.zeros(3))
