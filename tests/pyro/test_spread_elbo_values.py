# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The value and the gradients of the spread bound, against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate

from pyro_spread import ChannelNoise, GaussianNoise, LaplaceNoise, SpreadELBO, StudentTNoise
from spread_analysis import reference

pytestmark = pytest.mark.usefixtures("double")

S, D, K = 0.5, 4, 2
A = torch.randn(D, K, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
COVARIANCE = A @ A.mT + S**2 * torch.eye(D).double()
PRECISION = torch.linalg.inv(COVARIANCE)
# The exact posterior of the linear model: z | y ~ N(M y, V).
V = torch.linalg.inv(torch.eye(K) + A.mT @ A / S**2)
M = V @ A.mT / S**2
SCALE_TRIL = torch.linalg.cholesky(V)


def linear_model(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
        pyro.sample("x", dist.Delta(z @ A.mT, event_dim=1), obs=x)


def exact_guide(x):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.MultivariateNormal(x @ M.mT, scale_tril=SCALE_TRIL))


def marginal(y):
    return dist.MultivariateNormal(torch.zeros(D), COVARIANCE).log_prob(y)


def recorded(guide):
    seen = []

    def recording(x, *args, **kwargs):
        seen.append(x.detach().clone())
        return guide(x, *args, **kwargs)

    return recording, seen


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO(), Trace_ELBO(num_particles=3)])
def test_exact_posterior_gives_the_marginal_at_y(elbo):
    # log p(y, z) - log q(z | y) is log p(y) whatever z is: no Monte Carlo error at all.
    x = torch.randn(6, D)
    guide, seen = recorded(exact_guide)
    loss = SpreadELBO({"x": GaussianNoise(S)}, elbo).loss(linear_model, guide, x)
    assert len(seen) == elbo.num_particles
    at_y = sum(marginal(y).sum() for y in seen) / len(seen)
    assert loss == pytest.approx(-float(at_y), rel=1e-10)
    assert not math.isclose(loss, -float(marginal(x).sum()), rel_tol=1e-3)


def test_expected_bound_of_the_linear_model():
    # Averaged over the noise: E log N(x + s eps; 0, C), a quadratic form with a known variance.
    x, n = torch.randn(3, D), 150
    expected = reference.expected_linear_elbo(x, A, S, M, V).sum()
    root = PRECISION * S**2
    variance = 3 * 0.5 * (root @ root).trace() + S**2 * ((x @ PRECISION) ** 2).sum()
    loss = SpreadELBO({"x": GaussianNoise(S)}, Trace_ELBO(num_particles=n))
    value = -loss.loss(linear_model, exact_guide, x)
    assert abs(value - expected) < 5 * math.sqrt(variance / n)


def test_expected_bound_with_a_poor_guide():
    # The reference knows any linear guide; here the tolerance comes from the sample itself.
    x, poor = torch.randn(3, D), 0.5 * M + 0.1

    def guide(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.MultivariateNormal(x @ poor.mT, scale_tril=SCALE_TRIL))

    loss = SpreadELBO({"x": GaussianNoise(S)})
    values = torch.tensor([-loss.loss(linear_model, guide, x) for _ in range(200)])
    expected = float(reference.expected_linear_elbo(x, A, S, poor, V).sum())
    assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / math.sqrt(200)


@pytest.mark.parametrize(
    ("noise", "second_moment"),
    [(GaussianNoise(S), S**2), (LaplaceNoise(S), 2 * S**2), (StudentTNoise(8.0, S), S**2 * 8 / 6)],
)
def test_likelihood_is_scored_at_y_and_not_at_x(noise, second_moment):
    # A generator that is right about x: at y the error is the noise's own, at x it would be zero.
    x = torch.randn(200, D)

    def model(x_):
        with pyro.plate("data", x_.shape[0]):
            pyro.sample("x", dist.Delta(x, event_dim=1), obs=x_)

    seen = []

    def guide(x_):
        seen.append(((x_ - x) ** 2).mean())

    loss = SpreadELBO({"x": noise}).loss(model, guide, x)
    entropy = float(-noise(torch.zeros(40_000)).log_prob(noise.draw(torch.zeros(40_000))).mean())
    assert loss == pytest.approx(entropy * x.numel(), rel=0.1)
    assert float(seen[0]) == pytest.approx(second_moment, rel=0.35)
    at_x = float(-noise(x, 1).log_prob(x).sum())
    assert abs(loss - at_x) > 0.2 * x.numel()


