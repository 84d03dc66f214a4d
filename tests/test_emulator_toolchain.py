"""What the emulator compiles, and the cache that keeps it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hawq_tvm.core.errors import EmulatorError
from hawq_tvm.emulator import launch, toolchain
from hawq_tvm.emulator.text import split_kernels

from .emulated import cuda, needs_compiler

TEXT = cuda("int* x_ptr", "x_ptr[0] = 1;")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the machine alone."""
    machine = toolchain.machine_library()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(toolchain, "machine_library", lambda: machine)
    return toolchain.cache_folder()


@needs_compiler
def test_the_cache_goes_by_content(empty_cache: Path) -> None:
    first = toolchain.compile_kernels(split_kernels(TEXT).values(), checked=True)
    assert toolchain.compile_kernels(split_kernels(TEXT).values(), checked=True) == first
    quick = toolchain.compile_kernels(split_kernels(TEXT).values(), checked=False)
    other = toolchain.compile_kernels(split_kernels(TEXT.replace("= 1", "= 2")).values(), checked=True)
    assert len({*first, *quick, *other}) == 3
    assert sorted(path.name for path in first[0].parent.iterdir()) == ["kernel.cpp", "kernel.so"]
    assert len(list(empty_cache.iterdir())) == 3, "nothing is left of what was written aside"


@needs_compiler
def test_kernels_are_compiled_side_by_side(empty_cache: Path) -> None:
    texts = [TEXT.replace("= 1", f"= {i}") for i in range(4)] * 2
    kernels = [kernel for text in texts for kernel in split_kernels(text).values()]
    made = toolchain.compile_kernels(kernels, checked=True)
    assert made[:4] == made[4:]
    assert len(set(made)) == 4


@needs_compiler
def test_what_does_not_compile_is_told_and_leaves_nothing(empty_cache: Path) -> None:
    text = cuda("int* x_ptr", "\n  x_ptr[0] = nothing;")
    line = text.splitlines().index("  x_ptr[0] = nothing;") + 1
    with pytest.raises(EmulatorError, match=rf"cannot compile kernel 'kernel'.*: kernel.cu:{line}:.*nothing"):
        toolchain.compile_kernels(split_kernels(text).values(), checked=True)
    assert not list(empty_cache.iterdir())


def test_no_compiler(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EmulatorError, match="no C\\+\\+ compiler found .*; install one, as with apt install g\\+\\+"):
        toolchain.compile_kernels(split_kernels(TEXT).values(), checked=True)


def test_the_compiler_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert toolchain.find_compiler() != "no-such-compiler"
    monkeypatch.setenv("CXX", sys.executable)
    assert toolchain.find_compiler() == sys.executable


@needs_compiler
def test_options_that_a_compiler_does_not_know_are_left_out() -> None:
    compiler = toolchain.find_compiler()
    assert compiler is not None
    assert toolchain._knows(compiler, "-fwrapv")
    assert not toolchain._knows(compiler, "-fno-such-option")


@needs_compiler
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = toolchain.machine_library()
    monkeypatch.setattr(toolchain, "machine_library", lambda: machine)
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(EmulatorError, match="cannot keep compiled code in .*: Not a directory"):
        toolchain.compile_kernels(split_kernels(TEXT).values(), checked=True)


@needs_compiler
def test_the_machine_compiles_without_a_warning() -> None:
    compiler = toolchain.find_compiler()
    assert compiler is not None
    for source in toolchain.CPP.rglob("*.cpp"):
        command = [
            compiler,
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsyntax-only",
            f"-I{toolchain.CPP}",
            str(source),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


@needs_compiler
def test_stacks_of_the_system_do_what_ours_do(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    """On other processors than x86-64 threads change over by the C library's ucontext."""
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty_cache))
    monkeypatch.setattr(toolchain, "_MACHINE", (*toolchain._MACHINE, "-DEMULATOR_PORTABLE_FIBERS"))
    uncached = toolchain.machine_library.__wrapped__
    monkeypatch.setattr(toolchain, "machine_library", uncached)
    monkeypatch.setattr(launch, "machine_library", uncached)
    monkeypatch.setattr(launch, "_machine", launch._machine.__wrapped__)
    body = """
  __shared__ int values[64];
  values[threadIdx.x] = __shfl_xor_sync(-1, x_ptr[threadIdx.x], 1);
  __syncthreads();
  x_ptr[threadIdx.x] = values[63 - threadIdx.x];"""
    x = np.arange(64, dtype=np.int32)
    launch.run(cuda("int* x_ptr", body), "kernel", [x], (1,), (64,))
    assert np.array_equal(x, (np.arange(64) ^ 1)[::-1])
