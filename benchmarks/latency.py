"""Whole-network latency of the zoo's networks at INT8 and INT4, beside fp32 PyTorch and ONNX Runtime.

    python -m benchmarks.latency [--networks resnet20 resnet18 resnet50] [--threads N] [--seconds S]

Each network's contenders take turns in one process (A B C D A B C D); medians are compared within that run alone.
Weights are random where none come with the package: latency does not depend on them. Prints a table and writes
``benchmarks/results/latency.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.runs import hawq_tvm, markdown, write_results
from hawq_tvm.backends.tvm.host import cpu_name, usable_cores

DATA = {"resnet20": "digits", "resnet18": "random", "resnet50": "random"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as runs:
        for name in arguments.networks:
            for bits in ("8", "4"):
                summary = hawq_tvm(
                    *("run", name, "--data", DATA[name], "--bits", bits, "--output", Path(runs) / f"{name}-{bits}"),
                    *("--calibration-samples", 16, "--verify-samples", 16, "--threads", arguments.threads),
                    *("--bench-seconds", arguments.seconds),
                )
                bench = summary["benchmark"]["llvm"]
                median = {item["name"]: item["median_us"] for item in bench["contenders"]}
                ours = median.pop("hawq_tvm")
                ratios = [f"{value / ours:.2f}" for value in median.values()]
                low, high = bench["contenders"][0]["p10_us"], bench["contenders"][0]["p90_us"]
                milliseconds = f"{ours / 1e3:.3f} ({low / 1e3:.3f} to {high / 1e3:.3f})"
                rows.append([name, f"INT{bits}", milliseconds, *ratios])
                results[f"{name} INT{bits}"] = bench
    names = [
        "network, batch 1",
        "bits",
        "hawq_tvm ms, median (p10 to p90)",
        *(f"{peer}, times ours" for peer in median),
    ]
    print(f"{cpu_name()}, {arguments.threads} threads\n")
    print(markdown(names, rows))
    print(f"\nwrote {write_results('latency', results)}")


if __name__ == "__main__":
    main()
