"""Bits chosen by measured time on this machine's CPU, and what the chosen network takes beside INT8 and INT4.

    python -m benchmarks.cpu_mixed [--network resnet50] [--threads 1] [--share 0.5] [--seconds 20] [--folder DIR]

    1 profile     every layer's kernel is timed at w8a8 and at w4a8, as within the network
    2 allocate    the integer linear program finds the bits that lose least within a budget on latency: that of INT8
                  less a share of what 4 bits can save at all, each layer at its faster pair
    3 compile     INT8, the mixed network, and all layers but the first at 4 bits, each compared with the interpreter
    4 time        the three libraries in turns

Weights are random, with batch norms that fit them, so what a layer loses says nothing; times depend on shapes alone.
The last layer is not held at 8 bits: it is read from memory once an image, so it is where 4 bits save most.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.cpu_prepare import RANDOM_FILE, Network, random_weights
from benchmarks.runs import hawq_tvm, markdown, write_results
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads
from hawq_tvm.core import interpreter
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.specs import BitConfig, Bits, CostTable
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.measure.bench import Latency, interleave
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.rundir import read_run

EIGHT, FOUR = Bits(8, 8), Bits(4, 8)
SAMPLES = 4
QUICK = ("--hessian-samples", 1, "--hessian-probes", 2, "--rounding", "nearest")


@dataclass(frozen=True)
class Outcome:
    """One network.

    Attributes:
        resident_bytes: weights, biases and multipliers as they stay in memory.
        predicted_us: the sum of its layers' kernels, each timed by itself.
        measured: the whole network, in turns with the others.
    """

    resident_bytes: int
    predicted_us: float
    measured: Latency


def total_us(costs: CostTable, bits: Mapping[str, Bits]) -> float:
    """The kernels of all layers."""
    return sum(layer.choices[bits[layer.name]].latency_us or 0.0 for layer in costs.layers)


def fastest(costs: CostTable) -> dict[str, Bits]:
    """Each layer at its faster pair."""
    return {
        layer.name: min((EIGHT, FOUR), key=lambda pair: layer.choices[pair].latency_us or 0.0) for layer in costs.layers
    }


def compiled(graph: Graph, path: Path) -> tuple[CompiledModule, int]:
    """A library that gives the interpreter's integers, and what of it stays in memory."""
    lowered = lower(graph, TARGETS["llvm"])
    build_library(lowered, path)
    module = CompiledModule(path)
    x = pixels(graph)
    if not np.array_equal(module.run(x), interpreter.run(graph, x)[graph.output]):
        raise SystemExit(f"{path} differs from the interpreter")
    return module, lowered.constant_bytes


def pixels(graph: Graph) -> np.ndarray:
    """Random integers of the network's input, one sample."""
    type = graph.input_type
    generator = np.random.default_rng(0)
    return generator.integers(type.dtype.lo, type.dtype.hi + 1, (1, *type.shape)).astype(type.dtype.carrier)


def profiled(folder: Path, network: str, threads: int) -> Path:
    """A run with every layer's latency at both pairs; calibrated on noise."""
    weights, run = folder / RANDOM_FILE, folder / "run"
    random_weights(folder, Network(network, str(weights), (3, 224, 224)), 1)
    hawq_tvm(
        "profile", network, "--weights", weights, "--data", "random", "--calibration-samples", SAMPLES,
        "--evaluation-samples", SAMPLES, "--bits", "w4a8,w8a8", "--no-pin-ends", "--latency", "--threads", threads,
        "--observer", "max", *QUICK, "-o", run,
    )  # fmt: skip
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.5, help="of what can be saved at all")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--folder", type=Path, help="keeps the run; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        run = profiled(folder, arguments.network, arguments.threads)
        graph, ranges, costs = read_run(
            run, lambda it: (Artifacts(it).float_graph, Artifacts(it).ranges, Artifacts(it).costs)
        )
        layers = tuple(layer.name for layer in costs.layers)
        eight = dict.fromkeys(layers, EIGHT)
        most, least = total_us(costs, eight), total_us(costs, fastest(costs))
        budget = most - arguments.share * (most - least)
        hawq_tvm("allocate", run, "--budget-latency", f"{budget:.2f}us")
        mixed = read_run(run, lambda it: Artifacts(it).bits).layers
        four = {name: EIGHT if name == layers[0] else FOUR for name in layers}
        configurations = {"INT8": eight, "mixed": mixed, "INT4, first layer INT8": four}
        configure_threads(arguments.threads)
        libraries = {
            name: (integers := integerize(graph, ranges, BitConfig(bits)), compiled(integers, folder / f"{i}.so"))
            for i, (name, bits) in enumerate(configurations.items())
        }
        calls = {name: module.prepare(pixels(integers), calls=1) for name, (integers, (module, _)) in libraries.items()}
        times = {it.name: it for it in interleave(calls, seconds=arguments.seconds)}
    outcomes = {
        name: Outcome(resident, total_us(costs, configurations[name]), times[name])
        for name, (_, (_, resident)) in libraries.items()
    }
    print(table(outcomes, arguments.network, arguments.threads, budget))
    print(chosen(costs, mixed))
    results = {
        "network": arguments.network,
        "threads": arguments.threads,
        "budget_us": budget,
        "outcomes": {name: asdict(outcome) for name, outcome in outcomes.items()},
        "layers": {
            layer.name: {repr(pair): layer.choices[pair].latency_us for pair in (EIGHT, FOUR)} for layer in costs.layers
        },
        "four_bits": [name for name in layers if mixed[name] == FOUR],
    }
    write_results(f"cpu_mixed_{arguments.network}_{arguments.threads}", results)


def table(outcomes: Mapping[str, Outcome], network: str, threads: int, budget: float) -> str:
    """The networks beside INT8."""
    first = next(iter(outcomes.values()))
    rows = [
        (
            name,
            f"{outcome.resident_bytes / 1e6:.1f}",
            f"{outcome.resident_bytes / first.resident_bytes:.2f}",
            f"{outcome.predicted_us / 1e3:.3f}",
            f"{outcome.measured.median_us / 1e3:.3f}",
            f"{outcome.measured.p10_us / 1e3:.3f}",
            f"{outcome.measured.median_us / first.measured.median_us:.3f}",
            f"{outcome.measured.p10_us / first.measured.p10_us:.3f}",
        )
        for name, outcome in outcomes.items()
    ]
    names = ("bits", "MB resident", "times INT8", "ms of its layers", "median ms", "p10", "times INT8", "of p10")
    threads_ = f"{threads} {'thread' if threads == 1 else 'threads'}"
    return (
        f"{network}, batch 1, {threads_}, {cpu_name()}; budget {budget / 1e3:.3f} ms of its layers\n\n"
        f"{markdown(names, rows)}\n"
    )


def chosen(costs: CostTable, bits: Mapping[str, Bits]) -> str:
    """The layers that the program gave 4 bits, and what each saves by itself."""
    lines = []
    for layer in costs.layers:
        if bits[layer.name] == FOUR:
            eight, four = (layer.choices[pair].latency_us or 0.0 for pair in (EIGHT, FOUR))
            lines.append((layer.name, f"{layer.parameters:,}", f"{eight:.1f}", f"{four:.1f}"))
    return markdown(("layer at w4a8", "weights", "us at w8a8", "us at w4a8"), lines)


if __name__ == "__main__":
    main()
