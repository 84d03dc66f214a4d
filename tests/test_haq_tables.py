"""The tables of HAQ's rows: who stands beside whom, and by how much."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.haq_tables import accuracies, difference, elsewhere, mean_bits, named, place

Row = dict[str, Any]


def row(allocator: str, goal: str = "edge", latency: float = 100.0, top1: float = 0.5, seed: int = 0) -> Row:
    """A row as the search writes it."""
    right = {"integer_top1": top1, "standard_error": 0.003}
    means = {kind: {"weight": 4.0, "activation": 3.5} for kind in ("depthwise", "pointwise")}
    return {
        "goal": goal,
        "choice": {"allocator": allocator, "by": "kl" if allocator == "highs" else "rounded", "seed": seed},
        "evaluations": 600 if allocator in ("ddpg", "random") else 0,
        "bounded": "latency_us",
        "cost": latency,
        "search_top1": top1,
        "rounded": right,
        "finetuned": right,
        "means": means,
        "on": {name: {"latency_us": latency} for name in ("bitfusion", "bismo-edge", "bismo-cloud")},
    }


def test_rows_are_named_and_stand_in_one_order() -> None:
    rows = [row("random"), row("ddpg", seed=2), row("highs"), row("ddpg", seed=1), row("uniform")]
    assert [named(one) for one in sorted(rows, key=place)] == [
        "uniform",
        "highs by kl",
        "ddpg, 600 measured, seed 1",
        "ddpg, 600 measured, seed 2",
        "random, 600 measured, seed 0",
    ]


def test_differences_are_points_above_uniform_bits() -> None:
    uniform, better = row("uniform", top1=0.5), row("ddpg", top1=0.54)
    assert difference(better, uniform, "rounded") == "+4.0 ± 0.4"
    assert difference(uniform, uniform, "rounded") == difference(better, None, "rounded") == ""


def test_a_policy_stands_beside_the_same_choice_made_for_the_accelerator_and_beside_uniform_bits() -> None:
    by_goal = {
        "edge": [row("uniform"), row("ddpg", latency=80)],
        "cloud": [row("uniform", "cloud"), row("ddpg", "cloud", 64)],
    }
    lines = elsewhere(by_goal).splitlines()
    edge = (
        "| ddpg, 600 measured, seed 0 | edge | 80, 0.80 of uniform | 80, 0.80 of uniform | 80, 0.80 of uniform, +25% |"
    )
    assert lines[2] == edge
    assert "64, 0.64 of uniform, -20%" in lines[3]
    assert len(lines) == 4, "uniform bits are made for none"


@pytest.mark.parametrize("table", [accuracies, mean_bits])
def test_every_row_of_every_goal_is_in_the_table(table: Any) -> None:
    found = table({"edge": [row("uniform"), row("ddpg")], "cloud": [row("uniform", "cloud"), row("highs", "cloud")]})
    assert [line.split(" | ")[0] for line in found.splitlines()[2:]] == ["| edge", "| edge", "| cloud", "| cloud"]