def test_gradient_is_that_of_the_likelihood_at_y():
    # d/dw of -log N(y; w, s²), y = x + s eps. Scored at x it would not depend on the noise.
    x = torch.randn(5)

    def model(x):
        w = pyro.param("w", torch.tensor(0.3))
        with pyro.plate("data", 5):
            pyro.sample("x", dist.Delta(w.expand(5)), obs=x)

    guide, seen = recorded(lambda x: None)
    SpreadELBO({"x": GaussianNoise(S)}).loss_and_grads(model, guide, x)
    gradient = pyro.param("w").grad
    assert float(gradient) == pytest.approx(float((0.3 - seen[0]).sum() / S**2), rel=1e-10)
    assert not math.isclose(float(gradient), float((0.3 - x).sum() / S**2), rel_tol=1e-3)


def test_gradient_through_the_guide_counts_the_noise():
    # g(z(y)) = v y with a Delta guide: E d/dv (y - v y)² / (2 s²) = -(1 - v) (x² + s²) / s².
    # With the likelihood at x, the trap of the reference page, s² would be missing one-sidedly.
    x, v, n = torch.tensor([0.7]), 0.4, 1500

    def model(x):
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(0.0, 1e3))
            pyro.sample("x", dist.Delta(z), obs=x)

    def guide(x):
        slope = pyro.param("v", torch.tensor(v))
        with pyro.plate("data", 1):
            pyro.sample("z", dist.Delta(slope * x))

    SpreadELBO({"x": GaussianNoise(S)}, Trace_ELBO(num_particles=n)).loss_and_grads(model, guide, x)
    second = float(x**2) + S**2
    expected = -(1 - v) * second / S**2
    # Var y² = 2 s⁴ + 4 x² s².
    error = (1 - v) / S**2 * math.sqrt((2 * S**4 + 4 * float(x**2) * S**2) / n)
    assert abs(float(pyro.param("v").grad) - expected) < 5 * error


def test_both_sides_are_spread():
    # One-sided noise finds L - s² (noise on the model only) or L + s² (on the data only).
    torch.manual_seed(0)
    x = 1.5 * torch.randn(1000)
    clean = float(x.square().mean())

    def model(x):
        a = pyro.param("a", torch.tensor(1.0))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(a * z), obs=x)

    def guide(x):  # the exact posterior for the current a
        a = pyro.param("a", torch.tensor(1.0)).detach()
        variance = 1 / (1 + a**2 / 1.0)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(variance * a * x, variance.sqrt()))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), SpreadELBO({"x": GaussianNoise(1.0)}))
    for _ in range(150):
        svi.step(x)
    tail = []
    for _ in range(100):
        svi.step(x)
        tail.append(pyro.param("a").item() ** 2)
    # The variance of the data plus the noise is known to 2 / 4000 relatively, and averaged.
    assert sum(tail) / 100 == pytest.approx(clean, abs=0.25)


@pytest.mark.parametrize("kernel", ["gaussian", "channel"])
def test_enumerated_mixture_is_the_exact_marginal(kernel):
    weights = torch.tensor([0.2, 0.3, 0.5])
    if kernel == "gaussian":
        noise, points, x = GaussianNoise(S), torch.tensor([-1.0, 0.0, 2.0]), torch.randn(7)
    else:
        noise, points = ChannelNoise.symmetric(4, 0.3), torch.tensor([0, 1, 3])
        x = torch.randint(4, (7,))
    seen = []

    def model(x):
        with pyro.plate("data", 7):
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Delta(points[k]), obs=x)

    loss = SpreadELBO({"x": noise}, TraceEnum_ELBO()).loss(model, lambda x: seen.append(x), x)
    each = torch.stack([noise(point).log_prob(seen[-1]) for point in points])
    expected = torch.logsumexp(each.double() + weights.log()[:, None], 0).sum()
    assert loss == pytest.approx(-float(expected), rel=1e-6)


