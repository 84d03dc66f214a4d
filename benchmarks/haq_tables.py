"""The tables of ``docs/haq.md``, from the rows of `benchmarks.haq`.

Its "accuracy" has all choices for a goal, "one more bit" what bits cost on each accelerator, "bits" the mean bits of
each choice, "elsewhere" HAQ's table 1: every policy on the accelerators that it was not made for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import hypot
from pathlib import Path
from typing import Any

import torch

from benchmarks.pages import fill
from benchmarks.runs import markdown
from benchmarks.train_mobilenet import mobilenet_v1
from hawq_tvm.frontend.capture import capture
from hawq_tvm.ilp.simulators import ACCELERATORS, workloads

PAGE = Path(__file__).parents[1] / "docs" / "haq.md"
ACCELERATED = {"fusion": "bitfusion", "edge": "bismo-edge", "cloud": "bismo-cloud"}
"""The goals that are a latency, in the order of HAQ's table 1, and their accelerators."""
UNITS = {"latency_us": "us", "energy_uj": "uJ", "size_bytes": "bytes"}
WAYS = ("rounded", "finetuned")
"""How a policy's weights were made."""

Row = Mapping[str, Any]


def write_tables(results: Mapping[str, Row]) -> None:
    """Print them, and put them in their page."""
    rows = list(results.values())
    goals = dict.fromkeys(row["goal"] for row in rows)
    by_goal = {goal: sorted((row for row in rows if row["goal"] == goal), key=place) for goal in goals}
    by_goal = {goal: rows for goal, rows in by_goal.items() if len(rows) > 1}  # uniform bits alone say nothing
    tables = {
        "accuracy": accuracies(by_goal),
        "one more bit": one_more_bit(),
        "bits": mean_bits(by_goal),
        "elsewhere": elsewhere(by_goal),
    }
    for name, table in tables.items():
        print(f"\n## {name}\n\n{table}")
    fill(PAGE, tables)


def place(row: Row) -> tuple[int, str, int]:
    """Where a row stands among those of its goal."""
    choice = row["choice"]
    return ("uniform", "highs", "ddpg", "random").index(choice["allocator"]), choice["by"], choice["seed"]


def named(row: Row) -> str:
    """An allocator, with what it goes by."""
    choice = row["choice"]
    measures = f", {row['evaluations']} measured, seed {choice['seed']}" if row["evaluations"] else ""
    by = f" by {choice['by']}" if choice["allocator"] == "highs" else ""
    return f"{choice['allocator']}{by}{measures}"


def accuracies(by_goal: Mapping[str, Sequence[Row]]) -> str:
    """Each goal's choices: what they cost, and what they get right of the search's images and of test images."""
    names = (
        *("goal", "choice", "cost", "search", "rounded", "fine-tuned"),
        *("rounded - uniform", "fine-tuned - uniform"),
    )
    found = []
    for goal, rows in by_goal.items():
        uniform = next((row for row in rows if row["choice"]["allocator"] == "uniform"), None)
        for row in rows:
            cost = f"{row['cost']:,.1f} {UNITS[row['bounded']]}"
            tops = [f"{row['search_top1']:.1%}", *(f"{row[what]['integer_top1']:.1%}" for what in WAYS)]
            against = [difference(row, uniform, what) for what in WAYS]
            found.append([goal, named(row), cost, *tops, *against])
    return markdown(names, found)


def difference(row: Row, uniform: Row | None, what: str) -> str:
    """Points above uniform bits; the error is that of two independent measurements, and so above that of these two."""
    if uniform is None or row is uniform:
        return ""
    mean = row[what]["integer_top1"] - uniform[what]["integer_top1"]
    error = hypot(row[what]["standard_error"], uniform[what]["standard_error"])
    return f"{100 * mean:+.1f} ± {100 * error:.1f}"


def one_more_bit() -> str:
    """What the depthwise and the pointwise layers take at w3a3 on each accelerator, and more with one more bit."""
    graph = capture(mobilenet_v1(), torch.zeros(1, 3, 32, 32))
    works = workloads(graph)
    layers = {"depthwise": [n for n in graph.layers[1:-1] if n.groups > 1]}
    layers["pointwise"] = [n for n in graph.layers[1:-1] if n not in layers["depthwise"]]

    def total(accelerator: str, kind: str, weight: int, activation: int) -> float:
        found = ACCELERATORS[accelerator]
        return sum(found.simulate(works[node.name], weight, activation).latency_us for node in layers[kind])

    rows = []
    for accelerator in ACCELERATED.values():
        for kind in layers:
            now = total(accelerator, kind, 3, 3)
            more = (total(accelerator, kind, *pair) - now for pair in ((4, 3), (3, 4), (4, 4)))
            rows.append([accelerator, kind, f"{now:,.0f}", *(f"{value:+,.0f}" for value in more)])
    return markdown(("us", "layers", "w3a3", "w4a3", "w3a4", "w4a4"), rows)


def mean_bits(by_goal: Mapping[str, Sequence[Row]]) -> str:
    """Mean bits of the depthwise and of the pointwise layers between the ends."""
    names = ("goal", "choice", "depthwise weights", "pointwise weights", "depthwise inputs", "pointwise inputs")
    found = []
    for goal, rows in by_goal.items():
        for row in rows:
            means = row["means"]
            cells = [means[kind][part] for part in ("weight", "activation") for kind in ("depthwise", "pointwise")]
            found.append([goal, named(row), *(f"{cell:.2f}" for cell in cells)])
    return markdown(names, found)


def elsewhere(by_goal: Mapping[str, Sequence[Row]]) -> str:
    """HAQ's table 1: each policy on each accelerator, microseconds, and beside the policy made for that one."""
    names = ("choice", "made for", *(f"on {accelerator}" for accelerator in ACCELERATED.values()))
    rows = {goal: by_goal.get(goal, []) for goal in ACCELERATED}
    found = []
    for who in choosers(rows.values()):
        policies = {goal: next((row for row in rows[goal] if named(row) == who), None) for goal in rows}
        for goal, row in policies.items():
            if row is not None:
                uniform = rows[goal][0]["on"]
                cells = [beside(row, policies[other], uniform, ACCELERATED[other]) for other in rows]
                found.append([who, goal, *cells])
    return markdown(names, found)


def choosers(goals: Iterable[Sequence[Row]]) -> list[str]:
    """Who chose for some goal, uniform bits left out."""
    rows = [row for rows in goals for row in rows if row["choice"]["allocator"] != "uniform"]
    return list(dict.fromkeys(map(named, rows)))


def beside(row: Row, native: Row | None, uniform: Mapping[str, Any], accelerator: str) -> str:
    """Microseconds on an accelerator, beside uniform bits and, where there is one, the same choice made for it."""
    latency = row["on"][accelerator]["latency_us"]
    cell = f"{latency:,.0f}, {latency / uniform[accelerator]['latency_us']:.2f} of uniform"
    if native is None or native is row:
        return cell
    return f"{cell}, {latency / native['on'][accelerator]['latency_us'] - 1:+.0%}"
