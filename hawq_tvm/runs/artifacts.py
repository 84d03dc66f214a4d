"""The files of a run as the objects that they hold.

What reads JSON alone loads neither PyTorch, ONNX nor TVM; what needs one of them loads it when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.backends.tvm.records import Tuning
from hawq_tvm.core.errors import RunError, RuntimeModuleError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.quantizer import LayerWeights, Range, RangeTable
from hawq_tvm.core.specs import BitConfig, CostTable
from hawq_tvm.core.targets import Target
from hawq_tvm.ilp.explain import Explanation
from hawq_tvm.ilp.front import Front
from hawq_tvm.ilp.problem import PriceRow, ShadowPrice, parsed_prices
from hawq_tvm.measure.accuracy import Accuracy
from hawq_tvm.measure.bench import BenchReport
from hawq_tvm.measure.comparison import Comparison
from hawq_tvm.measure.costing import rated
from hawq_tvm.measure.debug_report import DebugReport
from hawq_tvm.measure.fidelity import Fidelity
from hawq_tvm.measure.verify import VerifyReport
from hawq_tvm.runs.float_io import load_float_graph
from hawq_tvm.runs.layers import LayerFacts, describe_layers, read_layers
from hawq_tvm.runs.rundir import Run
from hawq_tvm.runs.weights_io import load_weights
from hawq_tvm.settings import METRICS, Settings

if TYPE_CHECKING:
    from hawq_tvm.backends.tvm.runtime import CompiledModule


FLOAT_GRAPH = "float.safetensors"
RANGES = "ranges.json"
COSTS = "costs.json"
BITS = "bits.json"
ALLOCATION = "allocation.json"
FRONT = "front.json"
FRONT_TABLE = "front.csv"
EXPLANATIONS = "explanations.json"
WEIGHTS = "weights.safetensors"
MODEL = "model.onnx"
BOUNDS = "bounds.json"
LAYERS = "layers.json"
ACCURACY = "accuracy.json"
DEBUG = "debug.json"
COMPARISON = "comparison.json"
FIDELITY = "fidelity.json"
REPORT = "report.html"

_NAMED = "allocations"

_WIDTHS = {str(bits): bits for bits in range(2, 9)}


def library_files(target: Target) -> tuple[str, str]:
    """The names of a target's library and of the JSON beside it."""
    return target.library_name, target.library_name.removesuffix(".so") + ".json"


def text_files(target: Target) -> tuple[str, ...]:
    """The name of the file with the CUDA text of a GPU's kernels; none for a CPU."""
    return () if target.gpu is None else (target.library_name.removesuffix(".so") + ".cu",)


def tuning_file(target: Target) -> str:
    """The name of what tuning found for a target."""
    return f"tuned.{target.name.replace('/', '-')}.json"


def named_file(name: str) -> str:
    """The file of an allocation that lies beside the run's own."""
    return f"{_NAMED}/{name}.json"


