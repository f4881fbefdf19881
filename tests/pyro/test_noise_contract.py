# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What every kernel promises, whatever it is made of."""

import copy
import dataclasses
import pickle

import pyro.distributions as dist
import pytest
import torch

from pyro_spread import DeterministicGenerator, GaussianNoise, TransformedNoise

DTYPES = (torch.float32, torch.float64)
BATCHES = ((), (1,), (5,), (4, 5))


def value_type(case, dtype):
    return torch.int64 if case.discrete else dtype


@pytest.mark.parametrize("batch_shape", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_types(case, batch_shape, dtype):
    fn = case.make(dtype)(case.x(batch_shape, dtype), case.event_dim)
    assert fn.batch_shape == batch_shape
    assert fn.event_shape == case.y_shape
    y = fn.sample((7,))
    assert y.shape == (7, *batch_shape, *case.y_shape)
    assert y.dtype == value_type(case, dtype)
    log_prob = fn.log_prob(y)
    assert log_prob.shape == (7, *batch_shape)
    assert log_prob.dtype == dtype
    assert torch.isfinite(log_prob).all()


@pytest.mark.parametrize("tensors", DTYPES)
@pytest.mark.parametrize("values", DTYPES)
def test_type_follows_the_value_not_the_parameters(case, tensors, values):
    if case.discrete:
        pytest.skip("labels have no floating type")
    noise, x = case.make(tensors), case.x((5,), values)
    fn = noise(x, case.event_dim)
    assert noise.draw(x).dtype == fn.sample().dtype == fn.log_prob(fn.sample()).dtype == values


@pytest.mark.parametrize("batch_shape", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_draw_has_the_shape_of_y(case, batch_shape, dtype):
    x = case.x(batch_shape, dtype)
    before = x.clone()
    y = case.make(dtype).draw(x)
    assert y.shape == (*batch_shape, *case.y_shape)
    assert y.dtype == value_type(case, dtype)
    assert torch.equal(x, before)


def test_draw_of_an_empty_batch(case):
    noise = case.make(torch.float32)
    assert noise.draw(case.x((0,))).shape == (0, *case.y_shape)


def test_draw_and_call_are_the_same_distribution(case):
    # The same random numbers through both, and both depend on x in the same way.
    noise, x = case.make(torch.float64), case.x((5,), torch.float64)
    torch.manual_seed(3)
    drawn = noise.draw(x)
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, noise(x, case.event_dim).sample())


def test_draws_are_fresh(case):
    noise, x = case.make(torch.float32), case.x((50,))
    assert not torch.equal(noise.draw(x), noise.draw(x))
    rows = noise(x[:1].expand(x.shape), case.event_dim).sample()
    assert not torch.equal(rows[:25], rows[25:])


def test_expand(case):
    x = case.x((5,), torch.float64)
    fn = case.make(torch.float64)(x, case.event_dim)
    wide = fn.expand((4, 5))
    assert wide.batch_shape == (4, 5)
    assert wide.event_shape == fn.event_shape
    y = wide.sample((2,))
    assert y.shape == (2, 4, 5, *case.y_shape)
    torch.testing.assert_close(wide.log_prob(y), fn.log_prob(y))
    if not case.discrete:
        assert not torch.equal(y[:, 0], y[:, 1])


def test_to_event(case):
    x = case.x((4, 5), torch.float64)
    noise = case.make(torch.float64)
    fn = noise(x, case.event_dim)
    y = fn.sample()
    moved = fn.to_event(1)
    assert moved.batch_shape == (4,)
    torch.testing.assert_close(moved.log_prob(y), fn.log_prob(y).sum(-1))
    if noise._is_elementwise():
        torch.testing.assert_close(noise(x, case.event_dim + 1).log_prob(y), moved.log_prob(y))
        assert noise(x, case.event_dim + 1).expand((3, 4)).batch_shape == (3, 4)


def test_mask(case):
    fn = case.make(torch.float64)(case.x((4,), torch.float64), case.event_dim)
    mask = torch.tensor([True, False, True, False])
    y = fn.sample()
    expected = torch.where(mask, fn.log_prob(y), torch.zeros(4))
    torch.testing.assert_close(fn.mask(mask).log_prob(y), expected)


def test_vmap(case):
    x = case.x((5,), torch.float64)
    noise = case.make(torch.float64)
    if case.discrete or case.positive:
        pytest.skip("the range of x is checked, which vmap cannot")
    expected = noise(x, case.event_dim)
    y = expected.sample()
    dist.enable_validation(False)  # stock distributions cannot be validated under vmap
    try:
        mapped = torch.func.vmap(lambda x, y: noise(x, case.event_dim).log_prob(y))(x, y)
        gradient = torch.func.vmap(
            torch.func.grad(lambda x, y: noise(x, case.event_dim).log_prob(y))
        )(x, y)
    finally:
        dist.enable_validation(True)
    torch.testing.assert_close(mapped, expected.log_prob(y))
    assert gradient.shape == x.shape


def test_pickle_and_deepcopy(case):
    noise, x = case.make(torch.float64), case.x((5,), torch.float64)
    fn = noise(x, case.event_dim)
    y = fn.sample()
    for twin in (pickle.loads(pickle.dumps(noise)), copy.deepcopy(noise)):
        assert type(twin) is type(noise)
        torch.testing.assert_close(twin(x, case.event_dim).log_prob(y), fn.log_prob(y))


def test_copied_distribution(case):
    x = case.x((5,), torch.float64)
    fn = case.make(torch.float64)(x, case.event_dim)
    y = fn.sample()
    for twin in (pickle.loads(pickle.dumps(fn)), copy.deepcopy(fn)):
        torch.testing.assert_close(twin.expand((2, 5)).log_prob(y), fn.log_prob(y).expand(2, 5))


def test_immutable(case):
    noise = case.make(torch.float32)
    for field in dataclasses.fields(noise):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(noise, field.name, 1.0)


def test_gradients_of_a_learnable_scale(case):
    if not case.learns:
        pytest.skip("has no scale")
    torch.set_default_dtype(torch.float64)
    try:
        x = case.x((5,), torch.float64)
        y = case.learnable(0.7)(x, case.event_dim).sample()

        def log_prob(scale):
            return case.learnable(scale)(x, case.event_dim).log_prob(y).sum()

        scale = torch.nn.Parameter(torch.tensor(0.4))
        assert torch.autograd.gradcheck(log_prob, (scale,), eps=1e-6, atol=1e-5)
        # The draws are reparametrised: y moves with the scale, and with x.
        x.requires_grad_()
        drawn = case.learnable(scale).draw(x).sum()
        by_scale, by_x = torch.autograd.grad(drawn, (scale, x))
        assert torch.isfinite(by_scale)
        assert by_scale != 0
        assert torch.isfinite(by_x).all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_gradient_with_respect_to_x(case):
    if case.discrete:
        pytest.skip("labels have no gradient")
    noise, x = case.make(torch.float64), case.x((2,), torch.float64)
    y = noise(x, case.event_dim).sample()
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: noise(x, case.event_dim).log_prob(y).sum(), (x,), atol=1e-5
    )


