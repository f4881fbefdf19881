# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""``noise.spread``: exact rules, wrappers, mixtures, and what is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution

from pyro_spread import (
    ChannelNoise,
    GaussianNoise,
    LaplaceNoise,
    LowRankGaussianNoise,
    StudentTNoise,
    TransformedNoise,
)

pytestmark = pytest.mark.usefixtures("double")


def dense(noise, size):
    """The covariance that a Gaussian kernel adds, written out."""
    covariance = torch.eye(size) * torch.as_tensor(noise.scale) ** 2
    return covariance + (noise.factor @ noise.factor.mT if hasattr(noise, "factor") else 0)


def gaussians(size):
    """Named kernels with and without low rank for events of ``size`` elements."""
    factor = torch.randn(size, 2)
    return {
        "gaussian": GaussianNoise(0.4),
        "gaussian-vector": GaussianNoise(torch.linspace(0.2, 0.9, size)),
        "low-rank": LowRankGaussianNoise(0.4, factor),
        "low-rank-vector": LowRankGaussianNoise(torch.linspace(0.2, 0.9, size), factor),
    }


KERNELS = ("gaussian", "gaussian-vector", "low-rank", "low-rank-vector")


def normals(size):
    """Distributions over vectors that are Gaussian, batch shape (5,)."""
    loc, root = torch.randn(5, size), torch.randn(5, size, size)
    scale = torch.rand(5, size) + 0.1
    return {
        "normal": dist.Normal(loc, scale).to_event(1),
        "normal-expanded": dist.Normal(loc[0], scale[0]).expand([5, size]).to_event(1),
        "dense": dist.MultivariateNormal(loc, root @ root.mT + torch.eye(size)),
        "dense-shared": dist.MultivariateNormal(loc, torch.eye(size)),
        "dense-expanded": dist.MultivariateNormal(loc[0], torch.eye(size)).expand([5]),
        "low-rank": dist.LowRankMultivariateNormal(loc, root[..., :2], scale),
        "low-rank-expanded": dist.LowRankMultivariateNormal(
            loc[0], root[0, :, :1], scale[0]
        ).expand([5]),
    }


def moments(fn):
    if isinstance(fn, torch.distributions.Independent):
        return fn.base_dist.loc, torch.diag_embed(fn.base_dist.scale**2)
    return fn.loc, fn.covariance_matrix


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("clean", list(normals(3)))
def test_gaussian_of_gaussian(kernel, clean):
    noise, fn = gaussians(3)[kernel], normals(3)[clean]
    loc, covariance = moments(fn)
    expected = dist.MultivariateNormal(loc, covariance + dense(noise, 3))
    y = torch.randn(7, 5, 3)
    spread = noise.spread(fn)
    assert spread.batch_shape == (5,)
    assert spread.event_shape == (3,)
    torch.testing.assert_close(spread.log_prob(y), expected.log_prob(y))
    mask = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(
        noise.spread(fn.mask(mask)).log_prob(y), expected.log_prob(y).where(mask, torch.zeros(()))
    )
    wide = noise.spread(fn.expand([6, 5]))
    assert wide.batch_shape == (6, 5)
    torch.testing.assert_close(wide.log_prob(y[:6]), expected.log_prob(y[:6]))


def test_low_rank_of_a_normal_image():
    noise = LowRankGaussianNoise(0.3, torch.randn(6, 2))
    loc, scale = torch.randn(5, 2, 3), torch.rand(5, 2, 3) + 0.1
    spread = noise.spread(dist.Normal(loc, scale).to_event(2))
    expected = dist.MultivariateNormal(
        loc.flatten(1), torch.diag_embed(scale.flatten(1) ** 2) + dense(noise, 6)
    )
    y = torch.randn(5, 2, 3)
    assert spread.event_shape == (2, 3)
    torch.testing.assert_close(spread.log_prob(y), expected.log_prob(y.flatten(1)))


def test_scalar_normal_adds_variances():
    spread = GaussianNoise(0.3).spread(dist.Normal(torch.zeros(4), 0.4))
    torch.testing.assert_close(spread.scale, torch.full((4,), 0.5))


