"""AMX on machines without it: tile instructions as calls of C functions (`soft_tiles.c`), all else as it is compiled.

The kernels emit every tile instruction, and the question for permission, through two functions; `soft_tiles` replaces
those two. Loops, addresses, vectors and threads are the compiled library's own.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.backends.tvm.host import find_c_compiler, instruction_sets
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.targets import TARGETS, Target
from hawq_tvm.kernels.x86 import amx_tiles

HOST = Machine.resolve(TARGETS["llvm"])
SOFT_TARGET = Target(
    "llvm/soft-amx",
    "llvm",
    "this machine's CPU, with tiles in software",
    attributes={"mcpu": HOST.cpu, "mattr": ("+amx-tile", "+amx-int8")},  # type: ignore[dict-item]
)
"""This machine, told to have tiles."""

SAPPHIRE_RAPIDS = Target("llvm/sapphirerapids", "llvm", "an Intel Xeon with AMX", attributes={"mcpu": "sapphirerapids"})
"""What is compiled for it here need not run here."""

VECTORS = ("avx512_vnni", "avx512vbmi", "avx512ifma", "avx512bw", "avx512dq", "avx512vl")
"""What the kernels use beside tiles, as Linux names it."""

needs_vectors = pytest.mark.skipif(
    not set(VECTORS) <= set(instruction_sets()) or find_c_compiler() is None,
    reason=f"needs a C compiler and a CPU with {', '.join(VECTORS)}",
)


_FOLDER = TemporaryDirectory()


@cache
def shared_object() -> Path:
    """The C functions, compiled once a session."""
    path, source = Path(_FOLDER.name) / "libsoft_tiles.so", Path(__file__).with_suffix(".c")
    compiler = find_c_compiler()
    assert compiler is not None
    command = [compiler, "-x", "c", "-O3", "-march=native", "-shared", "-fPIC", "-o", str(path), str(source)]
    subprocess.run(command, check=True)
    return path


@cache
def library() -> ctypes.CDLL:
    """The C functions, where the libraries that are loaded later find them."""
    loaded = ctypes.CDLL(str(shared_object()), ctypes.RTLD_GLOBAL)
    for name in ("soft_permission", "soft_products", "soft_releases", "soft_asked"):
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


@contextmanager
def soft_tiles() -> Iterator[Target]:
    """Kernels that are built inside call the C functions; gives the target to build them for."""
    library()

    def instruction(name: str, *operands: Any) -> None:
        T.evaluate(tir.call_extern("void", f"soft_{name}", *operands))

    def permission() -> Any:
        return tir.call_extern("int64", "soft_permission")

    with (
        patch.object(amx_tiles, "instruction", instruction),
        patch.object(amx_tiles, "permission", permission),
        patch.dict(TARGETS, {SOFT_TARGET.name: SOFT_TARGET}),
    ):
        yield SOFT_TARGET
