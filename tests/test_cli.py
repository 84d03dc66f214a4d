"""The command line as users type it; the demo's network is run once a module and looked at from many sides."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hawq_tvm.artifacts import Artifacts
from hawq_tvm.cli import main
from hawq_tvm.golden import read_golden
from hawq_tvm.hashing import file_sha256
from hawq_tvm.lower import build_library, lower
from hawq_tvm.ops import Conv2d
from hawq_tvm.rundir import MANIFEST, open_run
from hawq_tvm.targets import TARGETS

HERE = Path(__file__).parent
NETWORKS = HERE / "networks.py"
QUICK = ("--hessian-samples", "8", "--hessian-probes", "4", "--bench-seconds", "0.2")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line; returns status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network at mixed 4/8 bits, profiled with latencies."""
    path = tmp_path_factory.mktemp("runs") / "mixed"
    arguments = ["run", "resnet20", "--data", "digits", "--budget-size", "50%", "--latency", "-o", path, *QUICK]
    assert main([str(argument) for argument in arguments]) == 0
    return path


@pytest.fixture
def scratch(mixed: Path, tmp_path: Path) -> Path:
    """A copy of that run to change."""
    return Path(shutil.copytree(mixed, tmp_path / "run"))


def bits_of(path: Path) -> dict[str, str]:
    return json.loads((path / "bits.json").read_text())["bits"]  # type: ignore[no-any-return]


def test_a_run_holds_everything(mixed: Path, cli: Run) -> None:
    names = {item.name for item in mixed.iterdir()}
    assert {
        "bits.json", "costs.json", "model.onnx", "model.llvm.so", "golden", "manifest.json", "report.html",
        "bounds.json",
    } <= names  # fmt: skip
    assert not any(name.startswith(".") for name in names)
    assert sorted(item.name for item in mixed.parent.iterdir()) == ["mixed"]
    golden = read_golden(open_run(mixed))
    assert golden["x"].shape == (1, 3, 16, 16)
    assert set(golden) == set(Artifacts(open_run(mixed)).graph.types)
    page = (mixed / "report.html").read_text()
    assert "0 mismatches" in page
    assert "layer3.2.conv2" in page
    bounds = json.loads((mixed / "bounds.json").read_text())["layers"]
    assert all(0 < layer["accumulator"] < 2**31 and layer["dyadic_sum"] < 2**63 for layer in bounds.values())


@pytest.mark.parametrize("bits", ["8", "4"])
def test_int8_and_int4_runs(bits: str, tmp_path: Path, cli: Run) -> None:
    status, out, err = cli(
        "run", "resnet20", "--data", "digits", "--bits", bits, "-o", tmp_path / "run", "--json", *QUICK
    )
    assert (status, err) == (0, "")
    summary = json.loads(out)
    assert summary["verification"]["llvm"]["mismatches"] == []
    assert summary["verification"]["llvm"]["executors"] == ["numpy", "pytorch", "onnxruntime", "tvm"]
    middle = {layer["bits"] for layer in summary["layers"][1:-1]}
    assert middle == {f"w{bits}a{bits}"}
    assert summary["layers"][0]["bits"] == summary["layers"][-1]["bits"] == "w8a8"
    accuracy = summary["accuracy"]
    assert accuracy["samples"] == 540
    assert accuracy["float_top1"] > 0.98
    if bits == "8":
        assert abs(accuracy["integer_top1"] - accuracy["float_top1"]) <= 0.004


def test_the_mixed_run_uses_both(mixed: Path) -> None:
    assert {"w4a4", "w8a8"} == set(bits_of(mixed).values())


