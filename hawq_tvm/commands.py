"""What the verbs of the command line do; `cli` reads the options."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hawq_tvm import artifacts as files
from hawq_tvm import console
from hawq_tvm.api import describe_data, quantize_stages, run_identity, stored_data
from hawq_tvm.artifacts import Artifacts
from hawq_tvm.data import Data, DataOptions, load_data
from hawq_tvm.errors import AllocationError
from hawq_tvm.ilp import Allocation, formulate, solve_ilp
from hawq_tvm.models import LoadedModel, load_model
from hawq_tvm.pipeline import Pipeline
from hawq_tvm.report import render_report
from hawq_tvm.rundir import Run, edit_run, open_run
from hawq_tvm.settings import Settings
from hawq_tvm.specs import BitConfig, Bits, Budget, CostTable
from hawq_tvm.summary import summarize
from hawq_tvm.targets import find_target


def _load(model: str, weights: str | None, data: str, options: DataOptions, seed: int) -> tuple[LoadedModel, Data]:
    """The network and its samples; a network knows the shape of random ones."""
    loaded = load_model(model, weights, seed=seed)
    options = replace(options, input_shape=options.input_shape or loaded.input_shape)
    return loaded, load_data(data, options)


def run_all(
    path: Path,
    model: str,
    weights: str | None,
    data: str,
    options: DataOptions,
    settings: Settings,
    bits_file: Path | None,
    target: str,
    as_json: bool,
) -> int:
    """`hawq-tvm run`."""
    given = None if bits_file is None else read_bits(bits_file)
    with console.ConsoleReporter().stage("loading network and samples"):
        loaded, samples = _load(model, weights, data, options, settings.seed)
    with edit_run(path, identity=run_identity(model, loaded, data)) as run:
        describe_data(run, data, options, samples)
        pipeline = Pipeline(run, settings, model=loaded, data=samples, reporter=console.ConsoleReporter())
        quantize_stages(pipeline, target=target, bits=given)
        pipeline.compile(find_target(target))
        pipeline.verify(find_target(target))
        pipeline.benchmark(find_target(target))
        write_report(run, path)
    summary = summarize(open_run(path))
    if as_json:
        console.print_json(summary.to_json())
    else:
        console.print_outcome(summary)
    return 0 if summary.verification[target].ok else 1


def profile(
    path: Path,
    model: str,
    weights: str | None,
    data: str,
    options: DataOptions,
    settings: Settings,
    target: str,
    as_json: bool,
) -> int:
    """`hawq-tvm profile`."""
    loaded, samples = _load(model, weights, data, options, settings.seed)
    with edit_run(path, identity=run_identity(model, loaded, data)) as run:
        describe_data(run, data, options, samples)
        pipeline = Pipeline(run, settings, model=loaded, data=samples, reporter=console.ConsoleReporter())
        pipeline.capture()
        pipeline.calibrate()
        if pipeline.has_choice:
            pipeline.profile()
        pipeline.cost(find_target(target))
        table = pipeline.artifacts.costs
    if as_json:
        console.print_json(table.to_json())
    else:
        console.print_costs(table)
        console.out.print(f"wrote {path}/{files.COSTS}; go on with hawq-tvm allocate {path} --budget-size 60%")
    return 0


def allocate(
    path: Path,
    budget: Budget,
    candidates: tuple[Bits, ...] | None,
    pins: Mapping[str, Bits],
    pin_ends: bool,
    solver: str,
    as_json: bool,
) -> int:
    """`hawq-tvm allocate`."""
    if path.is_file():
        table = read_costs(path)
        settings = Settings(bits=candidates or (), budget=budget, pins=pins, pin_ends=pin_ends, solver=solver)
        problem = formulate(table, budget, candidates=candidates, pins=settings.all_pins(table.names))
        result = solve_ilp(problem, solver=solver)
    else:
        with edit_run(path) as run:
            stored = Settings.from_json(run.manifest["settings"])
            settings = replace(
                stored, bits=candidates or stored.bits, budget=budget, pins=pins, pin_ends=pin_ends, solver=solver
            )
            pipeline = Pipeline(run, settings, data=None, reporter=console.ConsoleReporter())
            pipeline.allocate()
            result = _stored_allocation(run)
    if as_json:
        console.print_json(_allocation_json(result))
    else:
        console.print_allocation(result)
    return 0


def _stored_allocation(run: Run) -> Allocation:
    stored = run.json(files.ALLOCATION)
    bits = Artifacts(run).bits
    if "limits" not in stored:
        raise AllocationError(f"{run.path}/{files.BITS} was given, not allocated; delete it to allocate")
    return Allocation(
        bits, stored["sensitivity"], stored["costs"], stored["limits"], stored["solver"], stored["seconds"]
    )


def _allocation_json(result: Allocation) -> dict[str, Any]:
    fields = {key: getattr(result, key) for key in ("sensitivity", "costs", "limits", "solver", "seconds")}
    return {**result.bits.to_json(), **fields}


def compile(path: Path, target: str, batch: int | None, as_json: bool) -> int:
    """`hawq-tvm compile`."""
    chosen = find_target(target)
    with edit_run(path) as run:
        pipeline = _resume(run, **({} if batch is None else {"batch": batch}))
        if run.edited(files.BITS):
            pipeline.reporter.note(f"{path}/{files.BITS} was edited by hand; compiling it as it stands")
        pipeline.integerize()
        if pipeline.has_data:
            pipeline.evaluate()
        pipeline.compile(chosen)
        write_report(run, path)
    info = Artifacts(open_run(path)).library_info(chosen)
    library = path / chosen.library_name
    if as_json:
        console.print_json(
            {"library": str(library), "bytes": library.stat().st_size, "kernels": dict(info.kernels), "cpu": info.cpu}
        )
    else:
        size = library.stat().st_size
        console.out.print(f"wrote {library} ({size:,} bytes, batch {info.batch}); hawq-tvm verify {path} proves it")
    return 0


def _resume(run: Run, **changes: Any) -> Pipeline:
    """The pipeline of a run that is there, with its own settings and samples."""
    settings = replace(Settings.from_json(run.manifest["settings"]), **changes)
    return Pipeline(run, settings, data=stored_data(run), reporter=console.ConsoleReporter())


def verify(path: Path, target: str, samples: int | None, as_json: bool) -> int:
    """`hawq-tvm verify`."""
    chosen = find_target(target)
    with edit_run(path) as run:
        pipeline = _resume(run, **({} if samples is None else {"verify_samples": samples}))
        if not pipeline.has_data:
            pipeline.reporter.note("the run's samples are not at hand; verifying on its golden input alone")
        pipeline.verify(chosen, force=True)
        report = pipeline.artifacts.verification(chosen)
        write_report(run, path)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.print_verification(report)
    return 0 if report.ok else 1


def bench(path: Path, target: str, threads: int | None, seconds: float, layers: bool, as_json: bool) -> int:
    """`hawq-tvm bench`."""
    chosen = find_target(target)
    with edit_run(path) as run:
        pipeline = _resume(run, threads=threads, bench_seconds=seconds)
        pipeline.benchmark(chosen, force=True)
        report = pipeline.artifacts.benchmark(chosen)
        write_report(run, path)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.print_benchmark(report, layers=layers)
    return 0


def inspect(path: Path, graph: bool, as_json: bool) -> int:
    """`hawq-tvm inspect`."""
    run = open_run(path)
    if graph:
        console.out.print(str(Artifacts(run).graph), markup=False)
        return 0
    summary = summarize(run)
    if as_json:
        console.print_json(summary.to_json())
    else:
        console.print_layers(summary)
    return 0


def write_report(run: Run, path: Path) -> None:
    """The HTML page, naming the run's final path."""
    page = render_report(replace(summarize(run), path=os.fspath(path)))
    run.write(files.REPORT, lambda file: file.write_text(page))


def read_bits(path: Path) -> BitConfig:
    """A bit configuration from a JSON file."""
    return replace(BitConfig.from_json(_read_json(path, "bit configuration")), origin=f"given by {path}")


def read_costs(path: Path) -> CostTable:
    """A cost table from a JSON file."""
    return CostTable.from_json(_read_json(path, "cost table"))


def _read_json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AllocationError(f"the {what} {path} cannot be read: {error}") from error
