"""A run in numbers, read from JSON alone; runs are written here by hand, so that nothing is compiled."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.console import Console

from hawq_tvm.backends.onnx.io import to_onnx
from hawq_tvm.backends.tvm.info import LibraryInfo, ValueInfo
from hawq_tvm.cli import console, terminal
from hawq_tvm.core.errors import RunError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.specs import LAYER_TIMES, BitConfig, Bits, Cost, CostTable, LayerCosts
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.measure.accuracy import Accuracy
from hawq_tvm.measure.bench import BenchReport, Latency
from hawq_tvm.measure.fidelity import RATIOS, Fidelity, ValueFidelity
from hawq_tvm.measure.verify import VerifyReport
from hawq_tvm.runs import artifacts as files
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.layers import describe_layers
from hawq_tvm.runs.report import render_card, render_report
from hawq_tvm.runs.rundir import Run, edit_run, open_run
from hawq_tvm.runs.summary import describe, summarize
from hawq_tvm.settings import DEFAULT_METRIC, RoundingSettings, Settings

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


def fidelity_of(graph: Graph, *warnings: str) -> Fidelity:
    """Every node's ratios: 33 dB alone, 21 all together."""
    values = tuple(
        ValueFidelity(node.name, node.op.kind, 8, 4, 21.0, 33.0, 40.0, None, 41.0, 0.001, 2.0, 0.9, 7.5, 0.8, 17.0)
        for node in graph
    )
    return Fidelity(16, values, warnings)


def library_of(graph: Graph, path: Path) -> LibraryInfo:
    """What would lie beside the library at `path`."""
    names = [node.name for node in graph]
    values = {
        name: ValueInfo(repr(type.dtype), type.shape, type.scale, Storage.canonical(type))
        for name, type in graph.types.items()
    }
    return LibraryInfo(
        target="llvm", cpu="znver4", architecture="x86_64", instruction_sets=(), batch=1, input_name=graph.input_name,
        output_name=graph.output, values=values,
        calls=tuple(names), conversions={}, joins={}, views={}, kernels=dict.fromkeys(names, "a_kernel"),
        exact_storages=True,
        declines=dict.fromkeys(names, ()), constants=dict.fromkeys(names, 0),
        weight_bits={}, tuned={}, planned_bytes=4096,
        fingerprint=graph.fingerprint(), tvm="0", sha256=file_sha256(path),
    )  # fmt: skip


def write_run(
    path: Path,
    graph: Graph,
    *,
    described: bool = True,
    costs: CostTable | None = None,
    bench: BenchReport | None = None,
    note: Any = None,
    sensitivity: Mapping[str, Any] | None = None,
    fidelity: Fidelity | None = None,
    settings: Settings | None = None,
    rounded: bool = False,
) -> Run:
    """A run of a graph as the stages leave it; without `described` as one from before there was a `LAYERS`."""
    with edit_run(path, identity={"model": "net<1>", "weights": "random", "data": "digits"}) as run:
        run.manifest["data"] = {"note": note}
        if settings is not None:
            run.manifest["settings"] = settings.to_json()

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
        stage(
            "profile",
            {files.sensitivity_file(DEFAULT_METRIC): {"method": "by hand", "layers": {}, **(sensitivity or {})}},
        )
        stage("cost", {files.COSTS: (costs or costs_of(graph)).to_json()})
        stage("allocate", {files.BITS: BitConfig({"x": Bits(4, 4)}).to_json(), files.ALLOCATION: {"limits": {}}})
        written = [files.MODEL, *([files.LAYERS] if described else [])]
        if rounded:
            stage("round", {files.WEIGHTS: "weights"}, (files.BITS,))
        reads = [files.BITS, *([files.WEIGHTS] if rounded else [])]
        run.stage("integerize", integers, options={}, reads=reads, writes=written)
        stage("evaluate", {files.ACCURACY: Accuracy(64, 0.75, 0.5, -0.25, 0.01, 0.7).to_json()}, (files.MODEL,))
        stage("fidelity", {files.FIDELITY: (fidelity or fidelity_of(graph)).to_json()}, (files.MODEL,))
        names = files.library_files(TARGET)
        run.stage("compile llvm", library, options={}, reads=[files.MODEL], writes=names)
        stage("verify llvm", {files.verify_file(TARGET): proof.to_json()}, names)
        stage("benchmark llvm", {files.bench_file(TARGET): (bench or bench_of(graph)).to_json()}, names)
    return open_run(path)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return integers_of("Residual", PAIRS)


