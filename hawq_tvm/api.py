"""The Python interface: `quantize` a network, then compile, verify, benchmark and save it; `load` brings it back."""

from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from hawq_tvm import pipeline
from hawq_tvm.backends.tvm.devices.session import check_kind
from hawq_tvm.backends.tvm.records import Tuning
from hawq_tvm.backends.tvm.runtime import CompiledModule
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.devices import Device
from hawq_tvm.core.errors import DataError, RunError, SettingsError
from hawq_tvm.core.given import parse_ranges, parse_scales, read_ranges, read_scales
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.quantizer import FloatArray
from hawq_tvm.core.reporter import Reporter, as_reporter
from hawq_tvm.core.specs import BitConfig, Bits, CostTable
from hawq_tvm.core.targets import DEFAULT_TARGET, Target, find_target
from hawq_tvm.ilp.front import Front, find_axes, measures_accuracy, pareto_front
from hawq_tvm.ilp.problem import ShadowPrice
from hawq_tvm.measure.accuracy import Accuracy
from hawq_tvm.measure.bench import BenchReport
from hawq_tvm.measure.debug_report import DebugReport
from hawq_tvm.measure.verify import VerifyReport
from hawq_tvm.runs import artifacts as files
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.provenance import (
    PYTHON_OBJECT,
    describe_run,
    run_identity,
    stored_data,
    stored_options,
    stored_settings,
    withheld_code,
)
from hawq_tvm.runs.report import render_card, write_report
from hawq_tvm.runs.rundir import Run, edit_run, open_run, read_run, refuse_full_disk
from hawq_tvm.runs.summary import describe, summarize
from hawq_tvm.runs.temporary import remove_temporary_run, temporary_run
from hawq_tvm.settings import (
    DEFAULT_BITS,
    DEFAULT_METRIC,
    DEFAULT_OBSERVER,
    HessianSettings,
    RoundingSettings,
    Settings,
)
from hawq_tvm.sources.data import as_data, limited, load_data
from hawq_tvm.sources.models import as_loaded
from hawq_tvm.sources.options import DataOptions
from hawq_tvm.sources.samples import Data
from hawq_tvm.stages.allocate import asked_costs, problem_of
from hawq_tvm.stages.work import Work

T = TypeVar("T")


