# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What Pyro asks of every distribution, asked of ours, of kernels' and of exact spreads."""

import copy
import itertools
import pickle

import pyro.distributions as dist
import pytest
import torch
from every import KERNELS
from pyro_distribution_cases import Case, diagonal, full, implicit, mixture, normal, simulator
from scipy import integrate
from torch.distributions import constraints

import pyro_spread
from pyro_spread import (
    ChannelNoise,
    DeterministicGenerator,
    GaussianNoise,
    LowRankGaussianNoise,
    Simulator,
)

X = [[0.3, -0.5], [1.5, 0.2], [-0.7, 0.9]]
COLUMN = [0.3, 1.5, -0.7]
TRIL = [[1.0, 0.0], [0.4, 0.7]]
FACTOR = [[0.5], [-0.3]]
MATRIX = [[0.7, 0.1, 0.0], [0.2, 0.8, 0.3], [0.1, 0.1, 0.7]]
LOGITS = [[0.1, 0.5, -1.0], [0.0, 0.0, 0.3], [2.0, -1.0, 0.0]]


def from_kernel(kernel):
    """The distribution of y at three values of x, in x and the kernel's params."""
    params = {name: value for name, value in kernel.params.items() if name != "df"}
    x = kernel.x((3,))

    def make(x=x, **params):
        return kernel.build(pyro_spread, torch.tensor, **params)(
            torch.as_tensor(x), kernel.event_dim
        )

    return Case(
        make,
        params if kernel.discrete else {"x": x, **params},
        kernel.y_shape,
        discrete=kernel.discrete,
        moments=not kernel.discrete,
        listed=True,
    )


CASES = {
    "implicit": Case(
        implicit, {"weight": [0.5, 1.5], "shift": [1.0, -1.0]}, (2,), density=False, moments=False
    ),
    "simulator": Case(
        simulator, {"drift": COLUMN, "start": X}, (2,), density=False, moments=False
    ),
    "generator": Case(
        lambda x: DeterministicGenerator(x, event_dim=1), {"x": X}, (2,), density=False
    ),
    **{name: from_kernel(kernel) for name, kernel in KERNELS.items() if not kernel.variant},
    "spread normal": Case(
        lambda x, scale, s: GaussianNoise(s).spread(normal(x, scale)),
        {"x": COLUMN, "scale": 0.6, "s": 0.4},
    ),
    "spread diagonal": Case(
        lambda x, scale, s: GaussianNoise(s).spread(diagonal(x, scale)),
        {"x": X, "scale": 0.6, "s": 0.4},
        (2,),
    ),
    "spread full": Case(
        lambda x, tril, s: GaussianNoise(s).spread(full(x, tril)),
        {"x": X, "tril": TRIL, "s": 0.4},
        (2,),
    ),
    "low rank of diagonal": Case(
        lambda x, scale, s, f: LowRankGaussianNoise(s, f).spread(diagonal(x, scale)),
        {"x": X, "scale": 0.6, "s": 0.4, "f": FACTOR},
        (2,),
    ),
    "low rank of full": Case(
        lambda x, tril, s, f: LowRankGaussianNoise(s, f).spread(full(x, tril)),
        {"x": X, "tril": TRIL, "s": 0.4, "f": FACTOR},
        (2,),
    ),
    "spread mixture": Case(mixture, {"x": COLUMN, "scale": 0.6, "s": 0.4}),
    "spread channel": Case(
        lambda matrix, logits: ChannelNoise(matrix).spread(dist.Categorical(logits=logits)),
        {"matrix": MATRIX, "logits": LOGITS},
        discrete=True,
        moments=False,
    ),
}  # fmt: skip


def only(**wanted):
    return [
        pytest.param(entry, id=name)
        for name, entry in CASES.items()
        if all(getattr(entry, key) == value for key, value in wanted.items())
    ]


every = pytest.mark.parametrize("entry", only())
scored = pytest.mark.parametrize("entry", only(density=True))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_types_and_support(entry, dtype):
    fn = entry(dtype)
    assert fn.batch_shape == (3,)
    assert fn.event_shape == entry.event_shape
    assert fn.event_dim == len(entry.event_shape)
    for sample_shape in ((), (1,), (4, 2)):
        value = fn.sample(sample_shape)
        assert value.shape == fn.shape(sample_shape) == (*sample_shape, 3, *entry.event_shape)
        assert value.dtype == (torch.int64 if entry.discrete else dtype)
        assert not value.requires_grad
        inside = fn.support.check(value)
        assert inside.shape == (*sample_shape, 3)
        assert inside.all()
    assert fn().shape == fn.shape()
    assert fn.has_enumerate_support == entry.discrete
    assert isinstance(fn.support, constraints.Constraint)
    assert type(fn).__name__ in repr(fn) or repr(fn)


