# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Log-ratios by classification: losses on logits, adapters, penalties and diagnostics."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pyro_spread.infer._critic import Judge, penalise
from pyro_spread.ratio import (
    R1,
    GradientPenalty,
    Regularizer,
    SiteValues,
    concat_sites,
    critic_report,
    log_ratio,
    logistic_loss,
    prior_log_odds,
    site_features,
)
from spread_analysis import critic_report as reference_report

LOGITS_P = torch.tensor([0.3, -1.2, 2.0])
LOGITS_Q = torch.tensor([-0.5, 0.1, -2.0, 1.4, 0.0])


def cross_entropy(logits, label):
    share = 1 / (1 + np.exp(-np.asarray(logits, dtype=float)))
    return -(label * np.log(share) + (1 - label) * np.log(1 - share))


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
def test_loss_by_hand(pi):
    """Each side is averaged by itself: 3 data and 5 draws still stand for the stated pi."""
    expected = pi * cross_entropy(LOGITS_P, 1).mean()
    expected += (1 - pi) * cross_entropy(LOGITS_Q, 0).mean()
    assert logistic_loss(LOGITS_P, LOGITS_Q, pi).item() == pytest.approx(expected, rel=1e-6)
    doubled = logistic_loss(LOGITS_P.repeat(2), LOGITS_Q, pi).item()
    assert doubled == pytest.approx(expected, rel=1e-6)


def test_weights_by_hand():
    w, v = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([2.0, 1.0, 0.0, 0.5, 1.0])
    value = logistic_loss(LOGITS_P, LOGITS_Q, 0.3, w, v).item()
    expected = 0.3 * np.average(cross_entropy(LOGITS_P, 1), weights=w)
    expected += 0.7 * np.average(cross_entropy(LOGITS_Q, 0), weights=v)
    assert value == pytest.approx(expected, rel=1e-6)
    assert logistic_loss(LOGITS_P, LOGITS_Q, 0.3, 9 * w, v).item() == pytest.approx(value)
    assert value != pytest.approx(logistic_loss(LOGITS_P, LOGITS_Q, 0.3).item(), rel=1e-2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weight_zero_hides_a_broken_logit(bad, smoothing):
    logits = torch.tensor([bad, 1.0, -2.0], requires_grad=True)
    weights = torch.tensor([0.0, 1.0, 1.0])
    value = logistic_loss(logits, logits, 0.3, weights, weights, smoothing)
    value.backward()
    kept = logits.detach()[1:].requires_grad_()
    expected = logistic_loss(kept, kept, 0.3, label_smoothing=smoothing)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(logits.grad, torch.cat([torch.zeros(1), kept.grad]))


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
def test_minimum_is_entropy_less_js(pi):
    """P = (.7, .2, .1), Q = (.1, .3, .6): the optimal logits, and no others, give H(pi) - JS."""
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    m = pi * p + (1 - pi) * q
    js = pi * (p * np.log(p / m)).sum() + (1 - pi) * (q * np.log(q / m)).sum()
    entropy = -pi * math.log(pi) - (1 - pi) * math.log(1 - pi)
    logits = torch.tensor(np.log(p / q) + prior_log_odds(pi), requires_grad=True)
    value = logistic_loss(logits, logits, pi, torch.tensor(p), torch.tensor(q))
    assert entropy - value.item() == pytest.approx(js, rel=1e-10)
    value.backward()
    assert logits.grad.abs().max() < 1e-12
    off = torch.tensor(np.log(p / q) + 0.3)
    other = logistic_loss(off, off, pi, torch.tensor(p), torch.tensor(q)).item()
    assert entropy - other < js - 1e-4


def test_prior_odds_are_taken_off():
    logits = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(log_ratio(logits, 0.9), logits - math.log(9))
    torch.testing.assert_close(log_ratio(logits, 0.1), logits + math.log(9))
    assert torch.equal(log_ratio(logits), logits)
    assert prior_log_odds(1e-300) == pytest.approx(math.log(1e-300))


def test_label_smoothing_is_one_sided():
    value = logistic_loss(LOGITS_P, LOGITS_Q, 0.3, label_smoothing=0.1).item()
    expected = 0.3 * cross_entropy(LOGITS_P, 0.9).mean() + 0.7 * cross_entropy(LOGITS_Q, 0).mean()
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [17.0, 1e4])
def test_saturated_logits_in_float32(size):
    """A sigmoid before the logarithm has no gradient at a confidently wrong logit of 17."""
    p = torch.tensor([size, -size], requires_grad=True)
    q = torch.tensor([size, -size], requires_grad=True)
    value = logistic_loss(p, q, 0.25)
    value.backward()
    assert value.item() == pytest.approx(size / 2, rel=1e-6)
    assert p.grad[1].item() == pytest.approx(-0.25 / 2, rel=1e-6)
    assert q.grad[0].item() == pytest.approx(0.75 / 2, rel=1e-6)
    right = math.exp(-size) if size < 100 else 0.0
    assert p.grad[0].item() == pytest.approx(-0.25 / 2 * right, rel=1e-4, abs=1e-30)
    assert q.grad[1].item() == pytest.approx(0.75 / 2 * right, rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("pi", [0, 1, -0.1, 1.5, float("nan")])
def test_bad_pi(pi):
    for call in (lambda: log_ratio(LOGITS_P, pi), lambda: logistic_loss(LOGITS_P, LOGITS_Q, pi)):
        with pytest.raises(ValueError, match=rf"must lie in \(0, 1\), got {pi}"):
            call()


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_bad_label_smoothing(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got"):
        logistic_loss(LOGITS_P, LOGITS_Q, label_smoothing=smoothing)


# --- adapters ------------------------------------------------------------------------------------


class Keep(nn.Module):
    """A net that keeps what it got."""

    def forward(self, x):
        self.got = x
        return x.sum(-1, keepdim=True)


def test_concat_sites_by_name_and_order():
    x, z = torch.randn(5, 2, 3), torch.randn(5)
    values = SiteValues({"x": x, "z": z}, (5,))
    critic = concat_sites(Keep(), "z", "x")
    logits = critic(values)
    assert torch.equal(critic.net.got, torch.cat([z[:, None], x.reshape(5, 6)], -1))
    torch.testing.assert_close(logits, critic.net.got.sum(-1))
    every = concat_sites(Keep())
    every(values)
    assert torch.equal(every.net.got, torch.cat([x.reshape(5, 6), z[:, None]], -1))


def test_arguments_by_position_and_keyword():
    x, c = torch.randn(5, 2), torch.arange(5)
    critic = concat_sites(Keep(), "c", "x")
    critic(SiteValues({"x": x}, (5,), {"c": c}), c)
    expected = torch.cat([c[:, None].float(), x], -1)
    assert torch.equal(critic.net.got, expected)
    assert critic.net.got.dtype == torch.float32
    critic({"x": x}, c=c)
    assert torch.equal(critic.net.got, expected)
    # A site wins over an argument of the same name, and what a loss has reduced over a keyword.
    assert torch.equal(site_features(SiteValues({"x": x}, (5,), {"x": c}), "x"), x)
    values = SiteValues({"x": x}, (5,), {"c": c})
    assert torch.equal(site_features(values, "c", {"c": c + 1}), c[:, None].float())


def test_features_take_the_type_of_the_sites():
    values = SiteValues({"x": torch.zeros(2, dtype=torch.float64)}, (2,), {"c": [True, False]})
    features = site_features(values, "c")
    assert features.dtype == torch.float64
    assert features.tolist() == [[1.0], [0.0]]
    assert site_features({"k": torch.arange(2)}, "k").dtype == torch.float32


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (2, 1, 3)])
def test_batch_shapes(batch):
    values = SiteValues({"x": torch.randn(*batch, 2, 2), "y": torch.randn(batch)}, batch)
    assert values.batch_ndim == len(batch)
    assert concat_sites(nn.Linear(5, 1))(values).shape == batch
    assert concat_sites(lambda h: h.sum(-1), "x")(values).shape == batch
    assert values.replaced({"y": values["y"]}).batch_shape == batch


