"""What the verbs of the command line do; `app` reads the options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hawq_tvm import pipeline
from hawq_tvm.backends.tvm.cuda.compiler import find_cuda_compiler
from hawq_tvm.backends.tvm.devices.session import check_fit, check_kind, look
from hawq_tvm.backends.tvm.host import C_COMPILERS, find_c_compiler, why_not_run
from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.runtime import configure_threads
from hawq_tvm.calibration import make_observers
from hawq_tvm.cli import console, terminal
from hawq_tvm.cli.options import Changes
from hawq_tvm.core.devices import Device
from hawq_tvm.core.errors import AllocationError, CompileError, RunError, SettingsError
from hawq_tvm.core.specs import BitConfig, CostTable
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.core.targets import DEFAULT_TARGET, TARGETS, Target, find_target
from hawq_tvm.ilp import Allocation
from hawq_tvm.measure.roofline import measure_roofline
from hawq_tvm.runs import artifacts as files
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.provenance import (
    describe_run,
    run_identity,
    stored_data,
    stored_options,
    stored_settings,
    withheld_code,
)
from hawq_tvm.runs.report import write_report
from hawq_tvm.runs.rundir import Run, borrow_run, edit_run, is_writable, read_run
from hawq_tvm.runs.summary import summarize
from hawq_tvm.search import MEASURING, check_allocator
from hawq_tvm.settings import Settings
from hawq_tvm.sources.data import load_data
from hawq_tvm.sources.models import LoadedModel, load_model
from hawq_tvm.sources.options import DataOptions
from hawq_tvm.sources.samples import Data
from hawq_tvm.stages.allocate import solve
from hawq_tvm.stages.named import allocate_as, take_up
from hawq_tvm.stages.work import Work


@dataclass(frozen=True)
class Sources:
    """The network and the samples as the user named them.

    Attributes:
        model: the network's name.
        weights: its checkpoint, ``random``, or None for what the name stands for.
        data: the samples' name.
        options: how samples are chosen and prepared.
    """

    model: str
    weights: str | None
    data: str
    options: DataOptions

    def load(self, seed: int) -> tuple[LoadedModel, Data, DataOptions]:
        """The network and its samples; a network knows the shape of random ones."""
        with terminal.ConsoleReporter().stage("loading network and samples"):
            model = load_model(self.model, self.weights, seed=seed)
            shape = self.options.input_shape or model.input_shape
            options = replace(self.options, input_shape=shape, seed=seed)
            return model, load_data(self.data, options), options


@contextmanager
def _new_work(
    path: Path, sources: Sources, settings: Settings, target: str, given: BitConfig | None = None
) -> Iterator[Work]:
    """A run of these sources, new or started again."""
    model, data, options = sources.load(settings.seed)
    with edit_run(path, identity=run_identity(sources.model, model, sources.data)) as run:
        describe_run(run, settings, sources.data, options, data)
        reporter = terminal.ConsoleReporter()
        yield Work(run, settings, target=target, model=model, data=data, given=given, reporter=reporter)


def run(path: Path, sources: Sources, settings: Settings, target: str, bits_file: Path | None, as_json: bool) -> int:
    """`hawq-tvm run`."""
    given = None if bits_file is None else read_bits(bits_file)
    _check_settings(settings, target)
    if find_c_compiler() is None:
        raise CompileError(f"no C compiler found ({', '.join(C_COMPILERS)}); install one, as with apt install g++")
    if find_target(target).gpu is not None:
        find_cuda_compiler()
    with _new_work(path, sources, settings, target, given) as work:
        pipeline.perform(work, pipeline.RUN)
        write_report(work.run, path)
    summary = read_run(path, summarize)
    if as_json:
        terminal.print_json(summary.to_json())
    else:
        console.print_outcome(summary)
    verified = summary.verification.get(target)  # none of a CPU that this machine is not
    return 0 if verified is None or verified.ok else 1


def _check_settings(settings: Settings, target: str) -> None:
    """Find what is wrong with the options before anything takes time."""
    _check_device(settings.device, find_target(target), settings.threads)
    check_allocator(settings.solver)
    make_observers(settings.observer)
    if settings.latency_table is not None:
        read_json(settings.latency_table, "latency table")
    if settings.threads is not None and (settings.device is None or settings.device.is_this_cpu):
        configure_threads(settings.threads)


def _check_device(device: Device | None, target: Target, threads: int | None) -> None:
    """A device is there, and one for the target's kernels."""
    if device is None:
        return
    check_kind(device, target)
    if not device.is_this_cpu:
        note = terminal.ConsoleReporter().note
        facts = look(device, gpu=target.gpu is not None, threads=threads, note=note)
        check_fit(device, facts, target, Machine.resolve(target).cpu)


def profile(path: Path, sources: Sources, settings: Settings, target: str, as_json: bool) -> int:
    """`hawq-tvm profile`."""
    _check_settings(settings, target)
    with _new_work(path, sources, settings, target) as work:
        pipeline.perform(work, pipeline.PROFILE)
        table = work.artifacts.costs
    if as_json:
        terminal.print_json(table.to_json())
    else:
        console.print_costs(table)
        terminal.out.print(f"wrote {path}/{files.COSTS}; go on with hawq-tvm allocate {path} --budget-size 60%")
    return 0


