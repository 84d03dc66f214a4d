"""What a user changes outside a run is noticed, and what a run directory names is not executed unasked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hawq_tvm
from hawq_tvm.core.errors import InfeasibleBudget, RunError
from hawq_tvm.runs.rundir import MANIFEST

from .conftest import NETWORKS, Run

LAYERS = """
import torch

def conv():
    torch.manual_seed({seed})
    return torch.nn.Conv2d(3, 8, 3)
"""
NET = """
from torch import nn
from layers import conv

def make():
    return nn.Sequential(conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
DATA = """
from pathlib import Path
import numpy as np

def make():
    Path(__file__).with_name("executed").touch()
    images = np.load(Path(__file__).with_name("x.npy"))
    return {"calibration": (images, np.zeros(len(images), int)), "evaluation": (images, np.zeros(len(images), int))}
"""


def samples(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((8, 3, 6, 6)).astype(np.float32)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A user's folder: a network that imports a module, samples that are loaded from an array."""
    (tmp_path / "layers.py").write_text(LAYERS.format(seed=0))
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "data.py").write_text(DATA)
    np.save(tmp_path / "x.npy", samples(0))
    return tmp_path


def run(folder: Path, *more: str) -> dict[str, Any]:
    """`hawq-tvm run` in a process of its own, since Python remembers modules that it has imported; the manifest."""
    arguments = ["run", "net.py:make", "--data", "data.py:make", "--bits", "8", "-o", "run", "--bench-seconds", "0.1"]
    command = [sys.executable, "-B", "-m", "hawq_tvm", *arguments, *more]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    manifest: dict[str, Any] = json.loads((folder / "run" / MANIFEST).read_text())
    return manifest


def test_the_network_and_the_samples_decide_what_is_done_again(users: Path) -> None:
    first = run(users)["stages"]
    assert run(users)["stages"] == first, "nothing changed, nothing is made again"
    (users / "layers.py").write_text(LAYERS.format(seed=1))
    second = run(users)["stages"]
    kept = {"allocate"}  # with one bit pair, bytes and BOPS are as they were
    assert {name for name in first if second[name] == first[name]} == kept
    np.save(users / "x.npy", samples(1))
    third = run(users)["stages"]
    assert {name for name in first if third[name] == second[name]} == {"capture", *kept}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose manifest names a Python file."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "data.py").write_text(DATA)
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((8, 3, 12, 12)).astype(np.float32))
    from hawq_tvm.cli.app import main

    arguments = [f"{NETWORKS}:residual", "--data", f"{folder}/data.py:make", "--bits", "8", "-o", f"{folder}/run"]
    assert main(["run", *arguments, "--bench-seconds", "0.1"]) == 0
    return folder / "run"


@pytest.mark.parametrize("verb", ["verify", "compile", "bench", "inspect"])
def test_a_run_directory_executes_no_python_of_its_own(verb: str, foreign: Path, cli: Run) -> None:
    marker = foreign.parent / "executed"
    marker.unlink(missing_ok=True)
    status, _, err = cli(verb, foreign, *(["--seconds", "0.1"] if verb == "bench" else []))
    assert status == 0
    assert not marker.exists()
    if verb in ("verify", "compile"):
        assert f"{foreign.parent}/data.py, which is not executed unasked" in err
        assert "--trust-code" in err
        assert cli(verb, foreign, "--trust-code")[0] == 0
        assert marker.exists()


@pytest.fixture
def unproven(foreign: Path, tmp_path: Path) -> Path:
    """A copy of that run without its proof, which a weaker one would not replace."""
    copy = Path(shutil.copytree(foreign, tmp_path / "run"))
    (copy / "verify.llvm.json").unlink()
    return copy


def test_load_executes_no_python_of_the_run_unless_it_may(foreign: Path, unproven: Path) -> None:
    marker = foreign.parent / "executed"
    marker.unlink(missing_ok=True)
    with pytest.warns(UserWarning, match="data.py, which is not executed unasked; if you trust it, pass trust_code"):
        network = hawq_tvm.load(unproven)
    assert network.accuracy.samples == 8
    with pytest.warns(UserWarning, match="verifying on its golden input alone"):
        assert network.verify(samples=4).samples == 1
    assert not marker.exists()
    hawq_tvm.load(foreign, trust_code=True)
    assert marker.exists()


