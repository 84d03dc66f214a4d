"""The integer graph becomes a compiled library: one TIR function a node, Relax around them, LLVM below.

    read the ONNX file -> choose a kernel for each node -> Relax calls them in order -> memory planned statically
    -> machine code -> `model.<target>.so`, with a JSON file beside it that says what is inside

The library needs the TVM runtime alone (`hawq_tvm.backends.tvm.runtime`). No kernel is fused into another: one call is
one layer, which is what lets `verify` tap a deployed library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from hawq_tvm.backends.tvm.build import build_library as build_library
from hawq_tvm.core.errors import CompileError, first_line
from hawq_tvm.core.ir import Graph, Node
from hawq_tvm.core.ops import Flatten
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels import BuiltKernel, Decline, Kernel, Request, select_kernel


@dataclass(frozen=True)
class Machine:
    """A target as resolved on the machine that compiles.

    Attributes:
        target: the row of `hawq_tvm.core.targets`.
        tvm_target: TVM's target, ``mcpu`` filled in.
        cpu: the LLVM name of the CPU compiled for; empty for a portable target.
        vector_bits: width of its vector registers.
    """

    target: Target
    tvm_target: Any
    cpu: str
    vector_bits: int

    @classmethod
    def resolve(cls, target: Target) -> Machine:
        """Detect what the target leaves open."""
        cpu = str(tvm.target.codegen.llvm_get_system_cpu()) if target.host_cpu else ""
        attributes: dict[str, Any] = {"kind": target.kind, **target.attributes}
        if cpu:
            attributes["mcpu"] = cpu
        resolved = tvm.target.Target(attributes)
        vector_bits = int(tvm.target.codegen.llvm_get_vector_width(resolved))
        return cls(target, resolved, cpu, max(vector_bits, 128))


@dataclass(frozen=True, eq=False)
class Lowered:
    """A graph in TVM's hands, not yet machine code.

    Attributes:
        module: the Relax function ``main`` and one PrimFunc a distinct kernel.
        kernels: the kernel of each node, by name; a flatten has none.
        declines: why kernels that stand earlier in the table were not taken, by node.
        planned_bytes: activation memory after planning.
        constant_bytes: weights, biases and multipliers as the kernels pack them.
    """

    module: Any
    graph: Graph
    machine: Machine
    batch: int
    kernels: dict[str, str]
    declines: dict[str, tuple[Decline, ...]]
    planned_bytes: int
    constant_bytes: int


def lower(graph: Graph, target: Target, *, batch: int = 1) -> Lowered:
    """Choose kernels and plan memory.

    Args:
        graph: as read from the ONNX file.
        target: the machine.
        batch: samples a call; fixed, so that memory can be planned.

    Raises:
        CompileError: no kernel takes a node, a kernel that takes one cannot be built, or a batch under 1.
    """
    if batch < 1:
        raise CompileError(f"a batch holds at least one sample, got {batch}")
    machine = Machine.resolve(target)
    builder = _RelaxBuilder(graph, machine, batch)
    module = builder.build()
    relax.analysis.well_formed(module)
    with machine.tvm_target:
        planned = _PIPELINE(module)
    return Lowered(
        planned,
        graph,
        machine,
        batch,
        builder.kernels,
        builder.declines,
        _planned_bytes(planned),
        builder.constant_bytes,
    )


_PIPELINE = tvm.transform.Sequential(
    [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
)
"""What stands between Relax and machine code; TVM's own default would also fuse kernels into one another."""


def build_kernel(kernel: Kernel, request: Request) -> BuiltKernel:
    """The kernel made for a request.

    Raises:
        CompileError: TVM refuses what the kernel asks for; the message names the layer.
    """
    try:
        return kernel.build(request)
    except Exception as error:  # TVM raises many unrelated kinds
        raise CompileError(
            f"layer '{request.node.name}' ({request.node.op.kind}): kernel '{kernel.name}' cannot be built for target "
            f"'{request.target.name}': {first_line(error)}"
        ) from error


class _RelaxBuilder:
    """Builds the Relax function, one call a node."""

    def __init__(self, graph: Graph, machine: Machine, batch: int) -> None:
        self.graph = graph
        self.machine = machine
        self.batch = batch
        self.kernels: dict[str, str] = {}
        self.declines: dict[str, tuple[Decline, ...]] = {}
        self.constant_bytes = 0
        self._builder = relax.BlockBuilder()
        self._functions: dict[int, list[tuple[Any, Any]]] = {}

    def build(self) -> Any:
        builder = self._builder
        x = relax.Var(self.graph.input_name, self._tensor_type(self.graph.input_name))
        values = {self.graph.input_name: x}
        with builder.function("main", [x]):
            with builder.dataflow():
                for node in self.graph:
                    values[node.name] = self._emit(node, [values[name] for name in node.inputs])
                result = builder.emit_output(values[self.graph.output])
            builder.emit_func_output(result)
        return builder.get()

    def _tensor_type(self, name: str) -> Any:
        type = self.graph.types[name]
        return relax.TensorType((self.batch, *type.shape), type.dtype.carrier)

    def _emit(self, node: Node, inputs: Sequence[Any]) -> Any:
        if isinstance(node.op, Flatten):
            return self._builder.emit(relax.op.reshape(inputs[0], (self.batch, *node.type.shape)))
        types = self.graph.types
        request = Request(
            node,
            tuple(types[name] for name in node.inputs),
            self.batch,
            self.machine.target,
            self.machine.vector_bits,
        )
        kernel, declines = select_kernel(request)
        self.kernels[node.name] = kernel.name
        self.declines[node.name] = declines
        built = build_kernel(kernel, request)
        self.constant_bytes += sum(array.nbytes for array in built.constants)
        constants = [relax.const(array, str(array.dtype)) for array in built.constants]
        function = self._function(built, f"{kernel.name}__{re.sub(r'[^0-9A-Za-z]+', '_', node.name)}")
        return self._builder.emit(
            relax.call_tir(function, [*inputs, *constants], self._tensor_type(node.name)), name_hint="value"
        )

    def _function(self, built: BuiltKernel, name: str) -> Any:
        """The function in the module; equal ones are there once."""
        function = built.function
        if function.attrs is not None and "global_symbol" in function.attrs:
            function = function.without_attr("global_symbol")
        alike = self._functions.setdefault(tvm_ffi.structural_hash(function), [])
        for known, variable in alike:
            if tvm_ffi.structural_equal(known, function):
                return variable
        variable = self._builder.add_func(function, name)
        alike.append((function, variable))
        return variable


def _planned_bytes(module: Any) -> int:
    """The storages that memory planning allots, summed."""
    total = 0

    def visit(expression: Any) -> None:
        nonlocal total
        if isinstance(expression, relax.Call) and getattr(expression.op, "name", "") == "relax.vm.alloc_storage":
            total += int(expression.args[0].values[0])

    for _, function in module.functions.items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return total