@pytest.mark.parametrize(
    "budgets",
    [
        {"size": "40%"},
        {"bops": "30%"},
        {"latency": "60%"},
        {"size": "70%", "bops": "50%", "latency": "80%"},
    ],
)
def test_budgets_are_met_by_the_compiled_network(budgets: dict[str, str], scratch: Path, cli: Run) -> None:
    options = [part for name, value in budgets.items() for part in (f"--budget-{name}", value)]
    assert cli("allocate", scratch, *options)[0] == 0
    assert cli("compile", scratch)[0] == 0
    status, out, _ = cli("inspect", scratch, "--json")
    assert status == 0
    totals = json.loads(out)["totals"]
    names = {"size": "size_bytes", "bops": "bops", "latency": "latency_us"}
    assert set(totals["limits"]) == {names[name] for name in budgets}
    for cost, limit in totals["limits"].items():
        assert 0 < totals[cost] <= limit
    costs = json.loads((scratch / "costs.json").read_text())
    assert "measured on" in costs["sources"]["latency_us"]
    assert "interleaved rounds" in costs["sources"]["latency_us"]


def test_a_latency_table_is_used_and_named(mixed: Path, tmp_path: Path, cli: Run) -> None:
    layers = list(bits_of(mixed))
    table = tmp_path / "latency.json"
    table.write_text(json.dumps({name: {"w4a4": 1.0, "w8a8": 2.0} for name in layers}))
    path = tmp_path / "run"
    status, out, _ = cli(
        "run", "resnet20", "--data", "digits", "--latency-table", table, "--budget-latency", "50%", "-o", path,
        "--json", *QUICK,
    )  # fmt: skip
    assert status == 0
    summary = json.loads(out)
    assert summary["sources"]["latency_us"] == f"given by {table}"
    total, limit = summary["totals"]["latency_us"], summary["totals"]["limits"]["latency_us"]
    assert len(layers) + 2 <= total <= limit < 2 * len(layers), "4 bits are faster here, and 8 everywhere too slow"
    table.write_text(json.dumps({name: {"w4a4": 1.0, "w8a8": 2.0} for name in layers[1:]}))
    status, _, err = cli(
        "profile", "resnet20", "--data", "digits", "--latency-table", table, "-o", tmp_path / "p", *QUICK[:4]
    )
    assert status == 2
    assert "has no layer 'conv1'" in err


def test_a_second_start_repeats_nothing(scratch: Path, cli: Run) -> None:
    before = json.loads((scratch / MANIFEST).read_text())["stages"]
    arguments = ["run", "resnet20", "--data", "digits", "--budget-size", "50%", "--latency", "-o", scratch, *QUICK]
    status, out, _ = cli(*arguments)
    assert status == 0
    assert "0 mismatches" in out
    assert json.loads((scratch / MANIFEST).read_text())["stages"] == before
    cli("run", "resnet20", "--data", "digits", "--budget-size", "20%", "--latency", "-o", scratch, *QUICK)
    after = json.loads((scratch / MANIFEST).read_text())["stages"]
    kept = {name for name in before if before[name] == after[name]}
    assert kept == {"capture", "calibrate", "profile", "cost"}


def test_an_edited_bit_configuration_is_compiled_as_it_stands(scratch: Path, cli: Run) -> None:
    table = json.loads((scratch / "bits.json").read_text())
    table["bits"]["layer2.1.conv1"] = "w3a5"
    (scratch / "bits.json").write_text(json.dumps(table))
    status, _, err = cli("compile", scratch)
    assert status == 0
    assert "was edited by hand" in err
    layers = {layer["name"]: layer for layer in json.loads(cli("inspect", scratch, "--json")[1])["layers"]}
    assert layers["layer2.1.conv1"]["bits"] == "w3a5"
    assert cli("verify", scratch, "--samples", "16")[0] == 0
    (scratch / "bits.json").write_text(json.dumps({"bits": {"conv1": "w8a8"}}))
    status, _, err = cli("compile", scratch)
    assert status == 2
    assert "no bits for layer 'layer1.0.conv1'" in err