def quantize(
    model: nn.Module | str,
    data: Any,
    *,
    budget: Budget | None = None,
    bits: Sequence[Bits | str | int] | Bits | str | int = DEFAULT_BITS,
    pins: Mapping[str, Bits | str | int] | None = None,
    pin_ends: bool = True,
    weights: str | None = None,
    observer: str = DEFAULT_OBSERVER,
    hessian: HessianSettings | None = None,
    metric: str | Sequence[str] = DEFAULT_METRIC,
    choose_by: str | None = None,
    rounding: RoundingSettings | None = None,
    latency_table: str | Path | None = None,
    ranges: str | Path | Mapping[str, Any] | None = None,
    clip_to_ranges: bool = False,
    scales: str | Path | Mapping[str, Any] | None = None,
    residual_bits: int | None = None,
    stored_bits: Mapping[str, int] | None = None,
    data_options: DataOptions | None = None,
    seed: int = 0,
    progress: bool | Reporter = False,
) -> QuantizedNetwork:
    """Turn a network into integers: capture, calibrate, profile, allocate bits, integerise, measure accuracy.

    Args:
        model: a module with one tensor in and one out, left as it is; or a name as the command line takes it: a zoo
            network, ``torchvision:NAME``, ``timm:NAME``, ``file.py:factory``.
        data: ``digits``, ``imagefolder:PATH``, ``cifar10:PATH``, ``random``, ``file.py:factory``; a tensor or array
            [N, ...], a tuple (images, labels), a PyTorch dataset, an iterable of batches; or
            ``{"calibration": ..., "evaluation": ...}`` of those, or a pair of them. Of one alone, a part is held out.
        budget: limits on bytes, BOPS and microseconds; without one every layer gets the bits that lose least. (One on
            energy needs an accelerator that is simulated, which the command line takes.)
        bits: candidate pairs, as ``"w4a8"`` or ``4`` for w4a4; or one for all.
        pins: layers held at a pair, by name.
        pin_ends: hold the first and the last layer at 8 bits unless `pins` says otherwise.
        weights: path of a checkpoint for a named model, or ``random``.
        observer: ``max``, ``percentile:99.9``, ``mse``, ``kl``, or ``auto``, which compares them on the output.
        hessian: how long to probe.
        metric: how much a layer is said to lose, one of `hawq_tvm.settings.METRICS` or several, side by side.
        choose_by: which of them bits are chosen by; None for the first.
        rounding: how weights become integers; None for least error with every correction.
        latency_table: JSON of microseconds by layer and pair, instead of timing kernels for a latency budget.
        ranges: of activations, in place of calibrated ones: ``{"layer": 3.0}``, ``{"layer": (-1.0, 3.0)}``,
            ``{"layer": {4: 3.0, 8: 5.0}}`` by width, or the path of such a JSON file.
        clip_to_ranges: whether the network was trained with these ranges as clips: the float network clips too.
        scales: of weights, taken as they are: ``{"layer": 0.02}`` or one for each output channel, or a JSON file.
        residual_bits: bits that values which a sum reads are stored at; None for 8.
        stored_bits: bits of stored values by name or pattern, as ``{"layer4.*": 8}``, in place of what readers ask for.
        data_options: how many samples, preprocessing.
        seed: of everything random.
        progress: True for one line a stage on standard error; or a `Reporter` that is told of stages.

    Returns:
        The integer network. Its files lie in a temporary directory until `QuantizedNetwork.save`.

    Raises:
        HawqError: whatever `hawq_tvm.core.errors` describes.
    """
    pairs = [bits] if isinstance(bits, Bits | str | int) else bits
    settings = Settings(
        bits=tuple(Bits.parse(value) for value in pairs),
        budget=Budget() if budget is None else budget,
        pins={name: Bits.parse(value) for name, value in (pins or {}).items()},
        pin_ends=pin_ends,
        observer=observer,
        hessian=hessian or HessianSettings(),
        metrics=(metric,) if isinstance(metric, str) else tuple(metric),
        choose_by=choose_by,
        rounding=rounding or RoundingSettings(),
        latency_table=None if latency_table is None else Path(latency_table),
        ranges=_brought(ranges, read_ranges, parse_ranges),
        clip_to_ranges=clip_to_ranges,
        scales=_brought(scales, read_scales, parse_scales),
        residual_bits=residual_bits,
        stored_bits=dict(stored_bits or {}),
        seed=seed,
    )
    options = data_options or DataOptions(seed=seed)
    loaded = as_loaded(model, weights, seed=seed)
    named = isinstance(data, str)
    options = replace(options, input_shape=options.input_shape or loaded.input_shape) if named else options
    source = _samples(data, options)
    spec = model if isinstance(model, str) else f"{PYTHON_OBJECT} {loaded.name}"
    identity = run_identity(spec, loaded, data if named else PYTHON_OBJECT)
    with temporary_run() as path, edit_run(path, identity=identity) as run:
        describe_run(run, settings, data if named else PYTHON_OBJECT, options, source)
        work = Work(run, settings, model=loaded, data=source, reporter=as_reporter(progress))
        pipeline.perform(work, pipeline.QUANTIZE)
    return QuantizedNetwork(path, settings, data=source, progress=progress, temporary=True)


def _brought(
    given: str | Path | Mapping[str, Any] | None, read: Callable[[str | Path], T], parse: Callable[[object], T]
) -> T:
    """A table that the user brings, as an object or as a file."""
    return read(given) if isinstance(given, str | Path) else parse({} if given is None else given)


