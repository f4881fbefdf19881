# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The data of the zoo: small images whose pixels are whole numbers."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spread_analysis.datasets import Dataset
from studies.options import read_dataset, reserved_share

#: Scikit-learn's digits come with the program, the others are read from a folder.
DATASETS = ("digits", "mnist", "fashion-mnist")
#: A pixel of the digits counts the dark ones among 16 of the scan, so that it is a whole number
#: from 0 to this. Those of other data are rounded to as many levels.
MAX_COUNT = 16
NUM_LEVELS = MAX_COUNT + 1
_SMOKE_IMAGES = 400


@dataclass(frozen=True)
class ZooData:
    """
    Images as rows of pixels, in the three forms that models take.

    :param dataset: the images as they came, in [0, 1].
    """

    dataset: Dataset

    @property
    def train_images(self) -> npt.NDArray[np.float32]:
        """Pixels in [0, 1], shape (N, number of pixels)."""
        return _flat(self.dataset.train_images)

    @property
    def test_images(self) -> npt.NDArray[np.float32]:
        """Held-out images in the form of :attr:`train_images`."""
        return _flat(self.dataset.test_images)

    @property
    def train_counts(self) -> npt.NDArray[np.float32]:
        """Pixels as whole numbers from 0 to 16, as float32, shape (N, number of pixels)."""
        return np.rint(self.train_images * MAX_COUNT)

    @property
    def test_counts(self) -> npt.NDArray[np.float32]:
        """Held-out images in the form of :attr:`train_counts`."""
        return np.rint(self.test_images * MAX_COUNT)

    @property
    def train_labels(self) -> npt.NDArray[np.int64]:
        """The digits that the images show, shape (N,)."""
        return _labels(self.dataset.train_labels)

    @property
    def test_labels(self) -> npt.NDArray[np.int64]:
        """Labels of the held-out images."""
        return _labels(self.dataset.test_labels)

    @property
    def num_pixels(self) -> int:
        """Pixels of an image."""
        return self.dataset.image_size

    @property
    def num_classes(self) -> int:
        """How many digits there are."""
        return int(self.train_labels.max()) + 1

    @property
    def label_shares(self) -> npt.NDArray[np.float32]:
        """Share of each digit among the training images: p(label), shape (number of classes,)."""
        counts = np.bincount(self.train_labels, minlength=self.num_classes)
        return np.asarray(counts / counts.sum(), np.float32)

    def label_draws(self, num_samples: int, seed: int) -> npt.NDArray[np.int64]:
        """
        Labels drawn from :attr:`label_shares`, for models conditional on the label.

        :param num_samples: how many.
        :param seed: of the draws.
        """
        rng = np.random.default_rng(seed)
        return np.asarray(rng.choice(self.train_labels, num_samples), np.int64)


def load_zoo_data(
    smoke_test: bool = False, dataset: str = "digits", data_dir: str | None = None
) -> ZooData:
    """
    The data, with the split that all examples have.

        >>> data = load_zoo_data()
        >>> data.train_counts.shape, float(data.train_counts.max())
        ((1438, 64), 16.0)

    :param smoke_test: a part of them only.
    :param dataset: one of :data:`DATASETS`.
    :param data_dir: folder of its files; the digits need none.
    :raises SystemExit: if the data cannot be read, saying which file is missing or corrupt.
    """
    args = argparse.Namespace(
        dataset=dataset, data_dir=data_dir, limit=_SMOKE_IMAGES if smoke_test else None
    )
    return ZooData(read_dataset(args, reserved=reserved_share(dataset)))


def pixel_places(num_pixels: int) -> npt.NDArray[np.float32]:
    """
    Where each pixel of a square image is: its row and its column, one-hot, in reading order.

        >>> pixel_places(4)[2]
        array([0., 1., 1., 0.], dtype=float32)

    :param num_pixels: pixels of an image.
    :return: shape (num_pixels, 2 * width).
    """
    one_hot = np.eye(round(num_pixels**0.5), dtype=np.float32)
    rows, columns = np.divmod(np.arange(num_pixels), len(one_hot))
    return np.concatenate([one_hot[rows], one_hot[columns]], -1)


def _flat(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.asarray(images, np.float32).reshape(len(images), -1)


def _labels(labels: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    assert labels is not None  # the digits come with them
    return labels
