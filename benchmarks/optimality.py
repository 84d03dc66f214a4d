"""How often the integer program's answer is the optimum: random small problems against brute force.

    python -m benchmarks.optimality [--problems 4000]

*Realistic* problems have 2 to 8 layers of 300 to 30 million weights, and sensitivities that fall with the bits. *Wild*
ones have sensitivities over twenty decades, latencies that follow nothing, and limits that a configuration often meets
exactly. Prints a table and writes ``benchmarks/results/optimality.json``.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable
from math import fsum, isclose
from typing import Any

from benchmarks.runs import markdown, write_results
from hawq_tvm.core.budget import Budget, Limit
from hawq_tvm.core.errors import InfeasibleBudget
from hawq_tvm.core.specs import COST_NAMES, Bits, Cost, CostTable, LayerCosts
from hawq_tvm.ilp import ALLOCATORS, Problem, formulate

PAIRS = tuple(Bits.parse(bits) for bits in ("w2a2", "w4a4", "w4a8", "w8a8"))
BUDGETS = ("size", "bops", "latency")
VERDICTS = ("right", "not optimal", "wrong about feasibility")


def realistic(draw: random.Random) -> tuple[CostTable, Budget]:
    """Layers as networks have them, and budgets as shares."""
    rows = []
    for i in range(draw.randint(2, 8)):
        weights = int(10 ** draw.uniform(2.5, 7.4))
        macs, base = int(weights * 10 ** draw.uniform(0, 3.5)), 10 ** draw.uniform(-3, 0)
        choices = {
            bits: Cost(
                base * 4.0**-bits.weight * draw.uniform(0.9, 1.1),
                weights * bits.weight / 8,
                macs * bits.weight * bits.activation,
                macs * bits.weight * 1e-6 * draw.uniform(0.8, 1.2),
            )
            for bits in PAIRS[1:]
        }
        rows.append(LayerCosts(f"layer{i}", weights, macs, choices))
    names = [name for name in BUDGETS if draw.random() < 0.6]
    return CostTable(tuple(rows)), Budget(**{name: f"{draw.choice((0, 1, 5, 20, 50, 75, 99, 100))}%" for name in names})


def wild(draw: random.Random) -> tuple[CostTable, Budget]:
    """Costs of any spread, and limits that are reached to the last bit."""
    rows = []
    for i in range(draw.randint(1, 6)):
        weights = draw.choice((1, 7, 100, 10**4, 10**8, draw.randrange(1, 10**8)))
        choices = {
            bits: Cost(
                10 ** draw.uniform(-12, 9),
                weights * bits.weight / 8,
                weights * 100 * bits.weight * bits.activation,
                draw.uniform(0.01, 50),
            )
            for bits in PAIRS
        }
        rows.append(LayerCosts(f"layer{i}", weights, weights * 100, choices))
    limits = {}
    for name, cost in zip(BUDGETS, COST_NAMES[:3], strict=True):
        if draw.random() < 0.6:
            reached = fsum(getattr(draw.choice(list(row.choices.values())), cost) for row in rows)
            limits[name] = Limit(reached * draw.choice((1, 1, draw.uniform(0.5, 1.2))))
    return CostTable(tuple(rows)), Budget(**limits)


def best(problem: Problem) -> float | None:
    """The least sensitivity over every configuration, or None."""
    every = itertools.product(*(range(len(group.choices)) for group in problem.groups))
    return min((problem.sensitivity(picks) for picks in every if problem.meets(picks)), default=None)


def judge(problem: Problem, optimum: float | None, solver: str) -> str:
    """Whether a solver's answer is the optimum."""
    try:
        found: float | None = ALLOCATORS[solver](problem).sensitivity
    except InfeasibleBudget:
        found = None
    if found is None or optimum is None:
        return "right" if found is optimum else "wrong about feasibility"
    return "right" if isclose(found, optimum, rel_tol=1e-9) else "not optimal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=4000)
    count = parser.parse_args().problems
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    kinds: dict[str, Callable[[random.Random], tuple[CostTable, Budget]]] = {"realistic": realistic, "wild": wild}
    for kind, make in kinds.items():
        problems = [formulate(*make(random.Random(seed))) for seed in range(count)]
        optima = [best(problem) for problem in problems]
        for solver in ALLOCATORS:
            verdicts = [judge(problem, optimum, solver) for problem, optimum in zip(problems, optima, strict=True)]
            table = {verdict: verdicts.count(verdict) for verdict in VERDICTS}
            results[f"{kind}, {solver}"] = table
            rows.append([kind, solver, *map(str, table.values())])
    print(markdown(["problems", "solver", *VERDICTS], rows))
    print(f"\nwrote {write_results('optimality', results)}")


if __name__ == "__main__":
    main()
