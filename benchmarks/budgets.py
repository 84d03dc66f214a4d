"""The demo's network at INT8, INT4 and under budgets on bytes, BOPS and microseconds, alone and together.

    python -m benchmarks.budgets

Prints a table and writes ``benchmarks/results/budgets.json``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.runs import accuracy_cells, bits_cell, hawq_tvm, markdown, verification_cell, write_results

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "INT8": ("--bits", "8"),
    "INT4": ("--bits", "4"),
    "size 50%": ("--budget-size", "50%"),
    "BOPS 50%": ("--budget-bops", "50%"),
    "latency 60%": ("--budget-latency", "60%"),
    "size 70%, BOPS 60%, latency 80%": ("--budget-size", "70%", "--budget-bops", "60%", "--budget-latency", "80%"),
}


def main() -> None:
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as runs:
        for name, options in CONFIGURATIONS.items():
            arguments = ("run", "resnet20", "--data", "digits", "--latency", "--verify-samples", 540, *options)
            summary = hawq_tvm(*arguments, "--output", Path(runs) / "resnet20")
            totals = summary["totals"]
            met = all(totals[cost] <= limit for cost, limit in totals["limits"].items())
            rows.append(
                [
                    name,
                    bits_cell(summary),
                    f"{totals['size_bytes'] / 1e3:.0f}",
                    f"{totals['bops'] / 1e6:.0f}",
                    f"{totals['latency_us']:.0f}",
                    ("yes" if met else "NO") if totals["limits"] else "none",
                    *accuracy_cells(summary["accuracy"]),
                    verification_cell(summary),
                ]
            )
            results[name] = {key: summary[key] for key in ("accuracy", "totals", "verification", "sources")}
    names = ["budget", "layers", "kB", "MBOPS", "kernels us", "met", "fp32", "integer", "difference", "mismatches"]
    print(markdown(names, rows))
    print(f"\nwrote {write_results('budgets', results)}")


if __name__ == "__main__":
    main()