class Screen(Console):
    """What the command line would print to, of a width to set."""

    def text(self) -> str:
        assert isinstance(self.file, io.StringIO)
        return self.file.getvalue()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    found = Screen(file=io.StringIO(), width=300, highlight=False, soft_wrap=True)
    for module in (terminal, console):
        monkeypatch.setattr(module, "out", found)
    return found


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
        "from hawq_tvm.cli.app import main\n"
        "from hawq_tvm.runs.report import render_report\nfrom hawq_tvm.runs.rundir import open_run\n"
        "from hawq_tvm.runs.summary import summarize\n"
        "assert main(['inspect', sys.argv[1], '--json']) == 0\n"
        "assert main(['inspect', sys.argv[1]]) == 0\n"
        "render_report(summarize(open_run(Path(sys.argv[1]))))\n"
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
        with pytest.raises(RunError, match=r"layers\.json: .+; make it anew"):
            _ = Artifacts(run).layers


def test_a_damaged_run_is_not_summarised(graph: Graph, tmp_path: Path) -> None:
    for name in (files.LAYERS, files.MODEL):
        run = write_run(tmp_path / name, graph)
        (run.path / name).write_bytes((run.path / name).read_bytes() + b" ")
        with pytest.raises(RunError, match=f"{name} is corrupted"):
            summarize(run)


