# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Files of checkpoints: whole or not there, checked to the last bit, and never run."""

import hashlib
import json
import os
import pickle
import struct
from collections import Counter

import numpy as np
import pytest
import safetensors.numpy

from spread_core import checkpoint_file
from spread_core.checkpoint_file import CheckpointError, CheckpointReader, Codec, checkpoints, write

VERSIONS = {"library": "1.0"}
STATE = {"weights": {"w": np.arange(3.0), "n": np.int64(7)}, "count": 3}


def to_tensor(where, value):
    if isinstance(value, np.ndarray):
        return "numpy", value
    return ("scalar", np.asarray(value)) if isinstance(value, np.generic) else None


def from_tensor(kind, tensor):
    return tensor if kind == "numpy" else tensor[()]


def codec(backend="some"):
    save, load = safetensors.numpy.save, safetensors.numpy.load
    return Codec(backend, "numpyro", to_tensor, from_tensor, save, load)


def put(directory, step=1, state=STATE, metadata=None, keep=3):
    return write(codec(), directory, step, state, metadata, VERSIONS, keep)


def get(path):
    return CheckpointReader(codec(), path)


def craft(path, content, tensors=None, rest=b""):
    """Write ``content`` and declared tensors as an attacker would, with a right digest."""
    text = json.dumps(content) if not isinstance(content, str) else content
    header = {"__metadata__": {"pyro-spread checkpoint": "0" * 64 + text}, **(tensors or {})}
    body = json.dumps(header, separators=(",", ":")).encode()
    data = bytearray(struct.pack("<Q", len(body)) + body + rest)
    start = data.index(b'"pyro-spread checkpoint":"') + 26
    data[start : start + 64] = hashlib.sha256(data).hexdigest().encode()
    path.write_bytes(data)
    return path


def content(**changes):
    whole = {"format_version": 1, "backend": "some", "step": 1, "versions": {}, "metadata": None}
    return {**whole, "state": {}, **changes}


def test_everything_comes_back(tmp_path):
    metadata = {
        "plain": [None, True, -3, 2.5, "é", {}],
        "tuple": (1, (2.0,)),
        "numbers": [float("inf"), -float("inf"), -0.0, 5e-324, 2**200],
        "keys": {1: "one", "1": "other", "!": "mark"},
        "counter": Counter({10: 2}),
        "array": np.ones((2, 0, 3), np.float32),
        "zero-dim": np.array(3, np.uint8),
    }
    reader = get(put(tmp_path, 5, metadata=metadata))
    found = reader.checkpoint.metadata
    assert reader.checkpoint.step == 5
    assert reader.checkpoint.versions == VERSIONS
    for key in ("plain", "tuple", "numbers", "keys", "counter"):
        assert found[key] == metadata[key]
    assert type(found["tuple"]) is tuple
    assert type(found["counter"]) is Counter
    assert str(found["numbers"][2]) == "-0.0"
    for key in ("array", "zero-dim"):
        assert found[key].dtype == metadata[key].dtype
        assert found[key].shape == metadata[key].shape
    assert reader.state["count"] == 3
    assert np.array_equal(reader.state["weights"]["w"], STATE["weights"]["w"])
    assert type(reader.state["weights"]["n"]) is np.int64


def test_nan_comes_back(tmp_path):
    assert np.isnan(get(put(tmp_path, metadata=float("nan"))).checkpoint.metadata)


def test_equal_states_give_equal_files(tmp_path):
    first, second = put(tmp_path), put(tmp_path)
    assert first != second
    assert first.read_bytes() == second.read_bytes()


def test_names_that_collide_are_told_apart(tmp_path):
    state = {"a": {"b/c": np.zeros(1), "b": {"c": np.ones(1)}}}
    found = get(put(tmp_path, state=state)).state["a"]
    assert found["b/c"][0] == 0
    assert found["b"]["c"][0] == 1


def test_the_last_written_is_the_newest(tmp_path):
    # Also where a run went back to an earlier step.
    for step in (10, 20, 5):
        put(tmp_path, step)
    assert get(tmp_path).checkpoint.step == 5
    assert [path.name[9:] for path in checkpoints(tmp_path)] == [
        "step-10.safetensors",
        "step-20.safetensors",
        "step-5.safetensors",
    ]


