"""The integer graph becomes a compiled library: one TIR function a node, Relax around them, LLVM below.

    read the ONNX file -> choose a kernel for each node -> Relax calls them in order -> memory planned statically
    -> machine code -> `model.<target>.so`, with a JSON file beside it that says what is inside

The library needs the TVM runtime alone (`hawq_tvm.backends.tvm.runtime`). No kernel is fused into another: one call is
one layer, which is what lets `verify` tap a deployed library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from hawq_tvm.backends.tvm.host import architecture, cpu_name, instruction_sets, tiles_granted
from hawq_tvm.backends.tvm.info import MAIN, REALS, TAPPED, ConversionInfo
from hawq_tvm.backends.tvm.memory import plan_memory
from hawq_tvm.backends.tvm.records import TunedLayer, Tuning
from hawq_tvm.backends.tvm.storage import Plan, plan_storages
from hawq_tvm.backends.tvm.tuned import Conditions, with_tuned
from hawq_tvm.core.cpu import AMX, LINUX_NAMES
from hawq_tvm.core.errors import CompileError, first_line
from hawq_tvm.core.gpu_model import Prediction
from hawq_tvm.core.ir import Graph, Node
from hawq_tvm.core.ops import Flatten
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels import QUANTIZERS, BuiltKernel, ConvertRequest, Offer, offer_conversion
from hawq_tvm.kernels.generic.quantize import build_dequantize


@dataclass(frozen=True)
class Machine:
    """A target as resolved on the machine that compiles.

    Attributes:
        target: the row of `hawq_tvm.core.targets`.
        architecture: of the CPU, as LLVM calls it.
        tvm_target: TVM's target, ``mcpu`` filled in; a GPU's with the host that calls its kernels.
        cpu: the LLVM name of the CPU compiled for; empty for a portable target.
        vector_bits: width of its vector registers; of a GPU, of a thread's widest access.
        features: the CPU's instruction sets, by LLVM's names; none of a GPU.
    """

    target: Target
    tvm_target: Any
    cpu: str
    vector_bits: int
    features: frozenset[str] = frozenset()
    architecture: str = field(default_factory=architecture)

    @classmethod
    def resolve(cls, target: Target) -> Machine:
        """Detect what the target leaves open."""
        if target.gpu is not None:
            # Code around the kernels is portable: the machine that compiles is not the one that runs.
            resolved = tvm.target.Target({"kind": target.kind, **target.attributes}, host="llvm")
            return cls(target, resolved, "", _GPU_ACCESS_BITS)
        attributes: dict[str, Any] = {"kind": target.kind, **target.attributes}
        cpu = str(tvm.target.codegen.llvm_get_system_cpu() if target.host_cpu else attributes.get("mcpu", ""))
        if cpu:
            attributes["mcpu"] = cpu
        resolved = tvm.target.Target(attributes)
        features = _features(resolved)
        without = features & (target.without | (_hidden(features) if target.host_cpu else frozenset()))
        if without:
            resolved = tvm.target.Target({**attributes, "mattr": [f"-{name}" for name in sorted(without)]})
            features = _features(resolved) - without
        of = architecture() if target.cpu is None else target.cpu.architecture
        return cls(target, resolved, cpu, _vector_bits(features), features, of)


def _features(target: Any) -> frozenset[str]:
    """The instruction sets of a CPU, by LLVM's names."""
    return frozenset(map(str, tvm.target.codegen.llvm_get_cpu_features(target)))


def _hidden(features: frozenset[str]) -> frozenset[str]:
    """What this machine does not let programs use: LLVM goes by the CPU's name, and a virtual machine hides sets of it.

    Nothing where the system does not say what there is.
    """
    have = set(instruction_sets())
    found = {name for name in features if name in LINUX_NAMES and LINUX_NAMES[name] not in have} if have else set()
    return frozenset(found if tiles_granted() else found | AMX)


def _vector_bits(features: frozenset[str]) -> int:
    """Of a CPU's widest vectors; TVM's own answer is 512 for every x86 CPU."""
    return 512 if "avx512f" in features else 256 if "avx2" in features else 128


