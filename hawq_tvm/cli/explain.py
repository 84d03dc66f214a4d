"""`hawq-tvm explain`, in a file of its own: it reads JSON and solves programs, without PyTorch, ONNX and TVM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from hawq_tvm.cli import terminal
from hawq_tvm.ilp.explain import Explanation
from hawq_tvm.runs.artifacts import EXPLANATIONS, MODEL
from hawq_tvm.runs.explanations import REGRET, choices, explain_in, in_a_row, keep_all, sentences
from hawq_tvm.runs.report import write_report
from hawq_tvm.runs.rundir import edit_run, read_run


def explain(path: Path, layer: str | None, as_json: bool) -> int:
    """Say why a layer has its bits, or every one; the latter is kept, and shown in the report."""
    if layer is None:
        return _explain_all(path, as_json)
    found = read_run(path, lambda run: explain_in(run, layer))
    if as_json:
        terminal.print_json(found.to_json())
    else:
        print_explanation(found)
    return 0


def _explain_all(path: Path, as_json: bool) -> int:
    with edit_run(path) as run:
        with terminal.ConsoleReporter().stage("asking why each layer has its bits") as advance:
            found = keep_all(run, lambda done: advance(done, None))
        has_report = MODEL in run
        if has_report:
            write_report(run, path)
    if as_json:
        terminal.print_json([row.to_json() for row in found])
    else:
        print_explanations(found)
        also = ", and shown in its report" if has_report else ""
        terminal.out.print(Text(f"wrote {path}/{EXPLANATIONS}{also}; hawq-tvm explain {path} LAYER says more of one"))
    return 0


def print_explanations(found: Sequence[Explanation]) -> None:
    """A line a layer."""
    columns = ("layer", "bits", "next", "regret", "of the sensitivity", "sure")
    terminal.print_table(columns, [in_a_row(row) for row in found], texts=3)
    terminal.out.print(Text(REGRET))


def print_explanation(found: Explanation) -> None:
    """The sentences, and a table of the choices."""
    out = terminal.out
    for sentence in sentences(found):
        out.print(Text(sentence))
    columns, rows = choices(found)
    own = repr(found.bits)
    terminal.print_table(columns, [(f"{bits} <" if bits == own else bits, *cells) for bits, *cells in rows])
    out.print(Text(REGRET))