def test_older_ones_are_kept_up_to_a_number(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for step in range(6):
        put(tmp_path, step, keep=2)
    assert [get(path).checkpoint.step for path in checkpoints(tmp_path)] == [4, 5]
    for step in range(6, 9):
        put(tmp_path, step, keep=None)
    assert len(checkpoints(tmp_path)) == 5
    put(tmp_path, 9, keep=1)
    assert [get(path).checkpoint.step for path in checkpoints(tmp_path)] == [9]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_leftovers_of_a_kill_are_ignored_and_removed(tmp_path):
    path = put(tmp_path, 1)
    leftover = tmp_path / ".00000002-step-2.safetensors.tmp"
    leftover.write_bytes(path.read_bytes()[:100])
    assert get(tmp_path).checkpoint.step == 1
    put(tmp_path, 3)
    assert not leftover.exists()
    assert get(tmp_path).checkpoint.step == 3


def test_a_write_that_fails_leaves_the_earlier_ones(tmp_path, monkeypatch):
    path = put(tmp_path, 1)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_file.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        put(tmp_path, 2, keep=1)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            checkpoint_file.os, name, lambda *a, r=real, n=name: (calls.append(n), r(*a))[1]
        )
    put(tmp_path)
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize(
    "value", [object(), {1j}, lambda: None, np.float64, {(1, 2): 3}, {None: 1}, 2**5000, b"bytes"]
)
def test_what_cannot_be_encoded_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(TypeError, match=r"metadata.*cannot be saved.*Nothing was written"):
        put(tmp_path / "new", metadata={"mine": value})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("step", [-1, 1.0, True, "3", None])
def test_a_step_is_a_number(tmp_path, step):
    with pytest.raises(ValueError, match="`step` must be an integer >= 0"):
        put(tmp_path, step)


@pytest.mark.parametrize("keep", [0, -1, 1.5, True])
def test_keep_is_a_number(tmp_path, keep):
    with pytest.raises(ValueError, match="`keep` must be an integer >= 1, or None"):
        put(tmp_path, keep=keep)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["nothing", "nothing/at-all", ""])
def test_no_checkpoint(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*begins at step 0"):
        get(tmp_path / name)


def test_every_bit_counts(tmp_path):
    data = put(tmp_path / "good").read_bytes()
    bad = tmp_path / "bad.safetensors"
    random = np.random.default_rng(0)
    # All bits of the first bytes, and one bit of some others.
    flips = [(i, bit) for i in range(24) for bit in range(8)]
    flips += [(int(i), int(random.integers(8))) for i in random.integers(24, len(data), 150)]
    flips += [(len(data) - i, bit) for i in range(1, 5) for bit in range(8)]
    for i, bit in flips:
        flipped = bytearray(data)
        flipped[i] ^= 1 << bit
        bad.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            get(bad)


def test_every_length_counts(tmp_path):
    data = put(tmp_path / "good").read_bytes()
    bad = tmp_path / "bad.safetensors"
    for length in range(0, len(data), 7):
        bad.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            get(bad)
    bad.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match="damaged, it has"):
        get(bad)


def test_a_flipped_bit_of_an_array_is_called_so(tmp_path):
    path = put(tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged, its bytes do not give the SHA-256"):
        get(path)


def test_a_damaged_newest_is_not_passed_over_in_silence(tmp_path):
    first, second, newest = (put(tmp_path, step) for step in (1, 2, 3))
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as error:
        get(tmp_path)
    text = str(error.value)
    assert f"checkpoint {newest}: truncated" in text
    assert text.endswith(f"an earlier one can be loaded by its path: {second}, {first}")
    assert get(second).checkpoint.step == 2


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (pickle.dumps({"params": {}}), "no safetensors file at all"),
        (b"PK\3\4" + bytes(200), "no safetensors file at all"),
        (os.urandom(300), "no safetensors file at all"),
        (struct.pack("<Q", 2**63) + b"{}", "no safetensors file at all"),
        (struct.pack("<Q", 99_999_999) + b"{}", "truncated"),
        (struct.pack("<Q", 4) + b"{1}]", "its header is not JSON"),
        (struct.pack("<Q", 60_000) + b'{"a":' + b"[" * 59_995, "its header is not JSON"),
        (safetensors.numpy.save({"a": np.ones(3)}), "a safetensors file from elsewhere"),
        (
            safetensors.numpy.save({"a": np.ones(3)}, {"format": "pt"}),
            "a safetensors file from elsewhere",
        ),
        (b"", "truncated, 0 of 8 bytes"),
    ],
)
def test_foreign_files(tmp_path, data, what):
    path = tmp_path / "file.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=what) as error:
        get(path)
    assert f"checkpoint {path}" in str(error.value)
    assert path.read_bytes() == data


