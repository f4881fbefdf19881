# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Checkpoint files: written atomically, and verified by a hash when read.

A checkpoint is one safetensors file. Its header holds, as the only metadata, the SHA-256 of the
file (with the digest itself as zeros) followed by JSON. Files are numbered in the order in which
they were written, so that the last is the newest also after a run went back to an earlier step.

``orbax.checkpoint`` and ``torch.save`` stay out of this: one file serves both backends, reading it
runs no code, and a damaged, forged or foreign file is refused before anything is loaded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

from spread_core.checkpoint_tree import FromTensor, MalformedError, ToTensor, decode, encode
from spread_core.messages import checkpoints as messages

FORMAT_VERSION = 1
_KEY = "pyro-spread checkpoint"
_DIGITS = 64
_LENGTH = 8
_MAX_HEADER = 100_000_000  # as in safetensors itself
_NAME = re.compile(r"(\d{8,})-step-(\d+)\.safetensors")
_LEFTOVER = re.compile(r"\.\d{8,}-step-\d+\.safetensors\.tmp")
_MOST_TRIES = 100
# By process and directory, the newest file that this process knows of.
_known: dict[tuple[int, str], int] = {}


class CheckpointError(ValueError):
    """A file cannot be resumed from; nothing was loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """
    A checkpoint that was loaded.

    :param path: of the file.
    :param step: number of steps that were done.
    :param metadata: what was given to ``save_checkpoint``.
    :param versions: of the libraries that wrote it, by name.
    """

    path: Path
    step: int
    metadata: Any = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Codec:
    """
    How a backend turns its arrays into a file.

    :param backend: name of the package.
    :param extra: of the installation that brings safetensors.
    :param to_tensor: from a leaf of the state to kind and tensor.
    :param from_tensor: the inverse.
    :param dump: from tensors and metadata to the bytes of a safetensors file.
    :param load: from these bytes to tensors.
    """

    backend: str
    extra: str
    to_tensor: ToTensor
    from_tensor: FromTensor
    dump: Callable[[dict[str, Any], dict[str, str]], bytes]
    load: Callable[[bytes], dict[str, Any]]


def write(
    codec: Codec,
    directory: str | os.PathLike[str],
    step: Any,
    state: Mapping[str, Any],
    metadata: Any,
    versions: Mapping[str, str],
    keep: int | None,
) -> Path:
    """
    Write one more checkpoint and remove those beyond ``keep``.

    Whenever the process is killed, the directory holds whole checkpoints and at most one
    leftover, which is not taken for one and removed by the next call.

    :raises TypeError: if something of the state cannot be encoded; nothing is written.
    :raises ValueError: if a number is out of its range.
    :raises RuntimeError: if another process saves in the directory at the same moment.
    """
    if isinstance(step, bool) or not isinstance(step, Integral) or step < 0:
        raise ValueError(f"`step` must be an integer >= 0, got {step!r}")
    wrong = isinstance(keep, bool) or not isinstance(keep, Integral) or keep < 1
    if keep is not None and wrong:
        raise ValueError(f"`keep` must be an integer >= 1, or None to keep all, got {keep!r}")
    tensors: dict[str, Any] = {}
    content = {
        "format_version": FORMAT_VERSION,
        "backend": codec.backend,
        "step": int(step),
        "versions": dict(versions),
        "metadata": encode(metadata, "metadata", tensors, codec.to_tensor),
        "state": {k: encode(v, k, tensors, codec.to_tensor) for k, v in state.items()},
    }
    data = _seal(codec, tensors, json.dumps(content, allow_nan=False, separators=(",", ":")))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.iterdir():
        if _LEFTOVER.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)
    old = checkpoints(directory)
    newest = _number(old[-1]) if old else 0
    if newest > _known.get(_key_of(directory), newest):
        warnings.warn(messages.two_savers(directory), UserWarning, stacklevel=3)
    path = directory / f"{newest + 1:08d}-step-{int(step)}.safetensors"
    temporary = directory / f".{path.name}.tmp"
    try:
        _put(data, temporary, path)
    except (FileExistsError, FileNotFoundError) as error:
        if not directory.is_dir():
            raise
        raise RuntimeError(messages.two_savers(directory)) from error
    _known[_key_of(directory)] = newest + 1
    _sync_directory(directory)
    # Only now, when the new one is sure to be there.
    for stale in old[: max(0, len(old) + 1 - int(keep))] if keep is not None else []:
        if stale.is_symlink() or not stale.is_dir():
            stale.unlink(missing_ok=True)
    return path


def _put(data: bytearray, temporary: Path, path: Path) -> None:
    # What was left behind is gone by now: a file of that name is somebody else's.
    file = open(temporary, "xb")  # noqa: SIM115
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _key_of(directory: Path) -> tuple[int, str]:
    return os.getpid(), os.path.realpath(directory)


def _number(path: Path) -> int:
    return int(path.name.split("-")[0])


def _seal(codec: Codec, tensors: dict[str, Any], text: str) -> bytearray:
    try:
        data = bytearray(codec.dump(tensors, {_KEY: "0" * _DIGITS + text}))
    except ImportError as error:
        raise ImportError(messages.no_safetensors(codec.extra)) from error
    start = _digest_at(data)
    assert start is not None
    data[start : start + _DIGITS] = hashlib.sha256(data).hexdigest().encode()
    return data


def _digest_at(header: bytes | bytearray) -> int | None:
    # In JSON's strings quotes are escaped, so that this is a key and no part of the content.
    start = header.find(f'"{_KEY}":"'.encode())
    return None if start < 0 else start + len(_KEY) + 4


def _sync_directory(directory: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):  # elsewhere directories cannot be opened
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checkpoints(directory: Path) -> list[Path]:
    """Checkpoints of a directory, the newest last."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_number(path), path.name))


