"""Compiled kernels, and times of kernels, by content, kept between runs: what was made once need not be again.

A file an entry, in the user's cache folder; it appears whole or not at all, and one that is damaged counts as absent.
A folder that cannot be written is no error: everything is made anew.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

from hawq_tvm.core.machine import cache_home

_LENGTH = struct.Struct("<Q")
_DIGEST = 32


def cache_folder(kind: str) -> Path:
    """``$XDG_CACHE_HOME/hawq_tvm/KIND``, by default ``~/.cache/hawq_tvm/KIND``."""
    return cache_home() / kind


def cache_key(*parts: str) -> str:
    """One name for texts, of which none can be mistaken for another's end."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")
        digest.update(_LENGTH.pack(len(data)) + data)
    return digest.hexdigest()


def read_entry(kind: str, key: str) -> list[bytes] | None:
    """The parts that were kept under a key; None where there is nothing, or something damaged."""
    try:
        data = _path(kind, key).read_bytes()
    except OSError:
        return None
    digest, at = data[:_DIGEST], _DIGEST
    if hashlib.sha256(data[_DIGEST:]).digest() != digest:
        return None
    parts = []
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size + length
        parts.append(data[at - length : at])
    return parts


def write_entry(kind: str, key: str, *parts: bytes) -> None:
    """Keep an entry, as far as the folder can be written."""
    body = b"".join(_LENGTH.pack(len(part)) + part for part in parts)
    path = _path(kind, key)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as aside:
            try:
                aside.write(hashlib.sha256(body).digest() + body)
                aside.close()
                os.replace(aside.name, path)
            except BaseException:
                os.unlink(aside.name)
                raise


def _path(kind: str, key: str) -> Path:
    return cache_folder(kind) / key[:2] / key