def test_samples_given_to_load_are_used_whole(unproven: Path) -> None:
    network = hawq_tvm.load(unproven, data=np.zeros((6, 3, 12, 12), np.float32))
    assert network.verify().samples == 6
    with pytest.warns(UserWarning, match="compared 2 samples now, and the run keeps its report over 6 samples"):
        assert network.verify(samples=2).samples == 6


@pytest.mark.parametrize("spec", [["/x/d.py:make"], {"d.py:make": 1}, 3, True])
def test_a_spec_that_is_no_text_is_refused(spec: object, unproven: Path, cli: Run) -> None:
    manifest = json.loads((unproven / MANIFEST).read_text())
    manifest["data"]["spec"] = spec
    (unproven / MANIFEST).write_text(json.dumps(manifest))
    for verb in ("verify", "compile"):
        status, _, err = cli(verb, unproven)
        assert status == 2
        assert "the manifest's data is damaged (spec is a " in err
    with pytest.raises(RunError, match="the manifest's data is damaged"):
        hawq_tvm.load(unproven)


def test_accuracy_says_which_samples_it_was_measured_on(unproven: Path, cli: Run) -> None:
    (unproven.parent / "other.py").write_text("import numpy\n\ndef make():\n    return numpy.ones((12, 3, 12, 12))\n")
    named = f"{unproven.parent}/other.py:make"
    status, _, err = cli("compile", unproven, "--data", named)
    assert status == 0
    assert "one set of samples was named anew, and all of it is evaluated" in err
    summary = json.loads(cli("inspect", unproven, "--json")[1])
    assert summary["accuracy"]["data"] == named
    assert summary["accuracy"]["samples"] == 12, "nothing calibrates, so nothing is held out"
    assert summary["remarks"] == [summary["accuracy"]["note"]]
    assert f"of {named}" in (unproven / "report.html").read_text()


def test_threads_that_call_a_network_first_compile_it_once(foreign: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(foreign, tmp_path / "run"))
    (copy / "model.llvm.so").unlink()
    network = hawq_tvm.load(copy, data=np.zeros((6, 3, 12, 12), np.float32))
    x = np.ones((2, 3, 12, 12), np.float32)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: network(x), range(6)))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_compiling_without_the_samples_keeps_what_they_made(foreign: Path, cli: Run) -> None:
    before = json.loads((foreign / MANIFEST).read_text())["stages"]
    assert cli("compile", foreign)[0] == 0
    after = json.loads((foreign / MANIFEST).read_text())["stages"]
    assert after["integerize"] == before["integerize"]
    assert after["evaluate"] == before["evaluate"]


def test_budgets_out_of_reach_are_refused_before_any_work(tmp_path: Path, cli: Run) -> None:
    arguments = ["run", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "-o", tmp_path / "run"]
    status, _, err = cli(*arguments, "--budget-size", "6.5")
    assert status == 2
    assert "no bit configuration meets the budget of 6.5 bytes (did you mean 6.5kB?)" in err
    assert "calibrating" not in err
    stages = json.loads((tmp_path / "run.partial" / MANIFEST).read_text())["stages"]
    assert set(stages) == {"capture"}
    status, _, err = cli(*arguments, "--bits", "8", "--budget-size", "6.5")
    assert (status, "calibrating" in err) == (2, False), "nor with one bit pair to choose from"
    with pytest.raises(InfeasibleBudget, match="the nearest is"):
        hawq_tvm.quantize("resnet20", "digits", budget=hawq_tvm.Budget(bops=3))


def test_one_line_a_stage_where_there_is_no_terminal(tmp_path: Path, cli: Run) -> None:
    status, out, err = cli(
        "profile", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "--bits", "8", "-o", tmp_path / "run"
    )
    assert (status, "calibrating" in out) == (0, False)
    lines = [line for line in err.splitlines() if line.startswith("  ")]
    assert [line.split("  ")[1] for line in lines] == [
        "loading network and samples", "capturing the network", "calibrating ranges", "counting bytes and BOPS",
    ]  # fmt: skip
    assert all(line.endswith(" s") for line in lines)


def test_progress_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    options = hawq_tvm.DataOptions(calibration_samples=8, evaluation_samples=8)
    hawq_tvm.quantize("resnet20", "digits", bits=8, data_options=options, progress=True)
    err = capsys.readouterr().err
    assert "  calibrating ranges  " in err
    hawq_tvm.quantize("resnet20", "digits", bits=8, data_options=options)
    assert capsys.readouterr().err == ""
