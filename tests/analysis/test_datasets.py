# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

import gzip
import struct

import numpy as np
import pytest

from spread_analysis.datasets import Dataset, load_dataset, read_idx

TRAIN = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
TEST = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def idx_bytes(array, kind=8):
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_pair(folder, pair, num_images, first_label=0):
    images = np.arange(num_images * 20).reshape(num_images, 4, 5) % 256
    labels = (np.arange(num_images) + first_label) % 10
    for file, array in zip(pair, (images, labels), strict=True):
        (folder / file).write_bytes(gzip.compress(idx_bytes(array)))
    return images, labels


def test_digits_need_no_folder():
    digits = load_dataset("digits")
    assert digits.train_images.shape == (1438, 8, 8)
    assert digits.test_images.shape == (359, 8, 8)
    assert digits.train_labels.shape == (1438,)
    assert digits.image_shape == (8, 8)
    assert digits.image_size == 64
    assert digits.train_images.dtype == np.float32
    assert digits.train_labels.dtype == np.int64
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 1


def test_parts_do_not_overlap_and_follow_the_seed():
    first, again, other = (load_dataset("digits", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test_images, again.test_images)
    assert not np.array_equal(first.test_images, other.test_images)
    everything = np.concatenate([first.train_images, first.test_images]).reshape(1797, 64)
    whole = np.concatenate([other.train_images, other.test_images]).reshape(1797, 64)
    np.testing.assert_array_equal(everything[np.lexsort(everything.T)], whole[np.lexsort(whole.T)])


@pytest.mark.parametrize("pair", [TRAIN, TEST], ids=["train", "t10k"])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_one_pair_is_split(tmp_path, name, pair):
    images, labels = write_pair(tmp_path, pair, 50)
    dataset = load_dataset(name, tmp_path, held_out=0.3)
    assert dataset.train_images.shape == (35, 4, 5)
    assert dataset.test_images.shape == (15, 4, 5)
    # Labels have gone with their images: the first pixel tells which image it was.
    index = np.concatenate([dataset.train_labels, dataset.test_labels])
    assert sorted(index) == sorted(labels)
    for image, label in zip(dataset.test_images, dataset.test_labels, strict=True):
        matches = (images == np.round(255 * image)).all((1, 2))
        assert label in labels[matches]


def test_both_pairs_are_the_two_parts(tmp_path):
    images, labels = write_pair(tmp_path, TRAIN, 30)
    write_pair(tmp_path, TEST, 10, first_label=3)
    dataset = load_dataset("mnist", tmp_path)
    np.testing.assert_allclose(dataset.train_images, images / 255, rtol=1e-6)
    np.testing.assert_array_equal(dataset.train_labels, labels)
    assert dataset.test_labels[0] == 3


def test_a_share_of_the_training_part_is_reserved(tmp_path):
    write_pair(tmp_path, TRAIN, 10)
    write_pair(tmp_path, TEST, 4, first_label=3)
    whole = load_dataset("mnist", tmp_path)
    dataset = load_dataset("mnist", tmp_path, reserved=0.3)
    assert whole.reserved_images is None
    assert dataset.train_images.shape == (7, 4, 5)
    assert dataset.reserved_images.shape == (3, 4, 5)
    np.testing.assert_array_equal(dataset.test_images, whole.test_images)
    assert sorted([*dataset.train_labels, *dataset.reserved_labels]) == list(range(10))
    for images, labels in (
        (dataset.train_images, dataset.train_labels),
        (dataset.reserved_images, dataset.reserved_labels),
    ):
        np.testing.assert_array_equal(images, whole.train_images[labels])


def test_limit(tmp_path):
    write_pair(tmp_path, TRAIN, 30)
    dataset = load_dataset("mnist", tmp_path, limit=10)
    assert len(dataset.train_images) + len(dataset.test_images) == 10


@pytest.mark.parametrize("missing", range(2), ids=["images", "labels"])
def test_half_a_pair_names_the_missing_file(tmp_path, missing):
    write_pair(tmp_path, TRAIN, 5)
    write_pair(tmp_path, TEST, 5)
    (tmp_path / TEST[missing]).unlink()
    with pytest.raises(FileNotFoundError, match=TEST[missing]) as error:
        load_dataset("mnist", tmp_path)
    assert str(tmp_path) in str(error.value)


def test_no_pair_names_all_files_and_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("fashion-mnist", tmp_path)
    for part in (*TRAIN, *TEST, str(tmp_path), "fashion-mnist"):
        assert part in str(error.value)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load_dataset("mnist", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--data-dir"):
        load_dataset("mnist")
    with pytest.raises(ValueError, match="--data-dir"):
        load_dataset("celeba")


GOOD = idx_bytes(np.zeros((5, 4, 5)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip at all", "cannot be decompressed"),
        (gzip.compress(GOOD)[:-12], "cannot be decompressed"),
        (gzip.compress(b""), "begins with nothing"),
        (gzip.compress(b"\x00\x00\x0d\x03" + GOOD[4:]), "begins with 00000d03"),
        (gzip.compress(b"\x89PNG" + GOOD[4:]), "begins with 89504e47"),
        (gzip.compress(GOOD[:-1]), r"shape \(5, 4, 5\), 100 bytes, but 99 follow"),
        (gzip.compress(GOOD + b"\0"), "but 101 follow"),
        (gzip.compress(GOOD[:6]), "is corrupt"),
        (gzip.compress(idx_bytes(np.zeros((5, 20)))), "expected 3 dimensions"),
    ],
    ids=["text", "cut", "empty", "float", "png", "short", "long", "header", "dimensions"],
)
def test_corrupt_file_is_named(tmp_path, content, message):
    write_pair(tmp_path, TRAIN, 5)
    (tmp_path / TRAIN[0]).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset("mnist", tmp_path)
    assert str(tmp_path / TRAIN[0]) in str(error.value)


def test_numbers_of_images_and_labels_must_agree(tmp_path):
    write_pair(tmp_path, TRAIN, 5)
    (tmp_path / TRAIN[1]).write_bytes(gzip.compress(idx_bytes(np.zeros(4))))
    with pytest.raises(ValueError, match=r"holds 5 images and train-labels.* 4 labels"):
        load_dataset("mnist", tmp_path)


def test_read_idx_is_exact(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx_bytes(array)))
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize("inner", ["", "img_align_celeba"], ids=["flat", "unpacked"])
def test_celeba_takes_the_centre(tmp_path, inner):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    # Red inside the central square of 140 pixels, blue outside of it.
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[39:179, 19:159] = (255, 0, 0)
    for index in range(5):
        image.fromarray(pixels).save(folder / f"{index:06}.jpg", quality=95)
    (folder / "list_attr.txt").write_text("no image")
    dataset = load_dataset("celeba", tmp_path, held_out=0.4)
    assert dataset.train_images.shape == (3, 64, 64, 3)
    assert dataset.test_images.shape == (2, 64, 64, 3)
    assert dataset.train_labels is None
    assert dataset.train_images.dtype == np.float32
    centre = dataset.train_images[:, 2:-2, 2:-2]
    assert centre[..., 0].min() > 0.9
    assert centre[..., 2].max() < 0.1
    assert dataset.train_images.max() <= 1


def test_celeba_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\*\.jpg, found 0") as error:
        load_dataset("celeba", tmp_path)
    assert str(tmp_path) in str(error.value)


def test_celeba_names_a_corrupt_photograph(tmp_path):
    pytest.importorskip("PIL.Image")
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_bytes(b"\xff\xd8\xff no photograph")
    with pytest.raises(ValueError, match=r"0\.jpg is corrupt"):
        load_dataset("celeba", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("imagenet", {}, "digits, mnist, fashion-mnist, celeba"),
        ("digits", {"held_out": 0.0}, "held_out"),
        ("digits", {"held_out": 1.0}, "held_out"),
        ("digits", {"limit": 1}, "limit"),
        ("digits", {"reserved": 1.0}, r"`reserved` must be in \[0, 1\)"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name, **options)


def test_dataset_of_colour_images():
    images = np.zeros((2, 4, 4, 3), np.float32)
    assert Dataset("celeba", images, images).image_size == 48
