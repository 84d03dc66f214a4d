"""The CUDA compilers of this machine: nvcc of a toolkit, or NVRTC, which PyPI has; neither needs a GPU or a driver.

`HAWQ_TVM_CUDA_COMPILER` names one: ``nvcc``, ``nvrtc`` or the path of an nvcc. Otherwise nvcc is looked for in
``CUDA_HOME``, in ``PATH``, in ``/usr/local/cuda`` and among Python's packages, then NVRTC among those.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hawq_tvm.backends.tvm.cuda import nvrtc
from hawq_tvm.backends.tvm.cuda.packages import TOOLKIT, package_roots
from hawq_tvm.core.errors import CompileError, first_line

CHOICE = "HAWQ_TVM_CUDA_COMPILER"
INSTALL = "pip install 'hawq-tvm[cuda]' brings one, or install the CUDA toolkit"

_NVCC_OPTIONS = ("-std=c++17", "-fmad=false", "-w", "-Xptxas", "-v")
_NVRTC_OPTIONS = ("--std=c++17", "--fmad=false", "--disable-warnings", "--ptxas-options=-v")
"""A product and a sum stay two roundings where the text does not ask for one: it means the same on every machine."""


@dataclass(frozen=True, eq=False)
class CudaCompiler:
    """A compiler from CUDA to machine code or PTX.

    Attributes:
        name: with its version, as people are told.
        identity: all that its output depends on besides the text and the architecture.
        architectures: the numbers of those that it compiles for, ascending.
        command: the command line that compiles a source file for an architecture, to the cubin and the PTX that are
            named as it, with suffixes of their own.
    """

    name: str
    identity: str
    architectures: tuple[int, ...]
    command: Callable[[Path, int], list[str]]


def find_cuda_compiler() -> CudaCompiler:
    """The first compiler that works.

    Raises:
        CompileError: none does; the message says what was found and what to install.
    """
    return _find(os.environ.get(CHOICE, ""), os.environ.get("CUDA_HOME", ""), os.environ.get("PATH", ""))


@cache
def _find(choice: str, cuda_home: str, path: str) -> CudaCompiler:
    """As `find_cuda_compiler`; asked once for each environment."""
    faults = []
    for found in _candidates(choice, cuda_home, path):
        try:
            return found()
        except (subprocess.SubprocessError, OSError, ValueError, AttributeError) as error:
            faults.append(first_line(error))
    if choice:
        why = f": {faults[0]}" if faults else ""
        raise CompileError(f"{CHOICE} is '{choice}', and no such CUDA compiler works here{why}; {INSTALL}")
    why = f" (found, but failing: {'; '.join(faults)})" if faults else ""
    raise CompileError(f"no CUDA compiler found, neither nvcc nor NVRTC{why}, and GPU targets need one; {INSTALL}")


def _candidates(choice: str, cuda_home: str, path: str) -> Iterator[Callable[[], CudaCompiler]]:
    if "/" in choice:
        yield lambda: _nvcc(Path(choice))
        return
    if choice in ("", "nvcc"):
        folders = [f"{cuda_home}/bin"] if cuda_home else []
        folders += [*path.split(os.pathsep), TOOLKIT, *(f"{root}/bin" for root in package_roots())]
        for nvcc in dict.fromkeys(filter(None, (shutil.which("nvcc", path=folder) for folder in folders if folder))):
            yield lambda nvcc=nvcc: _nvcc(Path(nvcc))  # type: ignore[misc]
    if choice in ("", "nvrtc"):
        for root in package_roots():
            for library in sorted(root.glob("lib/libnvrtc.so.*")):
                yield lambda root=root, library=library: _nvrtc(root, library)  # type: ignore[misc]


def _output(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(f"{command[0]} fails: {(result.stderr or result.stdout).strip() or result.returncode}")
    return result.stdout


def _nvcc(path: Path) -> CudaCompiler:
    version = _output([str(path), "--version"])
    release = re.search(r"release (\d+\.\d+), V([\d.]+)", version)
    if release is None:
        raise ValueError(f"{path} tells no version")
    codes = re.findall(r"^sm_(\d+)$", _output([str(path), "--list-gpu-code"]), re.MULTILINE)

    def command(source: Path, architecture: int) -> list[str]:
        kept = ["--keep", "--keep-dir", str(source.parent)]  # of what it passes through, the PTX
        output = ["-o", str(source.with_suffix(".cubin"))]
        return [str(path), "-cubin", f"-arch=sm_{architecture}", *_NVCC_OPTIONS, *kept, *output, str(source)]

    return CudaCompiler(
        f"nvcc {release[2]} ({path})",
        " ".join(("nvcc", *version.split(), *_NVCC_OPTIONS)),
        tuple(sorted(map(int, codes))),
        command,
    )


def _nvrtc(root: Path, library: Path) -> CudaCompiler:
    builtins = next(iter(sorted(root.glob("lib/libnvrtc-builtins.so.*"))), None)
    if builtins is None:
        raise ValueError(f"{library} lacks libnvrtc-builtins.so")
    start = [sys.executable, "-P", str(nvrtc.__file__), str(library), str(builtins)]
    version, *codes = _output([*start, "architectures"]).split()
    includes = [f"-I{root}/include", f"-I{root}/include/cccl"]

    def command(source: Path, architecture: int) -> list[str]:
        files = [str(source), str(source.with_suffix(".cubin")), str(source.with_suffix(".ptx"))]
        return [*start, "compile", *files, f"--gpu-architecture=sm_{architecture}", *_NVRTC_OPTIONS, *includes]

    identity = " ".join(("nvrtc", version, str(library.stat().st_size), *_NVRTC_OPTIONS))
    return CudaCompiler(f"NVRTC {version} ({library})", identity, tuple(sorted(map(int, codes))), command)
