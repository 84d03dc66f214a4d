"""LLVM's part of a compilation, run as a program of its own: where LLVM gives up, it ends the process that it is in.

`hawq_tvm.backends.tvm.build` starts it by this file's path and writes to its standard input: a line of JSON with what
`main` reads, then TVM's JSON of the functions and of their target. It loads TVM's libraries without TVM's Python, which
takes five times as long, and keeps PyTorch out, which tvm_ffi would import.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

REPORTED = 3
"""Exit status where TVM raised an error, whose text is on standard error; LLVM itself ends with 1 or by a signal."""


def main() -> None:
    """Write the object files that a job asks for.

    The job's keys: ``path``, where modules are searched; ``libraries``, TVM's, in the order of loading; ``functions``,
    the object file to write; ``graph``, the virtual machine's executable that calls them, or null; ``packed``, its
    object file.
    """
    job = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = job["path"]
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it now fails, which tvm_ffi takes

    import tvm_ffi
    from tvm_ffi.serialization import from_json_graph_str

    for library in job["libraries"]:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    module, target = from_json_graph_str(sys.stdin.buffer.read().decode())
    functions: Any = tvm_ffi.get_global_func("target.build.llvm")(module, target)
    functions.write_to_file(job["functions"])
    if job["graph"] is not None:
        graph: Any = tvm_ffi.get_global_func("relax.ExecutableLoadFromFile")(job["graph"])
        graph.import_module(functions)
        pack = tvm_ffi.get_global_func("runtime.ModulePackImportsToLLVM")
        pack(graph, False, functions.get_function("_get_target_string")(), "").write_to_file(job["packed"])


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # TVM raises many unrelated kinds
        print(error, file=sys.stderr)
        sys.exit(REPORTED)