@every
def test_reparametrised_draws_carry_gradients_of_all_params(entry):
    params = {name: value.requires_grad_() for name, value in entry.tensors().items()}
    fn = entry.make(**params)
    if not fn.has_rsample:
        mixture = isinstance(fn, torch.distributions.MixtureSameFamily)
        assert entry.discrete or mixture or isinstance(fn, Simulator)
        with pytest.raises(NotImplementedError):
            fn.rsample()
        return
    value = fn.rsample((5,))
    weights = torch.randn(value.shape, dtype=value.dtype)
    for grad in torch.autograd.grad((value * weights).sum(), list(params.values())):
        assert torch.isfinite(grad).all()
        assert grad.any()


@scored
def test_log_prob_broadcasts(entry):
    fn = entry()
    value = fn.sample((4, 2))
    log_prob = fn.log_prob(value)
    assert log_prob.shape == (4, 2, 3)
    assert torch.isfinite(log_prob).all()
    for i in range(4):
        torch.testing.assert_close(fn.log_prob(value[i]), log_prob[i])
    one = value[:, :, :1]
    full = one.expand(value.shape)
    torch.testing.assert_close(fn.log_prob(one), fn.log_prob(full))


@scored
def test_log_prob_is_differentiable_in_params_and_value(entry):
    params = entry.tensors()
    value = entry.make(**params).sample()
    inputs = [param.requires_grad_() for param in params.values()]

    def log_prob(*inputs):
        fn = entry.make(**dict(zip(params, inputs, strict=True)))
        return fn.log_prob(value)

    if entry.discrete:
        # Columns sum to one, so that finite differences of single entries leave the simplex.
        grads = torch.autograd.grad(log_prob(*inputs).sum(), inputs)
        assert all(torch.isfinite(grad).all() for grad in grads)
        return
    inputs = [p for name, p in zip(params, inputs, strict=True) if name != "tril"]
    names = [name for name in params if name != "tril"]

    def of_free(*free):
        return log_prob(*(params | dict(zip(names, free, strict=True))).values())

    assert torch.autograd.gradcheck(of_free, inputs, atol=1e-5)
    value.requires_grad_()
    (grad,) = torch.autograd.grad(entry.make(**entry.tensors()).log_prob(value).sum(), value)
    assert torch.isfinite(grad).all()


@scored
def test_log_prob_under_jit_and_vmap(entry):
    params = entry.tensors()
    fn = entry.make(**params)
    value = fn.sample()
    dist.enable_validation(False)  # which neither can do
    try:
        fn = entry.make(**params)
        traced = torch.jit.trace(fn.log_prob, (value,), check_trace=False)
        torch.testing.assert_close(traced(value), fn.log_prob(value))
        values = fn.sample((5,))
        mapped = torch.func.vmap(fn.log_prob)(values)
    finally:
        dist.enable_validation(True)
    torch.testing.assert_close(mapped, fn.log_prob(values))


@scored
def test_float32_agrees_with_float64(entry):
    value = entry().sample((5,))
    narrow = value if entry.discrete else value.float()
    torch.testing.assert_close(
        entry(torch.float32).log_prob(narrow).double(),
        entry().log_prob(value),
        rtol=1e-4,
        atol=1e-3,
    )


@every
def test_expand_is_idempotent_and_leaves_the_original(entry):
    fn = entry()
    same = fn.expand(fn.batch_shape)
    assert same.batch_shape == (3,)
    once = fn.expand((2, 3))
    for wide in (
        fn.expand((4, 2, 3)),
        once.expand((4, 2, 3)),
        once.expand((2, 3)).expand((4, 2, 3)),
    ):
        assert wide.batch_shape == (4, 2, 3)
        assert wide.event_shape == fn.event_shape
        value = wide.sample((2,))
        assert value.shape == (2, 4, 2, 3, *entry.event_shape)
        if entry.density:
            torch.testing.assert_close(wide.log_prob(value), fn.log_prob(value))
        if not entry.discrete and not isinstance(fn, DeterministicGenerator):
            assert not torch.equal(value[:, 0], value[:, 1])  # draws, not copies
    assert fn.batch_shape == (3,)
    with pytest.raises((RuntimeError, ValueError)):
        fn.expand((4,)).sample()