def test_net_is_a_submodule():
    net = nn.Linear(2, 1)
    assert list(concat_sites(net).parameters()) == list(net.parameters())


VALUES = SiteValues({"x": torch.zeros(5, 3)}, (5,), {"c": torch.zeros(4), "none": None})
MISTAKES = [
    (lambda: concat_sites(nn.Linear(3, 2))(VALUES), ValueError, r"returned shape \(5, 2\) for fea"),
    (lambda: concat_sites(lambda h: h.mean())(VALUES), ValueError, r"\(\) for .* \(5,\) or \(5, 1"),
    (lambda: concat_sites(Keep(), "nope")(VALUES), ValueError, r"'nope'.*\['x'\].*\['c', 'none'\]"),
    (lambda: concat_sites(Keep(), "none")(VALUES), ValueError, "'none' is neither a site"),
    (lambda: concat_sites(Keep(), "c")(VALUES), ValueError, r"'c' of shape \(4,\) does not begin"),
    (lambda: concat_sites(3, "x"), TypeError, "discriminator must be callable.* got 3"),
    (lambda: concat_sites(Keep(), "x", 0), TypeError, "concat_sites: names must be strings, got 0"),
]


@pytest.mark.parametrize(("mistake", "kind", "match"), MISTAKES)
def test_adapter_mistakes(mistake, kind, match):
    with pytest.raises(kind, match=match):
        mistake()


# --- penalties -----------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """x'Ax / 2 of a symmetric A, whose gradient is A x."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[2.0, 0.5], [0.5, 1.0]]))

    def forward(self, x):
        return 0.5 * (x @ self.matrix * x).sum(-1)


def sides(num_data=6, num_model=6):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(num_data, 2, generator=draw)
    y = torch.randn(num_model, 2, generator=draw)
    return SiteValues({"x": x}, (num_data,)), SiteValues({"x": y}, (num_model,))


