"""A lowered module becomes a shared library: TVM's passes here, LLVM in a process of its own, then the linker.

LLVM ends its process where it cannot write a file or meets a bug of its own. In a process of its own that is an error
like any other, and our exit status stays ours.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax, tirx
from tvm.base import _LOADED_LIBS
from tvm.support.cc import create_shared
from tvm_ffi.serialization import to_json_graph_str

from hawq_tvm.backends.tvm import codegen
from hawq_tvm.backends.tvm.host import C_COMPILERS, find_c_compiler, instruction_sets
from hawq_tvm.backends.tvm.info import LibraryInfo, ValueInfo
from hawq_tvm.core.aside import ASIDE
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.ops import Flatten

if TYPE_CHECKING:
    from hawq_tvm.backends.tvm.lower import Lowered


def build_library(lowered: Lowered, path: Path) -> LibraryInfo:
    """Compile to a shared library and write `LibraryInfo` beside it.

    Args:
        lowered: from `hawq_tvm.backends.tvm.lower.lower`.
        path: of the library, which appears whole or not at all.

    Returns:
        What the library holds; also written as JSON under the same name.

    Raises:
        CompileError: no C compiler, too little room on the disk, or TVM, LLVM or the linker failed.
    """
    _check_room(lowered, path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compile-", suffix=ASIDE) as scratch:
        library = Path(scratch) / path.name
        compile_library(lowered.module, lowered.machine.tvm_target, library, failure=f"compiling {path.name} failed")
        info = _library_info(lowered, library)
        info.write(library)
        os.replace(LibraryInfo.path_beside(library), LibraryInfo.path_beside(path))
        os.replace(library, path)
    return info


def compile_library(module: Any, target: Any, library: Path, *, failure: str) -> None:
    """Machine code of a module, linked to a shared library.

    Args:
        module: PrimFuncs, and Relax functions where they are lowered to calls that the virtual machine makes.
        target: TVM's, of a CPU.
        library: the file to write.
        failure: how the error's message begins.

    Raises:
        CompileError: no C compiler, or TVM, LLVM or the linker failed.
    """
    compiler = find_c_compiler()
    if compiler is None:
        raise CompileError(
            f"no C compiler found ({', '.join(C_COMPILERS)}), and linking {library.name} needs one; "
            "install one, as with apt install g++, or name it in the environment variable CXX"
        )
    with tempfile.TemporaryDirectory() as scratch:
        try:
            objects = _object_files(module, target, Path(scratch))
            create_shared(str(library), [str(path) for path in objects], cc=compiler)
        except Exception as error:  # TVM raises many unrelated kinds
            raise CompileError(f"{failure}: {_reason(str(error)) or type(error).__name__}") from error


def _object_files(module: Any, target: Any, folder: Path) -> list[Path]:
    """The module's object files, written by LLVM's process."""
    functions, graph, packed = folder / "functions.o", folder / "graph.vm", folder / "graph.o"
    calls = any(isinstance(function, relax.Function) for function in module.functions.values())
    if calls:
        builder = relax.ExecBuilder()
        module = tvm.get_global_func("relax.VMCodeGen")(builder, module)
        builder.get().mod.write_to_file(str(graph))
    job = {
        "path": [entry for entry in sys.path if entry],
        "libraries": [library._name for library in _LOADED_LIBS.values()],
        "functions": str(functions),
        "graph": str(graph) if calls else None,
        "packed": str(packed),
    }
    _run_codegen(f"{json.dumps(job)}\n{to_json_graph_str([_lower_functions(module, target), target])}")
    made = [functions, packed] if calls else [functions]
    if not all(path.exists() for path in made):
        raise RuntimeError("LLVM's process left nothing behind")
    return made


def _lower_functions(module: Any, target: Any) -> Any:
    """PrimFuncs as LLVM takes them: `tvm.tirx.build` for a CPU, up to its code generator."""
    functions = tvm.IRModule({name: f for name, f in module.functions.items() if isinstance(f, tirx.PrimFunc)})
    pipeline, finalize, _ = tirx.get_default_tir_pipeline(target)
    return finalize()(pipeline(tirx.transform.BindTarget(target.with_host(target))(functions)))


def _codegen_command() -> list[str]:
    return [sys.executable, "-P", str(codegen.__file__)]


def _run_codegen(job: str) -> None:
    """Run the code generator to its end.

    Raises:
        RuntimeError: it failed; the text says how it ended, and why as far as it told.
    """
    result = subprocess.run(_codegen_command(), input=job.encode(), capture_output=True, check=False)
    status, said = result.returncode, result.stderr.decode(errors="replace")
    if status == 0:
        return
    if status == codegen.REPORTED:
        raise RuntimeError(said)
    end = f"status {status}" if status > 0 else f"signal {-status} ({signal.strsignal(-status)})"
    if status == -signal.SIGKILL:
        end += ", as where memory runs out"
    reason = _reason(said)
    raise RuntimeError(f"LLVM's process ended with {end}" + (f": {reason}" if reason else ""))


def _check_room(lowered: Lowered, path: Path) -> None:
    """Refuse to start where the disk would fill up: TVM writes the graph without looking whether that succeeds."""
    needed = 2 * lowered.constant_bytes + _CODE_BYTES
    for folder in (tempfile.gettempdir(), str(path.parent)):
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise CompileError(
                f"compiling {path.name} needs about {needed / 2**20:.0f} MiB in {folder}, which has {free / 2**20:.1f} "
                "MiB left (No space left on device); make room there, or for temporary files set TMPDIR"
            )


_CODE_BYTES = 4 * 2**20  # a ResNet-50's machine code, with room to spare

_FRAMES = ("collect2:", "Compilation error:", "Command line:")  # lines around the linker's own reason


def _reason(text: str) -> str:
    """The line of a library's many that tells why; empty where there is none."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_FRAMES)]
    full = [line for line in lines if "No space left on device" in line]
    telling = [line for line in lines if "error:" in line.lower()]
    return (full or telling or lines or [""])[-1]


def _library_info(lowered: Lowered, library: Path) -> LibraryInfo:
    graph, machine = lowered.graph, lowered.machine
    views = {node.name: node.inputs[0] for node in graph if isinstance(node.op, Flatten)}
    return LibraryInfo(
        target=machine.target.name,
        cpu=machine.cpu,
        instruction_sets=tuple(instruction_sets()) if machine.cpu else (),
        batch=lowered.batch,
        input_name=graph.input_name,
        output_name=graph.output,
        values={
            name: ValueInfo(repr(type.dtype), type.shape, type.scale, lowered.plan.storages[name])
            for name, type in graph.types.items()
        },
        calls=tuple(lowered.calls),
        conversions={name: conversion for name, conversion in lowered.calls.items() if conversion is not None},
        views=views,
        kernels=dict(lowered.plan.kernels),
        declines={
            name: tuple(f"{decline.kernel}: {decline.reason}" for decline in declines)
            for name, declines in lowered.plan.declines.items()
        },
        exact_storages=lowered.plan.exact,
        planned_bytes=lowered.planned_bytes,
        fingerprint=graph.fingerprint(),
        tvm=str(tvm.__version__),
        sha256=file_sha256(library),
    )
