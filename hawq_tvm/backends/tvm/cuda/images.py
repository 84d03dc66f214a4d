"""CUDA text becomes images: for each kernel a cubin of every architecture and PTX of the lowest, in one container.

text -> compilers, side by side, or the cache -> cubins and PTX -> looked at -> one image a kernel
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hawq_tvm.backends.tvm.cache import cache_key, read_entry, write_entry
from hawq_tvm.backends.tvm.cuda.compiler import INSTALL, CudaCompiler
from hawq_tvm.backends.tvm.cuda.cubin import KernelUse, read_cubin
from hawq_tvm.backends.tvm.cuda.fatbin import ELF, PTX, Entry, find_fatbins, read_fatbin, write_fatbin
from hawq_tvm.backends.tvm.host import usable_cores
from hawq_tvm.core.errors import CompileError


@dataclass(frozen=True)
class KernelImage:
    """One kernel, compiled.

    Attributes:
        data: the container that the driver gets.
        uses: what the kernel takes, by architecture.
        spill_bytes: what a thread spills of its registers, by architecture.
    """

    data: bytes
    uses: Mapping[int, KernelUse]
    spill_bytes: Mapping[int, int]


def compile_kernels(
    texts: Iterable[tuple[str, str]], architectures: Sequence[int], compiler: CudaCompiler
) -> dict[str, KernelImage]:
    """Compile every kernel for every architecture.

    Args:
        texts: each kernel's name and its CUDA C++; compiled while the next one is asked for.
        architectures: numbers such as 75; PTX is made of the lowest, for GPUs that are newer than all of them.
        compiler: of this machine.

    Returns:
        By the kernels' names.

    Raises:
        CompileError: the compiler lacks an architecture, refuses a text, or wrote something else than was asked for.
    """
    numbers = sorted(set(architectures))
    missing = sorted(set(numbers) - set(compiler.architectures))
    if missing:
        known = ", ".join(f"sm_{number}" for number in compiler.architectures)
        raise CompileError(
            f"{compiler.name} does not compile for sm_{missing[0]}, only for {known}; CUDA 13.0 does: {INSTALL}"
        )
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(usable_cores()) as pool:
        started: dict[str, dict[int, Future[_Compiled]]] = {}
        try:
            for name, text in texts:
                started[name] = {
                    number: pool.submit(
                        _compile, name, text, number, compiler, Path(scratch, f"{len(started)}.{number}.cu")
                    )
                    for number in numbers
                }
            return {
                name: _image(name, {number: made.result() for number, made in jobs.items()})
                for name, jobs in started.items()
            }
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Compiled:
    """One text for one architecture: machine code, what it was made of, and what the compiler said."""

    cubin: bytes
    ptx: bytes
    said: str


def _compile(name: str, text: str, number: int, compiler: CudaCompiler, source: Path) -> _Compiled:
    """Compile one text for one architecture, or take it from the cache."""
    key = cache_key(compiler.identity, str(number), text)
    kept = read_entry("cuda", key)
    if kept is not None:
        return _Compiled(kept[0], kept[1], kept[2].decode())
    source.write_text(text)
    result = subprocess.run(compiler.command(source, number), capture_output=True, text=True, check=False)
    said = result.stdout + result.stderr
    if result.returncode:
        raise CompileError(f"kernel '{name}' does not compile for sm_{number} with {compiler.name}: {_reason(said)}")
    made = _Compiled(source.with_suffix(".cubin").read_bytes(), source.with_suffix(".ptx").read_bytes(), said)
    write_entry("cuda", key, made.cubin, made.ptx, made.said.encode())
    return made


def _reason(said: str) -> str:
    """The line of a compiler's many that tells why."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)]
    return (telling or lines or ["it says nothing"])[0]


_SPILLS = re.compile(r"(\d+) bytes spill stores")  # of `ptxas -v`


def _image(name: str, compiled: Mapping[int, _Compiled]) -> KernelImage:
    """A kernel's code in one container, and what it takes."""
    entries, uses, spills = [], {}, {}
    for number, made in compiled.items():
        try:
            cubin = read_cubin(made.cubin)
        except ValueError as error:
            raise CompileError(f"kernel '{name}': what was compiled for sm_{number} is {error}") from error
        if cubin.architecture != number or name not in cubin.kernels:
            held = ", ".join(cubin.kernels) or "no kernel"
            raise CompileError(
                f"kernel '{name}' was compiled for sm_{number}, and sm_{cubin.architecture} of {held} came"
            )
        entries.append(Entry(ELF, number, made.cubin))
        uses[number] = cubin.kernels[name]
        spills[number] = max(map(int, _SPILLS.findall(made.said)), default=0)
    lowest = min(compiled)
    entries.append(Entry(PTX, lowest, compiled[lowest].ptx))
    return KernelImage(write_fatbin(entries), uses, spills)


def check_embedded(library: bytes, images: Mapping[str, KernelImage], architectures: Sequence[int]) -> None:
    """What a linked library holds is what was compiled: every image, each with all its architectures, and no source.

    Raises:
        CompileError: something is missing, or there is text in place of machine code.
    """
    found = set(find_fatbins(library))
    wanted = [f"sm_{number}" for number in sorted(set(architectures))] + [f"compute_{min(architectures)}"]
    for name, image in images.items():
        if image.data not in found:
            raise CompileError(f"the library does not hold the machine code of kernel '{name}'")
        held = [entry.name for entry in read_fatbin(image.data)]
        if held != wanted:
            raise CompileError(f"kernel '{name}' is there for {', '.join(held)}, not for {', '.join(wanted)}")
    if b'extern "C" __global__' in library:
        raise CompileError("the library holds CUDA text in place of machine code")