class QuantizedNetwork:
    """An integer network and everything that is known of it; the Python face of a run directory."""

    def __init__(
        self,
        path: Path,
        settings: Settings,
        *,
        data: Data | None = None,
        progress: bool | Reporter = False,
        temporary: bool = False,
    ) -> None:
        self.path = path
        self._settings = settings
        self._data = data
        self._reporter = as_reporter(progress)
        if temporary:
            weakref.finalize(self, remove_temporary_run, path)
        self._modules: dict[str, CompiledModule] = {}
        self._lock = threading.Lock()  # callers from several threads compile once

    def __repr__(self) -> str:
        return f"<QuantizedNetwork {describe(read_run(self.path, summarize))}>"

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return render_card(read_run(self.path, summarize))

    def _look(self, look: Callable[[Artifacts], T]) -> T:
        """Something of the run's files, all of one moment."""
        return read_run(self.path, lambda run: look(Artifacts(run)))

    @property
    def graph(self) -> Graph:
        """The integer graph."""
        return self._look(lambda found: found.graph)

    @property
    def bits(self) -> BitConfig:
        """The bits of every layer."""
        return self._look(lambda found: found.bits)

    @property
    def shadow_prices(self) -> tuple[ShadowPrice, ...]:
        """What a little more of each budget that binds would buy, and the layers that would get it."""
        return self._look(lambda found: found.shadow_prices)

    @property
    def costs(self) -> CostTable:
        """What every layer costs at every candidate pair."""
        return self._look(lambda found: found.costs)

    @property
    def accuracy(self) -> Accuracy:
        """Accuracy of the float and the integer network on the evaluation samples."""
        return self._look(lambda found: found.accuracy)

    def allocate(
        self,
        budget: Budget | None = None,
        *,
        bits: BitConfig | None = None,
        pins: Mapping[str, Bits | str | int] | None = None,
    ) -> QuantizedNetwork:
        """Another network of the same profile, with bits chosen anew; this one stays as it is.

        Args:
            budget: as `quantize` takes it.
            bits: bits to take as they are, instead of choosing them.
            pins: layers held at a pair, in place of those that this network was made with.

        Raises:
            InfeasibleBudget: no configuration meets the budget.
            SettingsError: both a budget and bits.
        """
        if bits is not None and budget:
            raise SettingsError("bits are taken as they are and a budget chooses them; give one or the other")
        settings = replace(self._settings, budget=budget or Budget())
        if pins is not None:
            settings = replace(settings, pins={name: Bits.parse(value) for name, value in pins.items()})
        with temporary_run() as path:
            shutil.copytree(self.path, path)
            (path / files.BITS).unlink(missing_ok=True)  # edited by hand or not: these are the other network's
            with edit_run(path) as run:
                run.manifest["settings"] = settings.to_json()
                run.save_manifest()
                work = Work(run, settings, data=self._data, given=bits, reporter=self._reporter)
                pipeline.perform(work, (*pipeline.ALLOCATE, *pipeline.INTEGERIZE))
        return QuantizedNetwork(path, settings, data=self._data, progress=self._reporter, temporary=True)

    def pareto(self, axes: str = "size,sensitivity", *, points: int | None = 20, budget: Budget | None = None) -> Front:
        """The front over two of size, BOPS, latency, energy, sensitivity; each point is proved optimal.

        Args:
            axes: as ``"size,sensitivity"``; with ``accuracy`` as the second, the front over the sensitivity, with the
                integer network of each point made and its accuracy measured.
            points: about so many, evenly spread over the first; None for all.
            budget: what every point must meet.

        Raises:
            InfeasibleBudget: no configuration meets the budget.
            AllocationError: axes that there are not, or that are not known of every layer.
        """
        measured = measures_accuracy(axes)
        wanted = find_axes(axes.replace("accuracy", "sensitivity") if measured else axes)
        if measured and self._data is None:
            raise DataError("this run's samples are not at hand, on which accuracy is measured; give them as data=")
        settings = replace(self._settings, budget=budget or Budget())
        problem = read_run(self.path, lambda run: problem_of(asked_costs(Work(run, settings)), settings))
        with self._reporter.stage("finding the front") as advance:
            front = pareto_front(problem, wanted, points=points, progress=advance)
        if not measured:
            return front
        found = [replace(p, accuracy=self.allocate(bits=p.bits).accuracy.integer_top1) for p in front.points]
        return replace(front, points=tuple(found))

    def compile(self, target: str = DEFAULT_TARGET, *, batch: int | None = None) -> CompiledModule:
        """Compile for a target.

        Args:
            target: a name from `hawq_tvm.core.targets.TARGETS`.
            batch: samples a call; None keeps that of the library that is there, and is 1 where there is none.

        Returns:
            The library, loaded.

        Raises:
            RuntimeModuleError: it is for another CPU, or a GPU that is not here; it lies in the run's folder all the
                same.
        """
        chosen = find_target(target)
        with edit_run(self.path) as run:
            batch = Artifacts(run).batch(chosen) if batch is None else batch  # that of the library that is there
            pipeline.perform(self._work(run, chosen, batch=batch), pipeline.COMPILE)
        self._modules[target] = self._look(lambda found: found.library(chosen))
        return self._modules[target]

    def tune(self, target: str = DEFAULT_TARGET, *, batch: int | None = None, threads: int | None = None) -> Tuning:
        """Time ways to compute each layer on this machine, seconds a layer; `compile` takes the fastest from then on.

        Args:
            target: this machine's CPU.
            batch: samples a call; None keeps that of the library that is there, and is 1 where there is none.
            threads: of a call; None takes all cores, or what the run was made with.

        Raises:
            CompileError: a target whose kernels cannot be timed here.
        """
        chosen = find_target(target)
        with edit_run(self.path) as run:
            batch = Artifacts(run).batch(chosen) if batch is None else batch
            pipeline.perform(self._work(run, chosen, batch=batch, threads=threads), pipeline.TUNE)
        found = self._look(lambda made: made.tuning(chosen))
        assert found is not None
        self._modules.pop(target, None)
        return found

    def verify(self, target: str = DEFAULT_TARGET, *, samples: int | None = None) -> VerifyReport:
        """Compare every tensor of every layer between numpy, PyTorch, ONNX Runtime and the compiled library.

        Args:
            target: compiled first where it is not.
            samples: at most so many evaluation samples, at least 1; None takes 256, or what the run was made with, and
                on an emulated GPU no more than a minute or two allows.
        """
        if samples is not None and samples < 1:
            raise SettingsError(f"verification compares at least 1 sample, got {samples}")
        with edit_run(self.path) as run:
            work = self._compiled_work(run, target, verify_samples=samples)
            work.asked_samples = samples is not None
            pipeline.perform(work, pipeline.VERIFY)
        return self._look(lambda found: found.verification(find_target(target)))

    def benchmark(
        self,
        target: str = DEFAULT_TARGET,
        *,
        seconds: float | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> BenchReport:
        """Latency beside fp32 PyTorch and ONNX Runtime, interleaved.

        Args:
            target: compiled first where it is not; without a device, it must run on this machine.
            seconds: how long it takes at most, as far as one call of each contender allows; None takes 5, or what the
                run was made with.
            threads: of every contender; None takes all cores, or what the run was made with.
            device: where to time it, by itself, as ``"rpc:HOST:PORT/KEY"``; None for this machine.

        Raises:
            DeviceError: the device is not there, does not run the library, or is lost.
        """
        where = None if device is None else Device.parse(device)
        if where is not None:
            check_kind(where, find_target(target))
        with edit_run(self.path) as run:
            work = self._compiled_work(run, target, bench_seconds=seconds, threads=threads)
            work.device = where
            pipeline.perform(work, pipeline.BENCHMARK, force=True)
        return self._look(lambda found: found.benchmark(find_target(target)))

    def debug(self, *, samples: int | None = None) -> DebugReport:
        """Which layers cause the loss: each alone quantised, and all but it, with what to try for the worst.

        Args:
            samples: calibration samples that it is measured on, at least 1; None takes 16, or what the run was made
                with.

        Raises:
            DataError: the samples are not at hand.
        """
        if samples is not None and samples < 1:
            raise SettingsError(f"losses are measured on at least 1 sample, got {samples}")
        with edit_run(self.path) as run:
            pipeline.perform(self._work(run, find_target(DEFAULT_TARGET), loss_samples=samples), pipeline.DEBUG)
        return self._look(lambda found: found.debug)

    def __call__(self, x: Any, *, target: str = DEFAULT_TARGET) -> FloatArray:
        """Logits of real inputs, through the compiled library.

        Args:
            x: float [N, ...], tensor or array.
            target: compiled first where it is not.

        Returns:
            float32 [N, ...].

        Raises:
            DataError: `x` is no array of numbers.
        """
        with self._lock:
            module = self._modules.get(target) or self._compiled(target)
        try:
            images = np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x, np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"the input must be an array of numbers: {error}") from error
        return module.logits(images)

    def _compiled(self, target: str) -> CompiledModule:
        """The library that is there, compiled where there is none of this network."""
        chosen = find_target(target)
        if not open_run(self.path).is_fresh(chosen.library_name):
            return self.compile(target)
        self._modules[target] = self._look(lambda found: found.library(chosen))
        return self._modules[target]

    def save(self, path: str | Path) -> Path:
        """Keep the run directory.

        Args:
            path: where; must not exist yet.

        Raises:
            RunError: it exists, or cannot be written.
        """
        destination = Path(path)
        if destination.exists():
            raise RunError(f"{destination} exists; save to another path")
        aside = destination.with_name(f".{destination.name}.saving")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(self.path, aside)
            write_report(open_run(aside), destination)
            aside.rename(destination)
        except OSError as error:
            refuse_full_disk(error, destination)
            raise RunError(f"cannot write {destination}: {error.strerror or error}; save to another path") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return destination

    def _work(self, run: Run, target: Target, **changes: Any) -> Work:
        """The run as it was asked for, but for what a call says otherwise."""
        given = {name: value for name, value in changes.items() if value is not None}
        return Work(run, replace(self._settings, **given), target=target, data=self._data, reporter=self._reporter)

    def _compiled_work(self, run: Run, target: str, **changes: Any) -> Work:
        """The same, with the library made where there is none of this network.

        One for a CPU is made anew for another CPU too. One for a GPU stays as it is: it is looked at where its GPU is,
        by machines that may lack what it was made with, and may hold code for further GPUs.
        """
        chosen = find_target(target)
        batch = Artifacts(run).batch(chosen)
        made = (*files.library_files(chosen), *files.text_files(chosen))
        if chosen.gpu is None or not all(run.is_fresh(name) and run.is_intact(name) for name in made):
            pipeline.perform(self._work(run, chosen, batch=batch), pipeline.COMPILE)
        return self._work(run, chosen, batch=batch, **changes)


