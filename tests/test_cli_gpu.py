"""The command line with a GPU as target, on a machine without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hawq_tvm
from hawq_tvm.backends.tvm import build
from hawq_tvm.backends.tvm.cuda.compiler import CHOICE, CudaCompiler
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.gpu import T4
from hawq_tvm.core.gpu_model import GRAPH_LAUNCH_US
from hawq_tvm.measure.verify import EMULATED, ON_GPU, Executor
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.settings import Settings
from hawq_tvm.stages.work import Work

from .conftest import NETWORKS, QUICK, Run
from .emulated import needs_compiler
from .fake_cuda import fake_compiler, use_fake_compiler

ALSO = ("--also", "nvidia/a10, nvidia/l4")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_compiler(monkeypatch)
    monkeypatch.setenv("COLUMNS", "300")


def test_compile_and_inspect(fake: None, cli: Run, scratch: Path) -> None:
    before = {path.name for path in scratch.iterdir()}
    status, out, _ = cli("compile", scratch, "--target", "nvidia/t4", *ALSO)
    assert status == 0
    assert "batch 1, sm_75, sm_86, sm_89 and PTX for newer GPUs); hawq-tvm verify" in out
    made = {path.name for path in scratch.iterdir()} - before
    assert made == {"model.nvidia-t4.so", "model.nvidia-t4.json", "model.nvidia-t4.cu"}
    status, out, _ = cli("inspect", scratch)
    assert status == 0
    assert "call on nvidia/t4" in out and "tensor core instructions were not looked for; pip install" in out
    summary = json.loads(cli("inspect", scratch, "--json")[1])
    launches = summary["launches"]["nvidia/t4"]
    layers = [launch["call"] for launch in launches if " as " not in launch["call"]]  # conversions beside them
    assert layers[:2] == ["conv1", "layer1.0.conv1"]
    predicted = summary["predictions"]["nvidia/t4"]
    assert predicted["calls"].keys() == {launch["call"] for launch in launches}
    times = [call["us"] for call in predicted["calls"].values()]
    assert all(us > GRAPH_LAUNCH_US for us in times)
    told = f"at {predicted['clock_mhz']:,.0f} MHz: {sum(times):,.1f} us in all; no device was asked"
    assert f"times on nvidia/t4 are a model's, {told}" in out
    assert f"activations on nvidia/t4: {summary['activation_bytes']['nvidia/t4']:,} bytes after planning" in out
    assert {launch["takes"]["registers"] for launch in launches} == {32}
    assert {launch["takes"]["occupancy"] for launch in launches} == {T4.architecture.occupancy(128, 32, 0)}
    assert summary["launches"].keys() == {"nvidia/t4"}, "a CPU launches nothing"
    assert "nvidia/t4" in summary["storages"]
    assert f"activations on nvidia/t4: {summary['activation_bytes']['nvidia/t4']:,} bytes after planning" in out
    assert "compiling for nvidia/t4  done before" in cli("compile", scratch, "--target", "nvidia/t4", *ALSO)[2]
    assert "compiling for nvidia/t4  done before" not in cli("compile", scratch, "--target", "nvidia/t4")[2]


def test_compiled_json_tells_the_kernels(fake: None, cli: Run, scratch: Path) -> None:
    table = json.loads(cli("compile", scratch, "--target", "nvidia/t4", "--json")[1])
    assert table["gpu"]["architectures"] == ["sm_75"] and table["gpu"]["ptx"] == "compute_75"
    assert set(table["gpu"]["functions"]) >= set(table["kernels"])
    assert json.loads(cli("compile", scratch, "--json")[1])["gpu"] is None


@needs_compiler
def test_verify_emulates_a_gpu_that_is_not_here(
    fake: None, cli: Run, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hawq_tvm.backends.tvm.cuda.device.DRIVER", "libcuda-of-nowhere.so.1")
    assert cli("compile", scratch, "--target", "nvidia/t4")[0] == 0
    status, out, err = cli("verify", scratch, "--target", "nvidia/t4", "--samples", "2")
    assert status == 0, err
    assert "there is no driver here" in err and "; verifying on an emulated Tesla T4" in err
    assert out.startswith("verified: 0 mismatches over ")
    assert ", 2 samples, " in out and "numpy = pytorch = onnxruntime = tvm on an emulated GPU" in out
    status, _, err = cli("bench", scratch, "--target", "nvidia/t4")
    assert status == 2
    assert "runs on an NVIDIA GPU, and there is no driver here" in err


def test_what_emulation_needs_is_told_in_the_runs_name(
    fake: None, cli: Run, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hawq_tvm.backends.tvm.cuda.device.DRIVER", "libcuda-of-nowhere.so.1")
    assert cli("compile", scratch, "--target", "nvidia/t4")[0] == 0
    verify = ("verify", scratch, "--target", "nvidia/t4", "--samples", "1", "--json")
    with monkeypatch.context() as patch:
        patch.setattr("hawq_tvm.emulator.toolchain.find_compiler", lambda: None)
        status, out, err = cli(*verify)
    assert (status, out) == (2, "")
    assert "error: no C++ compiler found (g++, clang++, c++), and the emulator compiles kernels with one" in err
    text = scratch / "model.nvidia-t4.cu"
    text.write_text(text.read_text() + "\n")
    status, out, err = cli(*verify)
    assert (status, out) == (2, "")
    assert f"error: {scratch}/model.nvidia-t4.cu is corrupted: it does not hash to what the manifest says" in err
    text.unlink()
    status, out, err = cli(*verify)
    assert (status, out) == (2, "")
    assert f"error: {scratch} has no model.nvidia-t4.cu; make it with hawq-tvm compile" in err


@needs_compiler
def test_a_run_for_a_gpu_that_is_not_here(
    fake: None, cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verified on an emulated GPU, over as many samples as that takes a while for, and not timed."""
    monkeypatch.setattr("hawq_tvm.backends.tvm.cuda.device.DRIVER", "libcuda-of-nowhere.so.1")
    monkeypatch.setattr("hawq_tvm.stages.verify.EMULATED_MACS", 1)
    monkeypatch.setattr("hawq_tvm.cli.commands.find_cuda_compiler", fake_compiler)
    arguments = (f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "-o", tmp_path / "run", *QUICK)
    status, out, err = cli("run", *arguments, "--target", "nvidia/t4")
    assert status == 0, err
    assert err.count("; latency was not measured") == 1
    assert "1 sample, " in out and "tvm on an emulated GPU" in out
    assert not (tmp_path / "run" / "bench.nvidia-t4.json").exists()


