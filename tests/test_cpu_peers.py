"""`benchmarks.cpu_peers`: its table and files from made-up runs, and the real thing on a tiny network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import cpu_peers
from benchmarks.cpu_engines import ENGINES, Engine, correlation
from benchmarks.cpu_peers import prepare, select_engines
from benchmarks.cpu_plot import draw_bars
from benchmarks.cpu_table import make_rows, table
from benchmarks.turns import Outcome, Timing
from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.measure.ceilings import Ceilings

from .conftest import NETWORKS

ROOT = Path(__file__).parent.parent
BY_NAME = {engine.name: engine for engine in ENGINES}


def timing(median_ms: float, min_ms: float) -> Timing:
    return Timing(median_ms, min_ms, min_ms, 2 * median_ms - min_ms, 30, 2, 0.01)


def outcome(**medians: float) -> Outcome:
    names = {name.replace("_", " ").replace("hawq tvm", "hawq_tvm"): value for name, value in medians.items()}
    timings = {name: timing(value, 0.9 * value) for name, value in names.items()}
    return Outcome(timings, {name: {"precision": "f32"} for name in names}, {"torchao INT8": "it ended"}, 0.02)


CEILINGS = Ceilings(1, {"avx512_vnni": 1000.0, "avx2": 250.0}, {10_000_000: 100.0, 40_000_000: 50.0})


def test_rows_compare_with_the_first_engine_and_with_the_machine() -> None:
    engines = [BY_NAME["hawq_tvm"], BY_NAME["OpenVINO INT8"], BY_NAME["ONNX Runtime fp32"]]
    found = outcome(hawq_tvm=4.0, OpenVINO_INT8=5.0, ONNX_Runtime_fp32=20.0)
    ours, openvino, fp32 = make_rows(found, engines, macs=10**9, weights=10_000_000, ceilings=CEILINGS)
    assert [row.ratio for row in (ours, openvino, fp32)] == pytest.approx([1, 1.25, 5])
    assert openvino.ratio_of_minima == pytest.approx(1.25)
    assert ours.share_of_peak == pytest.approx(0.5), "2 GOP in 4 ms of 1000 GOPS"
    assert ours.share_of_bandwidth == pytest.approx(10e6 / 4e-3 / 50e9)
    assert fp32.share_of_bandwidth == pytest.approx(4 * 10e6 / 20e-3 / 50e9), "its weights are four times as wide"
    assert ours.spread == pytest.approx(0.2)


def test_engines_that_failed_have_no_row() -> None:
    found = outcome(hawq_tvm=4.0)
    rows = make_rows(found, [BY_NAME["hawq_tvm"], BY_NAME["torchao INT8"]], 1, 1, CEILINGS)
    assert [row.engine for row in rows] == ["hawq_tvm"]


def test_what_is_not_installed_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_peers, "is_installed", lambda package: package != "nncf")
    monkeypatch.setattr(cpu_peers, "instruction_sets", lambda: ["avx512_vnni"])
    chosen, left_out = select_engines(["hawq_tvm", "OpenVINO INT8", "OpenVINO fp32", "OpenVINO fp32, by default"])
    assert [engine.name for engine in chosen] == ["hawq_tvm", "OpenVINO fp32"]
    assert left_out == {
        "OpenVINO INT8": "nncf is not installed (pip install 'hawq_tvm[peers]')",
        "OpenVINO fp32, by default": "this machine has no amx_bf16 or avx512_bf16, so that it would repeat another row",
    }


def test_names_are_distinct_and_ours_is_first() -> None:
    assert len(BY_NAME) == len(ENGINES)
    assert ENGINES[0].name == "hawq_tvm"


def test_logits_of_another_network_are_refused() -> None:
    expected = np.random.default_rng(0).standard_normal((2, 10)).astype(np.float32)
    assert correlation(3 * expected + 1, expected) == pytest.approx(1)
    with pytest.raises(SystemExit, match="not those of the fp32 network: correlation -1"):
        correlation(-expected, expected)
    with pytest.raises(SystemExit, match="not those of the fp32 network: correlation nan"):
        correlation(np.full_like(expected, np.nan), expected)
    with pytest.raises(SystemExit, match=r"the shape \(2, 9\), expected \(2, 10\)"):
        correlation(expected[:, :9], expected)


def case(*engines: str) -> dict[str, Any]:
    row = {
        "median_ms": 4.0, "min_ms": 3.9, "spread": 0.05, "calls": 90, "disturbed": 3, "ratio": 1.0,
        "ratio_of_minima": 1.0,
        "share_of_peak": 0.5, "share_of_bandwidth": 0.1, "lost": 0.01, "about": {},
    }  # fmt: skip
    return {
        "network": "tiny <net>", "batch": 1, "threads": 1, "foreign": 0.02,
        "ceilings": {"gops": {"avx2": 250.0}, "read_gbs": {"1000000": 50.0}, "hand_over_ns": None},
        "rows": [{"engine": name, **row} for name in engines],
    }  # fmt: skip


def test_the_table_has_a_line_an_engine() -> None:
    lines = table(case("hawq_tvm", "OpenVINO INT8")).strip().splitlines()
    assert lines[0].startswith("tiny <net>, batch 1, 1 thread, ")
    assert "peaks: avx2 250 GOPS; reads of 1 MB 50 GB/s" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["hawq_tvm", "OpenVINO INT8"]


def test_two_threads_tell_how_near_their_cores_are() -> None:
    two = case("hawq_tvm") | {"threads": 2, "hand_over_after": 208.7}
    two["ceilings"]["hand_over_ns"] = 43.2
    assert "reads of 1 MB 50 GB/s; from core to core 43 ns, behind all calls 209;" in table(two)


def test_the_plot_is_well_formed_and_says_every_number() -> None:
    results = {"machine": {"cpu": "a <CPU>"}, "date": "2026-01-02T03:04", "cases": [case("hawq_tvm", "ONNX & co")]}
    root = ElementTree.fromstring(draw_bars(results))
    words = [element.text for element in root.iter() if element.text and element.text.strip()]
    assert "fp32 image to logits, median; a <CPU>, 2026-01-02" in words
    assert {"hawq_tvm", "ONNX & co", "4.00 ms (1.00 x)"} <= set(words)
    height = float(root.get("height", 0))
    assert all(float(bar.get("y", 0)) < height for bar in root.iter("{http://www.w3.org/2000/svg}rect") if bar.get("y"))


def test_an_engine_whose_files_cannot_be_made_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cpu_peers.NETWORKS, "none", (f"{NETWORKS}:no_such", (3, 12, 12)))
    monkeypatch.setattr(cpu_peers, "NEEDED", ())
    monkeypatch.chdir(ROOT)
    left_out: dict[str, str] = {}
    engine = Engine("an engine", lambda case: (lambda: None, {}), (), ("onnx_fp32",), 4)
    _, ready = prepare("none", 1, [engine], tmp_path, left_out, weights=tmp_path / "none.safetensors")
    assert ready == []
    (reason,) = left_out.values()
    assert reason.startswith("onnx_fp32 failed: ")
    assert "no function 'no_such'" in reason
    assert "an engine is left out of none, batch 1: onnx_fp32 failed" in capsys.readouterr().err


def test_a_network_that_cannot_be_made_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cpu_peers.NETWORKS, "none", (f"{NETWORKS}:no_such", (3, 12, 12)))
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="none cannot be timed: random_weights failed: .*no function 'no_such'"):
        prepare("none", 1, [], tmp_path, {})


@pytest.mark.slow
@pytest.mark.skipif(find_c_compiler() is None, reason="libraries are linked by a C compiler")
def test_from_end_to_end(tmp_path: Path) -> None:
    """Ours, PyTorch and ONNX Runtime fp32 on a tiny network, in processes of their own; bounds of a busy machine."""
    program = (
        "import sys; from benchmarks import cpu_peers; "
        f"cpu_peers.NETWORKS = {{'tiny': ({str(NETWORKS) + ':residual'!r}, (3, 12, 12))}}; "
        "cpu_peers.main()"
    )
    engines = ["hawq_tvm", "hawq_tvm, library alone", "ONNX Runtime fp32", "PyTorch fp32"]
    output = tmp_path / "peers.json"
    result = subprocess.run(
        [
            *(sys.executable, "-c", program, "--networks", "tiny", "--batches", "2", "--threads", "1"),
            *("--rounds", "2", "--seconds", "0.01", "--most-lost", "1e9", "--most-foreign", "1e9"),
            *("--work", tmp_path, "--output", output, "--engines", *engines),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(output.read_text())
    (only,) = found["cases"]
    assert [row["engine"] for row in only["rows"]] == engines
    assert only["verified"].startswith("0 mismatches over")
    assert all(row["calls"] >= 6 and row["min_ms"] <= row["median_ms"] for row in only["rows"])
    assert all(row["about"]["correlation"] > 0.9 for row in only["rows"] if "correlation" in row["about"])
    assert found["machine"]["cpu"]
    assert found["versions"]["torch"]
    assert output.with_suffix(".svg").read_text().startswith("<svg")
    assert "| hawq_tvm |" in result.stdout
