"""A run in numbers, read from JSON alone; runs are written here by hand, so that nothing is compiled."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from hawq_tvm.backends.onnx.io import to_onnx
from hawq_tvm.backends.tvm.info import LibraryInfo, ValueInfo
from hawq_tvm.core.errors import RunError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.specs import BitConfig, Bits, Cost, CostTable, LayerCosts
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.measure.accuracy import Accuracy
from hawq_tvm.measure.bench import BenchReport, Latency
from hawq_tvm.measure.verify import VerifyReport
from hawq_tvm.runs import artifacts as files
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.layers import describe_layers
from hawq_tvm.runs.rundir import Run, edit_run, open_run
from hawq_tvm.runs.summary import summarize

from .builders import integers_of

PAIRS = ("w8a8", "w4a4", "w2a5", "w5a3")
TARGET = TARGETS["llvm"]
EXECUTORS = ("numpy", "pytorch", "onnxruntime", "tvm")


def costs_of(graph: Graph) -> CostTable:
    """A row a layer, Omega and microseconds by hand."""
    pairs = [Bits.parse(pair) for pair in PAIRS]
    rows = [
        LayerCosts(node.name, 10, 100, {pair: Cost(index / 8, 1.0, 1, 2.0) for pair in pairs})
        for index, node in enumerate(graph)
        if isinstance(node.op, WeightedOperator)
    ]
    return CostTable(tuple(rows), (), {"sensitivity": "by hand"})


def bench_of(graph: Graph, **contender: Any) -> BenchReport:
    """A benchmark with one peer; `contender` changes the peer."""
    peer = {"name": "peer", "median_us": 20.0, "p10_us": 19.0, "p90_us": 21.0, "runs": 5, **contender}
    layers = {node.name: 3.0 for node in graph}
    contenders = (Latency("hawq_tvm", 10.0, 9.0, 11.0, 7), Latency(**peer))
    return BenchReport("a CPU", "llvm", 2, 1, 3, contenders, layers, dict.fromkeys(layers, "a_kernel"))


def library_of(graph: Graph, path: Path) -> LibraryInfo:
    """What would lie beside the library at `path`."""
    names = [node.name for node in graph]
    values = {name: ValueInfo(repr(type.dtype), type.shape, type.scale) for name, type in graph.types.items()}
    return LibraryInfo(
        target="llvm", cpu="znver4", instruction_sets=(), batch=1, input_name=graph.input_name,
        output_name=graph.output, values=values,
        calls=tuple(names), views={}, kernels=dict.fromkeys(names, "a_kernel"), declines=dict.fromkeys(names, ()),
        planned_bytes=4096, fingerprint=graph.fingerprint(), tvm="0", sha256=file_sha256(path),
    )  # fmt: skip


def write_run(
    path: Path,
    graph: Graph,
    *,
    described: bool = True,
    costs: CostTable | None = None,
    bench: BenchReport | None = None,
    settings: Mapping[str, Any] | None = None,
    sensitivity: Mapping[str, Any] | None = None,
) -> Run:
    """A run of a graph as the stages leave it; without `described` as one from before there was a `LAYERS`."""
    with edit_run(path, identity={"model": "net<1>", "weights": "random", "data": "digits"}) as run:
        run.manifest["data"] = {"settings": dict(settings or {})}

        def stage(name: str, writes: Mapping[str, Any], reads: tuple[str, ...] = ()) -> None:
            def make() -> None:
                for file, data in writes.items():
                    run.write_json(file, data)

            run.stage(name, make, options={}, reads=reads, writes=list(writes))

        def integers() -> None:
            run.write(files.MODEL, lambda file: onnx.save(to_onnx(graph), file))
            if described:
                run.write_json(files.LAYERS, describe_layers(graph))

        def library() -> None:
            run.write(TARGET.library_name, lambda file: file.write_bytes(b"code"))
            library_of(graph, run.path / TARGET.library_name).write(run.path / TARGET.library_name)

        proof = VerifyReport(EXECUTORS, 256, len(graph.nodes), 1000, ())
        stage("profile", {files.SENSITIVITY: dict(sensitivity or {})})
        stage("cost", {files.COSTS: (costs or costs_of(graph)).to_json()})
        stage("allocate", {files.BITS: BitConfig({"x": Bits(4, 4)}).to_json(), files.ALLOCATION: {"limits": {}}})
        written = [files.MODEL, *([files.LAYERS] if described else [])]
        run.stage("integerize", integers, options={}, reads=[files.BITS], writes=written)
        stage("evaluate", {files.ACCURACY: Accuracy(64, 0.75, 0.5, -0.25, 0.01, 0.7).to_json()}, (files.MODEL,))
        names = files.library_files(TARGET)
        run.stage("compile llvm", library, options={}, reads=[files.MODEL], writes=names)
        stage("verify llvm", {files.verify_file(TARGET): proof.to_json()}, names)
        stage("benchmark llvm", {files.bench_file(TARGET): (bench or bench_of(graph)).to_json()}, names)
    return open_run(path)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return integers_of("Residual", PAIRS)


def test_the_table_of_layers_says_what_the_onnx_file_says(graph: Graph, tmp_path: Path) -> None:
    told, old = write_run(tmp_path / "told", graph), write_run(tmp_path / "old", graph, described=False)
    assert files.LAYERS in told
    assert files.LAYERS not in old
    layers = summarize(told).layers
    assert layers == summarize(old).layers
    node = graph.node("conv1")
    assert isinstance(node.op, WeightedOperator)
    (layer,) = (layer for layer in layers if layer.name == "conv1")
    bits = Bits.parse(layer.bits)
    assert bits.weight == node.op.weight_bits
    assert (layer.parameters, layer.macs) == (8 * 12 * 9, 12 * 9 * 8 * 9)
    assert layer.size_bytes == layer.parameters * bits.weight / 8
    assert layer.bops == layer.macs * bits.weight * bits.activation
    assert layer.accumulator_bound == graph.bounds()["conv1"].accumulator
    assert (layer.output, layer.kernel, layer.latency_us) == (repr(node.type), {"llvm": "a_kernel"}, 2.0)


def test_inspecting_loads_no_heavy_module(graph: Graph, tmp_path: Path) -> None:
    write_run(tmp_path / "run", graph)
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from hawq_tvm.cli.inspect import inspect\n"
        "from hawq_tvm.runs.report import render_report\nfrom hawq_tvm.runs.rundir import open_run\n"
        "from hawq_tvm.runs.summary import summarize\n"
        "path = Path(sys.argv[1])\n"
        "assert inspect(path, False, True) == 0\n"
        "assert inspect(path, False, False) == 0\n"
        "render_report(summarize(open_run(path)))\n"
        "heavy = {'torch', 'tvm', 'tvm_ffi', 'onnx', 'onnxruntime', 'scipy', 'sklearn', 'torchvision', 'timm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "conv1" in result.stdout


@pytest.mark.parametrize(
    "change",
    [
        {"bits": "w9a9"}, {"bits": None}, {"name": 3}, {"macs": -1}, {"macs": 1.5}, {"macs": True}, {"parameters": "7"},
        {"accumulator_bound": None}, {"kind": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_table_of_layers_that_is_none_is_refused(graph: Graph, tmp_path: Path, change: Mapping[str, Any]) -> None:
    table = describe_layers(graph)
    table["layers"][1] = {**table["layers"][1], **change}
    run = write_run(tmp_path / "run", graph)
    for data in (table, [], {}, {"layers": 3}, {"layers": [{}]}, None):
        (run.path / files.LAYERS).write_text(json.dumps(data))
        run.manifest["stages"]["integerize"]["files"][files.LAYERS] = file_sha256(run.path / files.LAYERS)
        with pytest.raises(RunError, match="layers.json is not a table of layers"):
            _ = Artifacts(run).layers


def test_a_damaged_run_is_not_summarised(graph: Graph, tmp_path: Path) -> None:
    for name in (files.LAYERS, files.MODEL):
        run = write_run(tmp_path / name, graph)
        (run.path / name).write_bytes((run.path / name).read_bytes() + b" ")
        with pytest.raises(RunError, match=f"{name} is corrupted"):
            summarize(run)