def test_channel_of_a_categorical():
    matrix = torch.tensor([[0.7, 0.1, 0.0], [0.2, 0.8, 0.3], [0.1, 0.1, 0.7]])
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    noise = ChannelNoise(matrix)
    expected = torch.stack([matrix @ p for p in probs])
    for fn in (dist.Categorical(probs), dist.Categorical(logits=probs.log())):
        torch.testing.assert_close(noise.spread(fn).probs, expected)
        assert noise.spread(fn.to_event(1)).event_shape == (2,)
        assert noise.spread(fn.expand([4, 2])).batch_shape == (4, 2)
    for label in range(3):  # the columns, not the rows
        torch.testing.assert_close(
            noise.spread(dist.Delta(torch.tensor(label))).probs, matrix[:, label]
        )


@pytest.mark.parametrize("kernel", [*KERNELS, "laplace", "student", "transformed"])
def test_mixture_of_deltas(kernel):
    own = {
        "laplace": LaplaceNoise(0.5),
        "student": StudentTNoise(2.0, torch.tensor([0.5, 1.0])),
        "transformed": TransformedNoise(dist.transforms.ExpTransform(), GaussianNoise(0.4)),
    }
    noise = {**gaussians(2), **own}[kernel]
    points, weights = torch.randn(4, 2), torch.tensor([0.1, 0.2, 0.3, 0.4])
    fn = dist.MixtureSameFamily(dist.Categorical(weights), dist.Delta(points, event_dim=1))
    y = torch.randn(6, 2)
    each = torch.stack([noise(point, event_dim=1).log_prob(y) for point in points])
    expected = torch.logsumexp(each + weights.log()[:, None], 0)
    for spread in (noise.spread(fn), noise.spread(fn.expand([6])), noise.spread(fn.mask(True))):
        assert spread.event_shape == (2,)
        torch.testing.assert_close(spread.log_prob(y), expected)
    assert noise.spread(fn.expand([6])).sample().shape == (6, 2)


def test_mixture_of_normals_and_of_categoricals():
    weights, loc = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 2.0])
    mixture = dist.Categorical(weights)
    y = torch.randn(6)
    spread = GaussianNoise(0.3).spread(dist.MixtureSameFamily(mixture, dist.Normal(loc, 0.4)))
    torch.testing.assert_close(
        spread.log_prob(y), dist.MixtureSameFamily(mixture, dist.Normal(loc, 0.5)).log_prob(y)
    )
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    channel = ChannelNoise.symmetric(2, 0.2)
    spread = channel.spread(dist.MixtureSameFamily(mixture, dist.Categorical(probs)))
    torch.testing.assert_close(
        spread.log_prob(torch.tensor([0, 1])).exp(), channel.matrix @ (weights @ probs)
    )


def test_mixture_with_a_scale_for_every_datum():
    # The component dimension stands between the batch and the event: the scale steps aside for it.
    scale, points = torch.rand(3, 1) + 0.1, torch.randn(3, 3, 2)
    fn = dist.MixtureSameFamily(dist.Categorical(torch.ones(3, 3)), dist.Delta(points, event_dim=1))
    y = torch.randn(3, 2)
    spread = GaussianNoise(scale).spread(fn).log_prob(y)
    for i in range(3):
        each = GaussianNoise(scale[i])(points[i], event_dim=1).log_prob(y[i])
        torch.testing.assert_close(spread[i], torch.logsumexp(each, 0) - torch.tensor(3.0).log())


def test_masked_mixture():
    mask = torch.tensor([True, False])
    fn = dist.MaskedMixture(mask, dist.Delta(torch.zeros(2)), dist.Normal(torch.ones(2), 0.4))
    y = torch.randn(2)
    expected = dist.Normal(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.3])).log_prob(y)
    torch.testing.assert_close(GaussianNoise(0.3).spread(fn).log_prob(y), expected)


