"""A lowered module becomes a shared library: TVM's passes here, LLVM in a process of its own, then the linker.

LLVM ends its process where it cannot write a file or meets a bug of its own. In a process of its own that is an error
like any other, and our exit status stays ours.

A GPU's kernels are compiled first, by a CUDA compiler (`hawq_tvm.backends.tvm.cuda.images`). LLVM's process carries
their machine code into the library, and what came out is looked at before anyone gets it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax, tirx
from tvm.base import _LOADED_LIBS
from tvm.support.cc import create_shared
from tvm_ffi.serialization import to_json_graph_str

from hawq_tvm.backends.tvm import codegen
from hawq_tvm.backends.tvm.cuda.compiler import find_cuda_compiler
from hawq_tvm.backends.tvm.cuda.images import KernelImage, check_embedded, compile_kernels
from hawq_tvm.backends.tvm.cuda.lowering import DeviceKernel, lower_for_gpu
from hawq_tvm.backends.tvm.cuda.report import check_kernels, gpu_info, kernel_texts
from hawq_tvm.backends.tvm.cuda.stubs import make_stubs
from hawq_tvm.backends.tvm.cuda.texts import format_texts
from hawq_tvm.backends.tvm.host import C_COMPILERS, architecture, cross_compilers, find_c_compiler
from hawq_tvm.backends.tvm.info import GpuInfo, ImageInput, LibraryInfo, ValueInfo
from hawq_tvm.core.aside import ASIDE
from hawq_tvm.core.cpu import linux_names
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.ops import Flatten
from hawq_tvm.core.targets import Target, architectures_of

if TYPE_CHECKING:
    from hawq_tvm.backends.tvm.lower import Lowered


def build_library(
    lowered: Lowered, path: Path, *, also: Sequence[Target] = (), image: ImageInput | None = None
) -> LibraryInfo:
    """Compile to a shared library and write `LibraryInfo` beside it, of a GPU the kernels' CUDA text too.

    Args:
        lowered: from `hawq_tvm.backends.tvm.lower.lower`.
        path: of the library, which appears whole or not at all.
        also: further GPUs to hold machine code for, of the same kernels; none older than the target.
        image: how an image becomes the input, for the JSON; None where that is not known.

    Returns:
        What the library holds; also written as JSON under the same name.

    Raises:
        CompileError: no C or CUDA compiler, too little room on the disk or on the GPU, a kernel that the GPU cannot
            hold, or TVM, LLVM, the CUDA compiler or the linker failed.
    """
    target = lowered.machine.target
    architectures = architectures_of(target, also)
    _check_room(lowered, path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compile-", suffix=ASIDE) as scratch:
        library = Path(scratch) / path.name
        kernels = compile_library(
            lowered.module,
            lowered.machine.tvm_target,
            library,
            failure=f"compiling {path.name} failed",
            architectures=architectures,
            cpu=lowered.machine.architecture,
        )
        beside = [library]
        gpu = None
        if target.gpu is not None:
            text = format_texts(kernel_texts(kernels))
            LibraryInfo.text_beside(library).write_text(text)
            beside.insert(0, LibraryInfo.text_beside(library))
            gpu = gpu_info(
                kernels,
                target.gpu,
                architectures,
                functions=lowered.functions,
                predictions=lowered.predictions,
                device_bytes=lowered.device_bytes,
                compiler=find_cuda_compiler().name,
                text=text,
            )
        info = replace(_library_info(lowered, library, gpu), image=image)
        info.write(library)
        beside.insert(0, LibraryInfo.path_beside(library))
        for file in beside:
            os.replace(file, path.parent / file.name)
    return info


def compile_library(
    module: Any, target: Any, library: Path, *, failure: str, architectures: Sequence[int] = (), cpu: str = ""
) -> list[tuple[DeviceKernel, KernelImage]]:
    """Machine code of a module, linked to a shared library.

    Args:
        module: PrimFuncs, and Relax functions where they are lowered to calls that the virtual machine makes.
        target: TVM's, of a CPU, or of a GPU with its host.
        library: the file to write.
        failure: how the error's message begins.
        architectures: numbers of the GPU architectures to compile for; none for a CPU.
        cpu: the architecture of the CPU; by default this machine's.

    Returns:
        The kernels of a GPU, as they were compiled.

    Raises:
        CompileError: no C or CUDA compiler, or TVM, LLVM, the CUDA compiler or the linker failed.
    """
    compiler = find_c_compiler(cpu)
    if compiler is None:
        raise CompileError(_no_compiler(library, cpu or architecture()))
    if architectures:
        find_cuda_compiler()  # before anything that takes time
    with tempfile.TemporaryDirectory() as scratch:
        try:
            functions, kernels = _lower_kernels(module, target, architectures)
            objects = _object_files(module, functions, target, kernels, Path(scratch), compiler)
            create_shared(str(library), [str(path) for path in objects], cc=compiler)
            if kernels:
                check_embedded(library.read_bytes(), {kernel.name: image for kernel, image in kernels}, architectures)
        except CompileError:
            raise
        except Exception as error:  # TVM raises many unrelated kinds
            raise CompileError(f"{failure}: {_reason(str(error)) or type(error).__name__}") from error
    return kernels


def _no_compiler(library: Path, cpu: str) -> str:
    here = cpu == architecture()
    names = C_COMPILERS if here else cross_compilers(cpu)
    package, variable = ("g++", "CXX") if here else (f"g++-{cpu.replace('_', '-')}-linux-gnu", "TARGET_CXX")
    return (
        f"no C compiler for {cpu} found ({', '.join(names)}), and linking {library.name} needs one; "
        f"install one, as with apt install {package}, or name it in the environment variable {variable}"
    )


def _lower_kernels(
    module: Any, target: Any, architectures: Sequence[int]
) -> tuple[Any, list[tuple[DeviceKernel, KernelImage]]]:
    """The host's functions as LLVM takes them, and a GPU's kernels, compiled."""
    if not architectures:
        return _lower_functions(module, target), []
    host: dict[Any, Any] = {}
    kernels: list[DeviceKernel] = []

    def texts() -> Iterator[tuple[str, str]]:
        """Each kernel as soon as it is lowered: the compiler works on one while TVM lowers the next."""
        for variable, function in _prim_funcs(module).functions.items():
            calls, launched = lower_for_gpu(tvm.IRModule({variable: function}), target)
            host.update(calls.functions)
            kernels.extend(launched)
            yield from ((kernel.name, kernel.text) for kernel in launched)

    images = compile_kernels(texts(), architectures, find_cuda_compiler())
    compiled = [(kernel, images[kernel.name]) for kernel in kernels]
    check_kernels(compiled)
    return tvm.IRModule(host), compiled


def _object_files(
    module: Any,
    lowered: Any,
    target: Any,
    kernels: Sequence[tuple[DeviceKernel, KernelImage]],
    folder: Path,
    compiler: str,
) -> list[Path]:
    """The module's object files, written by LLVM's process."""
    functions, graph, packed = folder / "functions.o", folder / "graph.vm", folder / "packed.o"
    calls = any(isinstance(function, relax.Function) for function in module.functions.values())
    if calls:
        builder = relax.ExecBuilder()
        module = tvm.get_global_func("relax.VMCodeGen")(builder, module)
        builder.get().mod.write_to_file(str(graph))
    libraries = {name: str(library._name) for name, library in _LOADED_LIBS.items()}
    sent = [lowered, target if target.host is None else target.host, target]
    if kernels:
        sent += [kernel.frame for kernel, _ in kernels]
        stubs = {path.name: str(path) for path in make_stubs(compiler, folder)}
        runtime = Path(libraries["tvm_runtime"])
        libraries = {**stubs, **libraries, "tvm_runtime_cuda": str(runtime.with_name("libtvm_runtime_cuda.so"))}
    job = {
        "path": [entry for entry in sys.path if entry],
        "libraries": list(libraries.values()),
        "functions": str(functions),
        "graph": str(graph) if calls else None,
        "packed": str(packed),
        "images": [_write_image(image, folder / f"{index}.fatbin") for index, (_, image) in enumerate(kernels)],
    }
    _run_codegen(f"{json.dumps(job)}\n{to_json_graph_str(sent)}")
    made = [functions, packed] if calls or kernels else [functions]
    if not all(path.exists() for path in made):
        raise RuntimeError("LLVM's process left nothing behind")
    return made


def _write_image(image: KernelImage, path: Path) -> str:
    """A kernel's machine code in a file."""
    path.write_bytes(image.data)
    return str(path)


