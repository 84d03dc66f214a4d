"""HAQ's table 1 by the program: one accuracy, the least latency on each accelerator, and what that costs on the others.

    python -m benchmarks.haq_across DATA --weights FILE [--like w4a4]

HAQ's three policies lose about nothing each, and every one is the fastest on the accelerator that it was found for.
Here each is the fastest on its accelerator of all that lose no more than uniform bits do, by the network's divergence,
proved by the integer program; so nothing hangs on a search. Their accuracies are measured as in `benchmarks.haq`,
without fine-tuning. Writes ``benchmarks/results/haq_across.json`` and its table in ``docs/haq.md``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.haq import GOALS, Goal, Laboratory, kinds, prices
from benchmarks.haq_tables import ACCELERATED, PAGE
from benchmarks.pages import fill
from benchmarks.runs import markdown, write_results
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.ilp import Problem, formulate
from hawq_tvm.ilp.program import Program
from hawq_tvm.ilp.pulp_program import Effort
from hawq_tvm.ilp.pulp_solver import default_solver
from hawq_tvm.ilp.search import minimise


def fastest(problem: Problem, sensitivity: float) -> BitConfig:
    """The least latency at no more than a sensitivity."""
    picks = minimise(Program.of(problem, "latency_us", {"sensitivity": sensitivity}), Effort(default_solver())).picks
    assert picks is not None, "the uniform configuration is one"
    return problem.config(picks, "the program")


def policies(laboratory: Laboratory, like: Bits) -> dict[str, BitConfig]:
    """Uniform bits, and the fastest on each accelerator that lose no more."""
    names = tuple(layer.name for layer in laboratory.graph.layers)
    goal = Goal("", "latency_us", like)
    found = {f"uniform {like}": goal.uniform_bits(names)}
    for accelerator in ACCELERATED.values():
        table = laboratory.priced(GOALS["edge"], accelerator, by="kl")
        problem = formulate(table, Budget(), candidates=goal.candidates, pins=goal.pins(names))
        found[accelerator] = fastest(problem, table.total(found[f"uniform {like}"], "sensitivity"))
    return found


def measured(laboratory: Laboratory, bits: BitConfig) -> dict[str, Any]:
    """What a policy costs on every accelerator, and what it gets right."""
    tables = {name: laboratory.priced(GOALS["edge"], name, by="kl") for name in ACCELERATED.values()}
    return {
        "bits": {layer: repr(pair) for layer, pair in bits.layers.items()},
        "sensitivity": tables["bitfusion"].total(bits, "sensitivity"),
        "means": kinds(laboratory.graph, bits),
        "on": {name: prices(table, bits) for name, table in tables.items()},
        "search_top1": laboratory.after_rounding(bits),
        "rounded": laboratory.subject.integer_accuracy(bits, laboratory.subject.rounded_for(bits)),
    }


def table(results: dict[str, Any]) -> str:
    """Latencies, and beside those of the policy made for the accelerator."""
    rows = []
    for name, row in results.items():
        cells = []
        for accelerator in ACCELERATED.values():
            latency = row["on"][accelerator]["latency_us"]
            native = results[accelerator]["on"][accelerator]["latency_us"]
            cells.append(f"{latency:,.0f}" if name == accelerator else f"{latency:,.0f} ({latency / native - 1:+.0%})")
        means = [f"{row['means'][kind][part]:.1f}" for part in ("weight", "activation") for kind in row["means"]]
        right = row["rounded"]
        error = f"{100 * right['difference']:+.1f} ± {100 * right['standard_error']:.1f}"
        rows.append([name, *cells, *means, f"{right['integer_top1']:.1%}", error])
    kind = ("depthwise w", "pointwise w", "depthwise a", "pointwise a")
    names = ("fastest on", *(f"us on {name}" for name in ACCELERATED.values()), *kind, "integers", "- float, points")
    return markdown(names, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="of benchmarks.train_mobilenet")
    parser.add_argument("--work", type=Path, default=Path("haq-work"), help="keeps roundings and sensitivities")
    parser.add_argument("--like", type=Bits.parse, default=Bits(4, 4), help="uniform bits that lose as much")
    arguments = parser.parse_args()
    laboratory = Laboratory(arguments.data, arguments.weights, arguments.work)
    results = {name: measured(laboratory, bits) for name, bits in policies(laboratory, arguments.like).items()}
    found = table(results)
    print(found)
    write_results("haq_across", results)
    fill(PAGE, {"one accuracy": found})


if __name__ == "__main__":
    main()
