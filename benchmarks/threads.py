"""Throughput of one compiled module that 1, 2, 4 and 8 threads call at once.

    python -m benchmarks.threads [--networks resnet20 resnet18] [--library FILE ...] [--rounds N] [--seconds S]

Each number of callers is measured with kernels on one thread and on all, through the module as it is (every call has a
virtual machine to itself) and behind a lock (one call at a time). All take turns, round after round; every output is
compared with the right one. Calls a second are medians over the rounds; "cores" is the CPU time that was spent, over
the time that went by: on a machine that others use too, compare calls a CPU second. Prints a table and writes
``benchmarks/results/threads.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.runs import hawq_tvm, markdown, write_results
from hawq_tvm.backends.tvm.host import cpu_name, default_threads, usable_cores
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads

CALLERS = (1, 2, 4, 8)
DATA = {"resnet20": "digits", "resnet18": "random", "resnet50": "random"}
_WARMUP = 3  # calls of a thread that are not counted; the first starts TVM's workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", choices=DATA, default=["resnet20", "resnet18"])
    parser.add_argument("--library", nargs="*", type=Path, default=[], help="libraries that are compiled already")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as runs:
        libraries = {f"{path.parent.name}/{path.name}": path for path in arguments.library}
        for name in () if arguments.library else arguments.networks:
            output = Path(runs) / name
            few = ("--calibration-samples", 16, "--verify-samples", 4, "--bench-seconds", 0.2)
            hawq_tvm("run", name, "--data", DATA[name], "--bits", "8", "--output", output, *few)
            libraries[name] = output / "model.llvm.so"
        for name, library in libraries.items():
            results[name] = measure(CompiledModule(library), arguments.rounds, arguments.seconds)
            rows += [[name, *map(str, cell.values())] for cell in results[name]]
    print(f"{cpu_name()}, {usable_cores()} cores, median of {arguments.rounds} rounds\n")
    print(markdown(["network", *results[name][0]], rows))
    print(f"\nwrote {write_results('threads', results)}")


def measure(module: CompiledModule, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One row for each number of kernel threads, way to call, and number of callers; wrong outputs end the program."""
    x = np.random.default_rng(0).integers(-100, 100, (module.info.batch, *module.input_type.shape))
    x = np.clip(x, module.input_type.dtype.lo, module.input_type.dtype.hi).astype(module.input_type.dtype.carrier)
    expected = module.run(x)
    ways: dict[str, AbstractContextManager[Any]] = {"at once": nullcontext(), "behind a lock": threading.Lock()}
    cells = list(product((1, default_threads()), ways, CALLERS))
    taken: dict[Any, list[tuple[float, float]]] = {cell: [] for cell in cells}
    for _ in range(rounds):
        for cell in cells:
            kernel_threads, way, callers = cell
            configure_threads(kernel_threads)
            guard = ways[way]

            def call(guard: AbstractContextManager[Any] = guard) -> None:
                with guard:
                    output = module.run(x)
                if not np.array_equal(output, expected):
                    raise AssertionError("an output is wrong")

            taken[cell].append(_turn(call, callers, seconds))
    configure_threads(default_threads())
    return [
        {
            "kernel threads": kernel_threads,
            "calls": way,
            "callers": callers,
            "calls a second": round(median(rate for rate, _ in taken[kernel_threads, way, callers]), 1),
            "cores": round(median(cores for _, cores in taken[kernel_threads, way, callers]), 2),
            "calls a CPU second": round(median(r / c for r, c in taken[kernel_threads, way, callers]), 1),
        }
        for kernel_threads, way, callers in cells
    ]


def _turn(call: Callable[[], None], callers: int, seconds: float) -> tuple[float, float]:
    """Calls a second of all callers together, and cores kept busy."""
    counts: list[int] = []
    start, stop = threading.Barrier(callers + 1), threading.Event()

    def work() -> None:
        for _ in range(_WARMUP):
            call()
        start.wait()
        count = 0
        while not stop.is_set():
            call()
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    start.wait()
    wall, busy = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - wall
    if len(counts) < callers:
        raise SystemExit("a caller failed; the reason stands above")
    return sum(counts) / elapsed, (time.process_time() - busy) / elapsed


if __name__ == "__main__":
    main()
