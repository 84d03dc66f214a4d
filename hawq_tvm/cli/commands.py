"""What the verbs of the command line do; `cli` reads the options."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hawq_tvm.api import describe_run, quantize_stages, run_identity, stored_data, stored_settings
from hawq_tvm.backends.tvm.host import C_COMPILERS, find_c_compiler
from hawq_tvm.backends.tvm.runtime import configure_threads
from hawq_tvm.calibration import make_observer
from hawq_tvm.cli import console
from hawq_tvm.core.errors import AllocationError, CompileError, RunError, SettingsError
from hawq_tvm.core.specs import BitConfig, Bits, Budget, CostTable
from hawq_tvm.core.targets import DEFAULT_TARGET, TARGETS, Target, find_target
from hawq_tvm.ilp import Allocation, find_allocator, formulate
from hawq_tvm.pipeline import Pipeline
from hawq_tvm.runs import artifacts as files
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.report import render_report
from hawq_tvm.runs.rundir import Run, borrow_run, edit_run, is_writable, open_run
from hawq_tvm.runs.summary import summarize
from hawq_tvm.settings import Settings
from hawq_tvm.sources.data import load_data
from hawq_tvm.sources.models import LoadedModel, load_model
from hawq_tvm.sources.options import DataOptions
from hawq_tvm.sources.samples import Data


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
    if bits_file is not None and settings.budget:
        raise SettingsError("--bits-file takes bits as they are and budgets choose them; give one or the other")
    given = None if bits_file is None else read_bits(bits_file)
    _check_early(settings)
    if find_c_compiler() is None:
        raise CompileError(f"no C compiler found ({', '.join(C_COMPILERS)}); install one, as with apt install g++")
    with console.ConsoleReporter().stage("loading network and samples"):
        loaded, samples = _load(model, weights, data, options, settings.seed)
    with edit_run(path, identity=run_identity(model, loaded, data)) as run:
        describe_run(run, settings, data, options, samples)
        pipeline = Pipeline(run, settings, model=loaded, data=samples, reporter=console.ConsoleReporter())
        quantize_stages(pipeline, target=target, bits=given)
        pipeline.compile(find_target(target), batch=settings.batch)
        pipeline.verify(find_target(target))
        pipeline.benchmark(find_target(target))
        write_report(run, path)
    summary = summarize(open_run(path))
    if as_json:
        console.print_json(summary.to_json())
    else:
        console.print_outcome(summary)
    return 0 if summary.verification[target].ok else 1


def _check_early(settings: Settings) -> None:
    """Find what is wrong with the options before anything takes time."""
    find_allocator(settings.solver)
    make_observer(settings.observer)
    if settings.latency_table is not None:
        read_json(settings.latency_table, "latency table")
    if settings.threads is not None:
        configure_threads(settings.threads)


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
    _check_early(settings)
    loaded, samples = _load(model, weights, data, options, settings.seed)
    with edit_run(path, identity=run_identity(model, loaded, data)) as run:
        describe_run(run, settings, data, options, samples)
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
    pins: Mapping[str, Bits] | None,
    pin_ends: bool | None,
    solver: str,
    as_json: bool,
) -> int:
    """`hawq-tvm allocate`; what is None is as the run was profiled."""
    asked: dict[str, Any] = {"bits": candidates, "pins": pins, "pin_ends": pin_ends, "budget": budget, "solver": solver}
    given = {name: value for name, value in asked.items() if value is not None}
    find_allocator(solver)
    if path.is_file():
        table = read_costs(path)
        pinned = replace(Settings(), **given).all_pins(table.names, table.ties)
        result = find_allocator(solver)(formulate(table, budget, candidates=candidates, pins=pinned))
    else:
        with edit_run(path) as run:
            settings = replace(stored_settings(run), **given)
            Pipeline(run, settings, reporter=console.ConsoleReporter()).allocate(force=True)
            result = _stored_allocation(run)
    if as_json:
        console.print_json(_allocation_json(result))
    else:
        console.print_allocation(result)
    return 0


def _stored_allocation(run: Run) -> Allocation:
    stored = run.json(files.ALLOCATION)
    return Allocation(
        Artifacts(run).bits,
        stored["sensitivity"],
        stored["costs"],
        stored["limits"],
        stored["solver"],
        stored["seconds"],
    )


def _allocation_json(result: Allocation) -> dict[str, Any]:
    fields = {key: getattr(result, key) for key in ("sensitivity", "costs", "limits", "solver", "seconds")}
    return {**result.bits.to_json(), **fields}


def compile(path: Path, target: str, batch: int | None, as_json: bool) -> int:
    """`hawq-tvm compile`."""
    chosen = find_target(target)
    with edit_run(path) as run:
        pipeline = _resume(run)
        if run.edited(files.BITS):
            pipeline.reporter.note(f"{path}/{files.BITS} was edited by hand; compiling it as it stands")
        pipeline.integerize()
        if pipeline.has_data:
            pipeline.evaluate()
        else:
            pipeline.reporter.note("the run's samples are not at hand; accuracy is not measured")
        pipeline.compile(chosen, batch=batch)
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


def _resume(run: Run) -> Pipeline:
    """The pipeline of a run that is there, with its own settings and samples."""
    return Pipeline(run, stored_settings(run), data=stored_data(run), reporter=console.ConsoleReporter())


@contextmanager
def _measuring(path: Path) -> Iterator[Run]:
    """A run to add a result to; where it cannot be written, the result is told and not kept."""
    if is_writable(path):
        with edit_run(path) as run:
            yield run
    else:
        console.ConsoleReporter().note(f"{path} cannot be written; the result is not kept")
        with borrow_run(path) as run:
            yield run


def _compiled_target(run: Run, name: str | None) -> Target:
    """The target of that name; without one, the run's only library, or the default target's among several."""
    there = [target for target in TARGETS if TARGETS[target].library_name in run]
    if name is None:
        name = there[0] if len(there) == 1 else DEFAULT_TARGET
    target = find_target(name)
    if name not in there:
        others = f"; it has {', '.join(TARGETS[other].library_name for other in there)}" if there else ""
        raise RunError(
            f"{run.name} has no {target.library_name}{others}; make it with hawq-tvm compile {run.name} --target {name}"
        )
    if not run.is_fresh(files.MODEL):
        console.ConsoleReporter().note(
            f"bits or ranges of {run.name} were changed after it was compiled; hawq-tvm compile builds it anew"
        )
    return target


def verify(path: Path, target: str | None, samples: int | None, as_json: bool) -> int:
    """`hawq-tvm verify`."""
    with _measuring(path) as run:
        chosen = _compiled_target(run, target)
        pipeline = _resume(run)
        if not pipeline.has_data:
            pipeline.reporter.note("the run's samples are not at hand; verifying on its golden input alone")
        pipeline.verify(chosen, samples=samples, force=True)
        report = pipeline.artifacts.verification(chosen)
        write_report(run, path)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.print_verification(report)
    return 0 if report.ok else 1


def bench(path: Path, target: str | None, threads: int | None, seconds: float, layers: bool, as_json: bool) -> int:
    """`hawq-tvm bench`."""
    with _measuring(path) as run:
        chosen = _compiled_target(run, target)
        pipeline = _resume(run)
        pipeline.benchmark(chosen, seconds=seconds, threads=threads, force=True)
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
        text = str(Artifacts(run).graph)
        console.print_json(text.splitlines()) if as_json else console.out.print(text, markup=False)
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
    return replace(BitConfig.from_json(read_json(path, "bit configuration")), origin=f"given by {path}")


def read_costs(path: Path) -> CostTable:
    """A cost table from a JSON file."""
    return CostTable.from_json(read_json(path, "cost table"))


def read_json(path: Path, what: str) -> Any:
    """A JSON file that the user names."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AllocationError(f"the {what} {path} cannot be read: {error}") from error
