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
_RESERVED_SHARED_BYTES = 1024  # what the system takes of each block, counted in from sm_90 on
_SYMBOL = 0xFFFFFF  # of a code section's info: its kernel's index in the symbol table

_SIZED_VALUE = 4  # EIFMT_SVAL: two bytes of size, then the value; the other formats hold two bytes in place
_FRAME_SIZE = 0x11  # EIATTR_FRAME_SIZE and EIATTR_REGCOUNT, as nvdisasm names them: symbol index, number
_REGISTERS = 0x2F


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
        sections = {section.name: section for section in _sections(data, sections_at, count, names)}
        attributes = dict(_attributes(data, sections[".nv.info"])) if ".nv.info" in sections else {}
    except (struct.error, IndexError) as error:
        raise ValueError("a truncated cubin") from error
    abi = ident[8]
    reserved = _RESERVED_SHARED_BYTES if ".nv.shared.reserved.0" in sections else 0

    def use(name: str, symbol: int) -> KernelUse:
        shared = sections.get(f".nv.shared.{name}")
        return KernelUse(
            registers=attributes.get((symbol, _REGISTERS), 0),
            shared_bytes=max(shared.size - reserved, 0) if shared is not None else 0,
            stack_bytes=attributes.get((symbol, _FRAME_SIZE), 0),
        )

    kernels = {
        name.removeprefix(".text."): use(name.removeprefix(".text."), section.info & _SYMBOL)
        for name, section in sections.items()
        if name.startswith(".text.")
    }
    return Cubin((flags >> 8 if abi >= _ABI_WITH_FLAGS_OF_CUDA_13 else flags) & 0xFF, kernels)


def _sections(data: bytes, at: int, count: int, names: int) -> Iterator[_Section]:
    rows = [_SECTION.unpack_from(data, at + index * _SECTION.size) for index in range(count)]
    texts_at = rows[names][4]
    for name, _, _, _, offset, size, _, info, _, _ in rows:
        start = texts_at + name
        text = data[start : data.find(b"\0", start)]
        yield _Section(text.decode(errors="replace"), offset, size, info)


def _attributes(data: bytes, section: _Section) -> Iterator[tuple[tuple[int, int], int]]:
    """Numbers that belong to a kernel, by its symbol and what they tell."""
    at, end = section.offset, section.offset + section.size
    while at < end:
        form, attribute, size = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == _SIZED_VALUE:
            if attribute in (_REGISTERS, _FRAME_SIZE):
                symbol, value = struct.unpack_from("<II", data, at)
                yield (symbol, attribute), value
            at += size
