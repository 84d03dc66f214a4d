"""Bad input at the command line: one sentence, status 2, nothing left behind."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import hawq_tvm
from hawq_tvm.cli.app import main
from hawq_tvm.runs.rundir import MANIFEST

from .conftest import NETWORKS, QUICK, Run


def the_error(err: str) -> str:
    """The only line on standard error beside those of finished stages, which are set in."""
    (line,) = [line for line in err.splitlines() if not line.startswith("  ")]
    assert line.startswith("error: ")
    return line


def fails(cli: Run, folder: Path, *arguments: object, message: str) -> None:
    before = sorted(str(item) for item in folder.rglob("*"))
    status, out, err = cli(*arguments)
    assert status == 2
    assert out == ""
    assert message in the_error(err)
    assert sorted(str(item) for item in folder.rglob("*")) == before


BAD_RUNS: dict[str, tuple[Sequence[str], str]] = {
    "a budget that nothing meets": (
        ("resnet20", "--data", "digits", "--budget-size", "1kB"),
        "no bit configuration meets",
    ),
    "an empty calibration set": (("N:residual", "--data", "N:empty_samples"), "leaves no calibration samples"),
    "a calibration set with NaN": (("N:residual", "--data", "N:nan_samples", "--bits", "8"), "hold NaN or infinity"),
    "a dead layer": (("N:dead", "--data", "N:samples", "--bits", "8"), "layer 'conv2' is dead: all its weights are 0"),
    "samples of the wrong shape": (("N:residual", "--data", "N:wrong_samples"), "could not trace the network"),
    "an operator without integers": (("N:gated", "--data", "N:samples"), "operator 'aten.silu' in module '1'"),
    "an unknown network": (("resnet99",), "unknown network 'resnet99'"),
    "unknown data": (("resnet20", "--data", "mnist"), "unknown data 'mnist'"),
    "a factory that fails": (("N:broken", "--data", "N:samples"), "ValueError: no such configuration"),
    "a checkpoint that does not exist": (("resnet20", "--data", "digits", "--weights", "x.pt"), "x.pt does not exist"),
    "no shape for noise": (("N:residual", "--data", "random"), "give --input-shape"),
    "bits that are none": (("resnet20", "--bits", "w9a9"), "2 to 8"),
    "bits in other digits": (("resnet20", "--bits", "²"), "bits are written like w4a8"),
    "a budget that is none": (("resnet20", "--budget-size", "small"), "a budget on size_bytes"),
    "a pin that is none": (("resnet20", "--pin", "conv1"), "a pin is written NAME=w8a8"),
    "a layer pinned to two pairs": (
        ("resnet20", "--pin", "fc=w8a8", "--pin", "fc=w4a4"),
        "'fc' is pinned to w8a8 and to w4a4; pin it once",
    ),
    "a metric without labels": (
        ("N:residual", "--data", "N:samples", "--metric", "loss"),
        "the samples have no labels, and the loss is cross-entropy against labels; take --metric kl",
    ),
    "a metric that the network cannot have": (
        ("N:single", "--data", "N:samples", "--metric", "omega"),
        "the network has a single output, whose cross-entropy is 0 and has no second derivative",
    ),
    "a pin on no layer": (("resnet20", "--data", "digits", "--pin", "conv9=w8a8"), "pin for unknown layer 'conv9'"),
    "an unknown target": (("resnet20", "--target", "moon"), "unknown target 'moon'"),
    "an unknown observer": (("resnet20", "--data", "digits", "--observer", "mean"), "unknown observer 'mean'"),
    "an unknown solver": (("resnet20", "--data", "digits", "--solver", "mine"), "unknown solver 'mine'"),
    "an unknown option": (("resnet20", "--fast"), "No such option: --fast"),
    "a shape that is none": (("resnet20", "--input-shape", "3,4"), "--input-shape is written"),
    "a shape in other digits": (("resnet20", "--input-shape", "²x3"), "--input-shape is written"),
    "a mean that is none": (("resnet20", "--mean", "a,b"), "--mean takes one number or three"),
    "no network at all": ((), "Missing argument"),
    "no bits": (("resnet20", "--bits", ","), "--bits names no bits"),
    "a damping without bound": (("resnet20", "--rounding-damping", "1e300"), "less than or equal to 1000000"),
    "a seed below 0": (("resnet20", "--seed", "-1"), "greater than or equal to 0"),
    "bits and a budget": (
        ("resnet20", "--bits-file", "b.json", "--budget-size", "1"),
        "--bits-file takes bits as they are and budgets choose them",
    ),
    "no latency table": (
        ("resnet20", "--latency-table", "l.json"),
        "the latency table l.json does not exist",
    ),
    "no ranges": (("resnet20", "--ranges", "r.json"), "the ranges r.json: cannot be read"),
    "no scales": (("resnet20", "--scales", "s.json"), "the scales s.json: cannot be read"),
    "clips without ranges": (
        ("resnet20", "--clip-to-ranges"),
        "there are no ranges to clip to; give them with --ranges",
    ),
    "stored bits that are none": (("resnet20", "--stored-bits", "conv1"), "stored bits are written NAME=8"),
    "stored bits of no value": (
        ("resnet20", "--data", "digits", "--stored-bits", "conv9=4"),
        "there are stored bits for 'conv9', which this network does not have; did you mean conv1?",
    ),
    "too few residual bits": (
        ("resnet20", "--residual-bits", "1"),
        "--residual-bits': Input should be greater than or equal to 2",
    ),
    "too many threads": (("resnet20", "--threads", "4096"), "set TVM_NUM_THREADS=4096"),
    "no run directory's name": (("N:residual", "--data", "N:samples", "-o", "/"), "cannot be a run directory"),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_bad_runs(name: str, tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, message = BAD_RUNS[name]
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    named = [argument.replace("N:", f"{NETWORKS}:") for argument in arguments]
    extra = QUICK if named else ()
    before = set(work.rglob("*"))
    status, out, err = cli("run", *named, *extra)
    assert status == 2
    assert out == ""
    assert message in the_error(err)
    left = {path for path in set(work.rglob("*")) - before if path.name != "runs"}
    assert all(".partial" in str(path) for path in left), "nothing but finished stages, kept for the next start"


BAD_ALLOCATIONS: dict[str, tuple[Sequence[object], str]] = {
    "tied layers pinned apart": (
        ("--pin", "conv1=w4a8", "--pin", "project=w8a8"),
        "the layers conv1, project must have the same bits and are pinned to different ones (conv1=w4a8, project=w8a8)",
    ),
    "a layer pinned to two pairs": (("--pin", "fc=w4a8", "--pin", "fc=w8a8"), "'fc' is pinned to w4a8 and to w8a8"),
    "a budget that nothing meets": (("--budget-size", "1"), "no bit configuration meets the budget of 1 bytes"),
    "two budgets that nothing meets": (
        ("--budget-size", "1", "--budget-bops", "1"),
        " bytes; other budgets are out of reach too; raise the budget, allow fewer bits or pin fewer layers",
    ),
    "an empty front": (
        ("--pareto", "size,bops", "--budget-bops", "1"),
        "no bit configuration meets the budget of 1 BOPS",
    ),
    "a front over what is not known": (
        ("--pareto", "energy,size"),
        "a front over it needs it for every layer, and 'stem' has none at w8a8; profile with a source of energies",
    ),
    "a front over accuracy first": (
        ("--pareto", "accuracy,size"),
        "or over one of them and accuracy, written size,acc",
    ),
    "a front over one quantity": (("--pareto", "size,size"), "a front is over two of size, bops, latency, energy"),
    "a front over accuracy on code that is not trusted": (
        ("--pareto", "size,accuracy"),
        "networks.py, and that is not executed unasked; if you trust it, add --trust-code",
    ),
    "a metric that was not profiled": (
        ("--choose-by", "eigenvalue"),
        "was not profiled with eigenvalue; it has kl; profile it again with --metric kl,eigenvalue and the same --out",
    ),
    "bits that were not profiled": (("--bits", "3"), "the cost table has no entry for layer 'conv1' at [w3a3]"),
    "a name that is a path": (("--name", "../elsewhere", "--budget-size", "50%"), "an allocation is named by letters"),
}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of a network in which two layers read the same value."""
    path = tmp_path_factory.mktemp("runs") / "tied"
    arguments = (
        "profile",
        f"{NETWORKS}:residual",
        "--data",
        f"{NETWORKS}:samples",
        "--rounding",
        "nearest",
        "-o",
        path,
    )
    assert main([str(argument) for argument in arguments]) == 0
    return path


