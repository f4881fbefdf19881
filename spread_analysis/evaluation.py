# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The quality of generated images, measured against held-out ones, and its error over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from spread_analysis.datasets import Dataset, ImageArray
from spread_analysis.features import fit_features
from spread_analysis.metrics import frechet_distance, median_heuristic, mmd2, precision_recall
from spread_core.validation import FloatArray, as_count, as_finite, as_samples


class SampleQuality(NamedTuple):
    """
    How far generated images are from held-out ones.

    :param frechet: Fréchet distance in features of the data set; 0 is perfect, biased upwards.
    :param mmd2: unbiased MMD² of the pixels; 0 is perfect.
    :param precision: share of generated images among the real ones, in [0, 1].
    :param recall: share of real images among the generated ones, in [0, 1].
    """

    frechet: float
    mmd2: float
    precision: float
    recall: float


class MeanAndError(NamedTuple):
    """
    A mean over runs and its standard error.

    :param mean: the mean.
    :param error: its standard error, NaN for a single run.
    """

    mean: float
    error: float

    def format(self, digits: int = 3) -> str:
        """
        The mean ± its error, or the mean alone where the error is unknown.

        :param digits: decimals.
        """
        mean = f"{self.mean:.{digits}f}"
        return f"{mean} ± {self.error:.{digits}f}" if math.isfinite(self.error) else mean


def mean_and_error(values: Iterable[float]) -> MeanAndError:
    """
    Mean and standard error of runs that differ in their seed only.

        >>> mean_and_error([1.0, 3.0])
        MeanAndError(mean=2.0, error=1.0)

    :param values: one number per run.
    :raises ValueError: if there are none.
    """
    array = np.asarray(list(values), np.float64)
    if array.size == 0:
        raise ValueError("`values` must hold at least one number, got none.")
    error = float(stats.sem(array)) if array.size > 1 else math.nan
    return MeanAndError(float(array.mean()), error)


class SampleJudge:
    """
    Measures generated images against the held-out part of a data set.

    Everything that a model's samples are compared with is fixed here once (features, held-out
    images, kernel bandwidth, sample sizes), so that values of different models are comparable.
    Fréchet distance, precision and recall are taken in the features, MMD² in the pixels.

    The features are learned from the reserved images of the data set, if it has some: then neither
    they nor the scores of real images have anything in common with what the models are trained on.
    Otherwise both come from the training images.

    :param dataset: the data.
    :param max_samples: at most that many held-out images are compared with at most that many
        generated ones, of these as many as there are training images. The images are drawn at
        random: files may be ordered, like the held-out images of MNIST, whose first half was
        written by other people than the second.
    :param seed: of the features and of the draws.
    :raises ImportError: if scikit-learn is missing.
    """

    def __init__(self, dataset: Dataset, max_samples: int = 2000, seed: int = 0) -> None:
        self.dataset = dataset
        limit = as_count(max_samples, "max_samples", 4)
        rng = np.random.default_rng(seed)
        #: How many generated images are judged.
        self.num_samples = min(limit, len(dataset.train_images))
        if dataset.reserved_images is None:
            images, labels = dataset.train_images, dataset.train_labels
            self._real_images = _draw(images, self.num_samples, rng)
            #: What the features are learned from, and what :meth:`real` judges, in words.
            self.learned_from = self.real_images = "the training images"
        else:
            # One part is judged, the features are learned from the rest.
            size = self.num_samples = min(self.num_samples, len(dataset.reserved_images) // 2)
            self._real_images, images = np.split(dataset.reserved_images, [size])
            labels = dataset.reserved_labels
            labels = None if labels is None else labels[size:]
            self.learned_from = f"{len(images)} images that are neither trained on nor held out"
            self.real_images = f"{size} images that are used for nothing else"
        self.features = fit_features(images, labels, seed=seed)
        self._held_out = as_samples(_draw(dataset.test_images, limit, rng), "test_images")
        #: With how many held-out images they are compared.
        self.num_held_out = len(self._held_out)
        self._held_out_features = self.features(self._held_out)
        # Precision and recall swing with the number of either set: they take as many of both.
        self._num_pairs = min(self.num_samples, self.num_held_out)
        self._bandwidth = median_heuristic(self._held_out, self._take(self._real_images))

    def __call__(self, images: ArrayLike) -> SampleQuality:
        """
        The quality of generated images.

        :param images: at least :attr:`num_samples` of them, of shape (N,) + image shape or flat; no
            more than that many, the first, are used.
        :raises ValueError: if there are too few or they are malformed.
        """
        generated = self._take(images)
        features = self.features(generated)
        precision, recall = precision_recall(
            self._held_out_features[: self._num_pairs], features[: self._num_pairs]
        )
        return SampleQuality(
            frechet=frechet_distance(self._held_out_features, features),
            mmd2=mmd2(self._held_out, generated, self._bandwidth),
            precision=precision,
            recall=recall,
        )

    def real(self) -> SampleQuality:
        """
        Scores of real images: what a perfect model could reach.

        They are reserved images that the features are not learned from, or, where none are
        reserved, training images.
        """
        return self(self._real_images)

    def _take(self, images: ArrayLike) -> FloatArray:
        array = as_finite(images, "images")
        if len(array) < self.num_samples:
            raise ValueError(
                f"`images` must hold at least {self.num_samples} images, got {len(array)}."
            )
        return array[: self.num_samples].reshape(self.num_samples, -1)


def _draw(images: ImageArray, size: int, rng: np.random.Generator) -> ImageArray:
    """All images, or ``size`` of them drawn at random if there are more."""
    return images if len(images) <= size else images[rng.choice(len(images), size, replace=False)]


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    A plain-text table: the first column to the left, all others to the right.

    These few lines are no reason for every user to install ``tabulate``.

        >>> print(format_table(["model", "nats"], [["VAE", "1.25"], ["spread", "-2"]]))
        model   nats
        ------  ----
        VAE     1.25
        spread    -2

    :param header: names of the columns.
    :param rows: one sequence of cells per row, each as long as the header.
    :raises ValueError: if a row is shorter or longer than the header.
    """
    cells = [list(header), *(list(row) for row in rows)]
    for row in cells:
        if len(row) != len(header):
            raise ValueError(f"every row must have {len(header)} cells, got {row}.")
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    lines = (
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)