@pytest.mark.parametrize("wrap", [dist.Delta, DeterministicGenerator])
def test_spread_of_a_delta_is_the_kernel(case, wrap):
    noise, x = case.make(torch.float64), case.x((4, 5), torch.float64)
    expected = noise(x, case.event_dim)
    y = expected.sample()
    inside = [
        wrap(x, event_dim=case.event_dim),
        wrap(x).to_event(case.event_dim),
        wrap(x, event_dim=case.event_dim).mask(True),
        wrap(x[0], event_dim=case.event_dim).expand((4, 5)),
    ]
    for fn in inside[:3]:
        spread = noise.spread(fn)
        assert spread.batch_shape == (4, 5)
        assert spread.event_shape == case.y_shape
        torch.testing.assert_close(spread.log_prob(y), expected.log_prob(y))
    row = noise(x[0], case.event_dim).log_prob(y)
    torch.testing.assert_close(noise.spread(inside[3]).log_prob(y), row)


def test_transform_is_not_remembered():
    # Pyro's own transforms cache f(x) by the identity of x, here filled anew in place.
    noise = TransformedNoise(dist.transforms.Permute(torch.tensor([1, 0])), GaussianNoise(1e-6))
    x = torch.tensor([1.0, 2.0])
    noise.draw(x)
    x.fill_(5.0)
    assert noise.draw(x).round().tolist() == [5.0, 5.0]


def test_learnable_transform_in_full_batches():
    flow = dist.transforms.affine_coupling(2, hidden_dims=[4])
    noise, x = TransformedNoise(flow, GaussianNoise(0.1)), torch.randn(5, 2)
    for _ in range(2):  # a second backward through a remembered graph would fail
        noise.draw(x).sum().backward()


def test_repr_names_the_kernel(case):
    noise = case.make(torch.float32)
    assert repr(noise).startswith(type(noise).__name__)


def test_kernels_are_compared_by_identity():
    one = GaussianNoise(torch.tensor([0.1, 0.2]))
    assert one == one
    assert one != GaussianNoise(torch.tensor([0.1, 0.2]))
    assert len({one, GaussianNoise(0.1)}) == 2
