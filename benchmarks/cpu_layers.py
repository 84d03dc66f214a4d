"""Where the time of a network goes on this CPU: each kind of layer beside the INT8 peak that the same run measured.

    python -m benchmarks.cpu_layers [--networks resnet18 resnet50] [--threads 1] [--seconds 10]

INT8, random weights, batch 1. Each network's calls are timed within the running library, interleaved with nothing else;
layers of one shape stand in one row. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.runs import hawq_tvm, markdown, write_results
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.core.specs import counted
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.rundir import read_run

NETWORKS = ("resnet18", "resnet50")
COLUMNS = ("layers", "calls", "us", "of the time", "of the peak", "bound by")


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, a network")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.networks:
            results[name] = measure(name, Path(folder) / name, arguments.threads, arguments.seconds)
            print(f"\n{name}, {counted(arguments.threads, 'thread')}: {results[name]['summary']}\n")
            print(markdown(COLUMNS, results[name]["rows"]))
    print(f"\nwrote {write_results(f'cpu_layers_{arguments.threads}', results)}")


def measure(name: str, path: Path, threads: int, seconds: float) -> dict[str, Any]:
    """The rows of a network, and what its convolutions reach of the peak."""
    plain = ("--rounding", "nearest", "--observer", "max", "--threads", threads, "--bench-seconds", 0.1)
    hawq_tvm("run", name, "--data", "random", "--bits", "8", *plain, "-o", path)
    roofline = hawq_tvm("bench", path, "--threads", threads, "--seconds", seconds, "--layers")["roofline"]
    graph = read_run(path, lambda run: Artifacts(run).graph)
    shapes = {node.name: _shape(node.op, graph.types[node.inputs[0]].shape) for node in graph}
    convolutions = {node.name for node in graph if isinstance(node.op, Conv2d)}
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for call in roofline["calls"]:
        groups[shapes.get(call["name"], "conversions")].append(call)
    everything = [call for calls in groups.values() for call in calls]
    total = sum(call["us"] for call in everything)
    share = _share([call for call in everything if call["name"] in convolutions])
    rows = []
    for shape, calls in sorted(groups.items(), key=lambda item: -sum(call["us"] for call in item[1])):
        us = sum(call["us"] for call in calls)
        peak = _share(calls)
        bound = max(calls, key=lambda call: float(call["us"]))["bound_by"]
        reached = "" if peak is None else f"{peak:.0%}"
        rows.append([shape, str(len(calls)), f"{us:,.0f}", f"{us / total:.1%}", reached, bound])
    gops = roofline["ceilings"]["gops"]
    best = max(gops, key=lambda unit: float(gops[unit]))
    summary = (
        f"all calls {total:,.0f} us; convolutions reach {share or 0:.1%} of {gops[best]:,.0f} GOPS ({best}), "
        "measured in this run"
    )
    return {"summary": summary, "share_of_convolutions": share, "rows": rows, "ceilings": roofline["ceilings"]}


def _share(calls: list[dict[str, Any]]) -> float | None:
    """What calls reach of the peak, together; None where none multiplies."""
    weighted = [call for call in calls if call["macs"]]
    if not weighted:
        return None
    return float(sum(call["compute_us"] for call in weighted) / sum(call["us"] for call in weighted))


def _shape(op: Any, source: tuple[int, ...]) -> str:
    """Layers of one shape take one row."""
    if not isinstance(op, Conv2d):
        return str(op.kind)
    kernel = "x".join(map(str, op.window.kernel))
    stride = f" s{op.window.strides[0]}" if op.window.strides[0] > 1 else ""
    residual = " + residual" if op.rescale.residual is not None else ""
    return f"{kernel}{stride} {source[0]}>{op.out_channels} @{source[1]}{residual}"


if __name__ == "__main__":
    main()