@pytest.mark.parametrize("name", BAD_ALLOCATIONS)
def test_bad_allocations_leave_the_run_as_it_was(name: str, tied: Path, cli: Run) -> None:
    arguments, message = BAD_ALLOCATIONS[name]
    before = {path: path.read_bytes() for path in tied.rglob("*") if path.is_file()}
    fails(cli, tied, "allocate", tied, *arguments, message=message)
    assert {path: path.read_bytes() for path in tied.rglob("*") if path.is_file()} == before


def test_a_latency_table_that_lacks_a_layer_or_a_pair(tied: Path, tmp_path: Path, cli: Run) -> None:
    """A layer is missed at once; a pair where a budget or a front asks for it, since there may be others to choose."""
    network = ("profile", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "--rounding", "nearest")
    layers = [row["name"] for row in json.loads((tied / "costs.json").read_text())["layers"]]
    table = {name: {"w4a4": 1.0, "w4a8": 2.0, "w8a8": 3.0} for name in layers}
    file = tmp_path / "table.json"
    file.write_text(json.dumps({name: row for name, row in table.items() if name != "conv2"}))
    command = (*network, "--latency-table", file, "-o", tmp_path / "run")
    status, out, err = cli(*command)
    assert (status, out) == (2, "") and "table.json has no layer 'conv2'; the layers are stem, " in the_error(err)
    assert not (tmp_path / "run").exists(), "what was captured is kept aside for the next start"
    del table["conv2"]["w4a4"]
    file.write_text(json.dumps(table))
    assert cli(*command)[0] == 0
    for asked in (("--budget-latency", "50%"), ("--pareto", "latency,size")):
        fails(cli, tmp_path, "allocate", tmp_path / "run", *asked, message="and 'conv2' has none at w4a4; measure it")