def allocate(path: Path, changes: Changes, name: str | None, as_json: bool) -> int:
    """`hawq-tvm allocate`; what is not in `changes` is as the run was profiled."""
    check_allocator(changes.get("solver", Settings.solver))
    if path.is_file():
        if name is not None:
            raise SettingsError(f"{path} is a cost table, beside which no allocation is kept; give the run directory")
        table = read_costs(path)
        bits = tuple(sorted({pair for layer in table.layers for pair in layer.choices}))
        settings = replace(Settings(bits=bits), **changes)
        if settings.stored_bits:
            raise SettingsError(f"stored bits are of values, which {path} does not know; give the run directory")
        result = solve(table, settings)
        if settings.residual_bits is not None:
            result = replace(result, bits=replace(result.bits, residual=settings.residual_bits))
    else:
        with edit_run(path) as run:
            settings = replace(stored_settings(run), **changes)
            samples = stored_data(run) if settings.solver in MEASURING else None
            work = Work(run, settings, data=samples, reporter=terminal.ConsoleReporter())
            pipeline.perform(work, pipeline.ALLOCATE if name is None else (allocate_as(name),), force=True)
            if name is None:
                config, chosen = work.artifacts.bits, run.json(files.ALLOCATION)
            else:
                config, chosen = work.artifacts.named_allocation(name)
            result = Allocation.from_json(config, chosen, run.reader(files.ALLOCATION))
            table = work.artifacts.costs
    if as_json:
        terminal.print_json({**result.bits.to_json(), **result.to_json()})
    else:
        console.print_allocation(result, table.between(result.bits.layers))
    return 0


def use(path: Path, name: str, as_json: bool) -> int:
    """`hawq-tvm use`."""
    with edit_run(path) as run:
        work = Work(run, stored_settings(run), reporter=terminal.ConsoleReporter())
        pipeline.perform(work, (take_up(name),), force=True)
        bits, chosen = work.artifacts.named_allocation(name)
    if as_json:
        terminal.print_json({**bits.to_json(), **chosen})
    else:
        terminal.out.print(f"{path}/{files.BITS} is the allocation '{name}' now; hawq-tvm compile {path} builds it")
    return 0


def compile(
    path: Path,
    target: str,
    batch: int | None,
    also: tuple[Target, ...],
    data: str | None,
    trust_code: bool,
    as_json: bool,
) -> int:
    """`hawq-tvm compile`."""
    chosen = find_target(target)
    with edit_run(path) as run:
        work = _resume(run, chosen, data, trust_code)
        work.also = also
        size = batch if batch is not None else work.artifacts.batch(chosen)  # that of the library that is there
        work.settings = replace(work.settings, batch=work.settings.batch if size is None else size)
        for name in (files.BITS, files.RANGES):
            if run.edited(name):
                work.reporter.note(f"{path}/{name} was edited by hand; compiling it as it stands")
        pipeline.perform(work, (*pipeline.INTEGERIZE, *pipeline.COMPILE))
        write_report(run, path)
    info = read_run(path, lambda made: Artifacts(made).library_info(chosen))
    library = path / chosen.library_name
    if as_json:
        terminal.print_json(
            {
                "library": str(library),
                "bytes": library.stat().st_size,
                "kernels": dict(info.kernels),
                "cpu": info.cpu,
                "gpu": None if info.gpu is None else asdict(info.gpu),
            }
        )
    else:
        size = library.stat().st_size
        code = "" if info.gpu is None else f", {', '.join(info.gpu.architectures)} and PTX for newer GPUs"
        terminal.out.print(
            f"wrote {library} ({size:,} bytes, batch {info.batch}{code}); {_after_compiling(path, chosen, info)}"
        )
    return 0


def _after_compiling(path: Path, target: Target, info: LibraryInfo) -> str:
    """The next step: verification, which an emulated GPU serves too; of another CPU's library, to run it there."""
    if target.gpu is None and why_not_run(target.name, info.architecture, info.instruction_sets) is not None:
        return f"it is for {target.summary} and does not run here: see docs/deploy.md"
    named = "" if target.name == DEFAULT_TARGET else f" --target {target.name}"
    return f"hawq-tvm verify {path}{named} proves it"


def tune(path: Path, target: str, batch: int | None, threads: int | None, as_json: bool) -> int:
    """`hawq-tvm tune`."""
    chosen = find_target(target)
    with edit_run(path) as run:
        settings = stored_settings(run)
        size = batch if batch is not None else Artifacts(run).batch(chosen)  # that of the library that is there
        settings = replace(settings, batch=size or settings.batch, threads=threads or settings.threads)
        pipeline.perform(Work(run, settings, target=chosen, reporter=terminal.ConsoleReporter()), pipeline.TUNE)
        found = Artifacts(run).tuning(chosen)
    assert found is not None
    if as_json:
        terminal.print_json(found.to_json())
    elif not found.layers:
        terminal.out.print("each layer has one way to be computed here; there is nothing to tune")
    else:
        console.print_tuning(found)
        terminal.out.print(f"hawq-tvm compile {path} --target {target} takes it")
    return 0


