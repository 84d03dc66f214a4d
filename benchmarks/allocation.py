"""How long the integer program takes: ResNet-50 under several budgets, CBC and HiGHS in turns.

    python -m benchmarks.allocation

Sensitivities are from a short probe on noise; the program and its budgets are the real ones. Prints a table and writes
``benchmarks/results/allocation.json``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import hawq_tvm, markdown, write_results
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.specs import Bits, CostTable
from hawq_tvm.ilp import ALLOCATORS, formulate

ROUNDS = 9
PINS = Bits(8, 8)
BUDGETS: dict[str, dict[str, str]] = {
    "size 50%": {"size": "50%"},
    "BOPS 50%": {"bops": "50%"},
    "size 60%, BOPS 40%": {"size": "60%", "bops": "40%"},
}
CANDIDATES = {"4,8": (Bits(4, 4), Bits(8, 8)), "2,4,8": (Bits(2, 2), Bits(4, 4), Bits(8, 8))}


def resnet50_costs() -> CostTable:
    """The cost table of ResNet-50 at 224x224."""
    quick = ("--calibration-samples", 4, "--hessian-samples", 2, "--hessian-probes", 2)
    with tempfile.TemporaryDirectory() as runs:
        arguments = ("profile", "resnet50", "--data", "random", "--bits", "2,4,8", *quick)
        return CostTable.from_json(hawq_tvm(*arguments, "--output", Path(runs) / "resnet50"))


def main() -> None:
    table = resnet50_costs()
    pins = {table.names[0]: PINS, table.names[-1]: PINS}
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    for bits, candidates in CANDIDATES.items():
        for name, limits in BUDGETS.items():
            problem = formulate(table, Budget(**limits), candidates=candidates, pins=pins)
            taken: dict[str, list[float]] = {solver: [] for solver in ALLOCATORS}
            found: dict[str, float] = {}
            for _ in range(ROUNDS):
                for solver, allocate in ALLOCATORS.items():
                    result = allocate(problem)
                    taken[solver].append(1e3 * result.seconds)
                    found[solver] = result.sensitivity
            key = f"bits {bits}, {name}"
            results[key] = {
                solver: {"median_ms": float(np.median(taken[solver])), "sensitivity": found[solver]} for solver in taken
            }
            agree = np.isclose(max(found.values()), min(found.values()), rtol=1e-9)
            cells = (
                f"{np.median(taken[solver]):.0f} ({min(taken[solver]):.0f} to {max(taken[solver]):.0f})"
                for solver in taken
            )
            rows.append([key, *cells, "yes" if agree else "NO"])
    names = ["ResNet-50, 54 layers", *(f"{solver} ms, median (range)" for solver in ALLOCATORS), "same optimum"]
    print(markdown(names, rows))
    print(f"\nwrote {write_results('allocation', results)}")


if __name__ == "__main__":
    main()