def test_enumerated_guide():
    points = torch.tensor([-1.0, 2.0])

    def model(x):
        with pyro.plate("data", 5):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Delta(points[k]), obs=x)

    seen = []

    @config_enumerate
    def guide(x):
        seen.append(x)
        with pyro.plate("data", 5):
            pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))

    loss = SpreadELBO({"x": GaussianNoise(S)}, TraceEnum_ELBO()).loss(model, guide, torch.randn(5))
    q, p = torch.tensor([0.3, 0.7]), torch.tensor([0.4, 0.6])
    log_lik = dist.Normal(points[:, None], S).log_prob(seen[-1])
    expected = (q[:, None] * (log_lik + (p / q).log()[:, None])).sum()
    assert loss == pytest.approx(-float(expected), rel=1e-6)


def test_mask_and_scale():
    x, mask = torch.randn(6, D), torch.tensor([True, False, True, True, False, True])

    def masked(x):
        with pyro.plate("data", 6), poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(z @ A.mT, event_dim=1), obs=x)

    def masked_guide(x):
        with poutine.mask(mask=mask):
            exact_guide(x)

    guide, seen = recorded(poutine.scale(masked_guide, 0.25))
    loss = SpreadELBO({"x": GaussianNoise(S)}).loss(poutine.scale(masked, 0.25), guide, x)
    assert loss == pytest.approx(-0.25 * float((marginal(seen[0]) * mask).sum()), rel=1e-10)


def indexed(size, batch):
    """Model and guide that subsample the full data inside."""

    def model(x):
        with pyro.plate("data", size, subsample_size=batch) as ind:
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(z @ A.mT, event_dim=1), obs=x[ind])

    def guide(x):
        with pyro.plate("data", size, subsample_size=batch) as ind:
            loc = x[ind] @ M.mT
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=SCALE_TRIL))
        seen.append((x, ind))

    seen = []
    return model, guide, seen


def test_subsampled_plate_keeps_its_scale():
    model, guide, seen = indexed(8, 2)
    loss = SpreadELBO({"x": GaussianNoise(S)})
    for _ in range(5):
        value = loss.loss(model, guide, torch.randn(8, D))
        y, ind = seen[-1]
        assert value == pytest.approx(-4 * float(marginal(y[ind]).sum()), rel=1e-10)


def test_mini_batches_keep_their_scale():
    def model(batch, size):
        with pyro.plate("data", size, subsample=batch):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(z @ A.mT, event_dim=1), obs=batch)

    def guide(batch, size):
        with pyro.plate("data", size, subsample=batch):
            pyro.sample("z", dist.MultivariateNormal(batch @ M.mT, scale_tril=SCALE_TRIL))

    guide, seen = recorded(guide)
    loss = SpreadELBO({"x": GaussianNoise(S)}).loss(model, guide, torch.randn(3, D), 12)
    assert loss == pytest.approx(-4 * float(marginal(seen[0]).sum()), rel=1e-10)


def test_subsampling_is_unbiased():
    # The mean over many subsamples is the full expected bound; tolerance from their own variance.
    x, n = torch.randn(8, D), 150
    full = float(marginal(x).sum() - 0.5 * 8 * S**2 * PRECISION.trace())
    model, guide, _ = indexed(8, 3)
    loss = SpreadELBO({"x": GaussianNoise(S)})
    values = torch.tensor([-loss.loss(model, guide, x) for _ in range(n)])
    assert abs(values.mean() - full) < 5 * values.std() / math.sqrt(n)
    unscaled = full * 3 / 8
    assert abs(values.mean() - unscaled) > 10 * values.std() / math.sqrt(n)