@needs_compiler
def test_how_many_samples_an_emulated_gpu_gets(
    fake: None, cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as take a while, whatever the run was made with; those that verify is told, the default number too."""
    monkeypatch.setattr("hawq_tvm.backends.tvm.cuda.device.DRIVER", "libcuda-of-nowhere.so.1")
    monkeypatch.setattr("hawq_tvm.stages.verify.EMULATED_MACS", 1)
    monkeypatch.setattr("hawq_tvm.cli.commands.find_cuda_compiler", fake_compiler)
    path = tmp_path / "run"
    arguments = (f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "-o", path, *QUICK)
    status, out, err = cli("run", *arguments, "--target", "nvidia/t4", "--verify-samples", "3")
    assert status == 0, err
    assert ", 1 sample, " in out
    verify = ("verify", path, "--target", "nvidia/t4", "--trust-code", "--json")
    for samples, compared in (((), 1), (("--samples", "2"), 2), (("--samples", Settings.verify_samples), 8)):
        status, out, err = cli(*verify, *samples)
        assert (status, json.loads(out)["samples"]) == (0, compared), err
    network = hawq_tvm.load(path, trust_code=True)
    assert network.verify("nvidia/t4", samples=5).samples == 8, "five more show nothing that eight did not"
    assert read_key(path)["samples"] == 5
    network.verify("nvidia/t4")
    assert read_key(path)["samples"] == 1


@needs_compiler
def test_a_run_is_verified_again_where_its_gpu_is(
    fake: None, cli: Run, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hawq_tvm.backends.tvm.cuda.device.DRIVER", "libcuda-of-nowhere.so.1")
    monkeypatch.setattr("hawq_tvm.stages.verify.EMULATED_MACS", 1)
    assert cli("compile", scratch, "--target", "nvidia/t4")[0] == 0
    network = hawq_tvm.load(scratch)
    emulated = network.verify("nvidia/t4", samples=2)
    assert emulated.ok and emulated.executors[-1] == EMULATED
    graph = network.graph
    library = SimpleNamespace(values=lambda x: interpreter.run(graph, x))
    with monkeypatch.context() as patch:
        patch.setattr("hawq_tvm.stages.work.why_not_here", lambda library, gpu: None)
        patch.setattr(Artifacts, "library", lambda self, target: library)
        real = network.verify("nvidia/t4", samples=2)
    assert real.ok and real.executors[-1] == ON_GPU
    assert network.verify("nvidia/t4", samples=2) == real, "emulated again, it replaces nothing"


def test_what_python_measures_is_the_library_that_is_there(
    fake: None, cli: Run, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the code for further GPUs that it was compiled for, by a machine with a disassembler and one without."""

    def no_compiler() -> CudaCompiler:
        raise CompileError("nothing compiles here")

    monkeypatch.setattr("hawq_tvm.stages.verify._library", interpreted)
    with monkeypatch.context() as patch:
        patch.setattr("hawq_tvm.stages.compile.find_disassembler", lambda: "/bin/nvdisasm")
        assert cli("compile", scratch, "--target", "nvidia/t4", *ALSO)[0] == 0
    library = scratch / "model.nvidia-t4.so"
    before = library.read_bytes()
    monkeypatch.setattr("hawq_tvm.stages.compile.find_disassembler", lambda: None)
    monkeypatch.setattr(build, "find_cuda_compiler", no_compiler)
    network = hawq_tvm.load(scratch)
    assert network.verify("nvidia/t4", samples=1).ok
    assert library.read_bytes() == before
    library.write_bytes(before[:-1])
    with pytest.raises(CompileError, match="nothing compiles here"):
        network.verify("nvidia/t4", samples=1)


@contextmanager
def interpreted(work: Work, _why: str | None) -> Iterator[tuple[str, Executor]]:
    """In place of a library, which costs no time."""
    graph = work.artifacts.graph
    yield EMULATED, lambda x: interpreter.run(graph, x)


def read_key(path: Path) -> dict[str, Any]:
    """The options that the T4's verification was made with."""
    stages = json.loads((path / "manifest.json").read_text())["stages"]
    options: dict[str, Any] = stages["verify nvidia/t4"]["key"]["options"]
    return options


def test_help_names_the_targets(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    status, out, _ = cli("compile", "--help")
    assert status == 0
    assert "nvidia/t4" in out and "nvidia/h100" in out and "--also" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--also", "nvidia/t5"), "unknown target 'nvidia/t5'; known: llvm,"),
        (("--also", "nvidia/t4"), "a library for 'llvm' cannot hold machine code for 'nvidia/t4' too; both must be"),
        (("--target", "nvidia/l4", "--also", "nvidia/a10"), "(sm_86), which is older; compile for --target nvidia/a10"),
    ],
)  # fmt: skip
def test_targets_that_make_no_sense(arguments: tuple[str, ...], message: str, cli: Run, mixed: Path) -> None:
    status, _, err = cli("compile", mixed, *arguments)
    assert (status, message in err) == (2, True), err


