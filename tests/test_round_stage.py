"""The rounding stage of a run: the same integers however it is run, and what happens where samples are not at hand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hawq_tvm
from hawq_tvm import HessianSettings, RoundingSettings
from hawq_tvm.calibration.rounding import Levels
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import RunError, SettingsError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.quantizer import LayerWeights, quantize_weight
from hawq_tvm.posttraining.layer import Found
from hawq_tvm.runs.artifacts import MODEL, WEIGHTS, Artifacts
from hawq_tvm.runs.checkpoint import Checkpoint
from hawq_tvm.runs.rundir import Run, open_run
from hawq_tvm.runs.summary import summarize
from hawq_tvm.runs.weights_io import load_weights, save_weights

from .conftest import HERE

COMMAND = (
    *("run", f"{HERE / 'networks.py'}:residual", "--data", f"{HERE / 'networks.py'}:samples"),
    *("--bits", "w4a4", "--observer", "max", "--bench-seconds", "0.1"),
)
FACTORIES = {"model": f"{HERE / 'networks.py'}:residual", "data": f"{HERE / 'networks.py'}:samples"}


def run(output: Path, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """`hawq-tvm run` in a process of its own, after some lines of Python."""
    arguments = [*COMMAND, *options, "--output", str(output)]
    script = f"import sys\n{before}\nfrom hawq_tvm.cli.app import main\nsys.exit(main({arguments!r}))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


KILL = """
import os, signal
from hawq_tvm.runs.checkpoint import Checkpoint
keep, count = Checkpoint.keep, [0]
def killed(self, layer, found):
    keep(self, layer, found)
    count[0] += 1
    if count[0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoint.keep = killed
"""

COUNT = """
from hawq_tvm.runs.checkpoint import Checkpoint
keep = Checkpoint.keep
def counted(self, layer, found):
    print("found", layer, file=sys.stderr)
    keep(self, layer, found)
Checkpoint.keep = counted
"""


def test_layers_of_too_many_inputs_are_named(tmp_path: Path) -> None:
    """Those of 4 bits alone, which are not the first and the last."""
    narrow = "import hawq_tvm.posttraining.solve as solve\nsolve.MOST_INPUTS = 4"
    said = run(tmp_path / "run", before=narrow).stderr
    (line,) = [line for line in said.splitlines() if "are rounded to nearest and corrected" in line]
    bits = json.loads((tmp_path / "run" / "bits.json").read_text())["bits"]
    named = line.split("weights of ")[1].split(" are rounded")[0].split(", ")
    assert named == [name for name, pair in bits.items() if pair == "w4a4"]


def test_the_same_integers_on_one_and_two_threads_and_after_a_kill(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "--threads", "1", before=COUNT)
    assert whole.returncode == 0, whole.stderr
    two = run(tmp_path / "two", "--threads", "2")
    assert two.returncode == 0, two.stderr
    assert run(tmp_path / "cut", before=KILL).returncode == -signal.SIGKILL
    assert not (tmp_path / "cut").exists()
    resumed = run(tmp_path / "cut", before=COUNT)
    assert resumed.returncode == 0, resumed.stderr
    layers = whole.stderr.count("found ")
    assert resumed.stderr.count("found ") == layers - 2
    for name in (MODEL, WEIGHTS):
        hashes = {file_sha256(tmp_path / path / name) for path in ("whole", "two", "cut")}
        assert len(hashes) == 1, name
    assert not any(item.is_dir() and item.name == "rounding" for item in (tmp_path / "cut").iterdir())


def quantized(**words: Any) -> hawq_tvm.QuantizedNetwork:
    words = {"bits": "w4a8", "observer": "max", "hessian": HessianSettings(samples=4, max_probes=2), **words}
    return hawq_tvm.quantize(FACTORIES["model"], FACTORIES["data"], **words)


def test_rounding_is_a_file_of_the_run_and_decides_the_integers() -> None:
    network = quantized()
    run = open_run(network.path)
    weights = Artifacts(run).weights
    for node in network.graph:
        if node.name in weights:
            assert np.array_equal(node.op.weight, weights[node.name].integers)  # type: ignore[attr-defined]
    off = quantized(rounding=RoundingSettings("nearest", scale_search=False, slope=False, bias=False))
    assert WEIGHTS not in open_run(off.path)
    assert file_sha256(off.path / MODEL) != file_sha256(network.path / MODEL)


def test_other_samples_are_for_measuring_and_do_not_round_anew(tmp_path: Path) -> None:
    saved = quantized().save(tmp_path / "run")
    before = [file_sha256(saved / name) for name in (MODEL, WEIGHTS)]
    other = hawq_tvm.load(saved, data=torch.randn(6, 3, 12, 12))
    other.compile()
    assert [file_sha256(saved / name) for name in (MODEL, WEIGHTS)] == before


def compile_edited(saved: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`hawq-tvm compile` after one layer was given other bits by hand."""
    bits = json.loads((saved / "bits.json").read_text())
    layer = list(bits["bits"])[1]
    bits["bits"][layer] = "w3a8"
    (saved / "bits.json").write_text(json.dumps(bits))
    script = f"import sys; from hawq_tvm.cli.app import main; sys.exit(main({['compile', str(saved), *options]!r}))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_edited_bits_are_rounded_anew_where_the_samples_are_at_hand(tmp_path: Path) -> None:
    saved = quantized().save(tmp_path / "run")
    done = compile_edited(saved, "--trust-code")
    assert done.returncode == 0, done.stderr
    assert "rounding weights" in done.stderr
    assert {layer.bits for layer in Artifacts(open_run(saved)).weights.values()} == {3, 4, 8}


def test_without_samples_edited_bits_are_rounded_to_nearest_with_a_word(tmp_path: Path) -> None:
    saved = quantized().save(tmp_path / "run")
    done = compile_edited(saved)
    assert done.returncode == 0, done.stderr
    assert "the samples that calibrated this run are not at hand; weights are rounded to nearest" in " ".join(
        done.stderr.split()
    )
    assert {layer.bits.weight for layer in Artifacts(open_run(saved)).layers} == {3, 4, 8}
    assert any("rounded to nearest and not as asked for" in remark for remark in summarize(open_run(saved)).remarks)


def test_without_samples_given_scales_stand(tmp_path: Path) -> None:
    saved = quantized(scales={"stem": 0.05, "conv1": 0.1}).save(tmp_path / "run")
    done = compile_edited(saved)
    assert done.returncode == 0, done.stderr
    assert "rounded to nearest, at the given scales where there are some" in " ".join(done.stderr.split())
    found = Artifacts(open_run(saved))
    layers = {node.name: node for node in found.float_graph.layers}
    for node in found.graph:
        if node.name in ("stem", "conv1"):
            weight, bits = layers[node.name].weight, found.bits.layers[node.name].weight
            assert weight is not None
            scales = np.full(len(weight), {"stem": 0.05, "conv1": 0.1}[node.name])
            assert np.array_equal(node.op.weight, quantize_weight(weight, scales, bits))  # type: ignore[attr-defined]
    assert found.bits.layers["conv1"].weight == 3, "the layer whose bits were edited"


LEVELS = (
    Levels(WeightFormat(4)),
    Levels(WeightFormat(2, codebook=True), np.array([-3, 0, 1, 9], np.int8)),
)


@pytest.mark.parametrize("levels", LEVELS, ids=["integers", "a codebook"])
def test_a_checkpoint_answers_its_own_question_alone(
    levels: Levels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    run = Run(tmp_path / "run", {"stages": {}})
    found = Found(
        torch.ones(2, 3, dtype=torch.int8),
        *(torch.full((2,), value, dtype=torch.float64) for value in (0.5, 1.1, -2.0)),
        levels,
    )
    checkpoint = Checkpoint(run, {"seed": 0})
    checkpoint.keep("a.b/c", found)
    shapes = {"a.b/c": (2, 3)}
    (again,) = Checkpoint(run, {"seed": 0}).found(shapes).items()
    assert again[0] == "a.b/c"
    parts = [part for part in vars(found) if part != "levels"]
    assert all(torch.equal(getattr(again[1], part), getattr(found, part)) for part in parts)
    assert again[1].levels.format == levels.format
    assert np.array_equal(np.asarray(again[1].levels.codebook), np.asarray(levels.codebook))
    assert Checkpoint(run, {"seed": 1}).found(shapes) == {}
    for others in ({"a.b/c": (2, 4)}, {"a.b/c": (3, 3)}, {"another": (2, 3)}):
        assert checkpoint.found(others) == {}, "of no layer of this network"
    with monkeypatch.context() as patch:
        patch.setattr("hawq_tvm.runs.checkpoint.versions", lambda: {"torch": "another"})
        assert Checkpoint(run, {"seed": 0}).found(shapes) == {}
    next((tmp_path / "run" / "rounding").iterdir()).write_bytes(b"half of a fi")
    assert checkpoint.found(shapes) == {}
    checkpoint.clear()
    assert not (tmp_path / "run" / "rounding").exists()


def weights() -> dict[str, LayerWeights]:
    return {
        "conv": LayerWeights(
            np.array([[[[7, -7]]], [[[0, 3]]]], np.int8), np.array([0.5, 0.25]), np.array([1, -1], np.float32), 4
        ),
        "fc": LayerWeights(np.array([[127]], np.int8), np.array([0.01]), np.array([0], np.float32), 8),
    }


def test_weights_survive_their_file(tmp_path: Path) -> None:
    save_weights(weights(), tmp_path / "w")
    found = load_weights(tmp_path / "w")
    assert [*found] == ["conv", "fc"]
    for name, layer in weights().items():
        assert found[name].bits == layer.bits
        assert all(np.array_equal(getattr(found[name], p), getattr(layer, p)) for p in ("integers", "scales", "bias"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "its integers do not fit 3 bits"),
        ({"bits": 9}, "9 bits"),
        ({"scales": np.array([0.5, 0.0])}, "a scale is not above 0"),
        ({"scales": np.array([0.5, np.nan])}, "its scales are float64, expected finite float64"),
        ({"scales": np.array([0.5])}, r"scales \(1,\) and bias \(2,\) do not fit"),
    ],
)
def test_damaged_weights_are_refused(changes: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    layer = weights()["conv"]
    save_weights({"conv": LayerWeights(**{**vars(layer), **changes})}, tmp_path / "w")
    with pytest.raises(RunError, match=f"cannot be read: .*{message}.*round the network again"):
        load_weights(tmp_path / "w")
    (tmp_path / "w").write_bytes(b"not safetensors")
    with pytest.raises(RunError, match="cannot be read"):
        load_weights(tmp_path / "w")


@pytest.mark.parametrize("bad", [{"method": "up"}, {"damping": -1.0}, {"damping": 1e7}, {"damping": float("nan")}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="rounding"):
        RoundingSettings(**bad)