def _resume(run: Run, target: Target, data: str | None, trust_code: bool, **changes: Any) -> Work:
    """Take up a run that is there, with its own settings and samples, or with samples that are named anew."""
    settings = replace(stored_settings(run), **{name: value for name, value in changes.items() if value is not None})
    reporter = terminal.ConsoleReporter()
    if data:
        samples: Data | None = load_data(data, stored_options(run), calibrates=False)
    else:
        samples = stored_data(run, trust_code=trust_code)
    if data and samples is not None and samples.note:
        reporter.note(samples.note)
    code = withheld_code(run, trust_code=trust_code or bool(data))
    if code is not None:
        reporter.note(
            f"the run's samples come from {code}, which is not executed unasked; if you trust it, add --trust-code, "
            "or name samples with --data"
        )
    return Work(run, settings, target=target, data=samples, reporter=reporter)


@contextmanager
def _measuring(path: Path) -> Iterator[Run]:
    """A run to add a result to; where it cannot be written, the result is told and not kept."""
    if is_writable(path):
        with edit_run(path) as run:
            yield run
    else:
        terminal.ConsoleReporter().note(f"{path} cannot be written; the result is not kept")
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
            f"{run.name} has no {target.library_name}{others}; make it with "
            f"{run.how_to_make(target.library_name)} --target {name}"
        )
    if not run.is_fresh(files.MODEL):
        terminal.ConsoleReporter().note(
            f"bits or ranges of {run.name} were changed after it was compiled; hawq-tvm compile builds it anew"
        )
    return target


def verify(
    path: Path, target: str | None, samples: int | None, data: str | None, trust_code: bool, as_json: bool
) -> int:
    """`hawq-tvm verify`."""
    with _measuring(path) as run:
        chosen = _compiled_target(run, target)
        work = _resume(run, chosen, data, trust_code, verify_samples=samples)
        work.asked_samples = samples is not None
        pipeline.perform(work, pipeline.VERIFY, force=True)
        report = work.artifacts.verification(chosen)
        write_report(run, path)
    if as_json:
        terminal.print_json(report.to_json())
    else:
        console.print_verification(report)
    return 0 if report.ok else 1


def bench(
    path: Path,
    target: str | None,
    threads: int | None,
    seconds: float,
    device: Device | None,
    layers: bool,
    as_json: bool,
) -> int:
    """`hawq-tvm bench`."""
    with _measuring(path) as run:
        chosen = _compiled_target(run, target)
        if device is not None:
            check_kind(device, chosen)
        settings = stored_settings(run)
        settings = replace(settings, bench_seconds=seconds, threads=threads or settings.threads)
        work = Work(run, settings, target=chosen, reporter=terminal.ConsoleReporter())
        work.device = device
        pipeline.perform(work, pipeline.BENCHMARK, force=True)
        report = work.artifacts.benchmark(chosen)
        bounds = None
        if layers and chosen.gpu is None and report.layers_us:
            info = work.artifacts.library_info(chosen)
            bounds = measure_roofline(report.layers_us, info, work.artifacts.graph, report.threads)
        write_report(run, path)
    if as_json:
        terminal.print_json(report.to_json() if bounds is None else {**report.to_json(), "roofline": bounds.to_json()})
    else:
        console.print_benchmark(report, layers=layers and bounds is None)
        if bounds is not None:
            console.print_roofline(bounds)
    return 0


def debug(path: Path, samples: int | None, data: str | None, trust_code: bool, as_json: bool) -> int:
    """`hawq-tvm debug`."""
    with _measuring(path) as run:
        work = _resume(run, find_target(DEFAULT_TARGET), data, trust_code, loss_samples=samples)
        pipeline.perform(work, pipeline.DEBUG, force=True)
        report = work.artifacts.debug
    if as_json:
        terminal.print_json(report.to_json())
    else:
        console.print_causes(report)
    return 0


def compare(path: Path, samples: int | None, trust_code: bool, as_json: bool) -> int:
    """`hawq-tvm compare`."""
    with _measuring(path) as run:
        work = _resume(run, find_target(DEFAULT_TARGET), None, trust_code)
        work.compare_samples = samples or work.compare_samples
        pipeline.perform(work, pipeline.COMPARE)
        report = work.artifacts.comparison
    if as_json:
        terminal.print_json(report.to_json())
    else:
        console.print_comparison(report)
    return 0


def read_bits(path: Path) -> BitConfig:
    """A bit configuration from a JSON file."""
    return replace(BitConfig.from_json(read_json(path, "bit configuration"), str(path)), origin=f"given by {path}")


def read_costs(path: Path) -> CostTable:
    """A cost table from a JSON file."""
    return CostTable.from_json(read_json(path, "cost table"), str(path))


def read_json(path: Path, what: str) -> Any:
    """A JSON file that the user names."""
    return JsonReader(f"the {what} {path}", AllocationError, "mend it or name another").read(path)