def test_without_a_cuda_compiler_nothing_is_written(cli: Run, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, "/nowhere/nvcc")
    before = sorted(path.name for path in scratch.iterdir())
    status, _, err = cli("compile", scratch, "--target", "nvidia/t4")
    assert status == 2
    assert f"{CHOICE} is '/nowhere/nvcc', and no such CUDA compiler works here" in err and "pip install" in err
    assert sorted(path.name for path in scratch.iterdir()) == before


def test_run_looks_for_the_compiler_first(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, "nothing")
    arguments = (f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "-o", tmp_path / "run", *QUICK)
    status, _, err = cli("run", *arguments, "--target", "nvidia/t4")
    assert status == 2
    assert f"{CHOICE} is 'nothing'" in err
    assert not (tmp_path / "run").exists()


def test_the_doctor_tells_of_the_compiler(cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hawq_tvm.backends.tvm.cuda.compiler.find_cuda_compiler", lambda: fake_compiler(75, 90))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checks = {check["name"]: check for check in json.loads(cli("doctor", "--json")[1])}
    assert checks["CUDA compiler"]["ok"] and not checks["CUDA compiler"]["needed"]
    assert checks["CUDA compiler"]["detail"] == (
        f"fake 1.0 (/bin/fake), for nvidia/t4, nvidia/h100; cache {tmp_path}/hawq_tvm/cuda"
    )
    monkeypatch.undo()
    monkeypatch.setenv(CHOICE, "nothing")
    checks = {check["name"]: check for check in json.loads(cli("doctor", "--json")[1])}
    assert not checks["CUDA compiler"]["ok"]
    assert "optional, for GPU targets; " in checks["CUDA compiler"]["detail"]


def test_bits_are_allocated_on_latencies_of_a_gpu_that_is_not_here(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "run"
    arguments = (
        "--data",
        f"{NETWORKS}:samples",
        "--bits",
        "w4a4,w8a8",
        "--rounding",
        "nearest",
        *QUICK[:4],
        "-o",
        path,
    )
    model = ("--target", "nvidia/t4", "--latency-from", "model", "--batch", "64")
    assert cli("profile", f"{NETWORKS}:residual", *arguments, *model)[0] == 0
    costs = json.loads((path / "costs.json").read_text())
    assert costs["sources"]["latency_us"].startswith("predicted for Tesla T4 at ")
    assert costs["sources"]["latency_us"].endswith("target nvidia/t4, batch 64; nothing was run")
    status, out, _ = cli("allocate", path, "--budget-latency", "50%", "--json")
    assert status == 0 and json.loads(out)["costs"]["latency_us"] <= json.loads(out)["limits"]["latency_us"]
    again = cli("profile", f"{NETWORKS}:residual", *arguments, *model)[2]
    assert "counting bytes and BOPS  done before" in again
    other = cli("profile", f"{NETWORKS}:residual", *arguments, *model[:1], "nvidia/l4", *model[2:])[2]
    assert "counting bytes and BOPS  done before" not in other
