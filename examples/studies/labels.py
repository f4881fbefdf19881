# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""
A label classifier that says what generated images show; also of three images in three colours.

Stacked, ten classes become a thousand: how many of them a generator shows was asked by Metz et al.
2017 (unrolled GANs, https://arxiv.org/abs/1611.02163), and by many since.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spread_analysis.datasets import Dataset

#: Stacks to train on, to compare with, and those that a generator is asked for, as in the paper.
NUM_STACKED = 25_600


class LabelReport(NamedTuple):
    """
    Report of a label classifier on images.

    :param shares: share of every class, shape (number of classes,).
    :param confidence: mean probability of the class that it takes them for.
    """

    shares: npt.NDArray[Any]
    confidence: float


class LabelJudge:
    """
    A label classifier, which sees what generated images show and how clearly.

    :param dataset: labelled images; it learns from the training part.
    :param seed: of its initial weights and mini-batches.
    :raises ImportError: if scikit-learn is missing.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        from sklearn import exceptions, neural_network  # takes seconds, and not every run judges

        steps = 40 if dataset.image_size > 64 else 150
        self._classifier = neural_network.MLPClassifier((256,), max_iter=steps, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
            self._classifier.fit(_flat(dataset.train_images), dataset.train_labels)
        self.num_classes = len(self._classifier.classes_)
        #: Share of held-out images whose label it finds.
        self.accuracy = float((self.labels(dataset.test_images) == dataset.test_labels).mean())

    def labels(self, images: npt.ArrayLike) -> npt.NDArray[Any]:
        """
        The class of each image, shape (N,).

        :param images: shape (N,) + image shape, or flat.
        """
        return np.asarray(self._classifier.predict(_flat(images)))

    def probabilities(self, images: npt.ArrayLike) -> npt.NDArray[Any]:
        """
        The probability of each class, shape (N, number of classes).

        :param images: shape (N,) + image shape, or flat.
        """
        return np.asarray(self._classifier.predict_proba(_flat(images)))

    def __call__(self, images: npt.ArrayLike) -> LabelReport:
        """
        The classes among images.

        :param images: shape (N,) + image shape, or flat.
        """
        probabilities = self.probabilities(images)
        shares = np.bincount(probabilities.argmax(1), minlength=self.num_classes)
        return LabelReport(shares / len(probabilities), float(probabilities.max(1).mean()))


class StackedJudge:
    """
    The label classifier on each of three channels: a class for each triple.

    :param dataset: the grey images.
    :param judge: the classifier of one channel.
    """

    def __init__(self, dataset: Dataset, judge: LabelJudge) -> None:
        self._shape, self._judge = dataset.image_shape, judge
        self.num_classes, self.accuracy = judge.num_classes**3, judge.accuracy

    def __call__(self, images: npt.ArrayLike) -> LabelReport:
        """
        The triples of classes among images.

        :param images: shape (N,) + image shape + (3,), or flat.
        """
        channels = np.asarray(images, np.float32).reshape(-1, *self._shape, 3)
        channels = np.moveaxis(channels, -1, 0)
        probabilities = np.stack([self._judge.probabilities(channel) for channel in channels])
        triples = np.ravel_multi_index(
            tuple(probabilities.argmax(-1)), (self._judge.num_classes,) * 3
        )
        shares = np.bincount(triples, minlength=self.num_classes) / len(triples)
        return LabelReport(shares, float(probabilities.max(-1).mean()))


def stack(dataset: Dataset, num_images: int = NUM_STACKED, seed: int = 0) -> Dataset:
    """
    Triples of images, drawn with replacement within each part, as colour images without labels.

        >>> from spread_analysis.datasets import load_dataset
        >>> stack(load_dataset("digits"), 5).train_images.shape
        (5, 8, 8, 3)

    :param dataset: grey images.
    :param num_images: number of triples of either part.
    :param seed: of the draws.
    """
    rng = np.random.default_rng(seed)

    def drawn(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.moveaxis(images[rng.integers(len(images), size=(num_images, 3))], 1, -1)

    return replace(
        dataset,
        train_images=drawn(dataset.train_images),
        test_images=drawn(dataset.test_images),
        train_labels=None,
        test_labels=None,
    )


def _flat(images: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(images, np.float32)
    return array.reshape(len(array), -1)
