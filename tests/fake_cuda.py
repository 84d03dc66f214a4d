"""A CUDA compiler that compiles nothing: for tests of what stands around one, where there is none.

Of the text it sees the names of kernels, and comments that say what to do: ``// registers 40``, ``// shared 96``,
``// stack 8``, ``// spills 8``, ``// fails SOMETHING``, ``// architecture 80`` for code of another one than was asked
for. Each run adds a line to the file that ``FAKE_CUDA_LOG`` names.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler
from hawq_tvm.backends.tvm.cuda.cubin import KernelUse

from .cubins import make_cubin, make_ptx

if TYPE_CHECKING:  # every run of the compiler would load it
    import pytest

_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.fake_cuda import main
sys.exit(main(Path(sys.argv[2]), int(sys.argv[3])))
"""


def fake_compiler(*architectures: int, identity: str = "fake 1.0") -> CudaCompiler:
    """The compiler, as `find_cuda_compiler` would find it."""

    def command(source: Path, architecture: int) -> list[str]:
        return [sys.executable, "-c", _RUN, str(Path(__file__).parent.parent), str(source), str(architecture)]

    return CudaCompiler("fake 1.0 (/bin/fake)", identity, architectures or (75, 80, 86, 89, 90), command)


def use_fake_compiler(patch: pytest.MonkeyPatch) -> None:
    """Let libraries for GPUs be built with it, and their machine code, which is none, not be read."""
    from hawq_tvm.backends.tvm import build  # and TVM
    from hawq_tvm.backends.tvm.cuda import report

    patch.setattr(build, "find_cuda_compiler", fake_compiler)
    patch.setattr(report, "find_disassembler", lambda: None)


def main(source: Path, architecture: int) -> int:
    """Compile."""
    text = source.read_text()
    if "FAKE_CUDA_LOG" in os.environ:
        with open(os.environ["FAKE_CUDA_LOG"], "a") as log:
            log.write(f"{architecture}\n")

    def said(what: str, default: int) -> int:
        found = re.search(rf"// {what} (\d+)", text)
        return int(found[1]) if found else default

    fails = re.search(r"// fails (.*)", text)
    if fails:
        print(f"compiling\nkernel.cu(1): error: {fails[1]}\n1 error detected", file=sys.stderr)
        return 1
    use = KernelUse(said("registers", 32), said("shared", 0), said("stack", 0))
    names = re.findall(r"__global__ void (?:__launch_bounds__\([\d, ]+\) )?(\w+)\([^)]*\) *\{", text)
    cubin = make_cubin(said("architecture", architecture), dict.fromkeys(names, use))
    source.with_suffix(".cubin").write_bytes(cubin)
    source.with_suffix(".ptx").write_bytes(make_ptx(architecture, *names))
    print(f"    {use.stack_bytes} bytes stack frame, {said('spills', 0)} bytes spill stores, 9 bytes spill loads")
    return 0
