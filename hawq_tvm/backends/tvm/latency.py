"""Microseconds of every layer's kernel at every candidate bit pair, timed on this machine or predicted for a target.

The network is integerised once per pair and its storages are chosen as for deployment, so that each kernel is the one
that would be deployed, in the storages that it would read and write, its residual and clip fused. Conversions between
storages belong to no layer and are not in its number. Layers and pairs that come to the same machine code (the same
shapes, storages and signs) are timed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hawq_tvm.backends.tvm.host import cpu_name, why_not_run
from hawq_tvm.backends.tvm.lower import Machine, build_kernel
from hawq_tvm.backends.tvm.storage import Plan, plan_storages
from hawq_tvm.backends.tvm.timing import ROUNDS, KernelTime, TimedKernel, time_kernels
from hawq_tvm.core.cpu import linux_names
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.gpu_model import typical_clock
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Array, TensorType
from hawq_tvm.core.ops import Conv2d, WeightedOperator
from hawq_tvm.core.quantizer import RangeTable
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.core.targets import Target
from hawq_tvm.kernels import BuiltKernel, Offer, Request


@dataclass(frozen=True, eq=False)
class ChosenKernel:
    """A kernel to time: what was asked, and what was chosen."""

    request: Request
    kernel: str
    offer: Offer

    @property
    def layer(self) -> str:
        """How a message names what is computed."""
        node = self.request.node
        return f"layer '{node.name}' ({node.op.kind})"


@dataclass(frozen=True)
class LatencyTable:
    """Microseconds by layer and bit pair.

    Attributes:
        latency_us: medians, or what was predicted or given.
        source: machine, target, threads and method, for the cost table.
        spread_us: tenth and ninetieth percentile of what was measured.
    """

    latency_us: Mapping[str, Mapping[Bits, float]]
    source: str
    spread_us: Mapping[str, Mapping[Bits, tuple[float, float]]] = field(default_factory=dict)

    @classmethod
    def of_times(cls, times: Mapping[tuple[str, Bits], KernelTime], source: str) -> LatencyTable:
        """What was measured, by layer and pair."""
        latency_us: dict[str, dict[Bits, float]] = {}
        spread_us: dict[str, dict[Bits, tuple[float, float]]] = {}
        for (name, pair), taken in times.items():
            latency_us.setdefault(name, {})[pair] = taken.median_us
            spread_us.setdefault(name, {})[pair] = taken.spread_us
        return cls(latency_us, source, spread_us)

    def to_json(self) -> dict[str, dict[str, float]]:
        """The times alone, as users write them."""
        return {name: {repr(pair): us for pair, us in row.items()} for name, row in self.latency_us.items()}


def measure_latency(
    graph: FloatGraph,
    ranges: RangeTable,
    configurations: Mapping[Bits, BitConfig],
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
        configurations: for each candidate pair, the configuration in which every layer has it.
        target: a target that this machine can run.
        batch: samples a call.
        threads: of the kernels.
        progress: called with rounds done and rounds in all.

    Returns:
        The median over `hawq_tvm.backends.tvm.timing.ROUNDS` rounds, for every layer at every pair.

    Raises:
        CompileError: a kernel does not compile, or a target that is a GPU.
    """
    if target.gpu is not None:
        raise CompileError(
            f"kernels for '{target.name}' are timed on a GPU: --device cuda:0 or rpc:HOST:PORT/KEY says on which; "
            "--latency-from model predicts them, and --latency-table takes those that you have"
        )
    machine = Machine.resolve(target)
    why_not = why_not_run(target.name, machine.architecture, linux_names(machine.features))
    if why_not is not None:
        raise CompileError(
            f"{why_not}, so that its kernels cannot be timed here; --latency-from model predicts them, and "
            "--latency-table takes those that you have"
        )
    keys, kernels = distinct_kernels(graph, ranges, configurations, machine, batch=batch)
    size_bytes = sum(layer.weight.size for layer in graph.layers if layer.weight is not None)
    built = [build_kernel(it.layer, it.kernel, it.offer.build, target) for it in kernels.values()]
    taken = time_kernels(
        [timed_kernel(*pair) for pair in zip(kernels.values(), built, strict=True)],
        machine,
        threads=threads,
        network_bytes=size_bytes,
        progress=progress or (lambda done, total: None),
    )
    times = dict(zip(kernels, taken, strict=True))
    cpu = f" ({machine.cpu})" if machine.cpu else ""
    source = (
        f"measured on {cpu_name()}, target {target.name}{cpu}, {threads} threads, batch {batch}, "
        f"each call as within the network, after {size_bytes / 1e6:.3g} MB of other memory, "
        f"median of {ROUNDS} interleaved rounds"
    )
    return LatencyTable.of_times({place: times[key] for place, key in keys.items()}, source)


