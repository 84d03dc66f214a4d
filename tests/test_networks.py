"""Whole networks at their own size, from the command line to verified libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hawq_tvm.cli.app import main

SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Public images and checkpoints for measuring, beside the repository where they are at hand; not part of it."""


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert main(["run", *map(str, arguments), "--json", "--bench-seconds", "0.1"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zoo_networks_at_224(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(
        capsys, name, "--data", "random", "--budget-size", "60%", "-o", tmp_path / "run", "--calibration-samples", 4,
        "--evaluation-samples", 2, "--hessian-samples", 2, "--hessian-probes", 2, "--bits", "4,8",
        "--rounding", "nearest", "--no-scale-search",  # exactness is looked at here, and random weights gain nothing
    )  # fmt: skip
    report = summary["verification"]["llvm"]  # type: ignore[index]
    assert report["mismatches"] == []
    assert report["samples"] == 2
    assert report["layers"] >= {"resnet18": 24, "resnet50": 57}[name]
    totals = summary["totals"]
    assert totals["size_bytes"] <= totals["limits"]["size_bytes"]  # type: ignore[index]
    assert {layer["bits"] for layer in summary["layers"]} == {"w4a4", "w8a8"}  # type: ignore[index, attr-defined]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared ImageNet images and checkpoints are not at hand")
@pytest.mark.parametrize(("name", "normal"), [("mobilenet_v2", "0.5"), ("squeezenet1_1", None)])
@pytest.mark.parametrize("bits", [("--bits", "8"), ("--budget-size", "50%")])
def test_real_imagenet_networks(
    name: str, normal: str | None, bits: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = () if normal is None else ("--mean", normal, "--std", normal)
    summary = run(
        capsys, f"{SHARED / 'networks.py'}:{name}", "--weights", SHARED / f"{name}_imagenet.safetensors",
        "--data", f"imagefolder:{SHARED / 'imagenet_sample.zip'}", "--calibration-samples", 20,
        "--evaluation-samples", 40, "--hessian-samples", 4, "--hessian-probes", 4, "--verify-samples", 4,
        "-o", tmp_path / "run", *images, *bits,
    )  # fmt: skip
    assert summary["verification"]["llvm"]["mismatches"] == []  # type: ignore[index]
    accuracy = summary["accuracy"]
    assert accuracy["float_top1"] > 0.5  # type: ignore[index]
    if bits[0] == "--bits":
        assert accuracy["difference"] >= -0.1  # type: ignore[index]