_GPU_ACCESS_BITS = 128
"""The widest load and store of one thread, on every NVIDIA GPU that is in the table (PTX ISA, ``ld.global.v4.b32``)."""


@dataclass(frozen=True, eq=False)
class Lowered:
    """A graph in TVM's hands, not yet machine code.

    Attributes:
        module: the Relax functions, `MAIN` among them, and one PrimFunc a distinct kernel.
        plan: how each value is stored, and which kernel makes it.
        calls: what the function calls, in order: a node by its name, or a conversion.
        joins: the last call that writes into a concatenation which needs none of its own, by its name.
        functions: the PrimFunc of each call, by name.
        predictions: what the model of a GPU says of each call, by name; none for a CPU.
        planned_bytes: activation memory after planning.
        constants: bytes of weights, biases and multipliers as the kernels pack them, by call.
        tuned: what tuning found for the layers that are computed so, by name.
    """

    module: Any
    graph: Graph
    machine: Machine
    batch: int
    plan: Plan
    calls: dict[str, ConversionInfo | None]
    joins: dict[str, str]
    functions: dict[str, str]
    predictions: dict[str, Prediction]
    planned_bytes: int
    constants: dict[str, int]
    tuned: Mapping[str, TunedLayer]

    @property
    def constant_bytes(self) -> int:
        """Of all calls together."""
        return sum(self.constants.values())

    @property
    def device_bytes(self) -> int:
        """Memory that a call takes on a GPU: constants, activations, and the input, which the caller brings."""
        name = self.graph.input_name
        return (
            self.constant_bytes
            + self.planned_bytes
            + self.plan.storages[name].size_bytes(self.graph.types[name], self.batch)
        )


def lower(
    graph: Graph, target: Target, *, batch: int = 1, storages: str = "all", tuning: Tuning | None = None
) -> Lowered:
    """Choose kernels and storages, and plan memory.

    Args:
        graph: as read from the ONNX file.
        target: the machine.
        batch: samples a call; fixed, so that memory can be planned.
        storages: what may be chosen from, of `hawq_tvm.backends.tvm.storage.PALETTES`.
        tuning: what was found on this machine, for layers that are computed as then.

    Raises:
        CompileError: no kernel takes a node, a kernel that takes one cannot be built, or a batch under 1.
    """
    if batch < 1:
        raise CompileError(f"a batch holds at least one sample, got {batch}")
    machine = Machine.resolve(target)
    plan = plan_storages(graph, target, machine.vector_bits, batch=batch, palette=storages, features=machine.features)
    tuned: Mapping[str, TunedLayer] = {}
    if tuning is not None:
        conditions = Conditions(str(machine.tvm_target), cpu_name(), tuning.threads, tuning.network_bytes)
        plan, tuned = with_tuned(plan, tuning, conditions)
    builder = _RelaxBuilder(graph, machine, batch, plan)
    module = builder.build()
    relax.analysis.well_formed(module)
    with machine.tvm_target:
        planned = plan_memory(_WRITES(module), MAIN)
        if target.gpu is None:
            planned = plan_memory(planned, REALS)
        called = _CALLS(planned)
        lowered = called if target.gpu is None else _with_graph(called, planned)
    return Lowered(
        lowered,
        graph,
        machine,
        batch,
        plan,
        builder.calls,
        builder.joins,
        builder.functions,
        builder.predictions,
        _planned_bytes(called[MAIN]),
        builder.constants,
        tuned,
    )


