"""Each layer's share of what AVX512-VNNI can do on this machine, one thread, batch 1, warm.

    python -m benchmarks.vnni [--networks resnet18 resnet50 ...] [--rounds N]

The peak is measured in the same run, between the rounds: `vpdpbusd` on registers alone, two operations a product.
Weights are random: latency does not depend on them. A share is of multiply-accumulates that the layer asks for; empty
lanes and pixels that are computed twice count as lost. Prints tables and writes ``benchmarks/results/vnni.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import tirx as T

from benchmarks.runs import markdown, write_results
from benchmarks.storage import integers
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.lower import Machine, lower
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.targets import find_target
from hawq_tvm.kernels.generic.functions import function
from hawq_tvm.kernels.x86.storages import AVX512_VNNI
from hawq_tvm.kernels.x86.vectors import LANES, Registers, dot, ramp

CHAINS, REPEATS = 24, 20_000
"""Sums in flight, more than latency times width of any CPU so far; and how often each is added to."""


def peak_probe(machine: Machine) -> Any:
    """A function that makes ``CHAINS * REPEATS`` products of vectors; gets two vectors of bytes and the sums' place."""

    def body(x: Any, weights: Any, sums: Any) -> None:
        registers = Registers(CHAINS)
        for chain in range(CHAINS):
            registers[chain] = sums[ramp(chain * LANES, LANES)]
        with T.serial(REPEATS):
            for chain in range(CHAINS):
                registers[chain] = dot(registers[chain], x[ramp(0, 4 * LANES)], weights[ramp(0, 4 * LANES)])
        for chain in range(CHAINS):
            T.buffer_store(sums, registers[chain], [ramp(chain * LANES, LANES)])

    vector = (4 * LANES,)
    made = function([("x", vector, "int8"), ("weights", vector, "int8"), ("sums", (CHAINS * LANES,), "int32")], body)
    module = tvm.IRModule({"probe": made.with_attr("global_symbol", "probe")})
    return tvm.compile(module, target=machine.tvm_target)["probe"]


def peak_gops(probe: Any) -> float:
    """Billions of operations a second, a product and its addition counted as two."""
    generator = np.random.default_rng(0)
    x, weights = (tvm.runtime.tensor(generator.integers(-128, 128, 4 * LANES).astype(np.int8)) for _ in range(2))
    sums = tvm.runtime.tensor(np.zeros(CHAINS * LANES, np.int32))
    started = time.perf_counter()
    probe(x, weights, sums)
    return 2 * 4 * LANES * CHAINS * REPEATS / (time.perf_counter() - started) / 1e9


def measure(graph: Graph, probe: Any, rounds: int) -> tuple[float, dict[str, Any]]:
    """The peak, and for each layer with weights its least microseconds, operations and kernel."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "model.so"
        build_library(lower(graph, find_target("llvm")), library)
        module = CompiledModule(library)
        type = graph.input_type
        x = np.random.default_rng(0).integers(type.dtype.lo, type.dtype.hi + 1, (1, *type.shape))
        peak, least = 0.0, dict[str, float]()
        for _ in range(rounds):
            peak = max(peak, peak_gops(probe))
            for name, seconds in module.call_times(x.astype(type.dtype.carrier)).items():
                least[name] = min(seconds, least.get(name, seconds))
    layers: dict[str, Any] = {}
    for node in graph:
        if isinstance(node.op, WeightedOperator):
            operations = 2 * node.op.macs(node.type)
            kernel = module.info.kernels[node.name]
            layers[node.name] = {"us": least[node.name] * 1e6, "operations": operations, "kernel": kernel}
    return peak, layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    machine = Machine.resolve(find_target("llvm"))
    if not machine.features >= AVX512_VNNI:
        raise SystemExit(f"{cpu_name()} has no AVX512-VNNI")
    configure_threads(1)
    probe, results = peak_probe(machine), {}
    for network in arguments.networks:
        peak, layers = measure(integers(network), probe, arguments.rounds)
        rows = [
            [name, layer["kernel"], f"{layer['us']:.1f}", f"{share(layer, peak):.1%}"] for name, layer in layers.items()
        ]
        convolutions = [layer for layer in layers.values() if layer["kernel"].startswith("conv2d")]
        whole = {key: sum(layer[key] for layer in convolutions) for key in ("us", "operations")}
        print(f"\n{network} on {cpu_name()}, peak {peak:.0f} GOPS, all convolutions {share(whole, peak):.1%}\n")
        print(markdown(["layer", "kernel", "us", "of the peak"], rows))
        results[network] = {"peak_gops": peak, "share": share(whole, peak), "layers": layers}
    print(f"\nwrote {write_results('vnni', results)}")


def share(layer: dict[str, Any], peak: float) -> float:
    """Of the peak, from microseconds and operations."""
    return float(layer["operations"] / layer["us"] / 1e3 / peak)


if __name__ == "__main__":
    main()