def test_r1_by_hand():
    data, model = sides(6, 4)
    net = Quadratic()
    squares = (data["x"] @ net.matrix).square().sum(-1)
    value = R1(gamma=3.0).penalty(concat_sites(net), data, model)
    assert value.item() == pytest.approx(1.5 * squares.mean().item(), rel=1e-5)
    weights = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0, 3.0])
    value = R1(gamma=3.0).penalty(concat_sites(net), data, model, weights)
    expected = 1.5 * np.average(squares.detach(), weights=weights)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_r1_adds_up_sites():
    x, y = torch.randn(5, 2), torch.randn(5)
    values = SiteValues({"x": x, "y": y, "unused": y}, (5,))
    value = R1(gamma=2.0).penalty(lambda v: 3 * v["x"].sum(-1) + v["y"] ** 2, values, values)
    assert value.item() == pytest.approx((9 * 2 + 4 * y.square().mean()).item(), rel=1e-5)


@pytest.mark.parametrize("target", [1.0, 0.0, 7.0])
def test_gradient_penalty_of_a_linear_critic(target):
    data, model = sides()
    w = torch.tensor([3.0, -4.0])
    penalty = GradientPenalty(2.0, target)
    value = penalty.penalty(lambda v: v["x"] @ w, data, model)
    assert value.item() == pytest.approx(2 * (5 - target) ** 2, rel=1e-5)


def test_gradient_penalty_looks_between_the_sides():
    """The critic's gradient 2x is t * data between data d and draws 0, with t uniform."""
    data = SiteValues({"x": torch.full((4000, 1), 3.0), "y": torch.full((4000,), 3.0)}, (4000,))
    model = data.replaced({"x": torch.zeros(4000, 1), "y": torch.zeros(4000)})
    seen = []

    def critic(values):
        seen.append(values)
        return values["x"].square().sum(-1) / 2

    value = GradientPenalty(1.0, target=0.0).penalty(critic, data, model)
    assert value.item() == pytest.approx(3.0, rel=0.06)  # 9 E t²
    x = seen[0]["x"][:, 0]
    assert torch.equal(x, seen[0]["y"])  # one point of the joint space
    assert 0 <= x.min() < 0.1 < 2.9 < x.max() <= 3


@pytest.mark.parametrize("make", [R1, GradientPenalty])
def test_lazy_penalties_are_right_on_average(make):
    data, _ = sides()  # the same on both sides: no randomness but that of the turns
    critic = concat_sites(Quadratic())
    expected = make().penalty(critic, data, data).item()
    lazy, judged = make(every=4), Judge(critic, (), {})
    values = [
        penalise(torch.zeros(()), lazy, judged, data, data, (None, None)).item() for _ in range(400)
    ]
    taken = [value for value in values if value]
    assert len(taken) == pytest.approx(100, abs=4 * math.sqrt(400 * 3 / 16))
    assert taken == pytest.approx([4 * expected] * len(taken), rel=1e-5)


@pytest.mark.parametrize("penalty", [R1(), GradientPenalty(target=0.5)])
def test_penalties_train_the_critic_only(penalty):
    data, model = sides()
    for values in (data, model):
        values["x"].requires_grad_()
    net = Quadratic()
    penalty.penalty(concat_sites(net), data, model).backward()
    assert data["x"].grad is None
    assert model["x"].grad is None
    assert net.matrix.grad.abs().min() > 0


def test_flat_critic_has_a_finite_penalty():
    data, model = sides()
    net = nn.Linear(2, 1)
    nn.init.zeros_(net.weight)
    value = GradientPenalty(10.0).penalty(concat_sites(net), data, model)
    value.backward()
    assert value.item() == pytest.approx(10.0, rel=1e-5)
    assert torch.isfinite(net.weight.grad).all()


REFUSALS = [
    (lambda: R1(0.0), "R1: gamma must be positive, got 0.0"),
    (lambda: R1(float("nan")), "R1: gamma must be positive"),
    (lambda: GradientPenalty(-1.0), "GradientPenalty: weight must be positive, got -1.0"),
    (lambda: R1(every=0), "every must be a positive integer, got 0"),
    (lambda: GradientPenalty(every=1.5), "every must be a positive integer, got 1.5"),
    (
        lambda: GradientPenalty().penalty(concat_sites(Quadratic()), *sides(6, 4)),
        r"site 'x': .* shapes are \(6, 2\) and \(4, 2\)",
    ),
]


@pytest.mark.parametrize(("mistake", "match"), REFUSALS)
def test_penalty_mistakes(mistake, match):
    with pytest.raises(ValueError, match=match):
        mistake()


def test_a_penalty_must_say_what_it_is():
    with pytest.raises(NotImplementedError):
        Regularizer().penalty(concat_sites(Quadratic()), *sides())


# --- diagnostics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_report_of_tensors(dtype):
    p = torch.randn(4, 5).to(dtype).requires_grad_()
    q = (torch.randn(3, 2, 2) - 1).to(dtype).requires_grad_()
    mask = torch.arange(20).reshape(4, 5) > 4
    report = critic_report(p, q, 0.3, 5, mask)
    arrays = [t.detach().double().numpy().ravel() for t in (p, q, mask)]
    expected = reference_report(arrays[0], arrays[1], 0.3, 5, arrays[2])
    assert repr(report) == repr(expected)
    assert repr(critic_report(p, q)) != repr(expected)