def distinct_kernels(
    graph: FloatGraph,
    ranges: RangeTable,
    configurations: Mapping[Bits, BitConfig],
    machine: Machine,
    *,
    batch: int,
) -> tuple[dict[tuple[str, Bits], Any], dict[Any, ChosenKernel]]:
    """The kernels of all layers at all pairs; those of the same machine code are there once.

    Arguments as of `measure_latency`.

    Returns:
        By layer and pair a key, and by that key the kernel.
    """
    names = tuple(layer.name for layer in graph.layers)
    keys: dict[tuple[str, Bits], Any] = {}
    kernels: dict[Any, ChosenKernel] = {}
    for pair, plan in _plans(graph, ranges, configurations, machine, batch):
        for name in names:
            chosen = ChosenKernel(plan.requests[name], plan.kernels[name], plan.offers[name])
            keys[name, pair] = _machine_code_key(chosen)
            kernels.setdefault(keys[name, pair], chosen)
    return keys, kernels


def _plans(
    graph: FloatGraph, ranges: RangeTable, configurations: Mapping[Bits, BitConfig], machine: Machine, batch: int
) -> Iterator[tuple[Bits, Plan]]:
    """The kernels that the network gets with every layer at one pair, pair after pair."""
    for pair, bits in configurations.items():
        integers = integerize(graph, ranges, bits)
        yield (
            pair,
            plan_storages(integers, machine.target, machine.vector_bits, batch=batch, features=machine.features),
        )


def predict_latency(
    graph: FloatGraph,
    ranges: RangeTable,
    configurations: Mapping[Bits, BitConfig],
    target: Target,
    *,
    batch: int = 1,
) -> LatencyTable:
    """What each kernel takes by the cost model of the target: what its offer was chosen by.

    Nothing is compiled or run, and the target need not be at hand. Arguments as of `measure_latency`.
    """
    machine = Machine.resolve(target)
    table: dict[str, dict[Bits, float]] = {layer.name: {} for layer in graph.layers}
    for pair, plan in _plans(graph, ranges, configurations, machine, batch):
        for name, row in table.items():
            row[pair] = plan.offers[name].cost
    if target.gpu is None:
        source = "predicted by rates fitted to one thread of another CPU (kernels/generic/costs.py)"
    else:
        source = (
            f"predicted for {target.gpu.name} at {typical_clock(target.gpu):.0f} MHz, launched by a CUDA graph "
            "(hawq_tvm/core/gpu_model.py)"
        )
    return LatencyTable(table, f"{source}, target {target.name}, batch {batch}; nothing was run")


def _machine_code_key(timed: ChosenKernel) -> Any:
    """What two kernels must share to be timed as one: everything but the numbers in the constants."""
    request, op = timed.request, timed.request.node.op
    assert isinstance(op, WeightedOperator)
    window = (op.window, op.groups) if isinstance(op, Conv2d) else None
    values = [(x.shape, x.dtype.carrier) for x in (*request.inputs, request.node.type)]
    return op.kind, op.weight.shape, window, tuple(values), timed.kernel, timed.offer.reads, timed.offer.writes


def timed_kernel(chosen: ChosenKernel, built: BuiltKernel) -> TimedKernel:
    """A kernel with what it is called with."""
    arguments = kernel_arguments(chosen, built, np.random.default_rng(0))
    return TimedKernel(built.function, arguments, len(chosen.request.inputs))


def kernel_arguments(timed: ChosenKernel, built: BuiltKernel, generator: np.random.Generator) -> list[Array]:
    """What a kernel is called with: random inputs of its types, its constants, and room for its output."""
    request, writes = timed.request, timed.offer.writes
    inputs = [
        _random(x, storage, request.batch, generator)
        for x, storage in zip(request.inputs, timed.offer.reads, strict=True)
    ]
    output = np.zeros(writes.shape(request.node.type, request.batch), writes.dtype(request.node.type))
    return [*inputs, *built.constants, output]


def _random(type: TensorType, storage: Storage, batch: int, generator: np.random.Generator) -> Array:
    return pack(generator.integers(type.dtype.lo, type.dtype.hi + 1, (batch, *type.shape)), type, storage)