def test_a_network_compiled_anew_is_not_called_verified(scratch: Path, cli: Run) -> None:
    table = json.loads((scratch / "bits.json").read_text())
    table["bits"]["layer2.1.conv1"] = "w2a2"
    (scratch / "bits.json").write_text(json.dumps(table))
    before = json.loads(cli("inspect", scratch, "--json")[1])
    assert any("hawq-tvm compile builds it anew" in note for note in before["notes"])
    assert before["totals"]["limits"] == {}, "those of other bits"
    assert before["verification"], "of the network that is still there"
    _, _, err = cli("verify", scratch, "--samples", "4")
    assert "were changed after it was compiled" in err
    assert cli("compile", scratch)[0] == 0
    after = json.loads(cli("inspect", scratch, "--json")[1])
    assert after["verification"] == after["benchmark"] == {}
    assert after["notes"] == ["target llvm is not verified; hawq-tvm verify compares every layer"]
    assert after["accuracy"] != before["accuracy"], "measured anew"
    assert "0 mismatches" not in (scratch / "report.html").read_text()
    assert "is not verified" in cli("inspect", scratch)[1]
    assert cli("verify", scratch, "--samples", "4")[0] == 0
    assert json.loads(cli("inspect", scratch, "--json")[1])["notes"] == []


def test_a_library_of_another_network_is_not_used(scratch: Path, cli: Run) -> None:
    assert cli("compile", scratch, "--target", "llvm/portable")[0] == 0
    assert cli("allocate", scratch, "--budget-size", "0%")[0] == 0
    assert cli("compile", scratch)[0] == 0
    for verb in ("verify", "bench"):
        status, _, err = cli(verb, scratch, "--target", "llvm/portable")
        assert status == 2
        assert "model.llvm-portable.so was made from another model.onnx" in err.replace(".json", ".so")


def test_options_of_one_call_do_not_stick(scratch: Path, cli: Run) -> None:
    settings = json.loads((scratch / MANIFEST).read_text())["settings"]
    assert "4 samples" in cli("verify", scratch, "--samples", "4")[1]
    assert cli("bench", scratch, "--seconds", "0.1", "--threads", "1")[0] == 0
    assert cli("allocate", scratch, "--bits", "4", "--solver", "highs")[0] == 0
    assert json.loads((scratch / MANIFEST).read_text())["settings"] == settings
    assert "256 samples" in cli("verify", scratch)[1]


def test_allocate_takes_what_was_profiled_unless_told_otherwise(tmp_path: Path, cli: Run) -> None:
    path = tmp_path / "run"
    pins = ("--pin", "conv2=w8a8", "--no-pin-ends")
    assert cli(
        "profile", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", *pins, "-o", path, *QUICK[:4]
    )[0] == 0  # fmt: skip
    bits = json.loads(cli("allocate", path, "--budget-size", "0%", "--json")[1])["bits"]
    assert (bits["conv2"], bits["stem"], bits["fc"]) == ("w8a8", "w4a4", "w4a4")
    bits = json.loads(cli("allocate", path, "--budget-size", "0%", "--pin-ends", "--pin", "conv1=w8a8", "--json")[1])[
        "bits"
    ]
    assert (bits["conv2"], bits["stem"], bits["conv1"]) == ("w4a4", "w8a8", "w8a8")


def test_the_only_library_is_the_one_that_is_meant(scratch: Path, cli: Run) -> None:
    assert cli("compile", scratch, "--target", "llvm/portable", "--batch", "3")[0] == 0
    (scratch / "model.llvm.so").unlink()
    assert cli("verify", scratch, "--samples", "4")[0] == 0
    status, out, _ = cli("bench", scratch, "--seconds", "0.1")
    assert status == 0
    assert "batch 3, target llvm/portable" in out
    assert cli("compile", scratch, "--target", "llvm/portable")[1].count("batch 3") == 1, "a batch stays as it was"


