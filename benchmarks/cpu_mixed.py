"""Bits chosen by measured time on this machine's CPU, and what the chosen network takes beside INT8 and INT4.

    python -m benchmarks.cpu_mixed [--network resnet50] [--threads 1] [--share 0.7] [--rounds 60] [--folder DIR]

    1 profile     every layer's kernel is timed at w8a8 and at w4a8, as within the network
    2 allocate    the integer linear program finds the bits that lose least within a budget on latency: that of INT8
                  less a share of what 4 bits can save at all, each layer at its faster pair
    3 compile     INT8, the mixed network, and all layers but the first at 4 bits, each compared with the interpreter
    4 time        the three libraries in turns, each in a process of its own, as `benchmarks.turns` does: calls that
                  waited for a core do not count, and from a machine that is not quiet nothing is reported

Weights are random, with batch norms that fit them, so what a layer loses says nothing; times depend on shapes alone.
The last layer is not held at 8 bits: it is read from memory once an image, so it is where 4 bits save most.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.bursts import Channel
from benchmarks.cpu_prepare import RANDOM_FILE, Network, random_weights
from benchmarks.runs import hawq_tvm, markdown, write_results
from benchmarks.turns import MOST_FOREIGN, Contender, Disturbed, Timing, take_turns
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads
from hawq_tvm.core import interpreter
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Graph, TensorType
from hawq_tvm.core.specs import BitConfig, Bits, CostTable, counted
from hawq_tvm.core.targets import TARGETS
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
    measured: Timing


def total_us(costs: CostTable, bits: Mapping[str, Bits]) -> float:
    """The kernels of all layers."""
    return sum(layer.choices[bits[layer.name]].latency_us or 0.0 for layer in costs.layers)


def fastest(costs: CostTable) -> dict[str, Bits]:
    """Each layer at its faster pair."""
    return {
        layer.name: min((EIGHT, FOUR), key=lambda pair: layer.choices[pair].latency_us or 0.0) for layer in costs.layers
    }


def compiled(graph: Graph, path: Path) -> int:
    """Make a library that gives the interpreter's integers; returns the bytes of its constants."""
    lowered = lower(graph, TARGETS["llvm"])
    build_library(lowered, path)
    module = CompiledModule(path)
    x = pixels(graph.input_type)
    if not np.array_equal(module.run(x), interpreter.run(graph, x)[graph.output]):
        raise SystemExit(f"{path} differs from the interpreter")
    return lowered.constant_bytes


def serve(library: Path, threads: int) -> None:
    """A library's process: it calls when asked to."""
    channel = Channel()
    configure_threads(threads)
    module = CompiledModule(library)
    channel.serve(module.prepare(pixels(module.input_type)))


def pixels(type: TensorType) -> np.ndarray:
    """Random integers of the network's input, one sample."""
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
    parser.add_argument("--share", type=float, default=0.7, help="of what can be saved at all")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--most-foreign", type=float, default=MOST_FOREIGN, help="of the machine, that others may take")
    parser.add_argument("--folder", type=Path, help="keeps the run; default: a temporary one")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        run = profiled(folder, arguments.network, arguments.threads)
        found = read_run(run, Artifacts)
        graph, ranges, costs = found.float_graph, found.ranges, found.costs
        layers = tuple(layer.name for layer in costs.layers)
        eight = dict.fromkeys(layers, EIGHT)
        most, least = total_us(costs, eight), total_us(costs, fastest(costs))
        budget = most - arguments.share * (most - least)
        hawq_tvm("allocate", run, "--budget-latency", f"{budget:.2f}us")
        mixed = dict(read_run(run, lambda it: Artifacts(it).bits).layers)
        four = {name: EIGHT if name == layers[0] else FOUR for name in layers}
        configurations = {"INT8": eight, "mixed": mixed, "INT4, first layer INT8": four}
        paths = {name: folder / f"library{number}.so" for number, name in enumerate(configurations)}
        resident = {
            name: compiled(integerize(graph, ranges, BitConfig(bits)), paths[name])
            for name, bits in configurations.items()
        }
        timings = timed(paths, arguments.threads, arguments.rounds, arguments.most_foreign)
    outcomes = {
        name: Outcome(resident[name], total_us(costs, bits), timings[name]) for name, bits in configurations.items()
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


def timed(paths: Mapping[str, Path], threads: int, rounds: int, most_foreign: float) -> Mapping[str, Timing]:
    """The libraries, in turns."""
    command = (sys.executable, "-m", "benchmarks.cpu_mixed", "--threads", str(threads), "--serve")
    contenders = [Contender(name, (*command, str(path)), {}) for name, path in paths.items()]
    try:
        outcome = take_turns(contenders, rounds=rounds, seconds=0.1, most_foreign=most_foreign)
    except Disturbed as error:
        raise SystemExit(str(error)) from error
    if outcome.failed:
        raise SystemExit("; ".join(f"{name}: {why}" for name, why in outcome.failed.items()))
    return outcome.timings


def table(outcomes: Mapping[str, Outcome], network: str, threads: int, budget: float) -> str:
    """The networks beside INT8."""
    first = next(iter(outcomes.values()))
    rows = [
        (
            name,
            f"{outcome.resident_bytes / 1e6:.1f}",
            f"{outcome.resident_bytes / first.resident_bytes:.2f}",
            f"{outcome.predicted_us / 1e3:.3f}",
            f"{outcome.measured.median_ms:.3f}",
            f"{outcome.measured.min_ms:.3f}",
            f"{outcome.measured.median_ms / first.measured.median_ms:.3f}",
            f"{outcome.measured.min_ms / first.measured.min_ms:.3f}",
            f"{outcome.measured.calls} of {outcome.measured.calls + outcome.measured.disturbed}",
        )
        for name, outcome in outcomes.items()
    ]
    names = (
        "bits",
        "MB resident",
        "times INT8",
        "ms of its layers",
        "median ms",
        "min",
        "times INT8",
        "of min",
        "calls",
    )
    what = f"{network}, batch 1, {counted(threads, 'thread')}, {cpu_name()}"
    return f"{what}; budget {budget / 1e3:.3f} ms of its layers\n\n{markdown(names, rows)}\n"


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
