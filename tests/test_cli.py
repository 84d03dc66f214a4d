"""The command line as users type it; the demo's network is run once a module and looked at from many sides."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.info import FORMAT
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.golden import read_golden
from hawq_tvm.runs.rundir import MANIFEST, open_run
from hawq_tvm.settings import DEFAULT_METRIC

from .conftest import HERE, NETWORKS, QUICK, Run


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
    assert status == 0, err
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
    assert {"w4a8", "w8a8"} == set(bits_of(mixed).values()), "a budget on bytes leaves activations their 8 bits"


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
        "--bits", "4,8", "--json", *QUICK,
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
    assert kept == {"capture", "calibrate", f"profile {DEFAULT_METRIC}", "cost"}


def test_options_of_a_second_start_count(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--data", f"{NETWORKS}:samples", "-o", tmp_path / "run", *QUICK]
    assert cli("run", f"{NETWORKS}:residual", *arguments)[0] == 0
    monkeypatch.chdir(NETWORKS.parent)
    assert cli("run", f"{NETWORKS.name}:residual", *arguments, "--batch", "4")[0] == 0, "the same file"
    assert json.loads((tmp_path / "run" / "model.llvm.json").read_text())["batch"] == 4
    monkeypatch.chdir(tmp_path)
    shutil.copy(NETWORKS, tmp_path)
    status, _, err = cli("run", f"{NETWORKS.name}:residual", *arguments)
    assert (status, "choose another --output" in err) == (2, True), "another file of the same name"


def test_an_edited_bit_configuration_is_compiled_as_it_stands(scratch: Path, cli: Run) -> None:
    table = json.loads((scratch / "bits.json").read_text())
    table["bits"]["layer2.1.conv1"] = "w3a5"
    (scratch / "bits.json").write_text(json.dumps(table))
    status, _, err = cli("allocate", scratch, "--budget-size", "50%")
    assert (status, "was edited by hand" in err) == (2, True)
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
    _, out, err = cli("verify", scratch, "--samples", "4")
    assert "256 samples" in out, "the stronger proof is kept"
    assert "compared 4 samples now, and the run keeps its report over 256 samples" in err
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
    assert (bits["conv2"], bits["stem"], bits["fc"]) == ("w8a8", "w4a8", "w4a8")
    bits = json.loads(cli("allocate", path, "--budget-size", "0%", "--pin-ends", "--pin", "conv1=w8a8", "--json")[1])[
        "bits"
    ]
    assert (bits["conv2"], bits["stem"], bits["conv1"]) == ("w4a8", "w8a8", "w8a8")


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
    monkeypatch.setattr("hawq_tvm.cli.commands.is_writable", lambda path: False)
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
    status, out, err = cli("verify", "run", "--trust-code")
    assert status == 0
    assert "not at hand" not in err
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
    status, out, _ = cli("compile", path, "--target", "llvm/portable", "--batch", "2", "--trust-code")
    assert status == 0
    assert "model.llvm-portable.so" in out
    status, out, _ = cli("verify", path, "--target", "llvm/portable", "--trust-code")
    assert status == 0
    assert "0 mismatches over" in out
    assert "8 samples" in out
    status, out, _ = cli("bench", path, "--target", "llvm/portable", "--seconds", "0.1", "--threads", "1", "--layers")
    assert status == 0
    assert "1 thread, batch 2, target llvm/portable" in out
    assert "conv2d_x8w" in out
    assert "us at least" in out
    assert "measured with 1 thread: peak of" in out
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
    status, out, _ = cli("bench", scratch, "--seconds", "0.2", "--layers", "--json")
    assert status == 0
    report = json.loads(out)
    bounds = {call["name"]: call for call in report["roofline"]["calls"]}
    assert list(bounds) == list(report["layers_us"])
    assert all(call["us"] == report["layers_us"][name] for name, call in bounds.items())
    assert [item["name"] for item in report["contenders"]] == [
        "hawq_tvm", "ONNX Runtime fp32", "PyTorch fp32", "ONNX Runtime on model.onnx",
    ]  # fmt: skip
    assert all(item["p10_us"] <= item["median_us"] <= item["p90_us"] for item in report["contenders"])
    assert report["machine"]


def test_doctor(cli: Run) -> None:
    status, out, _ = cli("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert status == 0
    assert {"CPU", "TVM", "C compiler", "solver CBC", "CUDA compiler", "NVIDIA GPU"} <= set(checks)
    assert all(check["ok"] for check in checks.values() if check["needed"])
    assert "ok  TVM" in cli("doctor")[1]


def test_doctor_says_what_is_missing(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hawq_tvm.backends.tvm.host.find_c_compiler", lambda *_: None)
    status, out, _ = cli("doctor")
    assert status == 2
    assert "MISSING  C compiler" in out
    assert "apt install g++" in out


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "-o", tmp_path / "run", *QUICK]

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hawq_tvm.stages.verify.check_golden", interrupt)
        status, _, err = cli(*arguments)
    assert status == 130
    assert "finished stages are kept" in err
    assert [item.name for item in tmp_path.iterdir()] == ["run.partial"]
    done = json.loads((tmp_path / "run.partial" / MANIFEST).read_text())["stages"]
    assert cli(*arguments)[0] == 0
    assert [item.name for item in tmp_path.iterdir()] == ["run"]
    finished = json.loads((tmp_path / "run" / MANIFEST).read_text())["stages"]
    assert {name: finished[name] for name in done} == done


def test_help_and_bad_options_load_neither_torch_nor_tvm() -> None:
    script = (
        "import sys; from hawq_tvm.cli.app import main\n"
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
    assert json.loads(result.stdout)["layers"][0]["name"] == "stem"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verfy",), "No such command 'verfy'. Did you mean 'verify'?"),
        (("run", "resnet20", "--budget-sise", "3"), "--budget-size"),
        (("run", "resnet19"), "unknown network 'resnet19'; did you mean resnet18?"),
        (("run", "resnet20", "--data", "digit"), "unknown data 'digit'; did you mean digits?"),
        (("run", f"{NETWORKS}"), "networks.py names no factory; add :factory"),
        (("run", "resnet20", "--weights", "nowhere.pt"), "the checkpoint nowhere.pt does not exist"),
        (("run", "resnet20", "--latency-table", "nowhere.json"), "the latency table nowhere.json does not exist"),
        (("run", "resnet20", "--ranges", "nowhere.json"), "the ranges nowhere.json: cannot be read (No such file"),
        (("run", "resnet20", "--scales", "nowhere.json"), "the scales nowhere.json: cannot be read (No such file"),
        (("verify", "runs/nowhere"), "runs/nowhere does not exist; make one with hawq-tvm run"),
    ],
)
def test_a_slip_is_answered_before_anything_heavy_is_loaded(arguments: tuple[str, ...], message: str) -> None:
    script = (
        "import sys; from hawq_tvm.cli.app import main\n"
        f"status = main({list(arguments)!r})\n"
        "assert not {'torch', 'tvm', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr


def test_the_shell_completes_verbs_and_options() -> None:
    for words, expected in (("hawq-tvm ver", ["verify"]), ("hawq-tvm run --budget-s", ["--budget-size"])):
        environment = {
            **os.environ, "_HAWQ_TVM_COMPLETE": "complete_bash",
            "COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")),
        }  # fmt: skip
        script = Path(sys.executable).parent / "hawq-tvm"
        result = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
        assert result.stdout.split() == expected
    assert "-h" in subprocess.run([script, "-h"], capture_output=True, text=True, check=True).stdout


def test_version_and_no_arguments(cli: Run) -> None:
    import hawq_tvm

    assert cli("--version") == (0, f"hawq_tvm {hawq_tvm.__version__}\n", "")
    status, out, err = cli()
    assert status == 2
    assert "verify" in out
    assert err == ""


def test_llvm_that_gives_up_does_not_choose_the_exit_status(scratch: Path, cli: Run) -> None:
    """Where a file cannot be written LLVM ends its process with 1, which from us means "difference found"."""
    before = {path: path.stat().st_mtime_ns for path in scratch.rglob("*")}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 2**10, limit[1]))  # of one file, as if the disk were full
    try:
        status, _, err = cli("compile", scratch, "--target", "llvm/portable")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert status == 2
    assert "compiling model.llvm-portable.so failed: " in err
    assert {path: path.stat().st_mtime_ns for path in scratch.rglob("*")} == before
    assert [path.name for path in scratch.parent.iterdir()] == [scratch.name]


def test_a_library_of_another_format_is_compiled_again(
    cli: Run, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "compiling for llvm  done before" in cli("compile", scratch)[2]
    monkeypatch.setattr("hawq_tvm.stages.compile.FORMAT", FORMAT + 1)
    assert "compiling for llvm  done before" not in cli("compile", scratch)[2]
