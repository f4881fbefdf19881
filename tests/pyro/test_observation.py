# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A model must observe what it was handed: every element of it is looked at."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import transforms

from pyro_spread import ChannelNoise, GaussianNoise, LaplaceNoise, SpreadELBO, TransformedNoise

SCALAR = GaussianNoise(0.3)
OTHER = "observes something other than the spread value"


def run(observe, x, kernel=SCALAR, event_dim=1, wrap=None, steps=2):
    def model(x):
        with pyro.plate("data", len(x)):
            value = observe(x)
            if isinstance(kernel, ChannelNoise):
                fn = dist.Categorical(torch.ones(*value.shape, 3)).to_event(event_dim)
            else:
                fn = dist.Delta(torch.zeros(value.shape), event_dim=event_dim)
            pyro.sample("x", fn if wrap is None else wrap(fn), obs=value)

    loss = SpreadELBO({"x": kernel})
    return [loss.loss(model, lambda x: None, x) for _ in range(steps)]


def first_differences(x):
    return torch.diff(x, dim=1, prepend=torch.zeros(len(x), 1))


def with_part(change, rows=slice(None), columns=slice(None)):
    def observe(x):
        y = x.clone()
        y[rows, columns] = change(y[rows, columns])
        return y

    return observe


CHANGED = {
    "first differences": first_differences,
    "one column rescaled": with_part(lambda y: 2 * y, columns=3),
    "one row shifted": with_part(lambda y: y + 1, rows=5),
    "one element rounded": with_part(torch.round, rows=2, columns=1),
    "clamped": lambda x: x.clamp(-1, 1),
    "centred": lambda x: x - x.mean(),
    "clean in one column": with_part(lambda y: 0 * y, columns=0),
    "a mean beside": lambda x: torch.cat([x[:, 1:], x.mean(1, keepdim=True)], 1),
}


IN_PLACE = {
    "all": lambda x: x.mul_(2),
    "one row": lambda x: x[0].zero_(),
    "rows of a subsample": lambda x: x[:4].mul_(2),
}


@pytest.mark.parametrize("kernel", [SCALAR, GaussianNoise(torch.linspace(0.2, 0.5, 10))])
@pytest.mark.parametrize("size", [16, 30, 32, 64])
@pytest.mark.parametrize("name", CHANGED)
def test_a_change_of_few_elements_is_seen(name, size, kernel):
    with pytest.raises(ValueError, match=OTHER):
        run(CHANGED[name], torch.randn(size, 10).cumsum(1), kernel)


MOVED = {
    "reshaped": (lambda x: x.reshape(-1, 2, 5), 2),
    "permuted and copied": (lambda x: x.reshape(-1, 2, 5).permute(0, 2, 1).contiguous(), 2),
    "columns": (lambda x: x[:, 2:7], 1),
    "columns by index": (lambda x: x[:, [7, 1, 1]], 1),
    "reversed rows": (lambda x: x.flip(0), 1),
    "cast": (lambda x: x.double(), 1),
    "repeated": (lambda x: x[:, :1].expand(-1, 4), 1),
    "joined": (lambda x: torch.cat([x[:, 5:], x[:, :5]], 1), 1),
}


@pytest.mark.parametrize("name", MOVED)
def test_elements_that_only_move_are_right(name):
    observe, event_dim = MOVED[name]
    run(observe, torch.randn(16, 10), event_dim=event_dim)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(16, 10), torch.randn(16, 10).round(), torch.full((16, 10), -0.0)],
    ids=["zeros", "ties", "negative zeros"],
)
def test_equal_data_are_no_reason(x):
    run(lambda x: x[:, [4, 2]], x)
    with pytest.raises(ValueError, match=OTHER):
        run(first_differences, x)


def test_one_datum_and_masked_data():
    run(lambda x: x, torch.randn(1), event_dim=0)
    mask = torch.arange(16) % 2 == 0
    run(lambda x: x[:, :3], torch.randn(16, 10), wrap=lambda fn: fn.mask(mask))


def test_whole_events_may_move_where_scales_differ():
    scales = GaussianNoise(torch.linspace(0.2, 0.5, 10))
    run(lambda x: x.flip(0), torch.randn(16, 10), scales)
    run(lambda x: x[torch.arange(16) % 7], torch.randn(16, 10), scales)
    with pytest.raises(ValueError, match=OTHER):
        run(lambda x: x.flip(1), torch.randn(16, 10), scales)


def test_scales_by_datum_bind_every_row():
    scales = GaussianNoise(torch.linspace(0.2, 0.5, 16)[:, None])
    run(lambda x: x, torch.randn(16, 10), scales)
    with pytest.raises(ValueError, match=OTHER):
        run(lambda x: x.flip(0), torch.randn(16, 10), scales)


def test_transforms_with_numbers_of_their_own_bind_the_elements():
    around = transforms.AffineTransform(torch.zeros(10), torch.linspace(0.5, 2.0, 10))
    kernel = TransformedNoise(around, GaussianNoise(0.1))
    run(lambda x: x, torch.randn(16, 10), kernel)
    with pytest.raises(ValueError, match=OTHER):
        run(lambda x: x.flip(1), torch.randn(16, 10), kernel)


def test_labels_are_counted():
    labels = torch.arange(60).reshape(20, 3) % 3
    channel = ChannelNoise.symmetric(3, 0.3)
    run(lambda x: x[:, :2], labels, channel)
    run(lambda x: x.reshape(-1, 3).flip(0), labels, channel)
    with pytest.raises(ValueError, match=OTHER):
        run(lambda x: torch.zeros_like(x), labels, channel)
    with pytest.raises(ValueError, match=OTHER):
        run(lambda x: torch.zeros_like(x)[:, :2], labels, channel)


@pytest.mark.parametrize("kernel", [SCALAR, LaplaceNoise(torch.full((2,), 0.3))])
def test_an_empty_observation_names_the_argument(kernel):
    def model(seen, truth):
        with pyro.plate("data", len(seen)):
            value = truth[seen == -1].view(len(seen), -1)
            fn = dist.Delta(torch.zeros(value.shape), event_dim=1)
            pyro.sample("y", fn, obs=value)

    truth = torch.rand(50, 6)
    seen = truth.clone()
    seen[:, 4:] = -1
    message = r"site 'y'.*shape \(50, 0\).*argument 'seen'.*data=\{'y': \.\.\.\}"
    with pytest.raises(ValueError, match=message):
        SpreadELBO({"y": SCALAR}).loss(model, lambda *_: None, seen, truth)
    named = SpreadELBO({"y": SCALAR}, data={"y": "truth"})
    assert named.loss(model, lambda *_: None, seen, truth) > 0


def test_data_inside_of_a_subsample_may_be_taken_further():
    def model(x):
        with pyro.plate("data", 20, subsample_size=4) as index:
            value = x[index][:, 1:3]
            pyro.sample("x", dist.Delta(torch.zeros(2), event_dim=1), obs=value)

    def first_rows(x):
        with pyro.plate("data", 20, subsample_size=4):
            pyro.sample("x", dist.Delta(torch.zeros(5), event_dim=1), obs=x[:4])

    for _ in range(3):
        SpreadELBO({"x": SCALAR}).loss(model, lambda x: None, torch.randn(20, 5))
        SpreadELBO({"x": SCALAR}).loss(first_rows, lambda x: None, torch.randn(20, 5))
