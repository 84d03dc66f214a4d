"""Short ways to dot product kernels, for their tests: requests in their storages, and runs beside guard zones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tvm

from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.cpu import linux_names
from hawq_tvm.core.ir import Array, IntType, Node, Operator, TensorType
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.kernels import KERNELS, BuiltKernel, Offer, Request, Variant
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.registry import UNITS

from .accesses import accesses_outside, shared_between_threads
from .builders import random_integers
from .cpus import HOST, lacking, machine_of
from .emulated_cpu import EmulatedKernel, why_not

Frame = tuple[int, int, int, int]
UNIT = {unit.name: unit for unit in UNITS}
VNNI = UNIT["avx512vnni"]
GUARD = 128


def storage_of(type: TensorType, frame: Frame, unit: Unit = VNNI) -> Storage:
    """Channels last as a CPU with that unit has it."""
    multiple = unit.step if type.shape[0] <= 4 else unit.channels
    return Storage("NHWC", multiple=multiple, frame=frame, offset=unit.signed_offset if type.dtype.signed else 0)


def dot_request(
    op: Operator,
    inputs: Sequence[TensorType],
    output: IntType,
    frames: Sequence[Frame],
    *,
    batch: int = 1,
    unit: Unit = VNNI,
) -> Request:
    """A request whose images may lie in frames: of each input, then of the result."""
    names = tuple(f"x{i}" for i in range(len(inputs)))
    type = TensorType(output, op.output_shape(inputs), 1.0)
    node = Node("y", op, names, type)
    op.check_parameters(inputs, type)
    bounds = op.bounds(inputs)
    if bounds is not None:
        bounds.check("y")
    images = {
        name: storage_of(x, frame, unit)
        for name, x, frame in zip((*names, "y"), (*inputs, type), frames, strict=True)
        if len(x.shape) == 3
    }
    machine = machine_of(unit.name)
    return Request(node, tuple(inputs), batch, machine.target, machine.vector_bits, images, machine.features)


def kernel_of(request: Request, unit: Unit, *, depthwise: bool = False) -> str:
    """The name of the kernel that a layer with weights is for."""
    op = request.node.op
    assert isinstance(op, WeightedOperator)
    bits = "s4" if op.weight_bits <= 4 else "s8"
    return f"{op.kind.lower()}{'_depthwise' * depthwise}_u8{bits}s32_{unit.name}"


def offer_of(name: str, request: Request) -> Offer:
    """A kernel's offer; the test fails where it declines."""
    (answer,) = (kernel.offer(request) for kernel in KERNELS if kernel.name == name)
    assert isinstance(answer, Offer), answer
    return answer


def decline_of(name: str, request: Request) -> str:
    """Why a kernel declines; the test fails where it offers."""
    (answer,) = (kernel.offer(request) for kernel in KERNELS if kernel.name == name)
    assert isinstance(answer, str)
    return answer


def some_variants(name: str, request: Request, count: int) -> list[Variant]:
    """So many choices of a kernel's parameters, spread over all of them."""
    variants = offer_of(name, request).variants()
    return [variants[number * len(variants) // count] for number in range(min(count, len(variants)))]


def writes_what_the_interpreter_says(
    name: str, request: Request, values: Sequence[Array] | None = None, *, variant: Variant | None = None
) -> Array:
    """Compile an offer, or a variant of it, run it between guard zones and poison, and compare every stored byte.

    A unit's kernel runs as on a CPU of that unit, a generic one as here.

    Returns:
        What the interpreter says.
    """
    unit = name.rpartition("_")[2]
    machine = machine_of(unit) if unit in UNIT else HOST
    skip_unless_runnable(machine)
    values = values or [random_integers(x, request.batch, seed) for seed, x in enumerate(request.inputs)]
    expected, type = request.node.op.evaluate(values), request.node.type
    offer = offer_of(name, request)
    kernel = (variant or offer).build()
    assert accesses_outside(kernel.function) == []
    assert shared_between_threads(kernel.function) == []
    if isinstance(request.node.op, WeightedOperator):
        assert (kernel.constants[0].dtype == np.uint8) == (offer.weight_bits == 4), "what is packed is told"
    given = [pack(v, x, storage) for v, x, storage in zip(values, request.inputs, offer.reads, strict=True)]
    found = run_guarded(kernel, given, type, offer.writes, request.batch, machine)
    wanted = pack(expected.astype(type.dtype.carrier), type, offer.writes)
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted)
    return expected


def skip_unless_runnable(machine: Machine) -> None:
    """Skip the test where neither this machine nor an emulator runs a CPU's code."""
    if lacking(machine):
        reason = why_not(machine, linux_names(machine.features))
        if reason is not None:
            pytest.skip(f"this machine lacks {', '.join(lacking(machine))}, and {reason}")


def run_guarded(
    kernel: BuiltKernel, given: Sequence[Array], type: TensorType, writes: Storage, batch: int, machine: Machine
) -> Array:
    """What a kernel leaves in memory that held something else; beside any of its buffers lies poison, left alone.

    Twice, with other poison around the inputs: what lies there must not matter. Of an array with other values in it,
    those are left alone, too, and come back as `pack` has them.
    """
    run = EmulatedKernel(kernel.function, machine) if lacking(machine) else _NativeKernel(kernel.function, machine)
    results = []
    for poison in (0x55, 0xAA):
        output = np.full(writes.shape(type, batch), poison & 0x7F, writes.dtype(type))
        memories = [guarded(array, poison) for array in (*given, *kernel.constants, output)]
        run(memories)
        for memory, view in memories:
            start = view.ctypes.data - memory.ctypes.data
            assert (memory[:start] == poison).all()
            assert (memory[start + view.nbytes :] == poison).all()
        found, clean = memories[-1][1], np.full(output.shape, writes.offset, output.dtype)
        own, others = writes.own(found, type).copy(), found.copy()
        writes.own(others, type)[...] = poison & 0x7F
        assert (others == poison & 0x7F).all(), "it writes over other values"
        writes.own(clean, type)[...] = own
        results.append(clean)
    assert np.array_equal(*results)
    return np.asarray(results[0])


class _NativeKernel:
    """A kernel on this machine; call it as an `EmulatedKernel`."""

    def __init__(self, function: Any, machine: Machine) -> None:
        module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
        self._call = tvm.compile(module, target=machine.tvm_target)["kernel"]

    def __call__(self, memories: Sequence[tuple[Array, Array]]) -> None:
        self._call(*[tvm.runtime.from_dlpack(view) for _, view in memories])


def guarded(array: Array, poison: int) -> tuple[Array, Array]:
    """A copy between two guard zones, aligned as TVM wants it: the whole memory, and the copy in it."""
    memory = np.full(array.nbytes + 4 * GUARD, poison, np.uint8)
    start = GUARD + -(memory.ctypes.data + GUARD) % 64
    view = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return memory, view