def test_wrappers_in_every_order():
    v, mask = torch.randn(4, 3), torch.tensor([[True, False, True]])
    noise, y = GaussianNoise(torch.tensor([0.1, 0.2, 0.3])), torch.randn(4, 3)
    elements = noise(v).log_prob(y)
    inner = noise.spread(dist.Delta(v).mask(mask).to_event(1))
    torch.testing.assert_close(inner.log_prob(y), (elements * mask).sum(-1))
    rows = torch.tensor([True, True, False, True])
    outer = noise.spread(dist.Delta(v).to_event(1).mask(rows))
    torch.testing.assert_close(outer.log_prob(y), elements.sum(-1) * rows)
    expanded = noise.spread(dist.Delta(v[0]).expand([4, 3]).to_event(1).expand([2, 4]))
    assert expanded.batch_shape == (2, 4)
    torch.testing.assert_close(expanded.log_prob(y), noise(v[0], 1).log_prob(y).expand(2, 4))


@pytest.mark.parametrize("kernel", KERNELS)
def test_expanded_distribution(kernel):
    # Pyro's generic wrapper, for distributions that cannot expand themselves.
    noise, v, y = gaussians(3)[kernel], torch.randn(3), torch.randn(4, 3)
    expected = noise(v, event_dim=1).log_prob(y)
    outside = ExpandedDistribution(dist.Delta(v, event_dim=1), torch.Size([4]))
    torch.testing.assert_close(noise.spread(outside).log_prob(y), expected)
    if noise._is_elementwise():
        inside = ExpandedDistribution(dist.Delta(v), torch.Size([4, 3])).to_event(1)
        torch.testing.assert_close(noise.spread(inside).log_prob(y), expected)
        masked = ExpandedDistribution(dist.Delta(v, event_dim=1).mask(False), torch.Size([4]))
        assert torch.equal(noise.spread(masked).log_prob(y), torch.zeros(4))


def test_plate_expansion():
    noise = LowRankGaussianNoise(0.3, torch.randn(2, 1))
    with pyro.plate("outer", 4, dim=-2), pyro.plate("inner", 5, dim=-1):
        fn = dist.Delta(torch.randn(2), event_dim=1).expand([4, 5])
        assert noise.spread(fn).batch_shape == (4, 5)


REFUSED = {
    "gaussian of gamma": (GaussianNoise(0.3), dist.Gamma(1.0, 1.0)),
    "gaussian of student": (GaussianNoise(0.3), dist.StudentT(3.0)),
    "gaussian of categorical": (GaussianNoise(0.3), dist.Categorical(torch.ones(3))),
    "laplace of normal": (LaplaceNoise(0.3), dist.Normal(0.0, 1.0)),
    "student of normal": (StudentTNoise(1.0, 0.3), dist.Normal(torch.zeros(2), 1.0).to_event(1)),
    "channel of bernoulli": (ChannelNoise.symmetric(2, 0.1), dist.Bernoulli(0.5)),
    "transformed of normal": (
        TransformedNoise(dist.transforms.ExpTransform(), GaussianNoise(0.3)),
        dist.Normal(0.0, 1.0),
    ),
    "low rank of a normal with no event": (
        LowRankGaussianNoise(0.3, torch.ones(2, 1)),
        dist.Normal(torch.zeros(2), 1.0),
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_no_exact_spread(name):
    noise, fn = REFUSED[name]
    with pytest.raises(NotImplementedError) as caught:
        noise.spread(fn)
    inner = fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn
    assert type(noise).__name__ in str(caught.value)
    assert type(inner).__name__ in str(caught.value)
    assert "The way out" in str(caught.value)


def test_delta_with_a_density_is_refused():
    with pytest.raises(NotImplementedError, match="log_density"):
        GaussianNoise(0.3).spread(dist.Delta(torch.zeros(2), torch.ones(2)))


def test_mixture_of_refused_components_is_refused():
    fn = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(torch.ones(2), 1.0))
    with pytest.raises(NotImplementedError, match=r"GaussianNoise has no exact spread of Gamma"):
        GaussianNoise(0.3).spread(fn)
