"""The files of a run as the objects that they hold."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from hawq_tvm.bench import BenchReport
from hawq_tvm.errors import RunError
from hawq_tvm.evaluate import Accuracy
from hawq_tvm.float_io import load_float_graph
from hawq_tvm.float_ir import FloatGraph
from hawq_tvm.ir import Array, Graph
from hawq_tvm.onnx_io import read_onnx
from hawq_tvm.quantizer import Range
from hawq_tvm.rundir import Run
from hawq_tvm.runtime import CompiledModule, LibraryInfo
from hawq_tvm.specs import BitConfig, CostTable
from hawq_tvm.targets import Target
from hawq_tvm.verify import VerifyReport

FLOAT_GRAPH = "float.safetensors"
RANGES = "ranges.json"
SENSITIVITY = "sensitivity.json"
COSTS = "costs.json"
BITS = "bits.json"
ALLOCATION = "allocation.json"
MODEL = "model.onnx"
BOUNDS = "bounds.json"
GOLDEN = "golden/"
GOLDEN_INDEX = "golden/index.json"
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
            return {name: Range(*bounds) for name, bounds in self.run.json(RANGES)["ranges"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{self.run.path / RANGES} is not a table of ranges: {error!r}") from error

    @property
    def sensitivity(self) -> Mapping[str, Any]:
        table: Mapping[str, Any] = self.run.json(SENSITIVITY)
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
        return read_onnx(self.run.file(MODEL))

    @property
    def accuracy(self) -> Accuracy:
        return Accuracy.from_json(self.run.json(ACCURACY))

    def library_info(self, target: Target) -> LibraryInfo:
        """What a compiled library holds, without loading it."""
        library, beside = library_files(target)
        self.run.file(beside)
        return LibraryInfo.read(self.run.path / library)

    def library(self, target: Target) -> CompiledModule:
        """The compiled library, loaded."""
        library, beside = library_files(target)
        self.run.file(beside)
        return CompiledModule(self.run.file(library))

    def verification(self, target: Target) -> VerifyReport:
        return VerifyReport.from_json(self.run.json(verify_file(target)))

    def benchmark(self, target: Target) -> BenchReport:
        return BenchReport.from_json(self.run.json(bench_file(target)))

    def golden(self) -> dict[str, Array]:
        """One input and every layer's integers for it, as written when the graph was integerised."""
        index = self.run.json(GOLDEN_INDEX)
        return {name: np.load(self.run.file(f"{GOLDEN}{file}")) for name, file in index.items()}
