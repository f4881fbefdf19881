# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that somebody has rewritten, with a right checksum."""

import hashlib
import json
import struct

KEY = "pyro-spread checkpoint"


def content_of(data):
    """The JSON of a file, and a function that gives the file with another one."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    content = json.loads(header["__metadata__"][KEY][64:])

    def sealed(content):
        header["__metadata__"] = {KEY: "0" * 64 + json.dumps(content)}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        whole = bytearray(struct.pack("<Q", len(text)) + text + data[8 + length :])
        start = whole.index(f'"{KEY}":"'.encode()) + len(KEY) + 4
        whole[start : start + 64] = hashlib.sha256(whole).hexdigest().encode()
        return bytes(whole)

    return content, sealed


def forge(path, change):
    """
    Rewrite a file.

    :param change: of the JSON, in place.
    """
    content, sealed = content_of(path.read_bytes())
    change(content)
    path.write_bytes(sealed(content))


def places(value, path=()):
    """All places of a JSON, as paths of keys."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from places(item, (*path, i))


def changed_at(content, path, replace):
    """
    A copy that differs at one place.

    :param replace: from what stands there to what shall; returning None removes it.
    """
    content = json.loads(json.dumps(content))
    node = content
    for key in path[:-1]:
        node = node[key]
    new = replace(node[path[-1]])
    if new is None:
        del node[path[-1]]
    else:
        node[path[-1]] = new[0]
    return content
