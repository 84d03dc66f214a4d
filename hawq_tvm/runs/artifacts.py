"""The files of a run as the objects that they hold.

What reads JSON alone loads neither PyTorch, ONNX nor TVM; what needs one of them loads it when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.core.errors import RunError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.quantizer import Range
from hawq_tvm.core.specs import BitConfig, CostTable, is_number
from hawq_tvm.core.targets import Target
from hawq_tvm.measure.accuracy import Accuracy
from hawq_tvm.measure.bench import BenchReport
from hawq_tvm.measure.verify import VerifyReport
from hawq_tvm.runs.float_io import load_float_graph
from hawq_tvm.runs.layers import LayerFacts, describe_layers, read_layers
from hawq_tvm.runs.rundir import Run

if TYPE_CHECKING:
    from hawq_tvm.backends.tvm.runtime import CompiledModule

T = TypeVar("T")

FLOAT_GRAPH = "float.safetensors"
RANGES = "ranges.json"
SENSITIVITY = "sensitivity.json"
COSTS = "costs.json"
BITS = "bits.json"
ALLOCATION = "allocation.json"
MODEL = "model.onnx"
BOUNDS = "bounds.json"
LAYERS = "layers.json"
ACCURACY = "accuracy.json"
REPORT = "report.html"


def library_files(target: Target) -> tuple[str, str]:
    """The names of a target's library and of the JSON beside it."""
    return target.library_name, target.library_name.removesuffix(".so") + ".json"


def verify_file(target: Target) -> str:
    return f"verify.{target.name.replace('/', '-')}.json"


def bench_file(target: Target) -> str:
    return f"bench.{target.name.replace('/', '-')}.json"


class Artifacts:
    """Reads a run's files as they are asked for; each raises `RunError` where its file is missing or damaged."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def float_graph(self) -> FloatGraph:
        return load_float_graph(self.run.file(FLOAT_GRAPH))

    @property
    def ranges(self) -> dict[str, Range]:
        try:
            table = {name: (lo, hi) for name, (lo, hi) in self.run.json(RANGES)["ranges"].items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise RunError(f"{RANGES} is not a table of ranges ({error!r}); mend it or run again") from error
        for name, bounds in table.items():
            if not (all(is_number(bound) for bound in bounds) and bounds[0] <= 0 <= bounds[1]):
                raise RunError(
                    f"{RANGES}: '{name}' must have two finite numbers, one of at most and one of at least 0, "
                    f"got {list(bounds)}"
                )
        return {name: Range(lo, hi) for name, (lo, hi) in table.items()}

    @property
    def sensitivity(self) -> Mapping[str, Any]:
        table = self.run.json(SENSITIVITY)
        if not isinstance(table, dict):
            raise RunError(f"{SENSITIVITY} is not a table of sensitivities; run again elsewhere")
        return table

    @property
    def costs(self) -> CostTable:
        return CostTable.from_json(self.run.json(COSTS))

    @property
    def bits(self) -> BitConfig:
        return BitConfig.from_json(self.run.json(BITS))

    @property
    def graph(self) -> Graph:
        """The integer graph, read back from the ONNX file."""
        from hawq_tvm.backends.onnx.io import read_onnx

        return read_onnx(self.run.file(MODEL))

    @property
    def layers(self) -> tuple[LayerFacts, ...]:
        """What the integer graph says of its layers; read from the ONNX file itself where a run has no `LAYERS` yet."""
        self.run.file(MODEL)  # intact: it is what the table is of
        return read_layers(self.run.json(LAYERS) if LAYERS in self.run else describe_layers(self.graph))

    @property
    def accuracy(self) -> Accuracy:
        self.run.fresh(ACCURACY)
        return self._report(ACCURACY, Accuracy.from_json)

    def library_info(self, target: Target) -> LibraryInfo:
        """What a compiled library holds, without loading it."""
        library, beside = library_files(target)
        self.run.fresh(beside)
        return LibraryInfo.read(self.run.path / library)

    def library(self, target: Target) -> CompiledModule:
        """The compiled library, loaded."""
        from hawq_tvm.backends.tvm.runtime import CompiledModule

        library, beside = library_files(target)
        self.run.fresh(beside)
        return CompiledModule(self.run.fresh(library))

    def batch(self, target: Target) -> int | None:
        """Samples a call of a target's library, fresh or not; None where there is no library or it is damaged."""
        library, beside = library_files(target)
        return LibraryInfo.read(self.run.path / library).batch if self.run.is_intact(beside) else None

    def verification(self, target: Target) -> VerifyReport:
        """What `verify` found for the library that is there now."""
        self.run.fresh(verify_file(target))
        return self._report(verify_file(target), VerifyReport.from_json)

    def benchmark(self, target: Target) -> BenchReport:
        """The latencies of the library that is there now."""
        self.run.fresh(bench_file(target))
        return self._report(bench_file(target), BenchReport.from_json)

    def _report(self, name: str, read: Callable[[Any], T]) -> T:
        """A report as its class reads it."""
        try:
            return read(self.run.json(name))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{name} is not a report of ours ({error!r}); make it anew with hawq-tvm compile") from error