def test_a_checkpoint_that_does_not_fit(tmp_path: Path, cli: Run) -> None:
    import torch

    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "w.pt")
    fails(
        cli, tmp_path, "run", "resnet20", "--weights", tmp_path / "w.pt", "-o", tmp_path / "run",
        message="does not fit the network: it lacks 'bn1.weight'",
    )  # fmt: skip


def test_damaged_files_of_a_run(scratch: Path, cli: Run) -> None:
    for name in ("model.onnx", "model.llvm.so", "model.llvm.json", "float.safetensors"):
        data = (scratch / name).read_bytes()
        verb = "compile" if name == "float.safetensors" else "verify"
        (scratch / name).write_bytes(data[: len(data) // 2])
        fails(cli, scratch.parent, verb, scratch, message=f"{name} is corrupted")
        changed = bytearray(data)
        changed[len(data) // 3] ^= 1
        (scratch / name).write_bytes(changed)
        fails(cli, scratch.parent, verb, scratch, message=f"{name} is corrupted")
        (scratch / name).write_bytes(data)
    assert cli("verify", scratch, "--samples", "4")[0] == 0, "and whole again"
    (scratch / "model.llvm.json").write_text("{")
    assert cli("compile", scratch)[0] == 0, "the way out that the message names"
    assert cli("verify", scratch, "--samples", "4")[0] == 0


def test_runs_that_are_none(mixed: Path, scratch: Path, tmp_path: Path, cli: Run) -> None:
    for verb in ("allocate", "compile", "verify", "bench", "inspect"):
        fails(cli, tmp_path, verb, tmp_path / "nothing", message="does not exist; make one with hawq-tvm run")
    fails(cli, tmp_path, "verify", scratch, "--target", "llvm/portable", message="has no model.llvm-portable.so")
    fails(cli, tmp_path, "run", "resnet18", "--data", "digits", "-o", scratch, message="choose another --output")
    manifest = json.loads((scratch / MANIFEST).read_text())
    (scratch / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    fails(cli, tmp_path, "inspect", scratch, message=f"was made by hawq_tvm {hawq_tvm.__version__} in format 99")
    (tmp_path / "costs.json").write_text("{}")
    fails(cli, tmp_path, "allocate", tmp_path / "costs.json", message="costs.json: layers is missing")


def test_a_full_disk(tmp_path: Path) -> None:
    """No file may grow over 300 kB: the first large one fails as on a full disk, with the system's own error."""
    path = tmp_path / "run"
    command = [sys.executable, "-m", "hawq_tvm", "run", "resnet20", "--data", "digits", "--bits", "8", "-o", str(path)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )  # fmt: skip
    assert result.returncode == 2
    assert the_error(result.stderr).startswith("error: no room to write")
    assert "free some space" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_damaged_manifests(scratch: Path, cli: Run) -> None:
    manifest = json.loads((scratch / MANIFEST).read_text())
    for key, value, message in (
        ("settings", None, "the manifest's settings are damaged"),
        ("settings", {}, "the manifest's settings are damaged"),
        ("settings", {**manifest["settings"], "budget": 3}, "the manifest's settings are damaged"),
        ("identity", "resnet20", "manifest.json is corrupted"),
        ("data", {"spec": "digits", "options": {}}, "the manifest's data is damaged"),
    ):
        (scratch / MANIFEST).write_text(json.dumps({**manifest, key: value}))
        fails(cli, scratch.parent, "verify", scratch, message=message)
    del manifest["settings"]
    (scratch / MANIFEST).write_text(json.dumps(manifest))
    for verb in ("verify", "compile", "allocate"):
        fails(cli, scratch.parent, verb, scratch, message="the manifest's settings are damaged")


def test_damaged_tables(scratch: Path, cli: Run) -> None:
    ranges = json.loads((scratch / "ranges.json").read_text())
    for bad in (["0", "6"], [0], [float("nan"), 1], [1, 2], None):
        (scratch / "ranges.json").write_text(json.dumps({**ranges, "ranges": {**ranges["ranges"], "x": bad}}))
        status, _, err = cli("compile", scratch)
        assert status == 2
        assert "ranges.json" in err
    costs = json.loads((scratch / "costs.json").read_text())
    for bad in ("high", float("nan"), None):
        costs["layers"][3]["choices"]["w4a4"]["sensitivity"] = bad
        (scratch / "costs.json").write_text(json.dumps(costs))
        message = "costs.json: layers[3].choices.w4a4.sensitivity is "
        fails(cli, scratch.parent, "allocate", scratch, "--budget-size", "50%", message=message)


def test_a_bug_of_ours_is_one_sentence_and_a_status_of_its_own(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("hawq_tvm.cli.doctor.examine", fail)
    status, out, err = cli("doctor")
    assert (status, out) == (3, "")
    assert (
        err
        == "error: internal error, please report it: ZeroDivisionError: two lines; HAWQ_TVM_TRACEBACK=1 shows where\n"
    )
    monkeypatch.setenv("HAWQ_TVM_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])