class CheckpointReader:
    """
    A checkpoint of which every bit has been checked.

    :param codec: the backend's.
    :param path: a file, or a directory of which the newest is taken.
    :raises FileNotFoundError: if there is none.
    :raises CheckpointError: saying what is wrong with the file, and which earlier one there is.
    """

    def __init__(self, codec: Codec, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._codec = codec
        content, data = self._find(self.path)
        try:
            self._tensors = codec.load(data)
        except ImportError as error:
            raise ImportError(messages.no_safetensors(codec.extra)) from error
        except Exception as error:  # whatever a parser thinks of it
            raise self.refuse(messages.damaged(error)) from error
        state: Any = content.get("state")
        versions: Any = content.get("versions")
        step: Any = content.get("step")
        is_step = type(step) is int and step >= 0
        if not is_step or not isinstance(state, dict) or not _is_text(versions):
            raise self.refuse(messages.malformed("its JSON lacks step, versions or state"))
        try:
            self.state = decode(state, self._tensors, codec.from_tensor)
            metadata = decode(content.get("metadata"), self._tensors, codec.from_tensor)
        except (MalformedError, RecursionError) as error:
            raise self.refuse(messages.malformed(str(error))) from error
        if not isinstance(self.state, dict):
            raise self.refuse(messages.malformed("its state is an array"))
        #: What the caller gets.
        self.checkpoint = Checkpoint(self.path, step, metadata, dict(versions))

    def refuse(self, why: str) -> CheckpointError:
        """The error to raise."""
        siblings = checkpoints(self.path.parent)
        older = siblings[: siblings.index(self.path)] if self.path in siblings else []
        return CheckpointError(messages.refused(self.path, why, reversed(older)))

    def part(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """One part of the state, of the type that it has to have."""
        value = self.state.get(name)
        if not isinstance(value, kind):
            raise self.refuse(messages.malformed(f"'{name}' is missing or of a wrong type"))
        return value

    def warn_of_versions(self, live: Mapping[str, str]) -> None:
        """Say which libraries are not those that wrote the file."""
        written = self.checkpoint.versions
        changes = [
            f"{name} {written.get(name, 'absent')}, now {live.get(name, 'absent')}"
            for name in sorted(written.keys() | live.keys())
            if written.get(name) != live.get(name)
        ]
        if changes:
            warnings.warn(messages.other_versions(self.path, changes), UserWarning, stacklevel=3)

    def _find(self, path: Path) -> tuple[dict[str, Any], bytes]:
        """
        Contents of a file, or of the newest in a directory, from which others may remove older
        ones.
        """
        for _ in range(_MOST_TRIES):
            try:
                found = checkpoints(path)
                if found:
                    key, newest = _key_of(path), _number(found[-1])
                    _known[key] = max(_known.get(key, 0), newest)
                    self.path = found[-1]
                elif path.is_dir() and not _NAME.fullmatch(path.name):
                    break
                return self._open()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                if link := _dead_link(self.path):
                    why = f"{link} is a link whose target is not there. Mount or restore it, or "
                    raise self.refuse(why + "remove the link") from error
                if self.path == path:
                    break
        raise FileNotFoundError(
            f"no checkpoint in {path}. save_checkpoint writes them there; "
            "a run that starts catches this FileNotFoundError and begins at step 0"
        )

    def _open(self) -> tuple[dict[str, Any], bytes]:
        """The JSON and the whole file, once the digest is right."""
        # A pipe is not opened, since that waits for somebody who writes to it.
        if not stat.S_ISREG(self.path.stat().st_mode):
            raise self.refuse(
                "not a file but a folder, pipe or device. Move it away, or give the path of a file"
            )
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_LENGTH)
            if len(head) < _LENGTH:
                raise self.refuse(messages.truncated(size, _LENGTH))
            (length,) = struct.unpack("<Q", head)
            # Nothing is read, let alone allocated, because a number in the file says so.
            header = file.read(min(length, _MAX_HEADER, size))
            if length > _MAX_HEADER or not header.startswith(b"{"):
                raise self.refuse(messages.foreign("no safetensors file at all"))
            if len(header) < length:
                raise self.refuse(messages.truncated(size, _LENGTH + length))
            content = self._content(header)
            self._check_size(header, size - _LENGTH - length, size)
            rest = file.read()
        self._check_version(content)
        start = _digest_at(header)
        assert start is not None
        digest = header[start : start + _DIGITS]
        blank = header[:start] + b"0" * _DIGITS + header[start + _DIGITS :]
        found = hashlib.sha256(head)
        found.update(blank)
        found.update(rest)
        if found.hexdigest().encode() != digest:
            raise self.refuse("damaged, its bytes do not give the SHA-256 checksum that it carries")
        if content["backend"] != self._codec.backend:
            raise self.refuse(
                f"written by {content['backend']!r}, not {self._codec.backend}. Load it with the "
                "load_checkpoint of the package that wrote it"
            )
        return content, head + header + rest

    def _content(self, header: bytes) -> dict[str, Any]:
        parsed = self._parse(header, "its header is not JSON")
        notes = parsed.get("__metadata__")
        if not isinstance(notes, dict) or _KEY not in notes or _digest_at(header) is None:
            raise self.refuse(messages.foreign("a safetensors file from elsewhere"))
        text = notes[_KEY]
        if not isinstance(text, str) or len(notes) != 1:
            raise self.refuse(messages.malformed("its metadata are not text"))
        return self._parse(text[_DIGITS:], "its state is not JSON")

    def _parse(self, text: bytes | str, otherwise: str) -> dict[str, Any]:
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.refuse(messages.damaged(f"{otherwise} ({error})")) from error
        if not isinstance(parsed, dict):
            raise self.refuse(messages.damaged(otherwise))
        return parsed

    def _check_size(self, header: bytes, there: int, size: int) -> None:
        ends = [0]
        for name, entry in json.loads(header).items():
            if name == "__metadata__":
                continue
            offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
            if not isinstance(offsets, list) or not all(type(end) is int for end in offsets):
                raise self.refuse(messages.damaged(f"tensor {name[:80]!r} has no place in it"))
            ends += offsets
        if max(ends) > there:
            raise self.refuse(messages.truncated(size, size - there + max(ends)))
        if max(ends) < there:
            raise self.refuse(messages.trailing(size, size - there + max(ends)))

    def _check_version(self, content: Mapping[str, Any]) -> None:
        version = content.get("format_version")
        if type(version) is not int or version > FORMAT_VERSION:
            raise self.refuse(
                f"format version {version!r}, but this pyro-spread reads up to {FORMAT_VERSION}. "
                "Upgrade pyro-spread to the version that wrote it"
            )
        if "backend" not in content:
            raise self.refuse(messages.malformed("its JSON lacks the backend"))


def _dead_link(path: Path) -> Path | None:
    """The link, of a path or a folder on its way, whose target is not there."""
    for part in (path, *path.parents):
        if os.path.lexists(part):
            return part if part.is_symlink() and not os.path.exists(part) else None
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