def sensitivity_file(metric: str) -> str:
    return f"sensitivity.{metric}.json"


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
        return self.run.read(FLOAT_GRAPH, load_float_graph)

    @property
    def ranges(self) -> RangeTable:
        """Ranges by value: one for all widths, or one for each."""
        reader = self.run.reader(RANGES)
        table = reader.take(self.run.json(RANGES), _RangesFile, signed=("ranges",))["ranges"]

        def read(name: str, pair: tuple[float, float]) -> Range:
            lo, hi = pair
            if not lo <= 0 <= hi:
                raise reader.fault(f"range {name!r} is {lo} to {hi}, expected one that holds 0")
            return Range(lo, hi)

        def read_widths(name: str, widths: Mapping[str, tuple[float, float]]) -> dict[int, Range]:
            odd = [width for width in widths if width not in _WIDTHS]
            if odd:
                raise reader.fault(f"range {name!r} is for {odd[0]!r} bits, expected some of {', '.join(_WIDTHS)}")
            return {_WIDTHS[width]: read(name, pair) for width, pair in widths.items()}

        return {
            name: read_widths(name, found) if isinstance(found, Mapping) else read(name, found)
            for name, found in table.items()
        }

    def sensitivity(self, metric: str) -> Mapping[str, Any]:
        """The table that `hawq_tvm.measure.sensitivity` makes; what the cost table takes of it is looked at here."""
        name = sensitivity_file(metric)
        table: Mapping[str, Any] = self.run.json(name)
        self.run.reader(name).take(table, _SensitivityFile, signed=("weights", "inputs", "order"))
        return table

    @property
    def profiled(self) -> tuple[str, ...]:
        """The metrics of which there is a table that was made from the files that are there now."""
        return tuple(metric for metric in METRICS if self.run.is_fresh(sensitivity_file(metric)))

    @property
    def costs(self) -> CostTable:
        return CostTable.from_json(self.run.json(COSTS), self.run.reader(COSTS).name)

    def costs_by(self, metric: str, caution: float) -> CostTable:
        """The cost table with the sensitivities of a metric, taken higher by so many standard errors.

        Where it was made by these it is as it is, edited by hand or not.

        Raises:
            RunError: that metric was not profiled.
        """
        profiled = Settings.from_json(self.run.manifest.get("settings"))
        if (metric, caution) == (profiled.metric, profiled.caution):
            return self.costs
        if sensitivity_file(metric) not in self.run:
            others = ", ".join(self.profiled) or "none"
            raise RunError(
                f"{self.run.name} was not profiled with {metric}; it has {others}; profile it again with "
                f"--metric {','.join((*self.profiled, metric))} and the same --output"
            )
        return rated(self.costs, self.sensitivity(metric), caution)

    @property
    def bits(self) -> BitConfig:
        return BitConfig.from_json(self.run.json(BITS), self.run.reader(BITS).name)

    @property
    def front(self) -> Front:
        """The front that was asked for last."""
        return Front.from_json(self.run.json(FRONT), self.run.reader(FRONT).name)

    @property
    def explanations(self) -> tuple[Explanation, ...]:
        """Why each layer has its bits, as it was asked for last."""
        reader = self.run.reader(EXPLANATIONS)
        found = reader.take(self.run.json(EXPLANATIONS), _ExplanationsFile)
        return tuple(Explanation.from_json(reader, row) for row in found["layers"])

    @property
    def named(self) -> tuple[str, ...]:
        """The names of the allocations that lie beside the run's own, sorted."""
        return tuple(sorted(path.stem for path in (self.run.path / _NAMED).glob("*.json")))

    def named_allocation(self, name: str) -> tuple[BitConfig, Mapping[str, Any]]:
        """An allocation by its name: its bits, and how they were chosen, as `ALLOCATION` holds it."""
        file = named_file(name)
        data: Any = self.run.reader(file).take(self.run.json(file), _NamedFile)
        return BitConfig.from_json(data["bits"], self.run.reader(file).name), data["allocation"]

    @property
    def weights(self) -> dict[str, LayerWeights]:
        """What rounding found."""
        return self.run.read(WEIGHTS, load_weights)

    @property
    def limits(self) -> Mapping[str, float]:
        """The budgets that the bits were allocated under, by cost."""
        found = self.run.reader(ALLOCATION).take(self.run.json(ALLOCATION), _AllocationFile)
        limits: Mapping[str, float] = found.get("limits", {})
        return limits

    @property
    def shadow_prices(self) -> tuple[ShadowPrice, ...]:
        """What more of each budget that binds would buy; none where bits were given or searched."""
        reader = self.run.reader(ALLOCATION)
        found = reader.take(self.run.json(ALLOCATION), _AllocationFile, signed=("sensitivity", "lower_bound"))
        return parsed_prices(reader, found.get("prices", ()))

    @property
    def graph(self) -> Graph:
        """The integer graph, read back from the ONNX file."""
        from hawq_tvm.backends.onnx.io import read_onnx

        return self.run.read(MODEL, read_onnx)

    @property
    def layers(self) -> tuple[LayerFacts, ...]:
        """What the integer graph says of its layers; read from the ONNX file itself where a run has no `LAYERS` yet."""
        self.run.file(MODEL)  # intact: it is what the table is of
        table = self.run.json(LAYERS) if LAYERS in self.run else describe_layers(self.graph)
        return read_layers(table, self.run.reader(LAYERS).name)

    @property
    def accuracy(self) -> Accuracy:
        self.run.fresh(ACCURACY)
        return Accuracy.from_json(self.run.json(ACCURACY), self.run.reader(ACCURACY).name)

    @property
    def debug(self) -> DebugReport:
        """Which layers cause the loss of the bits, ranges and weights that are there now."""
        self.run.fresh(DEBUG)
        return DebugReport.from_json(self.run.json(DEBUG), self.run.reader(DEBUG).name)

    @property
    def comparison(self) -> Comparison:
        """Which metrics order layers as the loss does."""
        self.run.fresh(COMPARISON)
        return Comparison.from_json(self.run.json(COMPARISON), self.run.reader(COMPARISON).name)

    @property
    def fidelity(self) -> Fidelity:
        """What is left of every value in integers, of the network that is there now."""
        self.run.fresh(FIDELITY)
        return Fidelity.from_json(self.run.json(FIDELITY), self.run.reader(FIDELITY).name)

    def tuning(self, target: Target) -> Tuning | None:
        """What tuning found for a target's kernels; None where there is nothing.

        It may be of another network: a layer is looked up by what it computes.
        """
        name = tuning_file(target)
        if name not in self.run:
            return None
        return Tuning.from_json(self.run.json(name), self.run.reader(name).name)

    def library_info(self, target: Target) -> LibraryInfo:
        """What a compiled library holds, without loading it."""
        library, beside = library_files(target)
        self.run.fresh(beside)
        return self._library_info(library, beside)

    def _library_info(self, library: str, beside: str) -> LibraryInfo:
        return self.run.read(beside, lambda _: LibraryInfo.read(self.run.path / library))

    def library(self, target: Target) -> CompiledModule:
        """The compiled library, loaded.

        Raises:
            RuntimeModuleError: it is of another CPU or of a GPU that is not here.
        """
        from hawq_tvm.backends.tvm.host import why_not_run
        from hawq_tvm.backends.tvm.runtime import CompiledModule

        library, info = self.library_path(target), self.library_info(target)
        why = why_not_run(target.name, info.architecture, info.instruction_sets)
        if why is not None:
            raise RuntimeModuleError(
                f"{self.run.name}/{library.name} does not run here: {why}; see docs/deploy.md, or compile it for "
                "this CPU"
            )
        return self.run.read(target.library_name, CompiledModule)

    def library_path(self, target: Target) -> Path:
        """The compiled library, its JSON beside it, both of the network that is there now."""
        library, beside = library_files(target)
        self.run.fresh(beside)
        self.run.fresh(library)
        return self.run.file(library)

    def batch(self, target: Target) -> int | None:
        """Samples a call of a target's library, fresh or not; None where there is no library or it is damaged."""
        library, beside = library_files(target)
        return self._library_info(library, beside).batch if self.run.is_intact(beside) else None

    def verification(self, target: Target) -> VerifyReport:
        """What `verify` found for the library that is there now."""
        name = verify_file(target)
        self.run.fresh(name)
        return VerifyReport.from_json(self.run.json(name), self.run.reader(name).name)

    def benchmark(self, target: Target) -> BenchReport:
        """The latencies of the library that is there now."""
        name = bench_file(target)
        self.run.fresh(name)
        return BenchReport.from_json(self.run.json(name), self.run.reader(name).name)

    def last_benchmark(self, target: Target) -> BenchReport | None:
        """The latencies that were measured last, of this library or an older one; None where there are none."""
        name = bench_file(target)
        if not self.run.is_intact(name):
            return None
        return BenchReport.from_json(self.run.json(name), self.run.reader(name).name)


class _ExplanationsFile(TypedDict):
    """The JSON of the explanations."""

    layers: tuple[Mapping[str, Any], ...]


class _NamedFile(TypedDict):
    """The JSON of a named allocation."""

    bits: Mapping[str, Any]
    allocation: Mapping[str, Any]


class _RangesFile(TypedDict):
    """The JSON of the ranges; its origin is for the reader."""

    ranges: Mapping[str, tuple[float, float] | Mapping[str, tuple[float, float]]]


class _LayerSensitivity(TypedDict):
    """What is taken of a layer: what its weights and its input lose, by bits, with standard errors, and its order."""

    weights: Mapping[str, float]
    weights_error: NotRequired[Mapping[str, float]]
    inputs: NotRequired[Mapping[str, float]]
    inputs_error: NotRequired[Mapping[str, float]]
    order: NotRequired[float | None]


class _SensitivityFile(TypedDict):
    method: str
    note: NotRequired[str | None]
    layers: Mapping[str, _LayerSensitivity]


class _AllocationFile(TypedDict):
    """The JSON of an allocation; where bits were given there are no limits."""

    limits: NotRequired[Mapping[str, float]]
    prices: NotRequired[tuple[PriceRow, ...]]
