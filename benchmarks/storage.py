"""Chosen storages beside NCHW alone: ResNet-18 and ResNet-50 at INT8, 224 x 224, per layer and whole.

    python -m benchmarks.storage [--networks resnet18 resnet50] [--batch N] [--threads N] [--rounds N]

Weights are random: neither latency nor planned memory depends on them. Both libraries take turns in one process
(A B A B), so that other work on the machine meets both; medians are compared within that run alone. Time of the CPU is
given beside time of the clock: they differ where other work shares the cores, and then the former is the one to
compare. Every value of both is compared with the interpreter's. Prints a table and writes
``benchmarks/results/storage.json``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.runs import markdown, write_results
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.tvm.host import cpu_name, usable_cores
from hawq_tvm.backends.tvm.lower import build_library, lower
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads
from hawq_tvm.calibration import make_observer, observe_ranges
from hawq_tvm.core import interpreter
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.core.targets import find_target
from hawq_tvm.frontend.capture import capture
from hawq_tvm.sources.models import load_model

CORES = usable_cores()
"""Counted before TVM binds this thread to one of them."""

FORMS = {"nchw": "canonical", "chosen": "all"}
"""The two libraries, and what each may choose from."""


def integers(name: str) -> Graph:
    """The network at INT8 with random weights, its ranges from noise."""
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    graph = capture(load_model(name).module, images, name=name)
    network = FloatModule(graph)
    ranges = observe_ranges(lambda x, tap: network(x, tap=tap), [images], make_observer("max"))
    layers = tuple(layer.name for layer in graph.layers)
    return integerize(graph, ranges, BitConfig.uniform(layers, Bits(8, 8)))


def mismatches(expected: Mapping[str, Array], module: CompiledModule, x: Array) -> int:
    """Values that differ anywhere from the interpreter's."""
    found = module.values(x)
    return sum(not np.array_equal(value, found[name]) for name, value in expected.items())


def quartiles(seconds: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(np.array(seconds) * 1e6, [25, 50, 75])
    return {"median_us": median, "quartile_low_us": low, "quartile_high_us": high, "least_us": min(seconds) * 1e6}


def measure(modules: Mapping[str, CompiledModule], x: Array, rounds: int) -> dict[str, Any]:
    """Whole calls, then single calls, the libraries taking turns."""
    calls = {form: module.prepare(x) for form, module in modules.items()}
    wall: dict[str, list[float]] = {form: [] for form in modules}
    cpu: dict[str, list[float]] = {form: [] for form in modules}
    layers: dict[str, dict[str, list[float]]] = {form: {} for form in modules}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for form, call in calls.items():
            started, spent = time.perf_counter(), time.process_time()
            call()
            wall[form].append(time.perf_counter() - started)
            cpu[form].append(time.process_time() - spent)
    for _ in range(rounds):
        for form, module in modules.items():
            for name, seconds in module.call_times(x).items():
                layers[form].setdefault(name, []).append(seconds)
    return {
        form: {
            "wall": quartiles(wall[form]),
            "cpu": quartiles(cpu[form]),
            "layers": {name: quartiles(times) for name, times in layers[form].items()},
        }
        for form in modules
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    configure_threads(arguments.threads)
    for name in arguments.networks:
        graph = integers(name)
        generator = np.random.default_rng(0)
        type = graph.input_type
        x = generator.integers(type.dtype.lo, type.dtype.hi + 1, (arguments.batch, *type.shape))
        x = x.astype(type.dtype.carrier)
        expected = interpreter.run(graph, x)
        with tempfile.TemporaryDirectory() as folder:
            modules, plans = {}, {}
            for form, palette in FORMS.items():
                lowered = lower(graph, find_target("llvm"), batch=arguments.batch, storages=palette)
                path = Path(folder) / f"{form}.so"
                build_library(lowered, path)
                modules[form], plans[form] = CompiledModule(path), lowered.plan
            result = measure(modules, x, arguments.rounds)
            for form, module in modules.items():
                result[form] |= {
                    "planned_bytes": module.info.planned_bytes,
                    "value_bytes": {
                        n: v.storage.size_bytes(v.type, arguments.batch) for n, v in module.info.values.items()
                    },
                    "mismatches": mismatches(expected, module, x),
                    "values": len(expected),
                    "storages": {n: str(v.storage) for n, v in module.info.values.items()},
                    "kernels": dict(module.info.kernels),
                    "conversions": list(module.info.conversions),
                    "model_us": plans[form].cost,
                    "exact": plans[form].exact,
                }
        results[name] = result
        rows += [row(name, form, result) for form in FORMS]
        print(layer_table(graph, result), flush=True)
    load = os.getloadavg()[0]
    print(f"{cpu_name()}, {arguments.threads} of {CORES} cores, batch {arguments.batch}, load {load:.1f}\n")
    print(
        markdown(
            ["network", "storages", "CPU ms (quartiles)", "clock ms", "model ms", "planned MB", "mismatches"], rows
        )
    )
    about = {"threads": arguments.threads, "batch": arguments.batch, "rounds": arguments.rounds, "load_average": load}
    print(f"\nwrote {write_results('storage', {'about': about, 'networks': results})}")


def row(name: str, form: str, result: Mapping[str, Any]) -> list[str]:
    found = result[form]
    wall, cpu = ({key: value / 1e3 for key, value in found[clock].items()} for clock in ("wall", "cpu"))
    kinds = Counter(storage.split()[0].split("/")[0] for storage in found["storages"].values())
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return [
        name,
        f"{form}: {counted}, {len(found['conversions'])} conversions",
        f"{cpu['median_us']:.2f} ({cpu['quartile_low_us']:.2f} to {cpu['quartile_high_us']:.2f})",
        f"{wall['median_us']:.2f} (least {wall['least_us']:.2f})",
        f"{found['model_us'] / 1e3:.2f}",
        f"{found['planned_bytes'] / 1e6:.2f}",
        f"{found['mismatches']} of {found['values']} values",
    ]


def layer_table(graph: Graph, result: Mapping[str, Any]) -> str:
    """The least microseconds and the stored bytes of each call in both libraries, conversions first.

    The least, since a call that other work interrupts takes many times as long, whichever library it is of.
    """
    lines = []
    types = graph.types
    names = [
        *result["chosen"]["conversions"],
        *(node.name for node in graph if node.name in result["nchw"]["layers"]),
    ]
    for name in names:
        times = [result[form]["layers"].get(name, {}).get("least_us") for form in FORMS]
        sizes = [result[form]["value_bytes"].get(name) for form in FORMS]
        cells = ["" if value is None else f"{value:,.0f}" for value in (*times, *sizes)]
        ratio = "" if None in times else f"{times[0] / times[1]:.2f}"
        lines.append([name, repr(types[name]) if name in types else "", *cells[:2], ratio, *cells[2:]])
    head = ["call", "value", "nchw us", "chosen us", "times", "nchw bytes", "chosen bytes"]
    return markdown(head, lines) + "\n"


if __name__ == "__main__":
    main()
