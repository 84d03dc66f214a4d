"""`hawq-tvm diff`, in a file of its own: it reads JSON and answers without PyTorch, ONNX and TVM."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from hawq_tvm.cli import terminal
from hawq_tvm.core.errors import RunError
from hawq_tvm.core.specs import BitConfig
from hawq_tvm.ilp.difference import Difference, difference
from hawq_tvm.ilp.problem import Quantity
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.manifest import MANIFEST
from hawq_tvm.runs.quantities import amount_of, change_of, name_of, title_of
from hawq_tvm.runs.rundir import Run, read_run

_OWN = "the run's own"


def diff(path: Path, first: str, second: str | None, as_json: bool) -> int:
    """Compare two allocations of a run."""
    found = read_run(path, lambda run: difference_in(run, first, second))
    if as_json:
        terminal.print_json({"first": first, "second": second, **found.to_json()})
    else:
        print_difference(found, first, second or _OWN)
    return 0


def difference_in(run: Run, first: str, second: str | None) -> Difference:
    """Two allocations of a run, by its cost table; None is the run's own bits.

    Raises:
        RunError: no allocation and no run directory of that name.
        AllocationError: of another network, or of bits that the run does not price.
    """
    found = Artifacts(run)
    return difference(found.costs, _bits(run, first), found.bits if second is None else _bits(run, second))


def _bits(run: Run, name: str) -> BitConfig:
    found = Artifacts(run)
    if name in found.named:
        return found.named_allocation(name)[0]
    if (Path(name) / MANIFEST).is_file():
        return read_run(Path(name), lambda other: Artifacts(other).bits)
    others = f"its allocations are {', '.join(found.named)}" if found.named else "it has none beside its own"
    raise RunError(
        f"{run.name} has no allocation '{name}', {others}, and there is no run directory of that name; "
        f"hawq-tvm allocate {run.name} --name {name} makes one"
    )


def print_difference(found: Difference, first: str, second: str) -> None:
    """Layers that differ, with what changes from the first to the second, then the totals."""
    if not found.layers:
        terminal.out.print(Text(f"{first} and {second} have the same bits"))
    else:
        measures = list(found.totals)
        titles = [title_of(measure) for measure in measures]
        rows = [
            (row.layer, *map(repr, row.bits), *(change_of(row.changes[measure], measure) for measure in measures))
            for row in found.layers
        ]
        terminal.out.print(Text(f"what changes from {first} to {second}:"))
        terminal.print_table(("layer", "from", "to", *titles), rows, texts=3, spare=titles[1:])
    for measure, (before, after) in found.totals.items():
        share = f" ({after / before - 1:+.1%})" if before > 0 else ""
        terminal.out.print(Text(f"{name_of(measure)}: {_from_to(before, after, measure)}{share}"))
    for cost, (before, after) in found.between.items():
        terminal.out.print(Text(f"{name_of(cost)} between layers, counted in: {_from_to(before, after, cost)}"))


def _from_to(before: float, after: float, measure: Quantity) -> str:
    return f"{amount_of(before, measure)} to {amount_of(after, measure)}"