def test_reports_of_other_shapes_are_refused_in_a_sentence(graph: Graph, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", graph, sensitivity={})
    for name, stage in (
        (files.ACCURACY, "evaluate"), (files.FIDELITY, "fidelity"), (files.verify_file(TARGET), "verify llvm"),
        (files.bench_file(TARGET), "benchmark llvm"), (files.sensitivity_file(DEFAULT_METRIC), "profile"),
    ):  # fmt: skip
        kept = (run.path / name).read_bytes()
        for data in ([], 3, {"contenders": [{}]}, {"executors": 1}, {"unknown": 1}):
            if name == files.sensitivity_file(DEFAULT_METRIC) and isinstance(data, dict):
                continue  # whatever it holds, nothing of it is needed here
            (run.path / name).write_text(json.dumps(data))
            run.manifest["stages"][stage]["files"][name] = file_sha256(run.path / name)
            with pytest.raises(RunError, match=f"{name}: .+; "):
                summarize(run)
        (run.path / name).write_bytes(kept)
        run.manifest["stages"][stage]["files"][name] = file_sha256(run.path / name)
    assert summarize(run).accuracy is not None


# what is left in integers


def test_fidelity_stands_beside_every_layer(graph: Graph, tmp_path: Path, screen: Screen) -> None:
    warning = "outliers set the range of 'conv<1>'"
    summary = summarize(write_run(tmp_path / "run", graph, fidelity=fidelity_of(graph, warning)))
    assert [layer.fidelity.alone_db for layer in summary.layers] == [33.0] * len(summary.layers)
    assert warning in summary.remarks
    console.print_layers(summary)
    (header,) = (line for line in screen.text().splitlines() if "dB all" in line and "bound" in line)
    assert header.split()[-5:] == ["dB", "alone", "dB", "all", "bound"]
    for layer in summary.layers:
        row = next(line for line in screen.text().splitlines() if line.split()[:1] == [layer.name])
        assert row.split()[-3:-1] == ["33", "21"]
    assert RATIOS in screen.text()
    assert warning in screen.text()
    page = render_report(summary)
    assert "<h2>Signal over error</h2>" in page
    assert "0.100%" in page
    assert escape(warning) in page
    found = json.loads(json.dumps(summary.to_json()))
    assert found["fidelity"]["values"][0]["alone_db"] == 33.0
    assert found["layers"][0]["fidelity"]["weights_db"] is None


def test_fidelity_of_another_network_is_left_out(graph: Graph, tmp_path: Path, screen: Screen) -> None:
    run = write_run(tmp_path / "run", graph)
    run.manifest["stages"]["fidelity"]["key"]["reads"][files.MODEL] = "another"
    summary = summarize(run)
    assert summary.fidelity is None
    assert {layer.fidelity for layer in summary.layers} == {None}
    assert any(note.startswith("fidelity was measured on another network") for note in summary.notes)
    console.print_layers(summary)
    assert RATIOS not in screen.text()
    assert "Signal over error" not in render_report(summary)


# errors of sensitivities, and what else there is to say


def uncertain(graph: Graph, error: float | None, note: str | None = None) -> CostTable:
    table = costs_of(graph)
    layers = tuple(replace(layer, sensitivity_error=error) for layer in table.layers)
    return replace(table, layers=layers, sources={"sensitivity": f"Hutchinson. {note}"})


def test_errors_stand_beside_sensitivities_everywhere(graph: Graph, tmp_path: Path, screen: Screen) -> None:
    table = uncertain(graph, 0.64)
    summary = summarize(write_run(tmp_path / "run", graph, costs=table))
    assert {layer["sensitivity_error"] for layer in summary.to_json()["layers"]} == {0.64}
    assert summary.totals.sensitivity_error == pytest.approx(0.64)
    page = render_report(summary)
    assert page.count("&plusmn; 64%") == len(summary.layers) + 1, "each layer, and their sum"
    assert page.count("class='error'") == len(summary.layers)
    console.print_layers(summary)
    console.print_costs(table)
    assert screen.text().count("64%") == 2 * len(summary.layers)


def test_sensitivities_without_errors_are_shown_without(graph: Graph, tmp_path: Path, screen: Screen) -> None:
    summary = summarize(write_run(tmp_path / "run", graph, costs=uncertain(graph, None)))
    assert summary.totals.sensitivity_error is None
    assert "&plusmn;" not in render_report(summary)
    console.print_layers(summary)
    assert "%" not in screen.text()


def test_estimates_that_did_not_converge_are_remarked(graph: Graph, tmp_path: Path, screen: Screen) -> None:
    note = "the sensitivities of 2 of 5 layers are uncertain by more than 10%; raise --hessian-probes"
    sensitivity = {"note": note}
    summary = summarize(write_run(tmp_path / "run", graph, costs=uncertain(graph, 0.3, note), sensitivity=sensitivity))
    assert summary.remarks == (note,)
    assert summary.notes == (), "nothing is missing or out of date"
    console.print_totals(summary)
    assert note in screen.text()
    assert note in render_report(summary)
    other = write_run(tmp_path / "other", graph, costs=uncertain(graph, None), sensitivity=sensitivity)
    assert summarize(other).remarks == (), "the cost table is not made from these sensitivities"


NEAREST = RoundingSettings("nearest", scale_search=False, slope=False, bias=False)


@pytest.mark.parametrize(
    ("rounding", "rounded", "remarked"),
    [(RoundingSettings(), False, True), (RoundingSettings(), True, False), (NEAREST, False, False)],
    ids=["asked for and not done", "done", "not asked for"],
)
def test_weights_that_are_not_rounded_as_asked_for_are_remarked(
    graph: Graph, tmp_path: Path, screen: Screen, rounding: RoundingSettings, rounded: bool, remarked: bool
) -> None:
    run = write_run(tmp_path / "run", graph, settings=Settings(rounding=rounding), rounded=rounded)
    summary = summarize(run)
    assert len(summary.remarks) == remarked
    console.print_totals(summary)
    for text in (screen.text(), render_report(summary), json.dumps(summary.to_json())):
        assert ("rounded to nearest and not as asked for" in text) == remarked


@pytest.mark.parametrize(
    ("note", "expected"), [("held out <for accuracy>", 1), ("", 0), (None, 0), (3, 0), ({}, 0)], ids=str
)
def test_what_the_source_of_the_samples_says_is_shown(
    graph: Graph, tmp_path: Path, screen: Screen, note: Any, expected: int
) -> None:
    summary = summarize(write_run(tmp_path / "run", graph, note=note))
    assert len(summary.remarks) == expected
    console.print_outcome(summary)
    for remark in summary.remarks:
        assert remark in screen.text()
        assert remark in summary.to_json()["remarks"]
        for page in (render_report(summary), render_card(summary)):
            assert escape(remark) in page
            assert "<for accuracy>" not in page


# the two times of a layer, and doubtful numbers


def test_the_two_times_of_a_layer_are_told_apart(graph: Graph, tmp_path: Path, screen: Screen) -> None:
    summary = summarize(write_run(tmp_path / "run", graph))
    layer = summary.layers[1]
    assert (layer.latency_us, layer.within_us) == (2.0, {"llvm": 3.0})
    console.print_layers(summary)
    console.print_benchmark(summary.benchmark["llvm"], layers=True)
    text = screen.text()
    assert "us alone" in text
    assert text.count("us within") >= 4, "a column and a sentence in both"
    assert text.count(LAYER_TIMES) == 2
    page = render_report(summary)
    assert "us alone" in page
    assert "us within, llvm" in page
    assert escape(LAYER_TIMES) in page


def test_doubtful_numbers_say_so_beside_them(graph: Graph, tmp_path: Path, screen: Screen) -> None:
    note = "noisy, run again: 1,000 times slower than last time (0.0 us)"
    summary = summarize(write_run(tmp_path / "run", graph, bench=bench_of(graph, note=note)))
    console.print_benchmark(summary.benchmark["llvm"])
    (row,) = (line for line in screen.text().splitlines() if "20.0" in line)
    assert row.rstrip().endswith("noisy, run again")
    assert f"peer: {note}" in screen.text()
    assert note in render_report(summary)
    assert f"peer: {note}" in render_card(summary)


# narrow terminals

LONG = "backbone.stages.3.blocks.11.attention.projection_of_the_residual.conv"


@pytest.fixture(scope="module")
def long_names(graph: Graph) -> Graph:
    """The same network, its first layer called by a name longer than the terminal is wide."""
    names = {"stem": LONG}
    nodes = [
        replace(node, name=names.get(node.name, node.name), inputs=tuple(names.get(n, n) for n in node.inputs))
        for node in graph
    ]
    return replace(graph, nodes=tuple(nodes))


@pytest.mark.parametrize("width", [40, 60, 80, 400])
def test_names_are_whole_on_narrow_terminals(long_names: Graph, tmp_path: Path, screen: Screen, width: int) -> None:
    table = uncertain(long_names, 0.25)
    summary = summarize(write_run(tmp_path / "run", long_names, costs=table))
    screen.width = width
    console.print_layers(summary)
    console.print_costs(table)
    console.print_benchmark(summary.benchmark["llvm"], layers=True)
    lines = screen.text().splitlines()
    assert sum(LONG in line for line in lines) == 5, "three of the layers, and of costs one a quantity"
    assert "…" not in screen.text()
    first = lines[lines.index(LONG) + 1] if width < 400 else next(line for line in lines if LONG in line)
    assert "conv2d" in first
    text = screen.text()
    for number in ("2.0", "25%", "a_kernel", "20.0", f"{long_names.bounds()[LONG].accumulator.bit_length()}"):
        assert number in text
    tables = [line for line in lines if line.startswith("  ")]
    assert all(len(line) <= width for line in tables), "cells are laid out within the terminal"


def test_a_network_in_a_paragraph_and_as_a_card(graph: Graph, tmp_path: Path) -> None:
    summary = summarize(write_run(tmp_path / "run", graph))
    text = describe(summary)
    assert text.startswith("net<1> on digits: 5 layers (1 w2a5, 1 w4a4, 1 w5a3, 2 w8a8), ")
    for part in ("top-1 fp32 75.00%", "llvm verified: 0 mismatches", "llvm: 10.0 us a batch of 1 on a CPU", "run"):
        assert part in text
    assert "\n" not in text
    card = render_card(summary)
    assert "<b>net&lt;1&gt;</b>" in card
    for part in ("top-1 fp32 75.00%", "0 mismatches", "10.0 us; peer 2.00 times that", str(tmp_path / "run")):
        assert part in card
    assert card.count("<tr>") == card.count("</tr>") == 7