@every
def test_to_event_and_mask(entry):
    fn = entry()
    value = fn.sample((2,))
    moved = fn.to_event(1)
    assert moved.batch_shape == ()
    assert moved.event_shape == (3, *entry.event_shape)
    assert fn.to_event(0).batch_shape == (3,)
    with pytest.raises(ValueError, match=r"[Ee]xpected|reinterpreted"):
        fn.to_event(2)
    mask = torch.tensor([True, False, True])
    masked = fn.mask(mask)
    assert masked.sample().shape == fn.shape()
    assert masked.expand((2, 3)).batch_shape == (2, 3)
    if not entry.density:
        return
    torch.testing.assert_close(moved.log_prob(value), fn.log_prob(value).sum(-1))
    expected = torch.where(mask, fn.log_prob(value), torch.zeros(()).double())
    torch.testing.assert_close(masked.log_prob(value), expected)
    assert not fn.mask(False).log_prob(value).any()


@pytest.mark.parametrize("entry", only(density=False))
def test_without_a_density(entry):
    fn = entry()
    for one in (fn, fn.expand((2, 3)), fn.to_event(1), fn.mask(torch.tensor([True, False, True]))):
        with pytest.raises(NotImplementedError, match=r"SpreadELBO|(Prior|Joint)ContrastELBO"):
            one.log_prob(one.sample())


@pytest.mark.parametrize("entry", only(discrete=True))
def test_enumerated_support_has_probability_one(entry):
    fn = entry()
    for expand, shape in ((True, (3, 3)), (False, (3, 1))):
        values = fn.enumerate_support(expand=expand)
        assert values.shape == shape
        torch.testing.assert_close(fn.log_prob(values).exp().sum(0), torch.ones(3).double())
    frequency = torch.stack([(fn.sample((20000,)) == k).double().mean(0) for k in range(3)])
    expected = fn.log_prob(fn.enumerate_support()).exp()
    error = (expected * (1 - expected) / 20000).sqrt()
    assert ((frequency - expected).abs() < 5 * error + 1e-9).all()


@pytest.mark.parametrize("entry", only(moments=True))
def test_mean_and_variance_are_those_of_draws(entry):
    fn, count = entry(), 20000
    if isinstance(fn, dist.TransformedDistribution):
        pytest.skip("has no moments in closed form")
    draws = fn.sample((count,))
    try:
        variance = fn.variance
    except NotImplementedError:
        pytest.skip("has no moments in closed form")
    if not torch.isfinite(variance).all():
        pytest.skip("has no finite variance")
    assert fn.mean.shape == variance.shape == fn.shape()
    error = (variance / count).sqrt()
    assert ((draws.mean(0) - fn.mean).abs() <= 5 * error + 1e-12).all()
    fourth = (draws - fn.mean).pow(4).mean(0)
    spread = ((fourth - variance**2).clamp_min(0) / count).sqrt()
    assert ((draws.var(0) - variance).abs() <= 6 * spread + 1e-12).all()


@pytest.mark.parametrize("entry", only(event_shape=(), discrete=False, listed=False))
def test_density_integrates_to_one(entry):
    fn = entry()

    def density(i):
        return lambda y: float(fn.log_prob(torch.full((3,), y, dtype=torch.float64))[i].exp())

    for i in range(3):
        # In pieces around the mass, as heavy tails and kinks need.
        points = [-200.0, -20.0, -5.0, -1.0, 0.0, 1.0, 2.0, 5.0, 20.0, 200.0]
        total = sum(
            integrate.quad(density(i), a, b, limit=200)[0] for a, b in itertools.pairwise(points)
        )
        assert total == pytest.approx(1.0, abs=1e-6)


@scored
def test_entropy_is_minus_the_expected_log_density(entry):
    fn = entry()
    try:
        entropy = fn.entropy()
    except NotImplementedError:
        return
    surprise = -fn.log_prob(fn.sample((20000,)))
    assert entropy.shape == (3,)
    error = surprise.std(0) / 20000**0.5
    assert ((surprise.mean(0) - entropy).abs() < 5 * error + 1e-9).all()


@every
def test_copies(entry):
    fn = entry()
    for twin in (copy.deepcopy(fn), pickle.loads(pickle.dumps(fn))):
        torch.manual_seed(1)
        expected = fn.sample((2,))
        torch.manual_seed(1)
        assert torch.equal(twin.sample((2,)), expected)
        if entry.density:
            torch.testing.assert_close(twin.log_prob(expected), fn.log_prob(expected))


@scored
def test_values_outside_of_the_support_are_refused(entry):
    fn = entry()
    value = fn.sample()
    bad = torch.full_like(value, 7) if entry.discrete else torch.full_like(value, float("nan"))
    with pytest.raises(ValueError, match=r"Expected value argument|within the support|NaN"):
        fn.log_prob(bad)
    with pytest.raises((ValueError, RuntimeError)):
        fn.log_prob(torch.zeros(3, 7).to(value))


def test_stock_kl_divergences_are_as_they_were():
    registry = torch.distributions.kl._KL_REGISTRY
    for pair, rule in registry.items():
        for part in (*pair, rule):
            assert not part.__module__.startswith("pyro_spread")
