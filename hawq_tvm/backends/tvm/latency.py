"""Microseconds of every layer's kernel at every candidate bit pair, and of what lies between layers.

Timed on this machine or on a device (`devices.kernel_times`), or predicted for a target. The network is integerised
once per pair and its storages are chosen as for deployment, so that each kernel is the one that would be deployed, in
the storages that it would read and write, its residual and clip fused. Copies between layers of different bits are
kernels too, and belong to the border of two layers (`borders`). Kernels that come to the same machine code (the same
shapes, storages, signs and instructions) are timed once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hawq_tvm.backends.tvm.borders import BorderKernels, Price, Taken, find_borders
from hawq_tvm.backends.tvm.chosen import Candidates, ChosenKernel
from hawq_tvm.backends.tvm.host import cpu_name, why_not_run
from hawq_tvm.backends.tvm.lower import Machine, build_kernel
from hawq_tvm.backends.tvm.timing import ROUNDS, time_kernels
from hawq_tvm.core.cpu import linux_names
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.gpu_model import typical_clock
from hawq_tvm.core.specs import BitConfig, Bits, Border, counted
from hawq_tvm.core.targets import Target


@dataclass(frozen=True)
class LatencyTable:
    """Microseconds by layer and bit pair.

    Attributes:
        latency_us: medians, or what was predicted or given.
        source: machine, target, threads and method, for the cost table.
        spread_us: tenth and ninetieth percentile of what was measured.
        borders: what layers cost together, in microseconds too.
    """

    latency_us: Mapping[str, Mapping[Bits, float]]
    source: str
    spread_us: Mapping[str, Mapping[Bits, tuple[float, float]]] = field(default_factory=dict)
    borders: tuple[Border, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Times and borders, as users write them: all that a cost table takes from theirs."""
        return {
            "latency_us": {name: {repr(pair): us for pair, us in row.items()} for name, row in self.latency_us.items()},
            "borders": [border.to_json() for border in self.borders],
        }


@dataclass(frozen=True, eq=False)
class TableKernels:
    """Every kernel that a latency table has a number of.

    Attributes:
        layers: of each layer at each pair, all layers at that pair.
        borders: of each border at each two widths.
        pairs: the candidates.
    """

    layers: Mapping[tuple[str, Bits], ChosenKernel]
    borders: tuple[BorderKernels, ...]
    pairs: tuple[Bits, ...]

    @classmethod
    def of(cls, candidates: Candidates, machine: Machine) -> TableKernels:
        """Those that a machine would be given."""
        layers = {}
        for pair in candidates.pairs:
            plan = candidates.planned(BitConfig.uniform(candidates.layers, pair), machine).plan
            layers.update({(name, pair): ChosenKernel.of_node(plan, name) for name in candidates.layers})
        return cls(layers, find_borders(candidates, machine), candidates.pairs)

    @cached_property
    def distinct(self) -> dict[Hashable, ChosenKernel]:
        """By its code, one of each: first those of layers."""
        between = (it for border in self.borders for each in border.crossings.values() for it in each.kernels)
        found: dict[Hashable, ChosenKernel] = {}
        for kernel in (*self.layers.values(), *between):
            found.setdefault(kernel.code, kernel)
        return found

    def table(self, price: Price, how: str, source: str) -> LatencyTable:
        """The table, by what each kernel takes.

        Args:
            price: of a kernel.
            how: where that comes from, a word for each border.
            source: the same at length, for the table.
        """
        latency_us: dict[str, dict[Bits, float]] = {}
        spread_us: dict[str, dict[Bits, tuple[float, float]]] = {}
        for (name, pair), kernel in self.layers.items():
            taken = price(kernel)
            latency_us.setdefault(name, {})[pair] = taken.us
            if taken.spread_us is not None:
                spread_us.setdefault(name, {})[pair] = taken.spread_us
        borders = tuple(border.priced(self.pairs, price, how) for border in self.borders)
        return LatencyTable(latency_us, source, spread_us, borders)


def measure_latency(
    candidates: Candidates,
    target: Target,
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatencyTable:
    """Time each distinct kernel of layers and of borders, all taking turns.

    Args:
        candidates: the network and its bits.
        target: a target that this machine can run.
        threads: of the kernels.
        progress: called with rounds done and rounds in all.

    Returns:
        The median over `hawq_tvm.backends.tvm.timing.ROUNDS` rounds.

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
    kernels = TableKernels.of(candidates, machine)
    distinct = kernels.distinct.values()
    times = time_kernels(
        [it.timed(build_kernel(it.title, it.kernel, it.offer.build, target)) for it in distinct],
        machine,
        threads=threads,
        network_bytes=candidates.weight_bytes,
        progress=progress,
    )
    taken = {it.code: Taken(time.median_us, time.spread_us) for it, time in zip(distinct, times, strict=True)}
    cpu = f" ({machine.cpu})" if machine.cpu else ""
    source = (
        f"measured on {cpu_name()}, target {target.name}{cpu}, {counted(threads, 'thread')}, "
        f"batch {candidates.batch}, each call as within the network, after {candidates.weight_bytes / 1e6:.3g} MB of "
        f"other memory, median of {ROUNDS} interleaved rounds, copies between layers among them"
    )
    return kernels.table(lambda kernel: taken[kernel.code], "measured", source)


def predict_latency(candidates: Candidates, target: Target) -> LatencyTable:
    """What each kernel takes by the cost model of the target: what its offer was chosen by.

    Nothing is compiled or run, and the target need not be at hand.
    """
    kernels = TableKernels.of(candidates, Machine.resolve(target))
    if target.gpu is None:
        source = "predicted by rates fitted to one thread of another CPU (kernels/generic/costs.py)"
    else:
        source = (
            f"predicted for {target.gpu.name} at {typical_clock(target.gpu):.0f} MHz, launched by a CUDA graph "
            "(hawq_tvm/core/gpu_model.py)"
        )
    said = f"{source}, target {target.name}, batch {candidates.batch}; nothing was run"
    return kernels.table(lambda kernel: Taken(kernel.offer.cost), "predicted", said)