def test_a_run_that_cannot_be_written_is_still_verified(
    scratch: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (scratch / MANIFEST).read_bytes()
    monkeypatch.setattr("hawq_tvm.commands.is_writable", lambda path: False)
    status, out, err = cli("verify", scratch, "--samples", "4")
    assert status == 0
    assert "0 mismatches" in out
    assert "the result is not kept" in err
    assert (scratch / MANIFEST).read_bytes() == before


def test_golden_tensors_are_held_to_what_the_network_computes(scratch: Path, cli: Run) -> None:
    file = scratch / "golden" / "005.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "golden/005.npy is corrupted" in cli("verify", scratch, "--samples", "4")[2]
    manifest = json.loads((scratch / MANIFEST).read_text())
    manifest["stages"]["integerize"]["files"]["golden/005.npy"] = file_sha256(file)
    (scratch / MANIFEST).write_text(json.dumps(manifest))
    assert "golden/ does not hold what layer '" in cli("verify", scratch, "--samples", "4")[2]


def test_samples_are_found_from_any_directory(
    mixed: Path, tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE)
    assert cli(
        "run", "networks.py:residual", "--data", "networks.py:samples", "--bits", "8", "-o", tmp_path / "run", *QUICK
    )[0] == 0  # fmt: skip
    monkeypatch.chdir(tmp_path)
    status, out, err = cli("verify", "run")
    assert (status, err) == (0, "")
    assert "8 samples" in out


def test_bits_can_be_given(scratch: Path, tmp_path: Path, cli: Run) -> None:
    given = dict.fromkeys(bits_of(scratch), "w5a6")
    (tmp_path / "bits.json").write_text(json.dumps(given))
    status, out, _ = cli(
        "run", "resnet20", "--data", "digits", "--bits-file", tmp_path / "bits.json", "-o", tmp_path / "given",
        "--json", *QUICK,
    )  # fmt: skip
    assert status == 0
    assert {layer["bits"] for layer in json.loads(out)["layers"]} == {"w5a6"}


def test_verify_exits_1_and_names_the_layer_where_the_library_differs(scratch: Path, cli: Run) -> None:
    """A library of other weights under hashes that fit: only comparing integers can tell."""
    graph = Artifacts(open_run(scratch)).graph
    op = graph.node("layer2.0.conv2").op
    assert isinstance(op, Conv2d)
    weight = op.weight.copy()
    weight[0, 0, 0, 0] ^= 1
    from dataclasses import replace

    build_library(lower(graph.replace_node("layer2.0.conv2", op=replace(op, weight=weight)), TARGETS["llvm"]),
                  scratch / "model.llvm.so")  # fmt: skip
    manifest = json.loads((scratch / MANIFEST).read_text())
    for name in ("model.llvm.so", "model.llvm.json"):
        manifest["stages"]["compile llvm"]["files"][name] = file_sha256(scratch / name)
    (scratch / MANIFEST).write_text(json.dumps(manifest))
    status, out, _ = cli("verify", scratch, "--samples", "64")
    assert status == 1
    assert "layer 'layer2.0.conv2' (conv2d)" in out
    assert "tvm is alone" in out


def test_each_verb_alone(tmp_path: Path, cli: Run) -> None:
    """profile, allocate, compile, verify, bench, inspect, one after the other on a user's own file."""
    path = tmp_path / "run"
    data = f"{NETWORKS}:samples"
    status, out, _ = cli("profile", f"{NETWORKS}:residual", "--data", data, "-o", path, *QUICK[:4])
    assert status == 0
    assert "conv2" in out
    assert cli("inspect", path)[0] == 2, "there is nothing to inspect yet"
    status, out, _ = cli("allocate", path, "--budget-bops", "40%", "--json")
    assert status == 0
    assert json.loads(out)["costs"]["bops"] <= json.loads(out)["limits"]["bops"]
    status, out, _ = cli("compile", path, "--target", "llvm/portable", "--batch", "2")
    assert status == 0
    assert "model.llvm-portable.so" in out
    status, out, _ = cli("verify", path, "--target", "llvm/portable")
    assert status == 0
    assert "0 mismatches over" in out
    assert "8 samples" in out
    status, out, _ = cli("bench", path, "--target", "llvm/portable", "--seconds", "0.1", "--threads", "1", "--layers")
    assert status == 0
    assert "1 threads, batch 2, target llvm/portable" in out
    assert "conv2d_x8w" in out
    status, out, _ = cli("inspect", path)
    assert status == 0
    assert "bit operations" in out
    assert "met" in out
    status, out, _ = cli("inspect", path, "--graph")
    assert out.startswith("residual(x: s8[3,12,12]) -> fc")


def test_allocating_from_a_bare_cost_table(mixed: Path, cli: Run) -> None:
    status, out, _ = cli("allocate", mixed / "costs.json", "--budget-size", "50%", "--json")
    assert status == 0
    assert json.loads(out)["bits"] == bits_of(mixed)


def test_inspect_prints_a_table_and_the_graph(mixed: Path, cli: Run) -> None:
    _, out, _ = cli("inspect", mixed)
    assert "layer3.2.conv2" in out
    assert "budget" in out
    assert cli("inspect", mixed, "--graph")[1].startswith("resnet20(x: s8[3,16,16]) -> fc")


def test_bench_prints_peers(mixed: Path, scratch: Path, cli: Run) -> None:
    status, out, _ = cli("bench", scratch, "--seconds", "0.2", "--json")
    assert status == 0
    report = json.loads(out)
    assert [item["name"] for item in report["contenders"]] == [
        "hawq_tvm", "ONNX Runtime fp32", "PyTorch fp32", "ONNX Runtime on model.onnx",
    ]  # fmt: skip
    assert all(item["p10_us"] <= item["median_us"] <= item["p90_us"] for item in report["contenders"])
    assert report["machine"]


def test_doctor(cli: Run) -> None:
    status, out, _ = cli("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert status == 0
    assert {"CPU", "TVM", "C compiler", "solver CBC", "CUDA compiler nvcc", "NVIDIA GPU"} <= set(checks)
    assert all(check["ok"] for check in checks.values() if check["needed"])
    assert "ok  TVM" in cli("doctor")[1]


def test_doctor_says_what_is_missing(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hawq_tvm.host.find_c_compiler", lambda: None)
    status, out, _ = cli("doctor")
    assert status == 2
    assert "MISSING  C compiler" in out
    assert "apt install g++" in out


# bad input: one sentence, status 2, nothing left behind


def fails(cli: Run, folder: Path, *arguments: object, message: str) -> None:
    before = sorted(str(item) for item in folder.rglob("*"))
    status, out, err = cli(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, "one line"
    assert "Traceback" not in err
    assert message in err
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
    "a budget that is none": (("resnet20", "--budget-size", "small"), "a budget on size_bytes"),
    "a pin that is none": (("resnet20", "--pin", "conv1"), "a pin is written NAME=w8a8"),
    "a pin on no layer": (("resnet20", "--data", "digits", "--pin", "conv9=w8a8"), "pin for unknown layer 'conv9'"),
    "an unknown target": (("resnet20", "--target", "moon"), "unknown target 'moon'"),
    "an unknown observer": (("resnet20", "--data", "digits", "--observer", "mean"), "unknown observer 'mean'"),
    "an unknown solver": (("resnet20", "--data", "digits", "--solver", "mine"), "unknown solver 'mine'"),
    "an unknown option": (("resnet20", "--fast"), "No such option: --fast"),
    "a shape that is none": (("resnet20", "--input-shape", "3,4"), "--input-shape is written"),
    "a mean that is none": (("resnet20", "--mean", "a,b"), "--mean takes one number or three"),
    "no network at all": ((), "Missing argument"),
    "no bits": (("resnet20", "--bits", ","), "--bits names no bits"),
    "a seed below 0": (("resnet20", "--seed", "-1"), "greater than or equal to 0"),
    "bits and a budget": (
        ("resnet20", "--bits-file", "b.json", "--budget-size", "1"),
        "--bits-file takes bits as they are and budgets choose them",
    ),
    "no latency table": (("resnet20", "--latency-table", "l.json"), "the latency table l.json cannot be read"),
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
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    left = {path for path in set(work.rglob("*")) - before if path.name != "runs"}
    assert all(".partial" in str(path) for path in left), "nothing but finished stages, kept for the next start"


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


def test_runs_that_are_none(mixed: Path, scratch: Path, tmp_path: Path, cli: Run) -> None:
    for verb in ("allocate", "compile", "verify", "bench", "inspect"):
        fails(cli, tmp_path, verb, tmp_path / "nothing", message="does not exist; make one with hawq-tvm run")
    fails(cli, tmp_path, "verify", scratch, "--target", "llvm/portable", message="has no model.llvm-portable.so")
    fails(cli, tmp_path, "run", "resnet18", "--data", "digits", "-o", scratch, message="choose another --output")
    manifest = json.loads((scratch / MANIFEST).read_text())
    (scratch / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    fails(cli, tmp_path, "inspect", scratch, message="was made by hawq_tvm 0.1.0 in format 99")
    (tmp_path / "costs.json").write_text("{}")
    fails(cli, tmp_path, "allocate", tmp_path / "costs.json", message="not a cost table")


def test_a_full_disk(tmp_path: Path) -> None:
    """No file may grow over 300 kB: the first large one fails as on a full disk, with the system's own error."""
    path = tmp_path / "run"
    command = [sys.executable, "-m", "hawq_tvm", "run", "resnet20", "--data", "digits", "--bits", "8", "-o", str(path)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("error: no room to write")
    assert "free some space" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from hawq_tvm.pipeline import Pipeline

    arguments = ["run", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "-o", tmp_path / "run", *QUICK]

    def interrupt(self: Any, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "verify", interrupt)
        status, _, err = cli(*arguments)
    assert status == 130
    assert "finished stages are kept" in err
    assert [item.name for item in tmp_path.iterdir()] == ["run.partial"]
    done = json.loads((tmp_path / "run.partial" / MANIFEST).read_text())["stages"]
    assert cli(*arguments)[0] == 0
    assert [item.name for item in tmp_path.iterdir()] == ["run"]
    finished = json.loads((tmp_path / "run" / MANIFEST).read_text())["stages"]
    assert {name: finished[name] for name in done} == done


def test_damaged_manifests(scratch: Path, cli: Run) -> None:
    manifest = json.loads((scratch / MANIFEST).read_text())
    for key, value, message in (
        ("settings", {}, "the manifest's settings are damaged"),
        ("settings", {**manifest["settings"], "budget": 3}, "the manifest's settings are damaged"),
        ("identity", "resnet20", "manifest.json is corrupted"),
        ("data", {"spec": "digits", "options": {}}, "the manifest's data is damaged"),
    ):
        (scratch / MANIFEST).write_text(json.dumps({**manifest, key: value}))
        fails(cli, scratch.parent, "verify", scratch, message=message)


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
        message = f"the cost table's layer '{costs['layers'][3]['name']}': sensitivity must be a finite number"
        fails(cli, scratch.parent, "allocate", scratch, "--budget-size", "50%", message=message)


def test_a_bug_of_ours_is_one_sentence_and_a_status_of_its_own(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("hawq_tvm.doctor.examine", fail)
    status, out, err = cli("doctor")
    assert (status, out) == (3, "")
    assert (
        err
        == "error: internal error, please report it: ZeroDivisionError: two lines; HAWQ_TVM_TRACEBACK=1 shows where\n"
    )
    monkeypatch.setenv("HAWQ_TVM_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_version_and_no_arguments(cli: Run) -> None:
    import hawq_tvm

    assert cli("--version") == (0, f"hawq_tvm {hawq_tvm.__version__}\n", "")
    status, out, err = cli()
    assert status == 2
    assert "verify" in out
    assert err == ""


def test_help_and_bad_options_load_neither_torch_nor_tvm() -> None:
    script = (
        "import sys; from hawq_tvm.cli import main\n"
        "assert main(['--help']) == 0 and main(['run', '--help']) == 0 and main(['run', 'x', '--nope']) == 2\n"
        "assert main(['run', 'resnet20', '--bits', 'w9a9']) == 2\n"
        "assert not {'torch', 'tvm', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_script_is_installed_and_quiet_without_a_terminal(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("hawq-tvm")
    arguments = [
        "profile",
        f"{NETWORKS}:residual",
        "--data",
        f"{NETWORKS}:samples",
        "-o",
        str(tmp_path / "run"),
        "--json",
    ]
    result = subprocess.run(
        [str(script), *arguments, *QUICK[:4]], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert json.loads(result.stdout)["layers"][0]["name"] == "stem"
