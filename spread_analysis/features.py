# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Image features in which to measure the Fréchet distance, learned from the data set itself."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from spread_core.optional import import_extra
from spread_core.validation import FloatArray, as_count, as_finite, as_samples

_BATCH_SIZE = 200


@dataclass(frozen=True)
class FeatureExtractor:
    r"""
    A map from images to features: :math:`\max(0, x W + b)`, or :math:`x W + b` if it is linear.

    :param weights: matrix W of shape (image size, number of features).
    :param offsets: vector b of shape (number of features,).
    :param rectified: whether negative features are set to zero.
    :param description: what the features are, for reports.
    """

    weights: FloatArray
    offsets: FloatArray
    rectified: bool
    description: str

    def __call__(self, images: ArrayLike) -> FloatArray:
        """
        The features of images, float64.

        :param images: shape (N,) + image shape, or (N, image size).
        :return: shape (N, number of features).
        :raises ValueError: if the images are not finite or do not have the size that W expects.
        """
        flat = as_finite(images, "images")
        flat = flat.reshape(len(flat), -1)
        if flat.shape[1] != len(self.weights):
            raise ValueError(
                f"`images` must have {len(self.weights)} numbers each, got {flat.shape[1]}."
            )
        features = flat @ self.weights + self.offsets
        return np.maximum(features, 0.0) if self.rectified else features


def fit_features(
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    num_features: int = 64,
    seed: int = 0,
    num_steps: int = 2000,
) -> FeatureExtractor:
    """
    Learn features of images from their labels, or from the images alone where there are none.

    With labels they are the hidden activations of a classifier with one hidden layer, in the manner
    of the FID, whose features come from an ImageNet classifier (Heusel et al. 2017,
    arXiv:1706.08500), but small and of the data set at hand.
    Without labels they are the leading principal components, each with its own variance: a Fréchet
    distance of these compares means and covariances of the pixels, no more.

    The scale of the features, and so of every distance between them, depends on the extractor:
    compare values of one extractor only.

        >>> from spread_analysis.datasets import load_dataset
        >>> digits = load_dataset("digits")
        >>> features = fit_features(digits.train_images, digits.train_labels)
        >>> features(digits.test_images).shape
        (359, 64)

    :param images: training images of shape (N,) + image shape.
    :param labels: their labels of shape (N,), or None.
    :param num_features: number of hidden units or principal components.
    :param seed: of the classifier's initial weights and mini-batches.
    :param num_steps: at most about that many gradient steps of 200 images, however many there are.
    :raises ValueError: if images are malformed, or labels are not one per image.
    :raises ImportError: if scikit-learn is missing.
    """
    flat = as_samples(images, "images")
    size = as_count(num_features, "num_features")
    if labels is None:
        return _principal_components(flat, size)
    target = np.asarray(labels)
    if target.shape != (len(flat),):
        raise ValueError(f"`labels` must have shape {(len(flat),)}, got {target.shape}.")
    neural_network = import_extra("sklearn.neural_network", "fit_features")
    exceptions = import_extra("sklearn.exceptions", "fit_features")
    num_steps, batch_size = as_count(num_steps, "num_steps"), min(_BATCH_SIZE, len(flat))
    classifier = neural_network.MLPClassifier(
        hidden_layer_sizes=(size,),
        batch_size=batch_size,
        max_iter=max(1, round(num_steps * batch_size / len(flat))),
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Features need no converged classifier.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        # In single precision one epoch takes half the time.
        classifier.fit(flat.astype(np.float32), target)
    weights, offsets = classifier.coefs_[0], classifier.intercepts_[0]
    return FeatureExtractor(
        weights.astype(np.float64),
        offsets.astype(np.float64),
        True,
        f"{size} hidden units of a label classifier",
    )


def _principal_components(flat: FloatArray, size: int) -> FeatureExtractor:
    decomposition = import_extra("sklearn.decomposition", "fit_features")
    components = min(size, *flat.shape)
    pca = decomposition.PCA(
        components, svd_solver="full" if min(flat.shape) < 500 else "randomized"
    )
    pca.set_params(random_state=0).fit(flat)
    weights = pca.components_.T
    description = f"{components} principal components (no labels)"
    return FeatureExtractor(weights, -pca.mean_ @ weights, False, description)