def load(
    path: str | Path, *, data: Any = None, trust_code: bool = False, progress: bool | Reporter = False
) -> QuantizedNetwork:
    """Bring back a run directory that `QuantizedNetwork.save` or the command line wrote.

    Args:
        path: of the run directory.
        data: samples to use instead of those that the run was made with, as `quantize` takes them; one set is used
            whole.
        trust_code: whether the Python file that the run names for its samples may be executed. A run directory is data:
            without this it executes nothing of its own but, once it is called, its compiled library.
        progress: as `quantize` takes it.

    Raises:
        RunError: it is missing, damaged or made by another version.
    """
    run = open_run(Path(path))
    run.file(files.MODEL)
    if data is not None:
        samples: Data | None = _samples(data, stored_options(run), calibrates=False)
    else:
        samples = stored_data(run, trust_code=trust_code)
    code = withheld_code(run, trust_code=trust_code or data is not None)
    if code is not None:
        as_reporter(progress).note(
            f"the samples of {path} come from {code}, which is not executed unasked; if you trust it, pass "
            "trust_code=True, or give samples as data="
        )
    return QuantizedNetwork(Path(path), stored_settings(run), data=samples, progress=progress)


def _samples(data: Any, options: DataOptions, *, calibrates: bool = True) -> Data:
    """Samples by name, or from Python objects."""
    if isinstance(data, str):
        return load_data(data, options, calibrates=calibrates)
    return limited(as_data(data, name=PYTHON_OBJECT, options=options, calibrates=calibrates), options)
