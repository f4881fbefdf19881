# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Folders of checkpoints that are not as one run leaves them: links, pipes, readers, other runs."""

import os
import warnings

import numpy as np
import pytest
import safetensors.numpy

from spread_core import checkpoint_file
from spread_core.checkpoint_file import CheckpointError, CheckpointReader, Codec, checkpoints, write

CODEC = Codec(
    "some",
    "numpyro",
    lambda where, value: ("numpy", value) if isinstance(value, np.ndarray) else None,
    lambda kind, tensor: tensor,
    safetensors.numpy.save,
    safetensors.numpy.load,
)


def put(directory, step=1, keep=3):
    return write(CODEC, directory, step, {"a": np.arange(3.0)}, None, {}, keep)


def get(path):
    return CheckpointReader(CODEC, path)


@pytest.mark.parametrize("target", ["/archive/that/is/not/mounted", "a-loop"])
def test_a_newest_that_leads_nowhere_is_not_no_checkpoint(tmp_path, target):
    first, second = put(tmp_path, 1), put(tmp_path, 2)
    second.unlink()
    second.symlink_to(second if target == "a-loop" else target)
    match = f"{second} is a link whose target is not there. Mount or restore it"
    for path in (tmp_path, second):
        with pytest.raises(CheckpointError, match=match) as error:
            get(path)
        assert str(error.value).endswith(f"can be loaded by its path: {first}")
    assert put(tmp_path, 3).name.startswith("00000003")
    assert get(tmp_path).checkpoint.step == 3


@pytest.mark.parametrize("inner", ["", "run", "run/00000001-step-1.safetensors"])
def test_a_folder_that_leads_nowhere_is_not_no_checkpoint(tmp_path, inner):
    link = tmp_path / "latest"
    link.symlink_to("/archive/that/is/not/mounted")
    with pytest.raises(CheckpointError, match=f"{link} is a link whose target is not there"):
        get(link / inner)


@pytest.mark.parametrize("path", ["nothing", "notes.txt/run"])
def test_where_nothing_is_there_is_no_checkpoint(tmp_path, path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*begins at step 0"):
        get(tmp_path / path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_opened(tmp_path, make):
    first = put(tmp_path, 1)
    odd = tmp_path / "00000002-step-2.safetensors"
    make(odd)
    for path in (tmp_path, odd):
        with pytest.raises(CheckpointError, match=r"not a file but a folder, pipe or device") as e:
            get(path)
        assert str(e.value).endswith(f"can be loaded by its path: {first}")
    # A folder is nobody's old checkpoint, so that it stays.
    put(tmp_path, 3, keep=1)
    put(tmp_path, 4, keep=1)
    assert odd.exists() == (make is os.mkdir)
    assert get(tmp_path).checkpoint.step == 4


def test_a_reader_takes_the_newest_also_while_older_ones_go(tmp_path, monkeypatch):
    put(tmp_path, 1)
    listing, saves = checkpoints, iter(range(2, 5))

    def slow(directory):
        found = listing(directory)
        if (step := next(saves, None)) is not None:
            with monkeypatch.context() as inner:
                inner.setattr(checkpoint_file, "checkpoints", listing)
                put(tmp_path, step, keep=1)
        return found

    monkeypatch.setattr(checkpoint_file, "checkpoints", slow)
    assert get(tmp_path).checkpoint.step == 4


def test_a_reader_whose_folder_is_emptied_finds_none(tmp_path, monkeypatch):
    path, listing = put(tmp_path, 1), checkpoints

    def slow(directory):
        found = listing(directory)
        path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(checkpoint_file, "checkpoints", slow)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        get(tmp_path)


SENTENCE = "another run or process saves its checkpoints in .* Give each run, and each of its"


def _other(tmp_path, event):
    """What another saver does at this moment."""
    for entry in list(tmp_path.iterdir()):
        if event == "removes leftovers" and entry.name.endswith(".tmp"):
            entry.unlink()
        if event == "takes the name" and entry.name.endswith(".tmp"):
            (tmp_path / entry.name[1:-4]).write_bytes(b"of the other")


@pytest.mark.parametrize("event", ["removes leftovers", "takes the name"])
def test_two_savers_at_one_moment(tmp_path, monkeypatch, event):
    put(tmp_path, 1)
    monkeypatch.setattr(checkpoint_file.os, "fsync", lambda descriptor: _other(tmp_path, event))
    with pytest.raises(RuntimeError, match=SENTENCE):
        put(tmp_path, 2)
    monkeypatch.undo()
    assert get(tmp_path / "00000001-step-1.safetensors").checkpoint.step == 1
    if event == "takes the name":
        assert (tmp_path / "00000002-step-2.safetensors").read_bytes() == b"of the other"
    assert not [entry for entry in tmp_path.iterdir() if entry.name.endswith(".tmp")]


def test_a_file_that_the_other_is_writing(tmp_path, monkeypatch):
    listing, busy = checkpoints, tmp_path / ".00000001-step-1.safetensors.tmp"

    def begin(directory):
        busy.write_bytes(b"half of it")
        return listing(directory)

    monkeypatch.setattr(checkpoint_file, "checkpoints", begin)
    with pytest.raises(RuntimeError, match=SENTENCE):
        put(tmp_path, 1)
    assert busy.read_bytes() == b"half of it"


def test_two_savers_one_after_the_other(tmp_path, monkeypatch):
    put(tmp_path, 1)
    with monkeypatch.context() as another_process:
        another_process.setattr(checkpoint_file.os, "getpid", lambda: -1)
        put(tmp_path, 100)
    with pytest.warns(UserWarning, match=SENTENCE):
        put(tmp_path, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        put(tmp_path, 3)
        with monkeypatch.context() as another_process:
            another_process.setattr(checkpoint_file.os, "getpid", lambda: -1)
            assert get(tmp_path).checkpoint.step == 3  # it goes on from there
            put(tmp_path, 4)


def test_a_folder_that_is_removed_meanwhile(tmp_path, monkeypatch):
    run = tmp_path / "run"

    def remove(directory):
        run.rmdir()
        return []

    monkeypatch.setattr(checkpoint_file, "checkpoints", remove)
    with pytest.raises(FileNotFoundError, match="00000001-step-1"):
        put(run, 1)
