"""The compiler on one page: from a network and samples to a verified library, one stage after the other.

    1 capture     PyTorch network -> float graph
    2 calibrate   float graph + samples -> ranges
    3 profile     float graph + samples -> sensitivities
    4 cost        -> cost table: sensitivity, bytes, BOPS, microseconds
    5 allocate    cost table + budgets -> bits
    6 integerize  float graph + ranges + bits -> integer graph, ONNX file, overflow proofs, golden tensors
    7 evaluate    accuracy of both networks
    8 compile     ONNX file -> library
    9 verify      every tensor of every layer, four executors
    10 benchmark  latency beside peers
    11 report     one page of it all

Every stage leaves files in the run directory and is skipped while they are up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from hawq_tvm.backends.onnx.io import to_onnx
from hawq_tvm.backends.onnx.runner import OnnxRuntimeModule
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.backends.tvm.host import cpu_name, default_threads
from hawq_tvm.backends.tvm.latency import LatencyTable, measure_latency
from hawq_tvm.backends.tvm.lower import build_library, lower
from hawq_tvm.calibration import make_observer, observe_ranges
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import AllocationError, DataError
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.reporter import Reporter
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.core.targets import Target
from hawq_tvm.frontend.capture import capture
from hawq_tvm.ilp import find_allocator, formulate
from hawq_tvm.measure.costing import cost_table, profile_sensitivity, read_latency_table
from hawq_tvm.measure.evaluate import measure_accuracy
from hawq_tvm.measure.peers import benchmark_library
from hawq_tvm.measure.verify import verify
from hawq_tvm.runs import artifacts as files
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.float_io import save_float_graph
from hawq_tvm.runs.golden import GOLDEN, GOLDEN_INDEX, check_golden, read_golden, write_golden
from hawq_tvm.runs.rundir import Run
from hawq_tvm.settings import Settings
from hawq_tvm.sources.data import batches
from hawq_tvm.sources.models import LoadedModel
from hawq_tvm.sources.samples import Data

_BATCH_ELEMENTS = 8 * 3 * 224 * 224  # input elements run at once, so that memory does not grow with the image


class Pipeline:
    """The stages of one run."""

    def __init__(
        self,
        run: Run,
        settings: Settings,
        *,
        model: LoadedModel | None = None,
        data: Data | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        """Take up a run.

        Args:
            run: open for writing.
            settings: what is asked for.
            model: needed by `capture` alone.
            data: needed by the stages that look at samples.
            reporter: told of stages.
        """
        self.run = run
        self.settings = settings
        self.reporter = reporter or Reporter()
        self.artifacts = Artifacts(run)
        self._model = model
        self._data = data

    @property
    def data(self) -> Data:
        if self._data is None:
            raise DataError("this run's samples are not at hand; name them with --data")
        return self._data

    @property
    def has_data(self) -> bool:
        """Whether samples are at hand."""
        return self._data is not None

    @property
    def threads(self) -> int:
        return self.settings.threads or default_threads()

    @cached_property
    def _float_module(self) -> FloatModule:
        return FloatModule(self.artifacts.float_graph)

    def batch_size(self, most: int = 64) -> int:
        """Samples to run at once."""
        return int(np.clip(_BATCH_ELEMENTS // np.prod(self.artifacts.float_graph.input_shape), 1, most))

    def _stage(self, name: str, title: str, make: Callable[[Any], None], *, timing: bool = False, **key: Any) -> None:
        """Do a stage with its title shown, unless it is done."""

        def draw() -> None:
            with self.reporter.stage(title, timing=timing) as advance:
                make(advance)

        if not self.run.stage(name, draw, **key):
            self.reporter.skipped(title)

    # 1

    def capture(self) -> None:
        """PyTorch network to float graph."""
        model = self._model
        assert model is not None

        def make(_: Any) -> None:
            generator = torch.Generator().manual_seed(self.settings.seed)
            example = torch.randn((2, *self.data.sample_shape), generator=generator)
            graph = capture(model.module, example, name=model.name)
            self.run.write(files.FLOAT_GRAPH, lambda path: save_float_graph(graph, path))

        options = {"model": model.fingerprint, "shape": self.data.sample_shape}
        self._stage("capture", "capturing the network", make, options=options, writes=[files.FLOAT_GRAPH])
        unknown = [name for name in self.settings.pins if name not in self._layers()]
        if unknown:
            raise AllocationError(f"pin for unknown layer '{unknown[0]}'; the layers are {', '.join(self._layers())}")

    # 2

    def calibrate(self) -> None:
        """Ranges of every value over the calibration samples."""

        def make(advance: Any) -> None:
            total = len(self.data.calibration)

            def samples() -> Iterator[Tensor]:
                done = 0
                for batch in batches(self.data.calibration, self.batch_size()):
                    yield batch.images
                    done += len(batch.images)
                    advance(done, total)

            observer = make_observer(self.settings.observer)
            ranges = observe_ranges(lambda x, tap: self._float_module(x, tap=tap), samples(), observer)
            origin = f"{self.settings.observer} over {total} samples of {self.data.name}"
            table = {name: [found.lo, found.hi] for name, found in ranges.items()}
            self.run.write_json(files.RANGES, {"origin": origin, "ranges": table})

        self._stage(
            "calibrate",
            "calibrating ranges",
            make,
            options={"observer": self.settings.observer, "data": self._data_key()},
            reads=[files.FLOAT_GRAPH],
            writes=[files.RANGES],
        )

    def _data_key(self) -> dict[str, Any]:
        return {"name": self.data.name, "fingerprint": self.data.fingerprint, **self.data.settings}

    # 3

    def profile(self) -> None:
        """Hessian trace and Omega of every layer."""
        settings = self.settings
        layers = self._layers()
        widths = sorted({pair.weight for pair in settings.pairs(layers)})

        def make(advance: Any) -> None:
            size = settings.hessian.batch or self.batch_size(settings.hessian.samples)
            table = profile_sensitivity(
                self._float_module,
                batches(self.data.calibration, size, limit=settings.hessian.samples),
                widths,
                settings.hessian,
                seed=settings.seed,
                progress=lambda done: advance(done, settings.hessian.max_probes),
            )
            self.run.write_json(files.SENSITIVITY, table)

        self._stage(
            "profile",
            "estimating the Hessian's trace",
            make,
            options={
                "hessian": vars(settings.hessian),
                "weight_bits": widths,
                "seed": settings.seed,
                "data": self._data_key(),
            },
            reads=[files.FLOAT_GRAPH],
            writes=[files.SENSITIVITY],
        )

    # 4

    def _layers(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.artifacts.float_graph.layers)

    @property
    def has_choice(self) -> bool:
        """Whether there is anything to allocate."""
        return len(set(self.settings.bits)) > 1

    @property
    def wants_latency(self) -> bool:
        settings = self.settings
        return settings.latency or settings.latency_table is not None or "latency_us" in settings.budget.limits

    def cost(self, target: Target, *, profiled: bool = True) -> None:
        """The cost table; `profiled` says whether sensitivities go into it."""
        profiled = profiled and self.has_choice
        settings = self.settings

        def make(advance: Any) -> None:
            pairs = settings.pairs(self._layers())
            result = cost_table(
                self.artifacts.float_graph,
                pairs,
                sensitivity=self.artifacts.sensitivity if profiled else None,
                latency=self._measured(target, pairs, advance) if measured else table,
            )
            self.run.write_json(files.COSTS, result.to_json())

        path = settings.latency_table
        table = None if path is None else read_latency_table(path, self._layers())
        measured = self.wants_latency and table is None
        options: dict[str, Any] = {
            "pairs": [repr(pair) for pair in settings.pairs(self._layers())],
            "latency": target.name if measured else table and table.to_json(),
            "batch": settings.batch if measured else None,
            "threads": self.threads if measured else None,
            "machine": cpu_name() if measured else None,
        }
        reads = [files.FLOAT_GRAPH, files.RANGES, *([files.SENSITIVITY] if profiled else [])]
        title = "timing every layer's kernels" if measured else "counting bytes and BOPS"
        self._stage("cost", title, make, timing=measured, options=options, reads=reads, writes=[files.COSTS])

    def _measured(self, target: Target, pairs: tuple[Bits, ...], advance: Any) -> LatencyTable:
        return measure_latency(
            self.artifacts.float_graph,
            self.artifacts.ranges,
            pairs,
            target,
            batch=self.settings.batch,
            threads=self.threads,
            progress=advance,
        )

    # 5

    def allocate(self, given: BitConfig | None = None, *, force: bool = False) -> None:
        """Bits for every layer: from the integer linear program, or as given; with `force` even if that is done."""
        settings = self.settings

        def make(_: Any) -> None:
            costs = self.artifacts.costs
            if given is not None:
                self.run.write_json(files.BITS, given.to_json())
                self.run.write_json(files.ALLOCATION, {"origin": given.origin})
                return
            pins = settings.all_pins(costs.names, costs.ties)
            problem = formulate(costs, settings.budget, candidates=settings.bits, pins=pins)
            result = find_allocator(settings.solver)(problem)
            self.run.write_json(files.BITS, result.bits.to_json())
            summary = {
                "sensitivity": result.sensitivity,
                "costs": dict(result.costs),
                "limits": dict(result.limits),
                "solver": result.solver,
                "seconds": result.seconds,
            }
            self.run.write_json(files.ALLOCATION, summary)

        options = {
            "given": None if given is None else given.to_json(),
            "bits": [repr(bits) for bits in settings.bits],
            "budget": settings.budget.to_json(),
            "pins": {name: repr(bits) for name, bits in settings.all_pins(self._layers()).items()},
            "solver": settings.solver,
        }
        writes = [files.BITS, files.ALLOCATION]
        self._stage(
            "allocate", "allocating bits", make, options=options, reads=[files.COSTS], writes=writes, force=force
        )

    # 6

    def integerize(self) -> None:
        """Integer graph, ONNX file, proofs and golden tensors."""

        def make(_: Any) -> None:
            graph = integerize(self.artifacts.float_graph, self.artifacts.ranges, self.artifacts.bits)
            model = to_onnx(graph)
            self.run.write(files.MODEL, lambda path: onnx.save(model, path))
            self.run.write_json(files.BOUNDS, _bounds(graph))
            write_golden(self.run, graph, self._golden_input(graph))

        self._stage(
            "integerize",
            "turning the network into integers",
            make,
            options={"data": self._data_key() if self._data is not None else None},
            reads=[files.FLOAT_GRAPH, files.RANGES, files.BITS],
            writes=[files.MODEL, files.BOUNDS, GOLDEN],
        )

    def _golden_input(self, graph: Graph) -> Array:
        """The first evaluation sample as integers; random ones without samples at hand."""
        if self._data is not None:
            sample = self._data.evaluation.sample(0)[0][None]
            return interpreter.quantize_input(sample.astype(np.float32), graph.input_type)
        dtype = graph.input_type.dtype
        generator = np.random.default_rng(self.settings.seed)
        return generator.integers(dtype.lo, dtype.hi + 1, (1, *graph.input_type.shape)).astype(dtype.carrier)

    # 7

    def evaluate(self) -> None:
        """Accuracy of the float and the integer network."""

        def make(advance: Any) -> None:
            total = len(self.data.evaluation)
            result = measure_accuracy(
                self._float_module,
                IntegerModule(self.artifacts.graph),
                batches(self.data.evaluation, self.batch_size()),
                progress=lambda done: advance(done, total),
            )
            self.run.write_json(files.ACCURACY, result.to_json())

        self._stage(
            "evaluate",
            "measuring accuracy",
            make,
            options={"data": self._data_key()},
            reads=[files.FLOAT_GRAPH, files.MODEL],
            writes=[files.ACCURACY],
        )

    # 8

    def compile(self, target: Target, *, batch: int | None = None) -> None:
        """The library for a target.

        Args:
            target: what to compile for.
            batch: samples a call; None keeps that of the library that is there, or else takes that of the settings.
        """
        if batch is None:
            batch = self.artifacts.batch(target) or self.settings.batch
        size = batch

        def make(_: Any) -> None:
            lowered = lower(self.artifacts.graph, target, batch=size)
            build_library(lowered, self.run.path / target.library_name)

        self._stage(
            f"compile {target.name}",
            f"compiling for {target.name}",
            make,
            options={"batch": size, "cpu": cpu_name() if target.host_cpu else ""},
            reads=[files.MODEL],
            writes=files.library_files(target),
        )

    # 9

    def verify(self, target: Target, *, samples: int | None = None, force: bool = False) -> None:
        """Compare every tensor of every layer, and the golden tensors with what the network computes.

        Args:
            target: whose library is compared.
            samples: at most so many evaluation samples; None takes what the settings say.
            force: even if it is done.
        """
        total = self._verify_count(samples)

        def make(advance: Any) -> None:
            graph = self.artifacts.graph
            check_golden(self.run, graph)
            executors = {
                "numpy": lambda x: interpreter.run(graph, x),
                "pytorch": IntegerModule(graph).run,
                "onnxruntime": OnnxRuntimeModule(onnx.load(self.run.file(files.MODEL)), threads=self.threads).run,
                "tvm": self.artifacts.library(target).values,
            }
            report = verify(
                graph, executors, self._verify_batches(graph, total), progress=lambda done: advance(done, total)
            )
            self.run.write_json(files.verify_file(target), report.to_json())

        self._stage(
            f"verify {target.name}",
            "verifying every layer",
            make,
            options={"data": self._data_key() if self._data is not None else None, "samples": total},
            reads=[files.MODEL, GOLDEN_INDEX, *files.library_files(target)],
            writes=[files.verify_file(target)],
            force=force,
        )

    def _verify_count(self, samples: int | None) -> int:
        wanted = self.settings.verify_samples if samples is None else samples
        return 1 if self._data is None else min(wanted, len(self._data.evaluation))

    def _verify_batches(self, graph: Graph, count: int) -> Iterator[Array]:
        """Evaluation samples as integers; without samples at hand, the golden input."""
        if self._data is None:
            yield read_golden(self.run)[graph.input_name]
            return
        for batch in batches(self._data.evaluation, self.batch_size(), limit=count):
            yield interpreter.quantize_input(batch.images.numpy(), graph.input_type)

    # 10

    def benchmark(
        self, target: Target, *, seconds: float | None = None, threads: int | None = None, force: bool = False
    ) -> None:
        """Latency of the library beside fp32 PyTorch and ONNX Runtime.

        Args:
            target: whose library is timed.
            seconds: about how long; None takes what the settings say.
            threads: of every contender; None takes what the settings say.
            force: even if it is done.
        """
        duration, count = seconds or self.settings.bench_seconds, threads or self.threads

        def make(advance: Any) -> None:
            report = benchmark_library(
                self.artifacts.library(target),
                self.artifacts.float_graph,
                onnx.load(self.run.file(files.MODEL)),
                threads=count,
                seconds=duration,
                seed=self.settings.seed,
                progress=advance,
            )
            self.run.write_json(files.bench_file(target), report.to_json())

        self._stage(
            f"benchmark {target.name}",
            "benchmarking",
            make,
            timing=True,
            options={"seconds": duration, "threads": count, "machine": cpu_name()},
            reads=[files.MODEL, files.FLOAT_GRAPH, *files.library_files(target)],
            writes=[files.bench_file(target)],
            force=force,
        )


def _bounds(graph: Graph) -> dict[str, Any]:
    """The overflow proofs, as they are stored with the run."""
    return {
        "limits": {"accumulator": "2^31", "dyadic_sum": "2^63", "rounded": "2^31"},
        "method": "interval arithmetic over the actual weights and the input type, positive and negative terms apart",
        "layers": {name: vars(bounds) for name, bounds in graph.bounds().items()},
    }
