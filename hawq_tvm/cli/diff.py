"""`hawq-tvm diff`, in a file of its own: it reads JSON and answers without PyTorch, ONNX and TVM."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from hawq_tvm.cli import terminal
from hawq_tvm.core.errors import RunError
from hawq_tvm.core.specs import COST_NAMES, COST_UNITS, BitConfig, written
from hawq_tvm.ilp.difference import Difference, difference
from hawq_tvm.ilp.problem import Quantity
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.manifest import MANIFEST
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
    """Layers that differ, then the totals."""
    out = terminal.out
    units: dict[Quantity, str] = {"sensitivity": ""}
    units.update((cost, COST_UNITS[cost]) for cost in COST_NAMES)
    measures = list(found.totals)
    if not found.layers:
        out.print(Text(f"{first} and {second} have the same bits"))
    else:
        columns = ("layer", first, second, *(f"{measure}, change" for measure in measures))
        rows = [
            (row.layer, *map(repr, row.bits), *(f"{row.changes[measure]:+,.4g}" for measure in measures))
            for row in found.layers
        ]
        terminal.print_table(columns, rows, texts=3)
    for measure, (before, after) in found.totals.items():
        share = f" ({after / before - 1:+.1%})" if before > 0 else ""
        out.print(Text(f"{measure}: {written(before)} to {written(after)} {units[measure]}".rstrip() + share))
    for cost, (before, after) in found.between.items():
        out.print(Text(f"{cost} between layers, counted in: {written(before)} to {written(after)} {units[cost]}"))
