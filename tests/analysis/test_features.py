# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

from dataclasses import replace

import numpy as np
import pytest

from spread_analysis.datasets import Dataset, load_dataset
from spread_analysis.evaluation import (
    MeanAndError,
    SampleJudge,
    format_table,
    mean_and_error,
)
from spread_analysis.features import fit_features

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def judge(digits):
    return SampleJudge(digits)


def test_features_of_labels_tell_classes_apart(digits, judge):
    features = judge.features(digits.train_images)
    assert features.shape == (1438, 64)
    assert features.dtype == np.float64
    assert features.min() == 0
    # A linear read-out of the features classifies images that were never seen.
    one_hot = np.eye(10)[digits.train_labels]
    with_bias = np.column_stack([features, np.ones(len(features))])
    weights = np.linalg.lstsq(with_bias, one_hot)[0]
    test = judge.features(digits.test_images)
    scores = np.column_stack([test, np.ones(len(test))]) @ weights
    assert (scores.argmax(1) == digits.test_labels).mean() > 0.95


def test_features_repeat_with_the_seed_and_take_flat_images(digits, judge):
    again = fit_features(digits.train_images, digits.train_labels, seed=0)
    other = fit_features(digits.train_images, digits.train_labels, seed=1, num_steps=5)
    flat = digits.test_images.reshape(-1, 64)
    np.testing.assert_array_equal(again(flat), judge.features(digits.test_images))
    assert not np.allclose(again(flat), other(flat))


def test_without_labels_features_are_principal_components(digits):
    features = fit_features(digits.train_images, num_features=5)
    projected = features(digits.train_images)
    flat = digits.train_images.reshape(-1, 64).astype(float)
    eigenvalues = np.linalg.eigvalsh(np.cov(flat.T))[::-1][:5]
    np.testing.assert_allclose(np.cov(projected.T), np.diag(eigenvalues), atol=1e-10)
    np.testing.assert_allclose(projected.mean(0), 0, atol=1e-6)
    assert "principal" in features.description


def test_no_more_principal_components_than_images():
    images = np.random.default_rng(0).random((10, 4, 4))
    assert fit_features(images)(images).shape == (10, 10)


def test_features_refuse_what_does_not_fit(digits, judge):
    with pytest.raises(ValueError, match="must have 64 numbers each, got 63"):
        judge.features(np.zeros((3, 63)))
    with pytest.raises(ValueError, match="images"):
        judge.features(np.full((3, 64), np.nan))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(1438,\)"):
        fit_features(digits.train_images, digits.train_labels[:-1])
    with pytest.raises(ValueError, match="num_features"):
        fit_features(digits.train_images, num_features=0)


def test_judge_ranks_real_above_blurred_above_noise(digits, judge):
    rng = np.random.default_rng(0)
    real = judge.real()
    blurred = judge((digits.train_images + digits.train_images.mean(0)) / 2)
    noise = judge(rng.random(digits.train_images.shape))
    assert real.frechet < blurred.frechet < noise.frechet
    assert real.mmd2 < blurred.mmd2 < noise.mmd2
    assert real.precision > 0.8
    assert real.recall > 0.8
    assert noise.precision == 0
    assert abs(real.mmd2) < 1e-3


def test_judge_sees_lost_classes_in_the_recall(digits, judge):
    few = digits.train_images[digits.train_labels < 3]
    some = np.resize(few, digits.train_images.shape)
    assert judge(some).recall < judge.real().recall - 0.3


def test_judge_takes_flat_images_and_refuses_too_few(digits, judge):
    assert judge(digits.train_images.reshape(-1, 64)) == judge.real()
    with pytest.raises(ValueError, match="at least 1438 images, got 5"):
        judge(digits.train_images[:5])


def test_judge_limits_the_number_of_images(digits):
    small = SampleJudge(digits, max_samples=100)
    assert small.num_samples == 100
    assert small(digits.train_images[:100]) == small(digits.train_images)


def test_judge_learns_from_reserved_images_alone():
    digits = load_dataset("digits", reserved=0.4)
    judge = SampleJudge(digits)
    assert judge.num_samples == 287  # half of the reserved images
    assert judge.learned_from == "288 images that are neither trained on nor held out"
    assert judge.real_images == "287 images that are used for nothing else"
    assert judge.real() == judge(digits.reserved_images)

    blank = np.zeros_like(digits.train_images)
    elsewhere = SampleJudge(replace(digits, train_images=blank, train_labels=None))
    assert elsewhere(digits.train_images) == judge(digits.train_images)
    others = digits.reserved_images.copy()
    others[:287] = 0
    features = SampleJudge(replace(digits, reserved_images=others)).features
    np.testing.assert_array_equal(features.weights, judge.features.weights)


def test_judge_draws_from_ordered_files(digits):
    """Half of the images are alike, so that the first hundred say little about all."""
    train, test = (
        np.concatenate([np.zeros_like(images), images])
        for images in (digits.train_images, digits.test_images)
    )
    labels = np.tile(digits.train_labels, 2)
    judge = SampleJudge(Dataset("digits", train, test, labels), max_samples=100)
    blank, varied = judge(train[:100]), judge(train[-100:])
    assert judge.num_held_out == judge.num_samples == 100
    assert judge.real().frechet < 0.5 * min(blank.frechet, varied.frechet)


def test_mean_and_error():
    assert mean_and_error([1, 3]) == MeanAndError(2.0, 1.0)
    assert mean_and_error([1, 3]).format(1) == "2.0 ± 1.0"
    assert mean_and_error([2.0]).format() == "2.000"
    values = np.random.default_rng(0).normal(size=50)
    expected = values.std(ddof=1) / np.sqrt(50)
    assert mean_and_error(values).error == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least one"):
        mean_and_error([])


def test_table_refuses_ragged_rows():
    with pytest.raises(ValueError, match="2 cells"):
        format_table(["a", "b"], [["1"]])
