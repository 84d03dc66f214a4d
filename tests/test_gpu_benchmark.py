"""`benchmarks.gpu` from end to end: prepared here, measured on an emulated GPU with TVM's runtime alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, gpu_prepare
from benchmarks.gpu_peers import find_peers
from hawq_tvm.cli.app import main

from .conftest import NETWORKS, QUICK
from .emulated import needs_compiler
from .fake_cuda import use_fake_compiler

ROOT = Path(__file__).parent.parent
BATCHES = (1, 3)

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prepare` makes of one network, in a configuration of 4 and 8 bits."""
    folder = tmp_path_factory.mktemp("gpu")
    arguments = ("run", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "--budget-size", "50%", *QUICK)
    with pytest.MonkeyPatch.context() as patch:
        use_fake_compiler(patch)

        def run(*words: object) -> None:
            assert words[:4] == ("run", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples")
            assert main([*map(str, arguments), "--output", str(words[-1])]) == 0

        patch.setattr(gpu_prepare, "hawq_tvm", run)
        patch.setattr(gpu_prepare, "BITS", {"mixed": gpu_prepare.BITS["mixed"]})
        network = f"{NETWORKS}:residual={NETWORKS}:samples"
        command = ["prepare", str(folder / "prepared"), "--networks", network, "--batches", *map(str, BATCHES)]
        assert gpu.main([*command, "--targets", "nvidia/t4"]) == 0
    return folder / "prepared"


def measure(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `measure` in a process of its own, without PyTorch and without TVM's compiler."""
    absent = folder.parent / "absent"
    absent.mkdir(exist_ok=True)
    for package in ("torch", "onnx", "safetensors"):
        (absent / f"{package}.py").write_text(f"raise ImportError('there is no {package} on a device')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(absent), str(ROOT)))}
    command = [sys.executable, "-m", "benchmarks.gpu", "measure", str(folder), "--seconds", "1", *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_every_value_is_compared_and_every_call_timed(folder: Path) -> None:
    done = measure(folder, "--emulate")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("EMULATED: ")
    result: dict[str, Any] = json.loads((folder / gpu.RESULT).read_text())
    assert result["ok"]
    assert result["device"]["emulated"] and result["device"]["name"] == "Tesla T4 (emulated)"
    assert result["device"]["capability"] == "7.5"
    assert "torch" not in result["versions"]
    assert result["left_out"] == [find_peers(emulated=True)[1]]
    libraries = json.loads((folder / "contents.json").read_text())["libraries"]
    assert [row["library"] for row in result["correctness"]] == [item["library"] for item in libraries]
    for row, item in zip(result["correctness"], libraries, strict=True):
        assert row["mismatches"] == {} and row["code"] == "machine code, sm_75"
        with np.load(folder / item["expected"]) as expected:
            assert row["integers"] == item["batch"] * sum(array.size for array in expected.values())
        assert row["values"] == len(item["values"]) > 8
    assert [row["batch"] for row in result["latency"]] == list(BATCHES)
    for row in result["latency"]:
        assert [item["name"] for item in row["contenders"]] == [
            "mixed (nvidia/t4)",
            "mixed (nvidia/t4), 1 calls in a row",
        ]
        assert all(item["median_us"] > 0 for item in row["contenders"])
    for row in result["layers"]:
        calls = json.loads((folder / libraries[0]["library"]).with_suffix(".json").read_text())["calls"]
        assert set(row["us"]) == {"mixed (nvidia/t4)"}
        timed = row["us"]["mixed (nvidia/t4)"]
        assert {"stem", "conv1", "conv2", "project", "fc"} <= timed.keys()
        assert len(timed) >= len(calls) - 2 and min(timed.values()) > 0


def test_the_products_of_its_layers(folder: Path) -> None:
    (network,) = json.loads((folder / "contents.json").read_text())["networks"].values()
    assert network["products"] == {
        "stem": [144, 8, 27], "conv1": [9, 12, 72], "conv2": [9, 12, 108], "project": [9, 12, 8], "fc": [1, 5, 12],
    }  # fmt: skip


def test_one_wrong_integer_is_found(folder: Path) -> None:
    path = folder / "NETWORKS"
    (item, _) = json.loads((folder / "contents.json").read_text())["libraries"]
    path = folder / item["expected"]
    whole = path.read_bytes()
    with np.load(path) as file:
        values = dict(file)
    values[str(item["values"].index("conv2"))].flat[0] ^= 1
    np.savez_compressed(path, **values)
    try:
        done = measure(folder, "--emulate")
    finally:
        path.write_bytes(whole)
    assert done.returncode == 1, done.stderr
    result = json.loads((folder / gpu.RESULT).read_text())
    assert not result["ok"]
    assert [row["mismatches"] for row in result["correctness"]] == [{"conv2": 1}, {"conv2": 3}]
    assert result["latency"] == [], "what is wrong is not timed"


def test_without_a_gpu(folder: Path) -> None:
    nowhere = folder.parent / "nowhere"
    nowhere.mkdir()
    (nowhere / "libcuda.so.1").write_text("not a library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(nowhere))
        done = measure(folder)
    assert done.returncode == 1
    assert "error: " in done.stderr and "there is no driver here" in done.stderr
    assert done.stderr.endswith("; or prove the way through with --emulate\n")


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    for words in ((), ("--emulate",)):
        done = measure(tmp_path, *words)
        assert done.returncode == 1
        assert f"error: {tmp_path} holds nothing prepared (" in done.stderr


def test_why_peers_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    peers, why = find_peers(emulated=False)
    assert peers is None and why == f"PyTorch and the vendor's INT8: PyTorch {torch.__version__} sees no CUDA"
    monkeypatch.setitem(sys.modules, "torch", None)
    peers, why = find_peers(emulated=False)
    assert peers is None and why is not None and "PyTorch is not here (" in why
