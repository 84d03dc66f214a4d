"""Whether two threads of a call share a core while another idles, and what it costs that workers look for work.

    python -m benchmarks.thread_cores [--network resnet18 | --library FILE] [--starts N] [--calls N]

Each row is measured in processes of its own, which take turns, with as many threads as cores. Threads are

- "TVM's own", as in any program that calls a library through TVM alone: TVM binds its workers, and the caller runs
  where the system puts it;
- "free": nothing is bound (TVM_BIND_THREADS=0);
- "placed", as `hawq_tvm.backends.tvm.workers` does it.

"shared" counts the calls after which the caller and a worker had run on one core last, as the system tells. "slow" are
the processes whose median call takes more than 1.5 times the least median. Other times are of all calls of all
processes. "spin" is TVM_THREAD_POOL_SPIN_COUNT, "pause" what the caller sleeps between calls, "cores" the CPU time of
the whole process over the time that went by. Prints a table and writes ``benchmarks/results/thread_cores.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import hawq_tvm, markdown, write_results
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.core.machine import usable_cores

WAYS = ("TVM's own", "free", "placed")
SPINS = (0, 2_000, 20_000, 300_000)
DEFAULT_SPIN = 20_000
PAUSES = (0.0, 5.0)  # ms
_WARMUP = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--library", type=Path, help="a library that is compiled already")
    parser.add_argument("--starts", type=int, default=5, help="processes a row")
    parser.add_argument("--calls", type=int, default=200, help="of a process")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # way, pause: a process of the above
    arguments = parser.parse_args()
    if arguments.measure:
        way, pause = arguments.measure
        print(json.dumps(measure(arguments.library, way, float(pause), arguments.calls)))
        return
    with tempfile.TemporaryDirectory() as folder:
        library = arguments.library or _compiled(arguments.network, Path(folder))
        cells = list(dict.fromkeys([*product(WAYS, (DEFAULT_SPIN,), PAUSES), *product(WAYS[-1:], SPINS, PAUSES)]))
        found: dict[Any, list[dict[str, Any]]] = {cell: [] for cell in cells}
        for _ in range(arguments.starts):
            for cell in cells:
                found[cell].append(_in_a_process(library, arguments.calls, *cell))
    least = min(float(np.median(one["times"])) for ones in found.values() for one in ones)
    rows = [_row(cell, found[cell], least) for cell in cells]
    print(f"{cpu_name()}, {usable_cores()} cores, {arguments.starts} processes of {arguments.calls} calls a row\n")
    print(markdown([*rows[0]], [[str(value) for value in row.values()] for row in rows]))
    print(f"\nwrote {write_results('thread_cores', {'network': arguments.network, 'rows': rows})}")


def _compiled(network: str, folder: Path) -> Path:
    few = ("--calibration-samples", 16, "--verify-samples", 4, "--bench-seconds", 0.2)
    hawq_tvm("run", network, "--data", "random", "--bits", "8", "--output", folder / "run", *few)
    return folder / "run" / "model.llvm.so"


def _in_a_process(library: Path, calls: int, way: str, spin: int, pause: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.thread_cores", "--library", str(library), "--calls", str(calls)]
    environment = {**os.environ, "TVM_THREAD_POOL_SPIN_COUNT": str(spin), "TVM_NUM_THREADS": str(usable_cores())}
    environment["TVM_BIND_THREADS"] = "0" if way == "free" else "1"
    done = subprocess.run(
        [*command, "--measure", way, str(pause)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(library: Path, way: str, pause: float, calls: int) -> dict[str, Any]:
    """Milliseconds of each call, how many ended with a shared core, and the cores kept busy meanwhile."""
    alone = set(os.listdir("/proc/self/task"))
    call = _call(library, way)
    call()
    workers = sorted(set(os.listdir("/proc/self/task")) - alone)
    for _ in range(_WARMUP):
        call()
    times: list[float] = []
    shared = 0
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(calls):
        if pause:
            time.sleep(pause / 1e3)
        before = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - before))
        shared += ctypes.CDLL(None).sched_getcpu() in map(_last_core, workers)
    cores = (time.process_time() - busy) / (time.perf_counter() - start)
    return {"times": times, "shared": shared, "cores": cores, "workers": len(workers)}


def _call(library: Path, way: str) -> Callable[[], Any]:
    from tvm import cpu
    from tvm.runtime import tensor
    from tvm.runtime.vm import VirtualMachine

    from hawq_tvm.backends.tvm.runtime import CompiledModule, load_library

    module = CompiledModule(library)
    x = np.zeros((module.info.batch, *module.input_type.shape), module.input_type.dtype.carrier)
    if way == "placed":
        return module.prepare(x)
    machine, resident = VirtualMachine(load_library(library), cpu()), tensor(x, cpu())
    return lambda: machine["main"](resident)


def _last_core(task: str) -> int:
    """Where a thread of this process ran last (proc(5), ``processor`` in ``/proc/PID/stat``)."""
    return int(Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()[36])


def _row(cell: tuple[str, int, float], found: list[dict[str, Any]], least: float) -> dict[str, Any]:
    way, spin, pause = cell
    times = np.concatenate([one["times"] for one in found])
    return {
        "threads are": way,
        "spin": spin,
        "pause, ms": pause,
        "shared": f"{sum(one['shared'] for one in found) / len(times):.1%}",
        "slow": f"{sum(float(np.median(one['times'])) > 1.5 * least for one in found)} of {len(found)}",
        "median, ms": round(float(np.median(times)), 3),
        "p10": round(float(np.quantile(times, 0.1)), 3),
        "p90": round(float(np.quantile(times, 0.9)), 3),
        "cores": round(float(np.median([one["cores"] for one in found])), 2),
    }


if __name__ == "__main__":
    main()
