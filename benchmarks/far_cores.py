"""What it costs two threads that the host of a virtual machine puts their cores far apart, and when it does.

    python -m benchmarks.far_cores [--network resnet18] [--threads 2] [--minutes 10]

INT8, random weights, batch 1. Three libraries of one network: 3x3 windows computed directly; by exact Winograd, its
weights or inputs transformed by all threads together; and as it is built, where each thread transforms what all need.
They take turns call by call, in bursts of two seconds. Before and behind each burst it is measured how long a core
takes to see what another has written. A burst in which that changed by half, or in which threads waited for a core, is
left out; the others are sorted by it. Prints a table and writes ``benchmarks/results/far_cores.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.random_networks import integers
from benchmarks.runs import markdown, write_results
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels import Request
from hawq_tvm.kernels.dot import winograd
from hawq_tvm.kernels.dot.winograd_loops import Layout, Tiling
from hawq_tvm.measure.ceilings import measure_hand_over

DIRECTLY, TOGETHER, FOR_ITSELF = WAYS = ("directly", "transformed together", "each thread for itself")
FAR_NS = 100.0
SECONDS = 2.0
MOST_CHANGE = 1.5
LEAST_CORES = 0.97


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    configure_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        modules = [built(options.network, way, Path(folder)) for way in WAYS]
        bursts = list(measure(modules, options.threads, time.monotonic() + 60 * options.minutes))
    if not bursts:
        raise SystemExit("no burst was left alone: run this on a machine that does nothing else")
    results = {"network": options.network, "threads": options.threads, "ways": WAYS, "bursts": bursts}
    print(f"{options.network}, batch 1, {options.threads} threads, {cpu_name()}; ms, and beside computed directly\n")
    print(table(results))
    print(f"\nwrote {write_results('far_cores', results)}")


def table(results: Mapping[str, Any]) -> str:
    """Medians of the bursts with cores near one another, and of those with cores far apart."""
    rows = []
    for name, far in (("near", False), ("far", True)):
        here = [burst for burst in results["bursts"] if (burst["hand_over_ns"] > FAR_NS) == far]
        if here:
            ms = [median(burst["ms"][number] for burst in here) for number in range(len(WAYS))]
            ns = median(burst["hand_over_ns"] for burst in here)
            rows.append([name, str(len(here)), f"{ns:.0f}", *(f"{each:.3f} ({each / ms[0]:.3f})" for each in ms)])
    return markdown(["cores", "bursts", "ns from core to core", *WAYS], rows)


def built(network: str, way: str, folder: Path) -> CompiledModule:
    """Its library, computed that way."""
    choose, path = winograd.choose, folder / f"{way}.so"

    def together(request: Request, layout: Layout) -> Tiling:
        return replace(choose(request, layout), own=False)

    most = 0 if way == DIRECTLY else winograd.MOST_CHANNELS
    with patch.multiple(winograd, MOST_CHANNELS=most, choose=together if way == TOGETHER else choose):
        build_library(lower(integers(network, ["w8a8"]), TARGETS["llvm"], batch=1), path)
    return CompiledModule(path)


def measure(modules: list[CompiledModule], threads: int, end: float) -> Iterator[dict[str, Any]]:
    """Bursts that nothing disturbed: the median of each library's calls, and how far the cores were."""
    type = modules[0].input_type
    x = np.random.default_rng(0).integers(type.dtype.lo, type.dtype.hi + 1, (1, *type.shape)).astype(type.dtype.carrier)
    results = [module.run(x) for module in modules]
    assert all(np.array_equal(results[0], result) for result in results)
    calls = [module.prepare(x) for module in modules]
    before = hand_over_ns(threads)
    while time.monotonic() < end:
        times: list[list[float]] = [[] for _ in calls]
        start, busy = time.perf_counter(), time.process_time()
        while time.perf_counter() < start + SECONDS:
            for call, taken in zip(calls, times, strict=True):
                called = time.perf_counter()
                call()
                taken.append(time.perf_counter() - called)
        cores = (time.process_time() - busy) / (time.perf_counter() - start)
        after = hand_over_ns(threads)
        least, most = sorted((before, after))
        if cores > LEAST_CORES * threads and most < MOST_CHANGE * least:
            yield {"hand_over_ns": (before + after) / 2, "ms": [1e3 * median(taken) for taken in times]}
        before = after


def hand_over_ns(threads: int) -> float:
    """As in `hawq_tvm.measure.ceilings.Ceilings`."""
    found = measure_hand_over(threads)
    assert found is not None, "there are as many cores as threads, and more than one"
    return found


if __name__ == "__main__":
    main()
