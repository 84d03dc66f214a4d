"""Kernels for CPUs that this machine is not, run by QEMU's emulator of programs, with a C program in place of TVM."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.ir import Array

EMULATED = {
    "aarch64": None,
    "x86_64": {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "sse4_1", "sse4_2", "ssse3"},
}
"""What QEMU's ``max`` has of each architecture, by Linux's names; all of 64-bit Arm's sets that are compiled for."""

_CODES = {"i": 0, "u": 1, "f": 2}
"""DLPack's codes of numpy's kinds."""


def why_not(machine: Machine, sets: Sequence[str]) -> str | None:
    """What keeps this machine from emulating another with these instruction sets; None where nothing does."""
    emulated = EMULATED[machine.architecture]
    beyond = [] if emulated is None else sorted(set(sets) - emulated)
    if beyond:
        return f"no emulator has {', '.join(beyond)}"
    if shutil.which(f"qemu-{machine.architecture}") is None:
        return f"qemu-{machine.architecture} is not installed (apt install qemu-user)"
    if find_c_compiler(machine.architecture) is None:
        return f"no C compiler for {machine.architecture} (apt install g++-{machine.architecture}-linux-gnu)"
    return None


@functools.cache
def system_of(architecture: str) -> list[str]:
    """The command that runs programs of another architecture, with the C library that its cross compiler links to."""
    compiler = find_c_compiler(architecture)
    assert compiler is not None
    found = subprocess.run([compiler, "-print-file-name=libc.so.6"], capture_output=True, text=True, check=True).stdout
    return [f"qemu-{architecture}", "-cpu", "max", "-L", str(Path(found.strip()).resolve().parents[1])]


class EmulatedKernel:
    """A kernel as a program for another CPU; call it with buffers, each with the memory around it."""

    def __init__(self, function: Any, machine: Machine) -> None:
        compiler = find_c_compiler(machine.architecture)
        assert compiler is not None
        self._emulator = f"qemu-{machine.architecture}"
        self._folder = tempfile.TemporaryDirectory()  # goes with this object
        kernel, self._program = (Path(self._folder.name) / name for name in ("kernel.o", "program"))
        module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
        tvm.compile(module, target=machine.tvm_target).mod.write_to_file(str(kernel))
        _run([compiler, "-static", "-o", str(self._program), str(kernel), str(_driver(compiler))])

    def __call__(self, guarded: Sequence[tuple[Array, Array]]) -> None:
        """All memory is as the kernel left it afterwards."""
        given, left = (Path(self._folder.name) / name for name in ("given", "left"))
        with given.open("wb") as file:
            file.write(np.int32(len(guarded)).tobytes())
            for memory, view in guarded:
                start = view.ctypes.data - memory.ctypes.data
                file.write(np.array([_CODES[view.dtype.kind], 8 * view.itemsize, view.ndim], np.int32).tobytes())
                file.write(np.array([*view.shape, memory.nbytes, start], np.int64).tobytes())
                file.write(memory.tobytes())
        _run([self._emulator, "-cpu", "max", str(self._program), str(given), str(left)])
        found, place = np.fromfile(left, np.uint8), 0
        for memory, _ in guarded:
            memory[:] = found[place : place + memory.nbytes]
            place += memory.nbytes
        assert place == found.nbytes


@functools.cache
def _driver(compiler: str) -> Path:
    """The C program's object file, compiled once."""
    path = Path(_folder().name) / f"{Path(compiler).name}.o"
    source = Path(__file__).with_suffix(".c")
    _run([compiler, "-x", "c", "-O1", "-Wall", "-Werror", "-c", "-o", str(path), str(source)])
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"
