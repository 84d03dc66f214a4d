"""What the arena found, as tables: each network's rows in `docs/allocators.md`, metrics in `docs/sensitivity.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.deciding import PAPERS, Cell, Decision, Score, decide
from benchmarks.pages import fill
from benchmarks.runs import markdown

DOCS = Path(__file__).parents[1] / "docs"

ORDER = ("uniform", "highs", "hawq", "hawq, weights alone", "greedy", "greedy-accuracy", "random", "ddpg", "optuna")
"""Of a table's rows."""

TITLES = {"resnet20": "ResNet-20", "squeezenet1_1": "SqueezeNet 1.1", "mobilenet_v2": "MobileNet-V2"}
"""The networks that the documents show, and what they call them."""

Row = Mapping[str, Any]


def write_tables(rows: Mapping[str, Sequence[Row]], cells: Mapping[str, tuple[Sequence[Cell], Sequence[Cell]]]) -> None:
    """Print every table, and put those of the documents in their places where all of their networks are there.

    Args:
        rows: of each network.
        cells: of each network, on the images to decide on and on those to report.
    """
    tables = {name: network_table(list(found)) for name, found in rows.items()}
    for name, text in tables.items():
        print(f"\n{name}\n{text}")
    if not cells:
        return
    deciding, reported = (decide([cell for both in cells.values() for cell in both[part]]) for part in (0, 1))
    rule, scores = rule_table(deciding, reported), metrics_table(cells)
    print(f"\nbest without labels: {deciding.best}; the default that follows: {deciding.metric}\n{rule}\n\n{scores}")
    if all(name in rows and name in cells for name in TITLES):
        fill(DOCS / "allocators.md", {name: tables[name] for name in TITLES})
        fill(DOCS / "sensitivity.md", {"rule": rule, "metrics by network": scores})


def network_table(results: Sequence[Row]) -> str:
    """A column for each budget, a row for each allocator and sensitivity; sensitivities with the same cells share one.

    What stands there are points beside float, the seeds together.
    """
    limits = list(dict.fromkeys(row["limit"] for row in results))
    metrics: dict[tuple[str, ...], list[str]] = {}
    for allocator, metric in dict.fromkeys((row["allocator"], row["metric"]) for row in results):
        own = [row for row in results if (row["allocator"], row["metric"]) == (allocator, metric)]
        line = (allocator, *(_cell([row for row in own if row["limit"] == limit]) for limit in limits))
        metrics.setdefault(line, []).append(metric)
    lines = [(allocator, ", ".join(sorted(metrics[allocator, *cells])), *cells) for allocator, *cells in metrics]
    lines.sort(key=lambda line: (ORDER.index(line[0]), line[1]))
    return markdown(("allocator", "sensitivity", *limits), lines)


def _cell(rows: Sequence[Row]) -> str:
    """The mean loss of all seeds in points with its standard error on the images, and the seeds' least and most."""
    if not rows:
        return "not run"
    drops = sorted(100 * row["reported"]["difference"] for row in rows)
    error = max(100 * row["reported"]["standard_error"] for row in rows)
    spread = f" ({drops[0]:.1f} to {drops[-1]:.1f})" if len(drops) > 1 else ""
    return f"{sum(drops) / len(drops):.1f} ± {error:.1f}{spread}"


def rule_table(deciding: Decision, reported: Decision) -> str:
    """Every metric's score on the images to decide on, the best first, and on those to report."""
    lines = []
    for metric, score in sorted(deciding.scores.items(), key=lambda item: item[1].loss):
        again = reported.scores[metric]
        place = f"{score.rank:.1f}"
        parts = ((f"{100 * one.loss:.1f}", _beside(one)) for one in (score, again))
        (loss, beside), others = parts
        lines.append([f"`{metric}`", loss, place, beside, *others])
    title = f"beside {PAPERS} (95 %)"
    return markdown(("metric", "points lost", "mean place", title, "reported: points lost", title), lines)


def _beside(score: Score) -> str:
    more, low, high = (100 * part for part in score.beside)
    return f"{more:+.1f} ({low:+.1f} to {high:+.1f})"


def metrics_table(cells: Mapping[str, tuple[Sequence[Cell], Sequence[Cell]]]) -> str:
    """What each metric loses of each network, on the images to decide on and on those to report."""
    found = {name: [decide(part).scores for part in both] for name, both in cells.items()}
    metrics = dict.fromkeys(metric for deciding, _ in found.values() for metric in deciding)
    lines = [
        [f"`{metric}`"]
        + [
            " / ".join(f"{100 * part[metric].loss:.1f}" for part in both) if metric in both[0] else "not profiled"
            for both in found.values()
        ]
        for metric in metrics
    ]
    return markdown(("metric", *(TITLES.get(name, name) for name in found)), lines)
