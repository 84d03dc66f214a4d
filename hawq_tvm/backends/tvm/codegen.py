"""LLVM's part of a compilation, run as a program of its own: where LLVM gives up, it ends the process that it is in.

`hawq_tvm.backends.tvm.build` starts it by this file's path and writes to its standard input: a line of JSON with what
`main` reads, then TVM's JSON of the functions, of their target, of the GPU's and of kernels. It loads TVM's libraries
without TVM's Python, which takes five times as long, and keeps PyTorch out, which tvm_ffi would import.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

REPORTED = 3
"""Exit status where TVM raised an error, whose text is on standard error; LLVM itself ends with 1 or by a signal."""


def main() -> None:
    """Write the object files that a job asks for.

    The job's keys: ``path``, where modules are searched; ``libraries``, TVM's, in the order of loading; ``functions``,
    the object file to write; ``graph``, the virtual machine's executable that calls them, or null; ``packed``, the
    object file of what the library carries beside its functions; ``images``, the file with the machine code of each
    GPU kernel.
    """
    job = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = job["path"]
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it now fails, which tvm_ffi takes

    import tvm_ffi
    from tvm_ffi.serialization import from_json_graph_str

    for library in job["libraries"]:
        _load(library)
    module, target, gpu_target, *kernels = from_json_graph_str(sys.stdin.buffer.read().decode())
    functions: Any = tvm_ffi.get_global_func("target.build.llvm")(module, target)
    functions.write_to_file(job["functions"])
    for kernel, image in zip(kernels, job["images"], strict=True):
        functions.import_module(_with_machine_code(kernel, gpu_target, Path(image).read_bytes()))
    root = functions
    if job["graph"] is not None:
        root = tvm_ffi.get_global_func("relax.ExecutableLoadFromFile")(job["graph"])
        root.import_module(functions)
    if root is not functions or kernels:
        pack: Any = tvm_ffi.get_global_func("runtime.ModulePackImportsToLLVM")
        pack(root, False, functions.get_function("_get_target_string")(), "").write_to_file(job["packed"])
    if kernels:
        os._exit(0)  # all is written; the modules' ends would ask the CUDA runtime, which is a stand-in, for its device


def _load(library: str) -> None:
    """Load a library, whose functions are looked for when they are called: ctypes would look for all of them at once.

    Raises:
        OSError: it cannot be loaded.
    """
    loader = ctypes.CDLL(None)
    loader.dlerror.restype = ctypes.c_char_p
    loader.dlopen.restype = ctypes.c_void_p
    if loader.dlopen(os.fsencode(library), os.RTLD_LAZY | os.RTLD_GLOBAL) is None:
        raise OSError(loader.dlerror().decode())


def _with_machine_code(kernel: Any, target: Any, image: bytes) -> Any:
    """TVM's module of a kernel: its signature and how it is launched are TVM's, its code is what was compiled.

    The kernel comes without a body, so that what TVM's code generator writes of it is an empty function, for which it
    needs nothing of TVM's Python; the compiler that it calls then has the machine code already.
    """
    import tvm_ffi

    tvm_ffi.register_global_func("tirx.intrinsics.cuda.header_generator", lambda tags: "", override=True)
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", lambda text: image, override=True)
    return tvm_ffi.get_global_func("target.build.cuda")(kernel, target)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # TVM raises many unrelated kinds
        print(error, file=sys.stderr)
        sys.exit(REPORTED)
