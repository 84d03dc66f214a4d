"""`hawq-tvm inspect`, in a file of its own: it reads JSON and answers without PyTorch, ONNX and TVM."""

from __future__ import annotations

from pathlib import Path

from hawq_tvm.cli import console, terminal
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.rundir import read_run
from hawq_tvm.runs.summary import summarize


def inspect(path: Path, graph: bool, as_json: bool) -> int:
    """Print a run's layers and totals, or its integer graph, for which the ONNX file is read."""
    if graph:
        text = read_run(path, lambda run: str(Artifacts(run).graph))
        terminal.print_json(text.splitlines()) if as_json else terminal.out.print(text, markup=False)
        return 0
    summary = read_run(path, summarize)
    if as_json:
        terminal.print_json(summary.to_json())
    else:
        console.print_layers(summary)
    return 0