def _prim_funcs(module: Any) -> Any:
    return tvm.IRModule({name: f for name, f in module.functions.items() if isinstance(f, tirx.PrimFunc)})


def _lower_functions(module: Any, target: Any) -> Any:
    """PrimFuncs as LLVM takes them: `tvm.tirx.build` for a CPU, up to its code generator."""
    functions = _prim_funcs(module)
    pipeline, finalize, _ = tirx.get_default_tir_pipeline(target)
    return finalize()(pipeline(tirx.transform.BindTarget(target.with_host(target))(functions)))


def _codegen_command() -> list[str]:
    return [sys.executable, "-P", str(codegen.__file__)]


def _run_codegen(job: str) -> None:
    """Run the code generator to its end.

    Raises:
        RuntimeError: it failed; the text says how it ended, and why as far as it told.
    """
    environment = {name: value for name, value in os.environ.items() if name != "LD_BIND_NOW"}  # see cuda/stubs.py
    result = subprocess.run(_codegen_command(), input=job.encode(), capture_output=True, check=False, env=environment)
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
    gpu = lowered.machine.target.gpu
    if gpu is not None and lowered.device_bytes > gpu.memory_bytes:
        raise CompileError(
            f"a batch of {lowered.batch} needs {lowered.device_bytes / 1e9:.1f} GB of device memory, and "
            f"'{lowered.machine.target.name}' has {gpu.memory_bytes / 1e9:.0f} GB; compile for a smaller --batch"
        )
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


def _library_info(lowered: Lowered, library: Path, gpu: GpuInfo | None) -> LibraryInfo:
    graph, machine = lowered.graph, lowered.machine
    views = {node.name: node.inputs[0] for node in graph if isinstance(node.op, Flatten)}
    return LibraryInfo(
        target=machine.target.name,
        cpu=machine.cpu,
        architecture=machine.architecture,
        instruction_sets=linux_names(machine.features),
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
        joins=dict(lowered.joins),
        kernels=dict(lowered.plan.kernels),
        declines={
            name: tuple(f"{decline.kernel}: {decline.reason}" for decline in declines)
            for name, declines in lowered.plan.declines.items()
        },
        constants=dict(lowered.constants),
        weight_bits={
            name: offer.weight_bits for name, offer in lowered.plan.offers.items() if offer.weight_bits is not None
        },
        tuned=dict(lowered.tuned),
        exact_storages=lowered.plan.exact,
        planned_bytes=lowered.planned_bytes,
        fingerprint=graph.fingerprint(),
        tvm=str(tvm.__version__),
        sha256=file_sha256(library),
        gpu=gpu,
    )
