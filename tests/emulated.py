"""What tests of the emulator, and on it, share: CUDA text written by hand, and the compiler that they need."""

from __future__ import annotations

import pytest

from hawq_tvm.emulator.toolchain import CXX_COMPILERS, find_compiler

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason=f"no C++ compiler: {', '.join(CXX_COMPILERS)}")


def cuda(parameters: str, body: str, *, before: str = "", name: str = "kernel", threads: int = 0) -> str:
    """A text as TVM writes it: what comes before, a declaration of the kernel, and the kernel."""
    bounds = f"__launch_bounds__({threads}) " if threads else ""
    head = f'extern "C" __global__ void {bounds}{name}({parameters})'
    return f"#include <cuda.h>\n#define uint unsigned int\n{before}\n{head};\n{head} {{\n{body}\n}}\n"
