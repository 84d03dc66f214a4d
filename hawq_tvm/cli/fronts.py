"""What `hawq-tvm allocate --pareto` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.text import Text

from hawq_tvm.api import QuantizedNetwork
from hawq_tvm.cli import terminal
from hawq_tvm.cli.options import Changes
from hawq_tvm.core.errors import DataError, SettingsError
from hawq_tvm.ilp.front import Front, measures_accuracy
from hawq_tvm.runs import artifacts as files
from hawq_tvm.runs.front import changed, worth
from hawq_tvm.runs.provenance import stored_data, stored_settings, withheld_code
from hawq_tvm.runs.quantities import a_unit_of, number_of, title_of, unit_of
from hawq_tvm.runs.report import write_report
from hawq_tvm.runs.rundir import Run, edit_run, read_run
from hawq_tvm.sources.samples import Data


def pareto(path: Path, axes: str, points: int | None, changes: Changes, trust_code: bool, as_json: bool) -> int:
    """`hawq-tvm allocate RUN --pareto AXES`."""
    if path.is_file():
        raise SettingsError(f"a front is kept with its run; give the run directory, not {path}")
    run_settings = read_run(path, stored_settings)
    settings = replace(run_settings, **changes)
    data = read_run(path, lambda run: _samples(run, trust_code=trust_code)) if measures_accuracy(axes) else None
    network = QuantizedNetwork(path, settings, data=data, progress=terminal.ConsoleReporter())
    front = network.pareto(axes, points=points, budget=settings.budget)
    options = {
        "axes": axes,
        "points": points,
        "budget": settings.budget.to_json(),
        "bits": [repr(bits) for bits in settings.bits],
        "pins": {name: repr(bits) for name, bits in settings.all_pins(network.costs.names).items()},
        "metric": settings.metric,
        "caution": settings.caution,
    }
    with edit_run(path) as run:

        def write() -> None:
            run.write_json(files.FRONT, front.to_json())
            run.write(files.FRONT_TABLE, lambda file: file.write_text(front.to_csv()))

        writes = (files.FRONT, files.FRONT_TABLE)
        run.stage("front", write, options=options, reads=(files.COSTS,), writes=writes, force=True)
        if files.MODEL in run:
            write_report(run, path)
    if as_json:
        terminal.print_json(front.to_json())
    else:
        _print_front(front)
        terminal.out.print(f"wrote {path}/{files.FRONT} and {path}/{files.FRONT_TABLE}")
    return 0


def _samples(run: Run, *, trust_code: bool) -> Data | None:
    """The run's samples, on which accuracy is measured.

    Raises:
        DataError: they come from a Python file that may not be executed.
    """
    code = withheld_code(run, trust_code=trust_code)
    if code is not None:
        raise DataError(
            f"accuracy is measured on the samples of {run.name}, which come from {code}, and that is not executed "
            "unasked; if you trust it, add --trust-code"
        )
    return stored_data(run, trust_code=trust_code)


def _print_front(front: Front) -> None:
    """Points by the first quantity: what a unit of it bought since the point before, and the layers that changed."""
    first, _ = front.axes
    others = [name for name in front.points[0].totals if name not in front.axes]
    measured = any(point.accuracy is not None for point in front.points)
    rows = []
    for number, point in enumerate(front.points):
        step = front.steps[number - 1] if number else None
        accuracy = ["" if point.accuracy is None else f"{point.accuracy:.2%}"] if measured else []
        bought = ("", "") if step is None else (f"{step.price * unit_of(first):.3g}", changed(step.changes))
        totals = (number_of(point.totals[name], name) for name in (*front.axes, *others))
        rows.append((f"{number + 1}", *totals, *accuracy, *bought))
    names = [*map(title_of, front.axes), *map(title_of, others), *(["top-1"] if measured else [])]
    columns = ("point", *names, f"bought {a_unit_of(first)}", "layers that change")
    terminal.print_table(columns, rows, texts=0, wraps=True, spare=[*map(title_of, others)])
    for sentence in (front.statement, worth(front)):
        if sentence is not None:
            terminal.out.print(Text(sentence))
