"""One network compiled for each CPU that this machine can be: what older instruction sets cost, and what kernels gain.

    python -m benchmarks.cpu_targets [--networks resnet18 resnet50] [--rounds N] [--weights resnet50.safetensors]

Weights are random unless a file is named, and spread evenly, which only AVX2 and AVX-512 without VNNI mind: of trained
ones fewer are large (`kernels/dot/excess.py`). Calls take one sample and one thread. All libraries
take turns in one process, so that other work on the machine meets all of them. Time of the CPU is what counts: other
work that shares the core does not add to it.
``generic`` are the kernels that any CPU runs, compiled for AVX2: what such a CPU had before there were others. Every
value of every library is compared with the interpreter's. Prints a table and, for random weights,
writes ``benchmarks/results/cpu_targets.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.random_networks import integers
from benchmarks.runs import markdown, write_results
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.host import architecture, instruction_sets
from hawq_tvm.backends.tvm.lower import Machine, lower
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads
from hawq_tvm.core import interpreter
from hawq_tvm.core.cpu import linux_names
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.targets import TARGETS, Target

GENERIC = Target(
    "generic", "llvm", "AVX2 without what its kernels need", attributes={"mcpu": "haswell"}, without=frozenset({"fma"})
)
"""No kernel of dot products takes a CPU without fused multiply-add, and generic ones have no use for it."""


def runnable() -> dict[str, Target]:
    """The targets whose code this machine runs, weakest first, after the generic kernels."""
    have = set(instruction_sets())
    here = [target for target in TARGETS.values() if target.cpu and target.cpu.architecture == architecture()]
    able = [target for target in here if set(linux_names(Machine.resolve(target).features)) <= have]
    return {"generic": GENERIC} | {target.name: target for target in able}


def compiled(graph: Graph, targets: Mapping[str, Target], folder: Path) -> dict[str, CompiledModule]:
    """A library for each."""
    modules = {}
    for number, (name, target) in enumerate(targets.items()):
        library = folder / f"{number}.so"
        build_library(lower(graph, target), library)
        modules[name] = CompiledModule(library)
    return modules


def milliseconds(modules: Mapping[str, CompiledModule], x: Array, rounds: int) -> dict[str, float]:
    """Of the CPU, a call: the median of calls in turns."""
    calls = {name: module.prepare(x) for name, module in modules.items()}
    for call in calls.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.process_time()
            call()
            spent[name].append(time.process_time() - started)
    return {name: 1e3 * float(np.median(times)) for name, times in spent.items()}


def differing(graph: Graph, modules: Mapping[str, CompiledModule], x: Array) -> int:
    """Values of any library that are not the interpreter's."""
    expected = interpreter.run(graph, x)
    found = [module.values(x) for module in modules.values()]
    return sum(not np.array_equal(value, values[name]) for values in found for name, value in expected.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50", "torchvision:mobilenet_v2"])
    parser.add_argument("--weights", help="of the one network, as hawq-tvm run takes them")
    parser.add_argument("--bits", default="w8a8")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    configure_threads(1)
    targets, results, rows = runnable(), {}, []
    for network in options.networks:
        graph = integers(network, [options.bits], weights=options.weights)
        type = graph.types[graph.input_name]
        x = np.random.default_rng(0).integers(type.dtype.lo, type.dtype.hi, (1, *type.shape), type.dtype.carrier)
        with tempfile.TemporaryDirectory() as folder:
            modules = compiled(graph, targets, Path(folder))
            wrong = differing(graph, modules, x)
            times = milliseconds(modules, x, options.rounds)
        results[network] = {"ms": times, "differing_values": wrong}
        for name, ms in times.items():
            rows.append([network, name, f"{ms:.2f}", f"{times['generic'] / ms:.2f}", str(wrong)])
    print(markdown(["network", "target", "ms of the CPU", "times as fast as generic", "values that differ"], rows))
    if options.weights is None:
        write_results("cpu_targets", {"bits": options.bits, "rounds": options.rounds, "networks": results})


if __name__ == "__main__":
    main()
