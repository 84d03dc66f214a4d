"""How long the integer program takes at scale, and whether its answer is the optimum.

    python -m benchmarks.ilp_scale [--kinds drawn resnet50 mobilenet_v2 wide] [--problems 8] [--layers 200] [--no-proof]

A network of 200 layers, each with the 49 pairs of 2 to 8 bits; budgets on size, BOPS and latency, all of which bind;
and a border wherever one layer reads another, which costs time where one side has values of up to 4 bits and the other
of more. Layers follow one another, and every fourth begins a residual block that three layers later is read again.

Kinds of layers, each drawn anew for every problem: *drawn* are spread evenly over decades; *resnet50* and
*mobilenet_v2* have those networks' shapes, repeated, 10 % more or less of each, and sensitivities spread as traces are,
over four decades (two standard deviations to either side). *wide* has four decades of everything: one layer may then
take as much of a budget as fifty others, which no real network of the three has, and is the hard case.

*proof* is an independent one: the same problem written down plainly, without bounds or branching of ours, and given to
HiGHS by itself with the answer's objective as a limit: it must find nothing lower. Prints a table and writes
``benchmarks/results/ilp_scale.json``.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pulp

from benchmarks.runs import markdown, write_results
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.specs import Bits, Border, BorderCost, Cost, CostTable, LayerCosts
from hawq_tvm.ilp import SOLVERS, Problem, formulate, solve_ilp

PAIRS = tuple(Bits(weight, activation) for weight in range(2, 9) for activation in range(2, 9))
BUDGET = Budget(size="40%", bops="30%", latency="35%")
CLOSE = 1e-6
"""Relative: what the plain program must not fall below the answer by, far above HiGHS's own tolerance."""


@dataclass(frozen=True)
class Shape:
    """What of a layer decides its costs.

    Attributes:
        weights: how many.
        macs: multiply-accumulates a sample.
        losses: of its weights and of its input, at 0 bits as it were; each bit more divides them by 4.
    """

    weights: int
    macs: int
    losses: tuple[float, float]


def drawn(draw: random.Random, index: int) -> Shape:
    """Layers of 1,000 to 2.5 million weights, 1 to 1,000 million MACs, three decades of sensitivities."""
    weights, macs = int(10 ** draw.uniform(3, 6.4)), int(10 ** draw.uniform(6, 9))
    return Shape(weights, macs, (10 ** draw.uniform(-3, 0), 10 ** draw.uniform(-3, 0)))


def wide(draw: random.Random, index: int) -> Shape:
    """Layers of 100 to 2.5 million weights, 0.1 to 1,000 million MACs, four decades of sensitivities."""
    weights, macs = int(10 ** draw.uniform(2, 6.4)), int(10 ** draw.uniform(5, 9))
    return Shape(weights, macs, (10 ** draw.uniform(-4, 0), 10 ** draw.uniform(-4, 0)))


def of_network(layers: Sequence[tuple[int, int]], draw: random.Random, index: int) -> Shape:
    """A network's own layers, one after the other and again from the first: weights, and pixels of the result."""
    weights, pixels = layers[index % len(layers)]
    weights = int(weights * draw.uniform(0.9, 1.1))
    return Shape(weights, weights * pixels, (10 ** draw.gauss(-2, 1), 10 ** draw.gauss(-2, 1)))


def resnet50() -> list[tuple[int, int]]:
    """Weights and pixels of the result by layer (He et al., arXiv 1512.03385, table 1; stride in the 3x3)."""
    found, channels, side = [(3 * 64 * 49, 112**2)], 64, 56
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            found.append((channels * width, side**2))
            side //= stride if block == 0 else 1
            found += [(width * width * 9, side**2), (width * width * 4, side**2)]
            if block == 0:
                found.append((channels * width * 4, side**2))
            channels = 4 * width
    return [*found, (2048 * 1000, 1)]


def mobilenet_v2() -> list[tuple[int, int]]:
    """Weights and pixels of the result by layer (Sandler et al., arXiv 1801.04381, table 2)."""
    found, channels, side = [(3 * 32 * 9, 112**2)], 32, 112
    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for ratio, out, blocks, stride in plan:
        for block in range(blocks):
            width = channels * ratio
            if ratio > 1:
                found.append((channels * width, side**2))
            side //= stride if block == 0 else 1
            found += [(width * 9, side**2), (width * out, side**2)]
            channels = out
    return [*found, (channels * 1280, side**2), (1280 * 1000, 1)]


KINDS: dict[str, Callable[[random.Random, int], Shape]] = {
    "drawn": drawn,
    "resnet50": partial(of_network, resnet50()),
    "mobilenet_v2": partial(of_network, mobilenet_v2()),
    "wide": wide,
}


def large(draw: random.Random, layers: int, kind: str = "drawn") -> CostTable:
    """A network of a kind; latencies are those of the tensor cores' two carriers."""
    rows = []
    for i in range(layers):
        shape = KINDS[kind](draw, i)
        of_weights, of_inputs = shape.losses
        loss = {bits: of_weights * 4.0**-bits * draw.uniform(0.8, 1.2) for bits in range(2, 9)}
        input_loss = {bits: of_inputs * 4.0**-bits * draw.uniform(0.8, 1.2) for bits in range(2, 9)}
        latency = {
            (w, a): shape.macs * 1e-6 * (w * a) ** 0.7 * draw.uniform(0.8, 1.2) for w in (4, 8) for a in (4, 8)
        }  # by carrier
        choices = {
            bits: Cost(
                loss[bits.weight] + input_loss[bits.activation],
                shape.weights * bits.weight / 8,
                shape.macs * bits.weight * bits.activation,
                latency[carrier(bits.weight), carrier(bits.activation)],
            )
            for bits in PAIRS
        }
        rows.append(LayerCosts(f"layer{i}", shape.weights, shape.macs, choices))
    return CostTable(tuple(rows), borders=tuple(borders(rows, draw)))


