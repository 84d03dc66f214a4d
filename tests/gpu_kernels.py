"""GPU kernels by themselves: their CUDA text as TVM writes it, run on the emulated GPU or compiled."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import tvm

from hawq_tvm.backends.tvm.cuda.compiler import CudaCompiler
from hawq_tvm.backends.tvm.cuda.images import KernelImage, compile_kernels
from hawq_tvm.backends.tvm.cuda.lowering import DeviceKernel, lower_for_gpu
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.ir import Array, IntType, Operator, TensorType
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.core.targets import TARGETS, Target, architectures_of
from hawq_tvm.emulator.launch import load_kernel
from hawq_tvm.kernels import BuiltKernel, Offer, Request
from hawq_tvm.kernels.cuda.storages import channels_last

from .builders import random_integers
from .kernel_requests import node_request


def cuda_kernel(built: BuiltKernel, target: Target) -> DeviceKernel:
    """A kernel's CUDA text and launch, through the passes that every kernel goes through."""
    functions = tvm.IRModule({"kernel": built.function.with_attr("global_symbol", "kernel")})
    _, (kernel,) = lower_for_gpu(functions, Machine.resolve(target).tvm_target)
    return kernel


def emulated(built: BuiltKernel, inputs: Sequence[Array], output: Array, target: Target, *, order: int = 0) -> Array:
    """What a kernel leaves in `output`, whose memory held something else before."""
    kernel = cuda_kernel(built, target)
    names = [str(parameter.name) for parameter in built.function.params]
    own = dict(zip(names, (np.array(array) for array in (*inputs, *built.constants, output)), strict=True))
    loaded = load_kernel(kernel.text, kernel.name)
    # A parameter of the text is one of the function's, or a view of it as words.
    given = [own[re.sub(r"(_words)?(_\d+)?_ptr$", "", parameter.name)] for parameter in loaded.kernel.parameters]
    launch = kernel.launch
    loaded.run(given, launch.grid, launch.block, shared_bytes=launch.dynamic_shared_bytes, order=order)
    return own[names[-1]]


def image(dtype: str, *shape: int) -> TensorType:
    return TensorType(IntType.parse(dtype), shape, 1.0)


def gpu_request(
    op: Operator, inputs: Sequence[TensorType], output: IntType, *, batch: int = 1, target: str = "nvidia/t4"
) -> Request:
    """A request in which every image may lie channels last."""
    return node_request(
        op, inputs, output, TARGETS[target], lambda name, type: channels_last(type), batch=batch, vector_bits=128
    )


def computed_wrongly(request: Request, offers: dict[str, Offer], *, order: int = 0, seed: int = 0) -> list[str]:
    """The offers whose kernel leaves another byte than `pack` makes of the interpreter's result, by name."""
    assert offers, "nothing would be computed"
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


def compiled_image(built: BuiltKernel, target: Target, compiler: CudaCompiler) -> KernelImage:
    """A kernel compiled for the target's architecture, as libraries hold it."""
    kernel = cuda_kernel(built, target)
    return compile_kernels([(kernel.name, kernel.text)], architectures_of(target), compiler)[kernel.name]
