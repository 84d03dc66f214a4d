"""Cubins made by hand, as small as they can be: for tests that need no CUDA compiler."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from hawq_tvm.backends.tvm.cuda.cubin import KernelUse

_HEADER = "<16sHHIQQQIHHHHHH"
_SECTION = "<IIQQQQIIQQ"


def make_cubin(architecture: int, kernels: Mapping[str, KernelUse], abi: int = 8) -> bytes:
    """An ELF file of which `hawq_tvm.backends.tvm.cuda.cubin.read_cubin` reads exactly this."""
    names, bodies, infos, frames = [".shstrtab", ".nv.info"], [b"", b""], [0, 0], b""
    for symbol, (name, use) in enumerate(kernels.items(), start=1):
        names += [f".text.{name}", f".nv.shared.{name}"]
        bodies += [bytes(16), bytes(use.shared_bytes)]
        infos += [99 << 24 | symbol, 0]
        frames += struct.pack("<BBHII", 4, 0x2F, 8, symbol, use.registers) + struct.pack("<BBHI", 4, 0x12, 4, 7)
        frames += struct.pack("<BBHII", 4, 0x11, 8, symbol, use.stack_bytes)
    texts = b"\0"
    places = []
    for name in names:
        places.append(len(texts))
        texts += name.encode() + b"\0"
    bodies[0], bodies[1] = texts, frames + struct.pack("<BBH", 3, 0x1B, 255)
    data = bytes(struct.calcsize(_HEADER))
    sections = [bytes(struct.calcsize(_SECTION))]
    for place, body, info in zip(places, bodies, infos, strict=True):
        sections.append(struct.pack(_SECTION, place, 1, 0, 0, len(data), len(body), 0, info, 0, 0))
        data += body
    flags = 0x06000004 | architecture << 8 if abi >= 8 else architecture << 16 | architecture
    ident = b"\x7fELF\x02\x01\x01\x41" + bytes([abi])
    header = struct.pack(
        _HEADER, ident.ljust(16, b"\0"), 2, 190, 1, 0, 0, len(data), flags, 64, 56, 0, 64, len(sections), 1
    )
    return header + data[len(header) :] + b"".join(sections)


def make_ptx(architecture: int, *kernels: str) -> bytes:
    """PTX with empty kernels."""
    entries = "\n".join(f".visible .entry {name}() {{ ret; }}" for name in kernels)
    return f"// by hand\n.version 9.0\n.target sm_{architecture}\n.address_size 64\n{entries}\n".encode()


def code_bytes(cubin: bytes) -> int:
    """Machine code of a cubin's kernels: its sections that are executed (flag 4, ``SHF_EXECINSTR``)."""
    (sections_at,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count = struct.unpack_from("<HH", cubin, 0x3A)
    headers = (struct.unpack_from("<IIQQQQ", cubin, sections_at + index * size) for index in range(count))
    return sum(length for _, _, flags, _, _, length in headers if flags & 4)