def carrier(bits: int) -> int:
    """Bits that a value of so many is stored at."""
    return 4 if bits <= 4 else 8


def borders(rows: list[LayerCosts], draw: random.Random) -> list[Border]:
    """Packing and unpacking take 2 to 20 % of what the layer before takes on average."""
    ends = [(i, i + 1) for i in range(len(rows) - 1)] + [(i, i + 3) for i in range(1, len(rows) - 3, 4)]
    found = []
    for first, second in ends:
        mean = sum(cost.latency_us or 0.0 for cost in rows[first].choices.values()) / len(PAIRS)
        pack, unpack = (BorderCost(latency_us=mean * draw.uniform(0.02, 0.2)) for _ in range(2))
        costs = {
            (one, other): pack if other.activation <= 4 else unpack
            for one in PAIRS
            for other in PAIRS
            if carrier(one.activation) != carrier(other.activation)
        }
        found.append(Border(rows[first].name, rows[second].name, costs))
    return found


def is_optimal(problem: Problem, objective: float) -> bool:
    """Whether HiGHS by itself finds nothing below an objective: x by choice, and y >= 0 by border and direction.

    The latency's border terms are written as y_cd >= x_c + x_d - 1 over sums of choices, which is another linearisation
    than the solver's.
    """
    program = pulp.LpProblem("plain", pulp.LpMinimize)
    x = [
        [pulp.LpVariable(f"x_{g}_{k}", cat="Binary") for k in range(len(group.choices))]
        for g, group in enumerate(problem.groups)
    ]
    program += pulp.lpSum(
        1e3 * choice.sensitivity / abs(objective) * v for group, row in zip(problem.groups, x, strict=True)
        for choice, v in zip(group.choices, row, strict=True)
    )  # fmt: skip
    for row in x:
        program += pulp.lpSum(row) == 1
    low = [
        pulp.lpSum(v for choice, v in zip(group.choices, row, strict=True) if choice.bits.activation <= 4)
        for group, row in zip(problem.groups, x, strict=True)
    ]
    for cost, limit in problem.limits.items():
        terms = [
            choice.cost(cost) / limit * v for group, row in zip(problem.groups, x, strict=True)
            for choice, v in zip(group.choices, row, strict=True)
        ]  # fmt: skip
        for e, edge in enumerate(problem.edges):
            if cost in edge.costs:
                matrix, ends = edge.costs[cost], (problem.groups[edge.first], problem.groups[edge.second])
                four, eight = ([i for i, c in enumerate(group.choices) if (c.bits.activation <= 4) is is_four]
                               for group, is_four in zip(ends, (True, False), strict=True))  # fmt: skip
                unpack = float(matrix[four[0], eight[0]])
                pack = float(matrix[len(matrix) - 1, 0])
                for name, value, ahead in (("u", unpack, 1), ("p", pack, -1)):
                    y = pulp.LpVariable(f"{name}_{e}", 0)
                    program += y >= ahead * (low[edge.first] - low[edge.second])
                    terms.append(value / limit * y)
        program += pulp.lpSum(terms) <= 1
    program.solve(pulp.HiGHS(msg=False, gapRel=CLOSE / 4, gapAbs=0))
    bound = float(program.solverModel.getInfo().mip_dual_bound)
    return bool(bound >= 1e3 * (1 - CLOSE))


def measure(problem: Problem, solver: str) -> dict[str, Any]:
    """One answer, and the time that it took: of the clock, and of this process and those it started."""
    before, start = os.times(), time.perf_counter()
    answer = solve_ilp(problem, solver=solver)
    wall, after = time.perf_counter() - start, os.times()
    return {
        "seconds": wall,
        "cpu_seconds": sum(after[:4]) - sum(before[:4]),
        "sensitivity": answer.sensitivity,
        "proved": answer.proved,
        "used": {cost: answer.costs[cost] / limit for cost, limit in problem.limits.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["drawn", "resnet50", "mobilenet_v2"])
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--no-proof", action="store_true")
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    results: dict[str, Any] = {"machine": cpu_name(), "layers": arguments.layers, "choices": len(PAIRS)}
    for kind in arguments.kinds:
        for seed in range(arguments.problems):
            problem = formulate(large(random.Random(seed), arguments.layers, kind), BUDGET)
            found = {solver: measure(problem, solver) for solver in arguments.solvers}
            answers = {entry["sensitivity"] for entry in found.values()}
            objective, agree = min(answers), len(answers) == 1
            proof = "not asked" if arguments.no_proof else "yes" if is_optimal(problem, objective) else "NO"
            results[f"{kind} {seed}"] = {**found, "same": agree, "proof": proof}
            times = (f"{entry['seconds']:.1f} ({entry['cpu_seconds']:.1f})" for entry in found.values())
            shares = ", ".join(f"{share:.2%}" for share in next(iter(found.values()))["used"].values())
            rows.append([f"{kind} {seed}", *times, f"{objective:.6g}", shares, "yes" if agree else "NO", proof])
            print(" | ".join(rows[-1]), flush=True)
    names = [
        "problem",
        *(f"{s} s (CPU s)" for s in arguments.solvers),
        "sensitivity",
        "budgets used",
        "same",
        "optimum",
    ]
    print(f"\n{markdown(names, rows)}\n\nwrote {write_results('ilp_scale', results)}")


if __name__ == "__main__":
    main()
