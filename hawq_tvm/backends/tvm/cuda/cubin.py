"""What ``ptxas`` writes: an ELF file for one architecture, with the facts of each kernel in its section table.

Needs no tool of NVIDIA's, so that a library can be examined wherever it is.

Sources: the ELF specification; "CUDA Binary Utilities" for what the sections hold. How registers and architecture are
encoded is not documented there; ``tests/test_cuda_cubin.py`` holds both to what ``ptxas -v`` says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_MACHINE = 190  # EM_CUDA
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_ABI_WITH_FLAGS_OF_CUDA_13 = 8


@dataclass(frozen=True)
class KernelUse:
    """What one kernel takes of a multiprocessor.

    Attributes:
        registers: 32-bit registers of a thread.
        shared_bytes: static shared memory of a block.
        stack_bytes: local memory of a thread: spilled registers, and arrays that are not in registers.
    """

    registers: int
    shared_bytes: int
    stack_bytes: int


@dataclass(frozen=True)
class Cubin:
    """One architecture's machine code.

    Attributes:
        architecture: the number of its ``sm``: 75.
        kernels: what each kernel takes, by name.
    """

    architecture: int
    kernels: Mapping[str, KernelUse]


@dataclass(frozen=True)
class _Section:
    name: str
    offset: int
    size: int
    info: int


def read_cubin(data: bytes) -> Cubin:
    """Read a cubin.

    Raises:
        ValueError: not one, or truncated.
    """
    try:
        ident, _, machine, _, _, _, sections_at, flags, _, _, _, size, count, names = _HEADER.unpack_from(data)
        if ident[:5] != b"\x7fELF\x02" or machine != _MACHINE or size != _SECTION.size:
            raise ValueError("not a cubin")
        sections = list(_sections(data, sections_at, count, names))
        stacks = _stack_bytes(data, sections)
    except (struct.error, IndexError) as error:
        raise ValueError("a truncated cubin") from error
    code = {s.name.removeprefix(".text."): s for s in sections if s.name.startswith(".text.")}
    shared = {s.name.removeprefix(".nv.shared."): s.size for s in sections if s.name.startswith(".nv.shared.")}
    # The low bits of a code section's info are the index of its symbol, the top byte its registers.
    kernels = {
        name: KernelUse(section.info >> 24, shared.get(name, 0), stacks.get(section.info & 0xFFFFFF, 0))
        for name, section in code.items()
    }
    abi = ident[8]
    return Cubin((flags >> 8 if abi >= _ABI_WITH_FLAGS_OF_CUDA_13 else flags) & 0xFF, kernels)


def _sections(data: bytes, at: int, count: int, names: int) -> Iterator[_Section]:
    rows = [_SECTION.unpack_from(data, at + index * _SECTION.size) for index in range(count)]
    texts_at = rows[names][4]
    for name, _, _, _, offset, size, _, info, _, _ in rows:
        start = texts_at + name
        end = data.index(b"\0", start)
        yield _Section(data[start:end].decode(), offset, size, info)


_FRAME_SIZE = 0x11  # EIATTR_FRAME_SIZE, as nvdisasm names it: symbol index, bytes
_SIZED_VALUE = 4  # EIFMT_SVAL: two bytes of size, then the value; the other formats hold two bytes in place


def _stack_bytes(data: bytes, sections: list[_Section]) -> dict[int, int]:
    """Local memory of a thread, by the kernel's symbol index."""
    found = {}
    for section in sections:
        if section.name != ".nv.info":
            continue
        at, end = section.offset, section.offset + section.size
        while at < end:
            form, attribute, size = struct.unpack_from("<BBH", data, at)
            at += 4
            if form == _SIZED_VALUE:
                if attribute == _FRAME_SIZE:
                    symbol, frame = struct.unpack_from("<II", data, at)
                    found[symbol] = frame
                at += size
    return found
