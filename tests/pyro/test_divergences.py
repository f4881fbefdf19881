# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Divergences in float32: stable, finite, and clear about what they refuse."""

import copy
import pickle

import every
import numpy as np
import pytest
import torch
from every import instances

import pyro_spread
from pyro_spread import (
    KL,
    ChiSquared,
    Divergence,
    JSPi,
    TotalVariation,
)
from pyro_spread.divergences import non_saturating_loss

TRAINED = [*instances(pyro_spread, every.TRAINED), pyro_spread.JSPi(0.01)]
ALL = [*TRAINED, TotalVariation()]
METHODS = ["data_term", "model_term", "generator_loss"]


def value_and_gradient(function, x):
    x = x.detach().requires_grad_()
    value = function(x)
    if not value.requires_grad:
        return value, torch.zeros_like(x)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("divergence", TRAINED, ids=repr)
def test_float32_is_finite_and_right_to_80(divergence, method):
    x = torch.linspace(-80, 80, 641)
    function = getattr(divergence, method)
    single = value_and_gradient(function, x)
    double = value_and_gradient(function, x.double())
    for one, other in zip(single, double, strict=True):
        assert one.dtype == torch.float32
        assert torch.isfinite(one).all()
        # exp(x) keeps the relative precision of float32 times x.
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=2e-5, atol=2e-7)


def test_small_log_ratios_keep_their_digits():
    x = torch.tensor([-1e-4, 1e-4])
    np.testing.assert_allclose(ChiSquared().data_term(x), np.expm1([-1e-4, 1e-4]), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("divergence", TRAINED, ids=repr)
def test_infinite_log_ratios_give_no_nan(divergence, method):
    for output in value_and_gradient(
        getattr(divergence, method), torch.tensor([torch.inf, -torch.inf])
    ):
        assert not torch.isnan(output).any()


def test_jspi_is_finite_where_its_limit_is():
    infinite = torch.tensor([torch.inf])
    estimate = JSPi(0.3).estimate(infinite, -infinite)
    np.testing.assert_allclose(estimate.numpy(), JSPi(0.3).upper, rtol=1e-6)


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_nan_stays_visible(divergence):
    nan = torch.tensor([torch.nan, 0.0])
    assert torch.isnan(divergence.estimate(nan, nan))


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_weight_zero_leaves_a_sample_out_with_its_gradient(divergence):
    x = torch.tensor([0.5, torch.nan, torch.inf, -1.0], requires_grad=True)
    mask = torch.tensor([True, False, False, True])
    kept = torch.tensor([0.5, -1.0])
    estimate = divergence.estimate(x, x, mask, mask)
    np.testing.assert_allclose(estimate.detach(), divergence.estimate(kept, kept), rtol=1e-6)
    gradient = torch.autograd.grad(estimate, x)[0]
    assert torch.isfinite(gradient).all()
    assert (gradient[1:3] == 0).all()


def test_weights_are_scaled_to_sum_to_one():
    x, weights = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([300.0, 100.0])
    assert KL().estimate(x, x, weights) == pytest.approx((3 * (1 + 3) + (2 + 5)) / 8)
    assert KL().estimate(x, x, torch.zeros(2)) == 0


@pytest.mark.parametrize("weights", [None, torch.ones(10_000)], ids=["none", "ones"])
def test_a_mean_of_finite_terms_is_finite(weights):
    x = torch.full((10_000,), 80.0)  # the plain sum, 5.5e38, is beyond float32
    assert torch.isfinite(ChiSquared().estimate(x, x, weights))


def test_exponential_keeps_its_slope_where_it_is_continued():
    for x in (80.0, 80.001, 120.0):
        slope = value_and_gradient(KL().generator_loss, torch.tensor([x]).double())[1]
        np.testing.assert_allclose(slope, -np.exp(80.0), rtol=1e-12)


def test_total_variation_is_twice_the_balanced_accuracy_minus_one():
    p, q = torch.tensor([1.0, 2.0, -3.0, 4.0]), torch.tensor([-1.0, 2.0])
    assert TotalVariation().estimate(p, q) == pytest.approx(2 * (0.75 + 0.5) / 2 - 1)


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_value_semantics(divergence):
    for twin in (copy.deepcopy(divergence), pickle.loads(pickle.dumps(divergence))):
        assert twin == divergence
        assert hash(twin) == hash(divergence)
        assert twin.upper == divergence.upper
    assert isinstance(divergence, Divergence)
    with pytest.raises(AttributeError):
        divergence.pi = 0.3


def test_prior():
    assert JSPi(0.2).pi == 0.2
    assert KL().pi == 0.5
    with pytest.raises(TypeError, match="pi"):
        JSPi()


@pytest.mark.parametrize("pi", [0.0, 1.0, 0, 1, -0.1, 1.5, float("nan")])
def test_prior_outside_its_range(pi):
    with pytest.raises(
        ValueError, match=r"pi must lie.*KL\(\) \(pi -> 0\).*ReverseKL\(\) \(pi -> 1"
    ):
        JSPi(pi)


@pytest.mark.parametrize("pi", ["0.5", None, True, torch.tensor(0.5)])
def test_prior_that_is_no_number(pi):
    with pytest.raises(TypeError, match="pi must be a plain Python number"):
        JSPi(pi)


@pytest.mark.parametrize("bad", [0.5, [0.5], np.zeros(3, int), torch.zeros(3).long()], ids=repr)
def test_what_is_not_a_floating_point_tensor(bad):
    good = torch.zeros(3)
    with pytest.raises(TypeError, match=r"log_ratio_p must be a torch.Tensor of floating-point"):
        KL().estimate(bad, good)
    with pytest.raises(TypeError, match="log_ratio_q must be"):
        KL().estimate(good, bad)
    for divergence in TRAINED:
        with pytest.raises(TypeError, match="log_ratio_q must be"):
            divergence.generator_loss(bad)
    with pytest.raises(TypeError, match="logits must be"):
        non_saturating_loss(bad)


def test_arrays_of_numpy_do_not_mix_with_tensors():
    tensor, array = torch.zeros(3), np.zeros(3)
    for arguments in [(array, tensor), (tensor, array), (tensor, tensor, array)]:
        with pytest.raises(TypeError, match=r"must be a torch.Tensor .* got ndarray"):
            KL().estimate(*arguments)


def test_bad_weights():
    x = torch.zeros(4, 3)
    with pytest.raises(TypeError, match=r"weights_q must be a torch.Tensor .* got list"):
        KL().estimate(x, x, None, [1.0])
    for shape in [(4,), (2, 4, 3)]:
        with pytest.raises(ValueError, match=r"weights_p of shape \(.*\) does not .*\(4, 3\)"):
            KL().estimate(x, x, torch.ones(shape))


def test_total_variation_does_not_train():
    with pytest.raises(NotImplementedError, match=r"zero almost.*SquaredHellinger\(\) or JSPi"):
        TotalVariation().generator_loss(torch.zeros(3))


def test_non_saturating_loss_does_not_vanish_in_float32():
    value, gradient = value_and_gradient(non_saturating_loss, torch.tensor([-80.0, 0.0, 80.0]))
    np.testing.assert_allclose(value, [80.0, np.log(2), np.exp(-80.0)], rtol=1e-5)
    np.testing.assert_allclose(gradient, [-1.0, -0.5, -np.exp(-80.0)], rtol=1e-5)
