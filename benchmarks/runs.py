"""What the benchmark scripts share: running the command line, tables, results on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hawq_tvm.backends.tvm.host import cpu_name, usable_cores

RESULTS = Path(__file__).parent / "results"


def hawq_tvm(*arguments: object) -> Any:
    """Run ``hawq-tvm ... --json`` in a process of its own and return what it printed, parsed."""
    command = [sys.executable, "-m", "hawq_tvm", *map(str, arguments), "--json"]
    print("$ hawq-tvm", *arguments, file=sys.stderr, flush=True)
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"hawq-tvm ended with status {result.returncode}")
    return json.loads(result.stdout)


def markdown(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for the documents."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_results(name: str, results: Any) -> Path:
    """Keep results as JSON, with the machine's name and the date."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    date = datetime.now(UTC).date().isoformat()
    machine = {"cpu": cpu_name(), "cores": usable_cores()}
    path.write_text(json.dumps({"date": date, "machine": machine, "results": results}, indent=1) + "\n")
    return path


def accuracy_cells(accuracy: dict[str, Any]) -> list[str]:
    """Top-1 of both networks and their paired difference with its standard error."""
    return [
        f"{100 * accuracy['float_top1']:.1f}",
        f"{100 * accuracy['integer_top1']:.1f}",
        f"{100 * accuracy['difference']:+.2f} ± {100 * accuracy['standard_error']:.2f}",
    ]


ACCURACY_COLUMNS = ("network", "bits", "layers", "MB", "GBOPS", "fp32", "integer", "difference", "mismatches")
"""The columns of `accuracy_row`."""


def accuracy_row(name: str, configuration: str, summary: dict[str, Any]) -> list[str]:
    """A network under one configuration: what it costs, and what it gets right."""
    totals = summary["totals"]
    return [
        name,
        configuration,
        bits_cell(summary),
        f"{totals['size_bytes'] / 1e6:.2f}",
        f"{totals['bops'] / 1e9:.2f}",
        *accuracy_cells(summary["accuracy"]),
        verification_cell(summary),
    ]


def kept(summary: dict[str, Any]) -> dict[str, Any]:
    """The part of a run's summary that results hold."""
    names = ("totals", "verification", "sources", "remarks")
    return {
        "accuracy": {**summary["accuracy"], "data": _without_folder(summary["accuracy"]["data"])},
        **{name: summary[name] for name in names},
        "layers": [{"bits": row["bits"]} for row in summary["layers"]],
    }


def _without_folder(data: str) -> str:
    """Samples as they are named, but for where their file lies on this machine."""
    kind, colon, path = data.partition(":")
    return f"{kind}{colon}{Path(path).name}"


def read_results(name: str) -> dict[str, Any]:
    """The results that are there, by row; none where there are none."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text())["results"] if path.is_file() else {}
    return found


def verification_cell(summary: dict[str, Any]) -> str:
    """Mismatches, layers and samples of the run's verification."""
    report = summary["verification"]["llvm"]
    return f"{len(report['mismatches'])} in {report['layers']} layers, {report['samples']} samples"


def bits_cell(summary: dict[str, Any]) -> str:
    """How many layers have which bits."""
    bits = [layer["bits"] for layer in summary["layers"]]
    return ", ".join(f"{bits.count(pair)} {pair}" for pair in sorted(set(bits)))
