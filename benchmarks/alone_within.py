"""How well a kernel timed by itself tells what it takes in the running network, with warm weights and with far ones.

    python -m benchmarks.alone_within RUN [--threads 1]

RUN is a run directory with a library for this machine's CPU, made by hawq-tvm run or compile. Each layer's kernel, and
each copy of a value at fewer bits that lies between layers, is timed three times: called over and over; called as
`hawq_tvm.backends.tvm.timing` does, after as many bytes as the network touches; and within the library, between two
events of the virtual machine, before and behind the others, whose mean counts: the machine's speed changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from benchmarks.runs import markdown, write_results
from hawq_tvm.backends.tvm.chosen import ChosenKernel
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.backends.tvm.timing import time_kernels
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.ops import Requantize, WeightedOperator
from hawq_tvm.core.specs import counted
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.measure.bench import median_layers
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.rundir import read_run

TARGET = TARGETS["llvm"]


def alone(graph: Graph, threads: int) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of each kernel of a layer or of a copy: called over and over, and after other memory."""
    machine = Machine.resolve(TARGET)
    plan = plan_storages(graph, TARGET, machine.vector_bits, batch=1, features=machine.features)
    names = [node.name for node in graph if isinstance(node.op, WeightedOperator | Requantize)]
    kernels = [it.timed(it.offer.build()) for it in (ChosenKernel.of_node(plan, name) for name in names)]
    size = sum(node.op.weight.size for node in graph if isinstance(node.op, WeightedOperator))
    far = time_kernels(kernels, machine, threads=threads, network_bytes=size)
    warm = [time_kernels([kernel], machine, threads=threads, network_bytes=0)[0] for kernel in kernels]
    return (
        {name: taken.median_us for name, taken in zip(names, warm, strict=True)},
        {name: taken.median_us for name, taken in zip(names, far, strict=True)},
    )


def within(module: CompiledModule) -> dict[str, float]:
    """Microseconds of each call in the running network."""
    type = module.input_type
    x = np.random.default_rng(0).integers(type.dtype.lo, type.dtype.hi + 1, (1, *type.shape)).astype(type.dtype.carrier)
    return median_layers(lambda: module.call_times(x), seconds=60, repeats=25)


def row(times: Mapping[str, float], inside: Mapping[str, float], of: Collection[str]) -> tuple[str, ...]:
    """How far times of some calls are from those within: median, p90, most; told too quick; sums; ranks."""
    calls = [call for call in inside if call in of]
    shares = {call: times[call] / inside[call] for call in calls}
    off = np.abs(np.array(list(shares.values())) - 1)
    ours, theirs = (np.argsort(np.argsort([found[call] for call in calls])) for found in (times, inside))
    total = sum(times[call] for call in calls) / sum(inside[call] for call in calls)
    correlation = f"{np.corrcoef(ours, theirs)[0, 1]:.3f}" if len(calls) > 2 else ""
    quick = min(shares, key=shares.__getitem__)
    p50, p90, most = np.median(off), np.percentile(off, 90), off.max()
    return f"{p50:.1%}", f"{p90:.1%}", f"{most:.1%}", quick, f"{total:.3f}", correlation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    graph, module = read_run(arguments.run, lambda run: (Artifacts(run).graph, Artifacts(run).library(TARGET)))
    configure_threads(arguments.threads)
    before = within(module)
    warm, far = alone(graph, arguments.threads)
    after = within(module)
    inside = {call: (before[call] + after[call]) / 2 for call in far}
    layers = {node.name for node in graph if isinstance(node.op, WeightedOperator)}
    rows, results = [], {}
    for what, of in (("a layer", layers), ("a copy between layers", inside.keys() - layers)):
        for name, times in (("called over and over", warm), ("after other memory", far)):
            if of:
                rows.append((f"{what}, {name}", *row(times, inside, of)))
            results[f"{what}, {name}"] = {call: [times[call], inside[call]] for call in inside if call in of}
    threads = counted(arguments.threads, "thread")
    print(f"{len(layers)} layers with weights, {len(inside) - len(layers)} copies, batch 1, {threads}, {cpu_name()}\n")
    names = ("a kernel by itself", "median off", "p90", "most", "told too quick", "sum", "rank correlation")
    print(markdown(names, rows))
    write_results(f"alone_within_{arguments.run.name}_{arguments.threads}", results)


if __name__ == "__main__":
    main()
