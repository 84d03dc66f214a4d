"""Stand-ins for NVIDIA's libraries, so that TVM's CUDA module can be made where there is no driver.

``libtvm_runtime_cuda.so`` asks for the driver and the CUDA runtime when it is loaded, and for their functions only when
it calls them. Packing a module calls none. An empty library under each name, loaded first, is all that it takes;
without it TVM quietly embeds CUDA text in place of machine code. The same stand-ins are used where there is a driver: a
build never looks at the GPU of the machine that it runs on.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

LIBRARIES = {"libcuda.so.1": "", "libcudart.so.13": "libcudart.so.13"}
"""What ``libtvm_runtime_cuda.so`` of the pinned TVM is linked with, and the symbol version that it wants of each."""


def make_stubs(compiler: str, folder: Path) -> list[Path]:
    """Write an empty library for each name.

    Args:
        compiler: the C compiler that links libraries.
        folder: where to write.

    Raises:
        RuntimeError: the compiler failed; the text is what it said.
    """
    source = folder / "empty.c"
    source.write_text("")
    made = []
    for name, version in LIBRARIES.items():
        path = folder / name
        options = [f"-Wl,-soname,{name}"]
        if version:
            script = folder / f"{name}.map"
            script.write_text(f"{version} {{}};\n")
            options.append(f"-Wl,--version-script={script}")
        command = [compiler, "-shared", "-fPIC", "-x", "c", str(source), "-o", str(path), *options]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(result.stderr.strip() or f"{compiler} fails to link {name}")
        made.append(path)
    return made