_WRITES = tvm.transform.Sequential(
    [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
    ]
)
_CALLS = tvm.transform.Sequential(
    [
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
)
"""What stands between Relax and machine code: kernels that write into memory, then, once that is planned, calls of the
virtual machine. TVM's own default would also fuse kernels into one another."""


def _with_graph(called: Any, planned: Any) -> Any:
    """A GPU's module: `MAIN` launches its kernels as one CUDA graph, `TAPPED` one by one, so that each can be watched.

    The first call of a machine records the graph. The kernels that read the input or write the output stand outside,
    since those lie elsewhere in every call. Constants and kernels are there once.
    """
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
        module = _CALLS(relax.transform.RewriteCUDAGraph()(planned))
    module[TAPPED] = called[MAIN].with_attr("global_symbol", TAPPED)
    return module


def build_kernel(layer: str, kernel: str, build: Callable[[], BuiltKernel], target: Target) -> BuiltKernel:
    """The kernel of an offer.

    Args:
        layer: how a message names what is computed.
        kernel: the kernel's name.
        build: the offer's.
        target: the machine.

    Raises:
        CompileError: TVM refuses what the kernel asks for; the message names the layer.
    """
    try:
        return build()
    except Exception as error:  # TVM raises many unrelated kinds
        raise CompileError(
            f"{layer}: kernel '{kernel}' cannot be built for target '{target.name}': {first_line(error)}"
        ) from error


class _RelaxBuilder:
    """Builds the Relax functions: one call a node, and one a conversion, before the first node that reads it."""

    def __init__(self, graph: Graph, machine: Machine, batch: int, plan: Plan) -> None:
        self.graph = graph
        self.machine = machine
        self.batch = batch
        self.plan = plan
        self.types = graph.types
        self.calls: dict[str, ConversionInfo | None] = {}
        self.joins: dict[str, str] = {}
        self.functions: dict[str, str] = {}
        self.predictions: dict[str, Prediction] = {}
        self.constants: dict[str, int] = {}
        self._values: dict[tuple[str, Storage], Any] = {}
        self._arrays: dict[str, tuple[Any, str]] = {}  # of concatenations: as last written, and by which call
        self._builder = relax.BlockBuilder()
        self._functions: dict[int, list[tuple[Any, Any]]] = {}
        self._built: dict[str, tuple[Any, list[Any]]] = {}

    def build(self) -> Any:
        builder, name = self._builder, self.graph.input_name
        storage = self.plan.storages[name]
        x = relax.Var(name, self._tensor_type(name, storage))
        with builder.function(MAIN, [x]):
            with builder.dataflow():
                self._values = {(name, storage): x}
                result = builder.emit_output(self._network())
            builder.emit_func_output(result)
        if self.machine.target.gpu is None:
            self._add_reals()
        return builder.get()

    def _network(self) -> Any:
        """The output's integers, canonical; `_values` holds the input's."""
        self._arrays = {}
        for node in self.graph:
            self._convert_for(node.name)
            self._compute(node)
        self._convert_for(None)
        output = self.graph.output
        return self._values[output, Storage.canonical(self.types[output])]

    def _add_reals(self) -> None:
        """The function `REALS`: the same calls, with one before that quantises and one behind."""
        builder, name, output = self._builder, self.graph.input_name, self.graph.output
        x = relax.Var(name, relax.TensorType((self.batch, *self.types[name].shape), "float32"))
        with builder.function(REALS, [x]):
            with builder.dataflow():
                storage, quantizer, offer = self._quantizer()
                built = build_kernel(f"quantising '{name}'", quantizer, offer.build, self.machine.target)
                function, _ = self._added(built, quantizer, name)
                quantised = builder.emit(relax.call_tir(function, [x], self._tensor_type(name, storage)))
                self._values = {(name, storage): quantised}
                integers = self._network()
                function, _ = self._added(build_dequantize(self.types[output], self.batch), "dequantize", output)
                shape = (self.batch, *self.types[output].shape)
                reals = relax.call_tir(function, [integers], relax.TensorType(shape, "float32"))
                result = builder.emit_output(reals)
            builder.emit_func_output(result)

    def _quantizer(self) -> tuple[Storage, str, Offer]:
        """How real inputs are stored: as the one storage that readers want where that is offered, else canonical."""
        name, machine = self.graph.input_name, self.machine
        canonical, type = self.plan.storages[name], self.types[name]
        wanted = {
            storage
            for node in self.graph
            for read, storage in zip(node.inputs, self.plan.offers[node.name].reads, strict=True)
            if read == name
        }
        for storage in (*(wanted if len(wanted) == 1 else ()), canonical):
            request = ConvertRequest(
                type, canonical, storage, self.batch, machine.target, machine.vector_bits, machine.features
            )
            found = offer_conversion(request, QUANTIZERS)
            if found is not None:
                return (storage, *found)
        raise AssertionError("canonical integers are always offered")

    def _tensor_type(self, name: str, storage: Storage) -> Any:
        type = self.types[name]
        return relax.TensorType(storage.shape(type, self.batch), storage.dtype(type))

    def _convert_for(self, reader: str | None) -> None:
        """The conversions that a node asks for first; None for the output's."""
        for item, (converter, offer) in zip(self.plan.conversions, self.plan.converters, strict=True):
            if item.reader == reader and (item.value, item.to) not in self._values:
                call = f"{item.value} as {item.to}"
                self.calls[call] = ConversionInfo(item.value, item.to, converter)
                layer = f"'{item.value}' as {item.to}"
                self._values[item.value, item.to] = self._call(
                    call, item.value, item.to, layer, converter, offer, [(item.value, item.source)]
                )

    def _compute(self, node: Node) -> None:
        offer = self.plan.offers[node.name]
        whole = self.plan.arrays.get((node.name, offer.writes))
        inputs = list(zip(node.inputs, offer.reads, strict=True))
        inputs = [value for value in inputs if whole is None or self.plan.arrays.get(value) != whole]
        if isinstance(node.op, Flatten):
            result = self._builder.emit(relax.op.reshape(self._values[inputs[0]], (self.batch, *node.type.shape)))
        elif not inputs:
            assert whole is not None, "every node reads something"
            result, self.joins[node.name] = self._arrays[whole]
        else:
            self.calls[node.name] = None
            layer, kernel = f"layer '{node.name}' ({node.op.kind})", self.plan.kernels[node.name]
            result = self._call(node.name, node.name, offer.writes, layer, kernel, offer, inputs)
        self._values[node.name, offer.writes] = result

    def _call(
        self,
        call: str,
        value: str,
        storage: Storage,
        layer: str,
        kernel: str,
        offer: Offer,
        inputs: list[tuple[str, Storage]],
    ) -> Any:
        """One call; into an array that is there already, where the value is a part of one or parts of it were made."""
        if call not in self._built:
            built = build_kernel(layer, kernel, offer.build, self.machine.target)
            self._built[call] = self._added(built, kernel, value)
            self.constants[call] = sum(array.nbytes for array in built.constants)
            self.functions[call] = str(self._built[call][0].name_hint)
            if offer.prediction is not None:
                self.predictions[call] = offer.prediction
        function, constants = self._built[call]
        arguments, type = [*(self._values[name] for name in inputs), *constants], self._tensor_type(value, storage)
        whole = self.plan.arrays.get((value, storage))
        if whole in self._arrays:
            there, _ = self._arrays[whole]
            made = relax.op.call_tir_inplace(function, [*arguments, there], [len(arguments)], type)
        else:
            made = relax.call_tir(function, arguments, type)
        result = self._builder.emit(made, name_hint="value")
        if whole is not None:
            self._arrays[whole] = result, call
        return result

    def _added(self, built: BuiltKernel, kernel: str, value: str) -> tuple[Any, list[Any]]:
        """A kernel's function in the module, and its constants."""
        function = self._function(built, f"{kernel}__{re.sub(r'[^0-9A-Za-z]+', '_', value)}")
        return function, [relax.const(array, str(array.dtype)) for array in built.constants]

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


def _planned_bytes(function: Any) -> int:
    """The storages that memory planning allots, summed."""
    total = 0

    def visit(expression: Any) -> None:
        nonlocal total
        if isinstance(expression, relax.Call) and getattr(expression.op, "name", "") == "relax.vm.alloc_storage":
            total += int(expression.args[0].values[0])

    relax.analysis.post_order_visit(function, visit)
    return total