def test_another_backend(tmp_path):
    path = put(tmp_path)
    with pytest.raises(CheckpointError, match=r"written by 'some', not other.*load_checkpoint of"):
        CheckpointReader(codec("other"), path)


def test_a_later_format(tmp_path):
    path = craft(tmp_path / "f", content(format_version=2))
    with pytest.raises(CheckpointError, match=r"format version 2, but .* up to 1. Upgrade"):
        get(path)


_HUGE = {"w": {"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}
_OVERLAP = {
    "a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
    "b": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
}
_UNKNOWN = {"w": {"dtype": "EVIL", "shape": [1], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("text", "tensors", "rest", "what"),
    [
        (content(), _HUGE, bytes(8), "damaged"),
        (content(), _OVERLAP, bytes(8), "damaged"),
        (content(), _UNKNOWN, bytes(8), "damaged"),
        (content(), {"w": {"data_offsets": [0, 2**62]}}, b"", "truncated"),
        (content(), {"w": {"data_offsets": "all"}}, b"", "has no place in it"),
        (content(), {"w": 3}, b"", "has no place in it"),
        (content(step="rm -rf"), {}, b"", "lacks step, versions or state"),
        (content(step=-1), {}, b"", "lacks step, versions or state"),
        (content(versions=[1]), {}, b"", "lacks step, versions or state"),
        (content(state=[]), {}, b"", "lacks step, versions or state"),
        (content(state={"a": {"!": "tensor", "name": "../../w"}}), {}, b"", "means nothing"),
        (content(state={"a": {"!": "call", "name": "os.system"}}), {}, b"", "means nothing"),
        (content(state={"a": {"!": "dict", "items": [[[], 1]]}}), {}, b"", "no key with its"),
        (content(metadata={"!": "float", "is": "__import__('os')"}), {}, b"", "means nothing"),
        ("[" * 100_000, {}, b"", "its state is not JSON"),
        ("[]", {}, b"", "its state is not JSON"),
        (json.dumps({"format_version": 1}), {}, b"", "lacks the backend"),
        ("9" * 5000, {}, b"", "its state is not JSON"),
    ],
)
def test_hostile_files_with_a_right_checksum(tmp_path, text, tensors, rest, what):
    path = craft(tmp_path / "hostile.safetensors", text, tensors, rest)
    with pytest.raises(CheckpointError, match=what):
        get(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_deeply_nested_state(tmp_path):
    text = json.dumps(content()).replace(
        '"state": {}', '"state": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    )
    path = craft(tmp_path / "hostile.safetensors", text)
    with pytest.raises(CheckpointError):
        get(path)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_run(tmp_path):
    proof = tmp_path / "was-run"
    payload = pickle.dumps(Payload(proof))
    pickle.loads(payload)  # it would work
    proof.rmdir()
    raw = tmp_path / "raw.safetensors"
    raw.write_bytes(payload)
    with pytest.raises(CheckpointError):
        get(raw)
    bytes_of = {"w": {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}}
    hidden = craft(
        tmp_path / "hidden.safetensors",
        content(
            state={"random": {"!": "tensor", "kind": "pickle", "name": "w"}},
            metadata={"__reduce__": ["os.mkdir", str(proof)], "py/object": payload.hex()},
        ),
        bytes_of,
        payload,
    )
    reader = get(hidden)
    assert reader.checkpoint.metadata["py/object"] == payload.hex()
    assert not proof.exists()


def test_names_of_tensors_are_no_paths(tmp_path):
    name = "../../escaped"
    tensors = {name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    state = {"a": {"!": "tensor", "kind": "numpy", "name": name}}
    folder = tmp_path / "deep" / "deeper"
    folder.mkdir(parents=True)
    assert get(craft(folder / "f", content(state=state), tensors, b"\1")).state["a"][0] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["deep"]


def test_without_safetensors_the_extra_is_named(tmp_path):
    def missing(*args):
        raise ImportError("No module named 'safetensors'")

    bare = Codec("some", "numpyro", to_tensor, from_tensor, missing, missing)
    with pytest.raises(ImportError, match=r"pip install 'pyro-spread\[numpyro\]'"):
        write(bare, tmp_path, 1, STATE, None, VERSIONS, 3)
    path = put(tmp_path)
    with pytest.raises(ImportError, match=r"pip install 'pyro-spread\[numpyro\]'"):
        CheckpointReader(bare, path)


def test_other_versions_are_said(tmp_path):
    reader = get(put(tmp_path))
    with pytest.warns(UserWarning, match=r"other library versions \(library 1.0, now 2.0\)"):
        reader.warn_of_versions({"library": "2.0"})
