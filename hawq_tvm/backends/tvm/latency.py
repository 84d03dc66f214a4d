"""Microseconds of every layer's kernel at every candidate bit pair, on this machine.

The network is integerised once per pair, so that each kernel is the one that would be deployed, its residual and clip
fused. Layers and pairs that come to the same machine code (the same shapes, storage and signs) are timed once.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from hawq_tvm.backends.tvm.build import compile_library
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.lower import Machine, build_kernel
from hawq_tvm.backends.tvm.runtime import configure_threads, load_library
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Array, Graph, Node, TensorType
from hawq_tvm.core.ops import Conv2d, WeightedOperator
from hawq_tvm.core.quantizer import Range
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels import BuiltKernel, Request, select_kernel

ROUNDS = 15
"""How often every kernel is timed, all kernels taking turns."""

_ROUND_SECONDS = 2e-3  # a kernel is called as often in a round as fills this


@dataclass(frozen=True)
class LatencyTable:
    """Microseconds by layer and bit pair.

    Attributes:
        latency_us: the medians.
        source: machine, target, threads and method, for the cost table.
    """

    latency_us: Mapping[str, Mapping[Bits, float]]
    source: str

    def to_json(self) -> dict[str, dict[str, float]]:
        """The times alone, as users write them."""
        return {name: {repr(pair): us for pair, us in row.items()} for name, row in self.latency_us.items()}


def measure_latency(
    graph: FloatGraph,
    ranges: Mapping[str, Range],
    pairs: Sequence[Bits],
    target: Target,
    *,
    batch: int = 1,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyTable:
    """Time each distinct kernel.

    Args:
        graph: from capture.
        ranges: from calibration.
        pairs: candidate bits.
        target: a target that this machine can run.
        batch: samples a call.
        threads: of the kernels.
        progress: called with rounds done and rounds in all.

    Returns:
        The median over `ROUNDS` rounds, for every layer at every pair.
    """
    machine = Machine.resolve(target)
    names = tuple(layer.name for layer in graph.layers)
    keys: dict[tuple[str, Bits], Any] = {}
    requests: dict[Any, Request] = {}
    for pair in pairs:
        integers = integerize(graph, ranges, BitConfig.uniform(names, pair))
        for name in names:
            request = _request(integers, integers.node(name), machine, batch)
            key = _machine_code_key(request)
            keys[name, pair] = key
            requests.setdefault(key, request)
    medians = _time_all(requests, machine, threads, progress)
    table = {name: {pair: medians[keys[name, pair]] * 1e6 for pair in pairs} for name in names}
    cpu = f" ({machine.cpu})" if machine.cpu else ""
    source = (
        f"measured on {cpu_name()}, target {target.name}{cpu}, {threads} threads, batch {batch}, "
        f"warm caches, median of {ROUNDS} interleaved rounds"
    )
    return LatencyTable(table, source)


def _request(graph: Graph, node: Node, machine: Machine, batch: int) -> Request:
    types = graph.types
    inputs = tuple(types[name] for name in node.inputs)
    return Request(node, inputs, batch, machine.target, machine.vector_bits)


def _machine_code_key(request: Request) -> Any:
    """What two requests must share to be timed as one: everything but the numbers in the constants."""
    op = request.node.op
    assert isinstance(op, WeightedOperator)
    window = (op.window, op.groups) if isinstance(op, Conv2d) else None
    values = [(x.shape, x.dtype.carrier) for x in (*request.inputs, request.node.type)]
    return op.kind, op.weight.shape, window, tuple(values), select_kernel(request)[0].name


def _time_all(
    requests: Mapping[Any, Request],
    machine: Machine,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> dict[Any, float]:
    """Median seconds a call, by key; all kernels in one library, timed in turns."""
    generator = np.random.default_rng(0)
    functions: dict[str, Any] = {}
    arguments: list[list[Any]] = []
    for index, request in enumerate(requests.values()):
        built = build_kernel(select_kernel(request)[0], request)
        functions[f"kernel_{index}"] = built.function.with_attr("global_symbol", f"kernel_{index}")
        arguments.append(_arguments(request, built, generator))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        failure = f"a kernel does not compile for target '{machine.target.name}'"
        compile_library(tvm.IRModule(functions), machine.tvm_target, path, failure=failure)
        library = load_library(path)
    configure_threads(threads)
    calls = [library[name] for name in functions]
    repeats = [_repeats(call, given) for call, given in zip(calls, arguments, strict=True)]
    times: list[list[float]] = [[] for _ in calls]
    for done in range(ROUNDS):
        for call, given, count, taken in zip(calls, arguments, repeats, times, strict=True):
            taken.append(_seconds(call, given, count))
        if progress is not None:
            progress(done + 1, ROUNDS)
    return {key: float(np.median(taken)) for key, taken in zip(requests, times, strict=True)}


def _arguments(request: Request, built: BuiltKernel, generator: np.random.Generator) -> list[Any]:
    inputs = [_random(x, request.batch, generator) for x in request.inputs]
    output = np.zeros((request.batch, *request.node.type.shape), request.node.type.dtype.carrier)
    return [tvm.runtime.tensor(array) for array in (*inputs, *built.constants, output)]


def _random(type: TensorType, batch: int, generator: np.random.Generator) -> Array:
    values = generator.integers(type.dtype.lo, type.dtype.hi + 1, (batch, *type.shape))
    return values.astype(type.dtype.carrier)


def _repeats(call: Any, arguments: Sequence[Any]) -> int:
    """How many calls fill a round."""
    call(*arguments)
    return max(1, round(_ROUND_SECONDS / max(_seconds(call, arguments, 3), 1e-7)))


def _seconds(call: Any, arguments: Sequence[Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call(*arguments)
    return (time.perf_counter() - start) / count
