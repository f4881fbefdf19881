# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Image data sets for examples and benchmarks, split into training, held-out and reserved parts."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from spread_core.optional import import_extra
from spread_core.validation import as_count

ImageArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.int64]
DatasetName = Literal["digits", "mnist", "fashion-mnist", "celeba"]
DATASETS: tuple[str, ...] = get_args(DatasetName)

_IDX_PAIRS = (
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)
# The fourth byte of the magic number counts the dimensions, the third says "unsigned byte".
_IDX_UNSIGNED_BYTE = 0x08
_CELEBA_FOLDER = "img_align_celeba"
# The aligned photographs are 178 x 218 with the face in the middle: the crop of the WAE paper.
_CELEBA_CROP = 140
_CELEBA_SIZE = 64


@dataclass(frozen=True)
class Dataset:
    """
    Images in [0, 1], float32, of shape (N, height, width) or (N, height, width, 3), with labels.

    :param name: one of :data:`DATASETS`.
    :param train_images: what models are trained on.
    :param test_images: held out: of the same distribution, never trained on.
    :param train_labels: int64 of shape (N,), or None where there are none.
    :param test_labels: alike, of the held-out images.
    :param reserved_images: neither trained on nor held out: what the yardstick itself learns from
        (:class:`~spread_analysis.evaluation.SampleJudge`). None where there are none.
    :param reserved_labels: alike, of the reserved images.
    """

    name: str
    train_images: ImageArray
    test_images: ImageArray
    train_labels: LabelArray | None = None
    test_labels: LabelArray | None = None
    reserved_images: ImageArray | None = None
    reserved_labels: LabelArray | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and, of colour images, 3."""
        return self.train_images.shape[1:]

    @property
    def image_size(self) -> int:
        """Numbers per image."""
        return math.prod(self.image_shape)


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    *,
    held_out: float = 0.2,
    limit: int | None = None,
    seed: int = 0,
    reserved: float = 0.0,
) -> Dataset:
    """
    Read an image data set; nothing is ever downloaded.

    - ``digits``: the 1797 images of 8 x 8 that come with scikit-learn; needs no folder.
    - ``mnist``, ``fashion-mnist``: the usual idx gzip files. With both pairs in the folder,
      ``train-*`` is the training and ``t10k-*`` the held-out part; with one, it is split.
    - ``celeba``: a folder of jpg files (or one that has ``img_align_celeba``), of each the central
      square of 140 pixels, resized to 64 x 64.

        >>> load_dataset("digits").train_images.shape
        (1438, 8, 8)

    :param name: one of :data:`DATASETS`.
    :param data_dir: the folder to read; not for ``digits``.
    :param held_out: share that is held out where the files bring no split, in (0, 1).
    :param limit: use at most this many images (of each file, in its order).
    :param seed: of the split.
    :param reserved: share of the training part that is set aside as ``reserved_images``, drawn at
        random, in [0, 1).
    :raises ValueError: if the name is unknown, the folder is not given, or a file is corrupt.
    :raises FileNotFoundError: if a file is missing; the message names it and the folder.
    """
    if name not in DATASETS:
        raise ValueError(f"`name` must be one of {', '.join(DATASETS)}, got {name!r}.")
    if not 0 < held_out < 1:
        raise ValueError(f"`held_out` must be in (0, 1), got {held_out}.")
    if not 0 <= reserved < 1:
        raise ValueError(f"`reserved` must be in [0, 1), got {reserved}.")
    if limit is not None:
        limit = as_count(limit, "limit", minimum=2)
    dataset = _read(name, data_dir, held_out, limit, seed)
    return _reserve(dataset, reserved, seed) if reserved else dataset


def read_idx(path: str | Path) -> npt.NDArray[np.uint8]:
    """
    Read one gzip-compressed idx file of unsigned bytes.

    :param path: the file.
    :return: array of the shape that the file's header says.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is not such a file or its size is not that of its header.
    """
    path = Path(path)
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is corrupt: it cannot be decompressed ({error}).") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _IDX_UNSIGNED_BYTE:
        raise ValueError(
            f"{path} is corrupt: it begins with {content[:4].hex() or 'nothing'}, while an idx "
            "file of unsigned bytes begins with 000008 and the number of dimensions."
        )
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start].ljust(4 * content[3], b"\0"), ">u4").tolist())
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} is corrupt: its header says shape {shape}, {math.prod(shape)} bytes, but "
            f"{max(len(content) - start, 0)} follow."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read(
    name: str, data_dir: str | Path | None, held_out: float, limit: int | None, seed: int
) -> Dataset:
    if name == "digits":
        return _split(name, *_read_digits(limit), held_out, seed)
    folder = _folder(name, data_dir)
    if name == "celeba":
        return _split(name, _read_celeba(folder, limit), None, held_out, seed)
    parts = [_read_pair(folder, *pair, limit) for pair in _present_pairs(name, folder)]
    if len(parts) == 1:
        return _split(name, *parts[0], held_out, seed)
    (train_images, train_labels), (test_images, test_labels) = parts
    return Dataset(name, train_images, test_images, train_labels, test_labels)


def _reserve(dataset: Dataset, share: float, seed: int) -> Dataset:
    images, labels = dataset.train_images, dataset.train_labels
    train, reserved = _two_parts(len(images), share, seed)
    return replace(
        dataset,
        train_images=images[train],
        train_labels=None if labels is None else labels[train],
        reserved_images=images[reserved],
        reserved_labels=None if labels is None else labels[reserved],
    )


def _two_parts(size: int, share: float, seed: int) -> tuple[LabelArray, LabelArray]:
    """Indices of both parts of a random split; the second has about ``share`` of them."""
    order = np.random.default_rng(seed).permutation(size)
    second = min(max(1, round(share * size)), size - 1)
    return order[second:], order[:second]


def _split(
    name: str, images: ImageArray, labels: LabelArray | None, held_out: float, seed: int
) -> Dataset:
    train, test = _two_parts(len(images), held_out, seed)
    if labels is None:
        return Dataset(name, images[train], images[test])
    return Dataset(name, images[train], images[test], labels[train], labels[test])


def _read_digits(limit: int | None) -> tuple[ImageArray, LabelArray]:
    digits = import_extra("sklearn.datasets", "load_dataset").load_digits()
    return (digits.images / 16).astype(np.float32)[:limit], digits.target.astype(np.int64)[:limit]


def _folder(name: str, data_dir: str | Path | None) -> Path:
    if data_dir is None:
        what = "a folder of jpg files" if name == "celeba" else f"the folder of {_IDX_PAIRS[0][0]}"
        raise ValueError(f"{name} is read from disk: name {what} with data_dir= (--data-dir).")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: there is no folder {folder.absolute()}.")
    return folder


def _present_pairs(name: str, folder: Path) -> list[tuple[str, str]]:
    present = []
    for pair in _IDX_PAIRS:
        missing = [file for file in pair if not (folder / file).is_file()]
        if not missing:
            present.append(pair)
        elif len(missing) == 1:
            raise FileNotFoundError(
                f"{name}: {missing[0]} is missing in {folder.absolute()}, where the other file of "
                "its pair is."
            )
    if not present:
        pairs = " or ".join(f"the pair {images} and {labels}" for images, labels in _IDX_PAIRS)
        raise FileNotFoundError(
            f"{name}: looked in {folder.absolute()} for {pairs}; found neither."
        )
    return present


def _read_pair(
    folder: Path, images_file: str, labels_file: str, limit: int | None
) -> tuple[ImageArray, LabelArray]:
    images, labels = read_idx(folder / images_file), read_idx(folder / labels_file)
    for file, array, dims in ((images_file, images, 3), (labels_file, labels, 1)):
        if array.ndim != dims:
            raise ValueError(
                f"{folder / file} is corrupt: expected {dims} dimensions, got shape {array.shape}."
            )
    if len(images) != len(labels) or len(images) < 2:
        raise ValueError(
            f"{folder / images_file} holds {len(images)} images and {labels_file} {len(labels)} "
            "labels: they must be as many, and at least 2."
        )
    return images[:limit].astype(np.float32) / np.float32(255), labels[:limit].astype(np.int64)


def _read_celeba(folder: Path, limit: int | None) -> ImageArray:
    inner = folder / _CELEBA_FOLDER
    if inner.is_dir():
        folder = inner
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(files) < 2:
        raise FileNotFoundError(
            f"celeba: looked in {folder.absolute()} for *.jpg, found {len(files)}; unpack "
            f"{_CELEBA_FOLDER}.zip there."
        )
    pillow = import_extra("PIL.Image", "load_dataset")
    images = np.empty((len(files[:limit]), _CELEBA_SIZE, _CELEBA_SIZE, 3), np.float32)
    for image, path in zip(images, files, strict=False):
        image[...] = _read_photograph(pillow, path)
    return images


def _read_photograph(pillow: Any, path: Path) -> ImageArray:
    try:
        with pillow.open(path) as photograph:
            width, height = photograph.size
            side = min(_CELEBA_CROP, width, height)
            left, top = (width - side) // 2, (height - side) // 2
            square = photograph.convert("RGB").crop((left, top, left + side, top + side))
            resized = square.resize((_CELEBA_SIZE, _CELEBA_SIZE), pillow.Resampling.BICUBIC)
    except OSError as error:
        raise ValueError(f"{path} is corrupt: {error}.") from error
    return np.asarray(resized, np.float32) / np.float32(255)
