"""The container in which a driver looks for its GPU's machine code, or for PTX that it compiles itself.

A header, then entries: PTX or ELF of one architecture each. NVIDIA does not document it. What is written here is byte
for byte what its own ``fatbinary --compress=false`` writes for the same cubins; ``tests/test_cuda_fatbin.py`` looks at
that wherever the tool is.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PTX, ELF = 1, 2

_MAGIC = 0xBA55ED50
_VERSION = 1
_HEADER = struct.Struct("<IHHQ")  # magic, version, size of this header, size of what follows

_START = _HEADER.pack(_MAGIC, _VERSION, _HEADER.size, 0)[:8]

_ENTRY_VERSION = 0x0101
_ENTRY = struct.Struct("<HHIQIIHHIQQQQ")
"""Kind, version, size of this header with `_NO_OPTIONS`, padded size of the code, its compressed size, where the
options stand, minor and major version of the code's format, architecture, identifier, flags, two that are 0 here."""

_NO_OPTIONS = struct.pack("<QQ", _ENTRY.size + 8, 0)  # of PTX, for the driver's ptxas: where the text is; empty text
_LINUX_64_BITS = 0x11  # flags
_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """Code for one architecture.

    Attributes:
        kind: `PTX` or `ELF`.
        architecture: its number: 75 for ``sm_75`` and ``compute_75``.
        code: PTX text or a cubin; padded with zeros where it was read.
    """

    kind: int
    architecture: int
    code: bytes

    @property
    def name(self) -> str:
        """``sm_75``, or ``compute_75`` for PTX."""
        return f"{'compute' if self.kind == PTX else 'sm'}_{self.architecture}"


def write_fatbin(entries: Sequence[Entry]) -> bytes:
    """All entries in one container; a driver takes the best that its GPU can run."""
    body = b"".join(map(_entry, entries))
    return _HEADER.pack(_MAGIC, _VERSION, _HEADER.size, len(body)) + body


def _entry(entry: Entry) -> bytes:
    if entry.kind == PTX:
        version = re.search(rb"^\s*\.version\s+(\d+)\.(\d+)", entry.code, re.MULTILINE)
        if version is None:
            raise ValueError("PTX without a version")
        major, minor = int(version[1]), int(version[2])
        options, at, code = _NO_OPTIONS, _ENTRY.size, entry.code.rstrip(b"\0") + b"\0"
    else:
        major, minor = 1, entry.code[8]  # EI_ABIVERSION
        options, at, code = b"", 0, entry.code
    code += bytes(-len(code) % _ALIGNMENT)
    header = _ENTRY.pack(entry.kind, _ENTRY_VERSION, _ENTRY.size + len(options), len(code), 0, at,
                         minor, major, entry.architecture, 0, _LINUX_64_BITS, 0, 0)  # fmt: skip
    return header + options + code


def read_fatbin(data: bytes) -> list[Entry]:
    """The entries of a container that `write_fatbin` wrote.

    Raises:
        ValueError: not one, truncated, or compressed.
    """
    if not data.startswith(_START) or len(data) < _HEADER.size:
        raise ValueError("not a fatbin")
    at, end = _HEADER.size, _HEADER.size + _HEADER.unpack_from(data)[3]
    entries = []
    while at < end:
        if end > len(data) or at + _ENTRY.size > end:
            raise ValueError("a truncated fatbin")
        kind, _, header, size, compressed, _, _, _, architecture, *_ = _ENTRY.unpack_from(data, at)
        if compressed:
            raise ValueError("a compressed fatbin")
        at += header + size
        if at > end or not header:
            raise ValueError("a truncated fatbin")
        entries.append(Entry(kind, architecture, data[at - size : at]))
    return entries


def find_fatbins(data: bytes) -> Iterator[bytes]:
    """Every container in a file, such as a compiled library."""
    at = data.find(_START)
    while at >= 0:
        size = _HEADER.size + _HEADER.unpack_from(data, at)[3] if at + _HEADER.size <= len(data) else 0
        yield data[at : at + size]
        at = data.find(_START, at + max(size, 1))
