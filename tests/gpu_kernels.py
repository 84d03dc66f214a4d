"""GPU kernels by themselves: their CUDA text as TVM writes it, run on the emulated GPU or compiled by nvcc."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import tirx

from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.core.ir import Array, IntType, Node, Operator, TensorType
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.core.targets import TARGETS, Target
from hawq_tvm.emulator.launch import load_kernel
from hawq_tvm.kernels import KERNELS, BuiltKernel, Offer, Request
from hawq_tvm.kernels.cuda.storages import channels_last

from .builders import random_integers

needs_compiler = pytest.mark.skipif(find_c_compiler() is None, reason="the emulated GPU needs a C++ compiler")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@dataclass(frozen=True)
class Launch:
    """One kernel launch: CUDA text, and how the host starts it.

    Attributes:
        text: as TVM generates it.
        name: of the kernel.
        arguments: names of the function's parameters, in the kernel's order.
        grid: blocks in x, y and z.
        block: threads in x, y and z.
        shared_bytes: of dynamic shared memory.
    """

    text: str
    name: str
    arguments: tuple[str, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int


def tvm_target(target: Target) -> Any:
    host = {"kind": "llvm", "mtriple": "x86_64-linux-gnu"}
    return tvm.target.Target({"kind": target.kind, **target.attributes}, host=host)


def cuda_launch(built: BuiltKernel, target: Target) -> Launch:
    """A kernel's CUDA text, through the passes that every kernel goes through."""
    where = tvm_target(target)
    module = tvm.IRModule({"kernel": built.function.with_attr("global_symbol", "kernel")})
    passes, _, finish = tirx.get_default_tir_pipeline(where)
    with where:
        split = passes(tirx.transform.BindTarget(where.with_host(where.host))(module))
    device = {name: f for name, f in split.functions.items() if int(f.attrs.get("calling_conv", 0)) == 2}
    (host,) = (f for name, f in split.functions.items() if name not in device)
    # The code generator hands the text to a compiler, which is none of these tests' business.
    tvm.register_global_func("tvm_callback_cuda_compile", lambda *_: bytearray(b"none"), override=True)
    text = tvm.get_global_func("target.build.cuda")(finish()(tvm.IRModule(device)), where).inspect_source()
    call = re.search(r'T\.call_\w+\("(\w+)", (.*?), launch_params=\[(.*?)\]', host.script())
    assert call is not None
    names = re.findall(r'"([^"]+)"', call[3])
    given = [part.strip() for part in re.split(r",\s*(?![^()]*\))", call[2])]
    sizes = dict(zip(names, (int(re.sub(r"\D*\((\d+)\)", r"\1", part)) for part in given[-len(names) :]), strict=True))
    return Launch(
        text,
        call[1],
        tuple(re.sub(r"(_words)?(_\d+)?\.data$", "", part) for part in given[: -len(names)]),
        (sizes.get("blockIdx.x", 1), sizes.get("blockIdx.y", 1), sizes.get("blockIdx.z", 1)),
        (sizes.get("threadIdx.x", 1), sizes.get("threadIdx.y", 1), sizes.get("threadIdx.z", 1)),
        sizes.get("tirx.use_dyn_shared_memory", 0),
    )


def emulated(built: BuiltKernel, inputs: Sequence[Array], output: Array, target: Target, *, order: int = 0) -> Array:
    """What a kernel leaves in `output`, whose memory held something else before."""
    launch = cuda_launch(built, target)
    arrays = dict(zip((str(p.name) for p in built.function.params), (*inputs, *built.constants, output), strict=True))
    own = {name: np.array(array) for name, array in arrays.items()}  # writable, as the emulator wants them
    kernel = load_kernel(launch.text, launch.name)
    given = [own[name] for name in launch.arguments]
    kernel.run(given, launch.grid, launch.block, shared_bytes=launch.shared_bytes, order=order)
    return own[str(built.function.params[-1].name)]


def gpu_request(
    op: Operator, inputs: Sequence[TensorType], output: IntType, *, batch: int = 1, target: str = "nvidia/t4"
) -> Request:
    """A request in which every image may lie channels last."""
    names = tuple(f"x{i}" for i in range(len(inputs)))
    node = Node("y", op, names, TensorType(output, op.output_shape(inputs), 1.0))
    op.check_parameters(inputs, node.type)
    bounds = op.bounds(inputs)
    if bounds is not None:
        bounds.check("y")
    values = dict(zip((*names, "y"), (*inputs, node.type), strict=True))
    images = {name: storage for name, type in values.items() if (storage := channels_last(type)) is not None}
    return Request(node, tuple(inputs), batch, TARGETS[target], 128, images)


def gpu_offers(request: Request) -> dict[str, Offer]:
    """Every offer by its kernel's name; the others decline with a sentence."""
    answers = {kernel.name: kernel.offer(request) for kernel in KERNELS}
    assert all(isinstance(answer, Offer) or (isinstance(answer, str) and answer) for answer in answers.values())
    return {name: answer for name, answer in answers.items() if isinstance(answer, Offer)}


def computed_wrongly(request: Request, offers: dict[str, Offer], *, order: int = 0, seed: int = 0) -> list[str]:
    """The offers whose kernel leaves another byte than `pack` makes of the interpreter's result, by name."""
    node = request.node
    values = [random_integers(type, request.batch, seed + i) for i, type in enumerate(request.inputs)]
    expected = node.op.evaluate(values).astype(node.type.dtype.carrier)
    wrong = []
    for name, offer in offers.items():
        inputs = [pack(x, type, storage) for x, type, storage in zip(values, request.inputs, offer.reads, strict=True)]
        got = emulated(offer.build(), inputs, held_before(node.type, offer.writes, request.batch), request.target,
                       order=order)  # fmt: skip
        if not np.array_equal(got, pack(expected, node.type, offer.writes)):
            wrong.append(name)
    return wrong


def held_before(type: TensorType, storage: Storage, batch: int) -> Array:
    """Memory that a result is written to: no byte of it is what it will be by chance everywhere."""
    return np.full(storage.shape(type, batch), 0x55, storage.dtype(type))


@dataclass(frozen=True)
class Compiled:
    """What nvcc says of a kernel: registers of a thread, bytes that did not fit into them, and the cubin."""

    registers: int
    spilled_bytes: int
    cubin: Path


def compiled_by_nvcc(built: BuiltKernel, target: Target, folder: Path) -> Compiled:
    """Compile a kernel's text for the target's architecture."""
    assert target.gpu is not None
    source, cubin = folder / "kernel.cu", folder / "kernel.cubin"
    source.write_text(cuda_launch(built, target).text)
    command = ["nvcc", "-cubin", f"-arch={target.gpu.architecture.sm}", "--ptxas-options=-v", "-w", "-o", str(cubin)]
    result = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    registers = re.search(r"Used (\d+) registers", result.stderr)
    spills = [int(size) for size in re.findall(r"(\d+) bytes spill", result.stderr)]
    assert registers is not None and spills, result.stderr
    return Compiled(int(registers[1]), sum(spills), cubin)
