"""The command line with a device behind TVM's own RPC tracker and server, on loopback.

A GPU is an emulated one, in the server's process: kernels, CUDA's timer and the graph run there, and its times are
never entered as measurements.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hawq_tvm
from hawq_tvm.backends.tvm import build
from hawq_tvm.backends.tvm.cache import cache_folder
from hawq_tvm.backends.tvm.cuda import report
from hawq_tvm.backends.tvm.cuda.emulated import emulated_program
from hawq_tvm.backends.tvm.devices import kernel_times
from hawq_tvm.backends.tvm.devices.messages import DeviceFacts, Timed
from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.backends.tvm.latency import TableKernels
from hawq_tvm.backends.tvm.lower import Machine, lower
from hawq_tvm.cli.app import main
from hawq_tvm.core.devices import Device
from hawq_tvm.core.errors import DeviceError
from hawq_tvm.core.gpu import T4
from hawq_tvm.core.specs import Bits, CostTable
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.emulator import emulated_environment
from hawq_tvm.emulator.text import split_kernels
from hawq_tvm.emulator.toolchain import compile_kernels
from hawq_tvm.measure import device_bench

from .builders import candidates_of, integers_of
from .conftest import NETWORKS, QUICK, Run
from .fake_cuda import fake_compiler, use_fake_compiler
from .rpc_servers import Served, mortal_server, needs_tracker, server, tracker

pytestmark = [
    needs_tracker,
    pytest.mark.skipif(find_c_compiler() is None, reason="libraries, and the emulated GPU, need a C++ compiler"),
]

PROFILE = ("profile", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "--rounding", "nearest", *QUICK[:4])


@pytest.fixture(scope="module")
def known() -> Iterator[Served]:
    with tracker() as found:
        yield found


@pytest.fixture
def times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was timed before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small network."""
    path = tmp_path_factory.mktemp("runs") / "small"
    arguments = ["run", *PROFILE[1:], "--bits", "8", "--bench-seconds", "0.2", "-o", path]
    assert main([str(argument) for argument in arguments]) == 0
    return path


@pytest.fixture
def scratch(small: Path, tmp_path: Path) -> Path:
    """A copy of that run to change."""
    return Path(shutil.copytree(small, tmp_path / "scratch"))


def kept() -> list[Path]:
    return [path for path in cache_folder("times").rglob("*") if path.is_file()]


def choices(run: Path) -> list[dict[str, Any]]:
    costs = json.loads((run / "costs.json").read_text())
    return [cost for layer in costs["layers"] for cost in layer["choices"].values()]


def source(run: Path) -> str:
    text: str = json.loads((run / "costs.json").read_text())["sources"]["latency_us"]
    return text


def test_a_device_that_dies_in_the_middle_and_one_that_goes_on(
    known: Served, times: None, cli: Run, tmp_path: Path
) -> None:
    """Bits 4 and 8 of five layers, timed through a tracker: three by one server, the rest by the next, then by none."""
    device = f"rpc:{known.address}/cpu"
    command = (*PROFILE, "--bits", "w4a4,w8a8", "--device", device, "--threads", "1", "-o")
    with mortal_server(known, "cpu", evaluations=7):
        status, out, err = cli(*command, tmp_path / "run")
    assert (status, out) == (2, "")
    told = rf"error: {device} was lost while timing layer '\w+' at w\da\d \(.*\); what was timed is kept, and the same "
    assert re.search(f"^{told}command goes on from there$", err, re.MULTILINE)
    assert not (tmp_path / "run" / "costs.json").exists()
    assert len(kept()) == 3
    with server(known, "cpu"):
        status, out, err = cli(*command, tmp_path / "run")
        assert status == 0, err
        assert "measuring how far each layer moves the result  done before" in err
        count = len(kept())
        assert f"; 3 of {count} kernels were timed before" in source(tmp_path / "run")
        assert re.match(
            rf"measured on \w+ at {device}, target llvm, batch 1, 1 thread, warm caches, median of 15 repeats of "
            r"10 ms by TVM's time evaluator there, copies between layers likewise; p90 per p10 \d+\.\d\d, at worst "
            r"\d+\.\d\d; the first kernel took ",
            source(tmp_path / "run"),
        )
        assert all(cost["latency_us"] > 0 for cost in choices(tmp_path / "run"))
        assert all(low <= cost["latency_us"] <= high for cost in choices(tmp_path / "run")
                   for low, high in [cost["latency_spread_us"]])  # fmt: skip
        again = cli(*command, tmp_path / "run")[2]
        assert "timing every layer's kernels  done before" in again
        assert cli(*command, tmp_path / "other")[0] == 0
        assert f"; {count} of {count} kernels were timed before" in source(tmp_path / "other")
        assert [cost["latency_us"] for cost in choices(tmp_path / "other")] == [
            cost["latency_us"] for cost in choices(tmp_path / "run")
        ], "a second network of the same shapes times nothing"
    status, out, _ = cli("allocate", tmp_path / "run", "--budget-latency", "90%", "--json")
    assert status == 0 and json.loads(out)["costs"]["latency_us"] > 0


def test_a_device_that_dies_at_a_copy_between_layers_keeps_what_was_timed(
    known: Served, times: None, cli: Run, tmp_path: Path
) -> None:
    """The kernels of all layers, then the copies of sums at 4 bits, which are timed and kept in the same way."""
    device = f"rpc:{known.address}/cpu"
    network = (f"{NETWORKS}:padded", *PROFILE[2:])
    command = ("profile", *network, "--bits", "w4a4,w8a8", "--device", device, "--threads", "1", "-o")
    kernels = TableKernels.of(candidates_of("Padded", Bits(4, 4), Bits(8, 8)), Machine.resolve(TARGETS["llvm"]))
    layers = len({kernel.code for kernel in kernels.layers.values()})
    with mortal_server(known, "cpu", evaluations=2 * layers + 1):
        status, out, err = cli(*command, tmp_path / "run")
    assert (status, out) == (2, "")
    assert re.search(rf"^error: {device} was lost while timing a copy at 4 bits \(requantize_\w+\)", err, re.MULTILINE)
    assert len(kept()) == layers
    with server(known, "cpu"):
        assert cli(*command, tmp_path / "run")[0] == 0
        count = len(kept())
        assert count == len(kernels.distinct) > layers
        assert f"; {layers} of {count} kernels were timed before" in source(tmp_path / "run")
        assert cli(*command, tmp_path / "other")[0] == 0
    tables = [
        CostTable.from_json(json.loads((tmp_path / name / "costs.json").read_text())) for name in ("run", "other")
    ]
    assert tables[0].borders == tables[1].borders, "a second network of the same shapes times nothing"
    by_layer = {border.second: border for border in tables[0].borders}
    for name in ("down1", "down2"):
        cost = by_layer[name].costs[Bits(8, 8), Bits(4, 4)]
        assert cost.latency_spread_us is not None and 0 < cost.latency_spread_us[0] <= cost.latency_us
        assert by_layer[name].source.startswith(f"measured: {name} reads a copy at 4 bits (requantize_")
    assert cli("allocate", tmp_path / "run", "--budget-latency", "100%")[0] == 0
    status, out, _ = cli("explain", tmp_path / "run", "down1")
    assert status == 0 and "between stem and down1: " in out


def test_a_device_that_is_not_there_is_told_before_anything_takes_time(known: Served, cli: Run, tmp_path: Path) -> None:
    status, _, err = cli(*PROFILE, "--device", f"rpc:{known.address}/t4", "--target", "nvidia/t4", "-o", tmp_path / "r")
    assert status == 2
    assert err.startswith(f"error: rpc:{known.address}/t4 has no server of that key")
    assert not (tmp_path / "r").exists()
    status, _, err = cli(*PROFILE, "--device", "cpu", "--target", "nvidia/t4", "-o", tmp_path / "r")
    assert (status, err.count("\n")) == (2, 1)
    assert "target 'nvidia/t4' is a GPU, and the device cpu is a CPU" in err


def test_a_network_is_timed_whole(known: Served, cli: Run, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = f"rpc:{known.address}/whole"
    with server(known, "whole"):
        status, out, err = cli("bench", scratch, "--device", device, "--seconds", "0.5", "--threads", "1", "--json")
        assert status == 0, err
        found = json.loads(out)
        assert found["machine"].endswith(f" at {device}")
        assert (found["threads"], found["layers_us"]) == (1, {})
        (ours,) = found["contenders"]
        assert ours["name"] == "hawq_tvm" and 0 < ours["p10_us"] <= ours["median_us"] <= ours["p90_us"]
        assert json.loads((scratch / "bench.llvm.json").read_text()) == found
        again = hawq_tvm.load(scratch, trust_code=True).benchmark(device=device, seconds=0.2, threads=1)
        assert again.machine == found["machine"] and again.contenders[0].runs >= 1
        found = json.loads((scratch / "bench.llvm.json").read_text())
        assert found == json.loads(json.dumps(again.to_json()))
        with monkeypatch.context() as patch:
            patch.setattr(device_bench, "OnnxRuntimeModule", _Zeros)
            status, _, err = cli("bench", scratch, "--device", device, "--seconds", "0.5")
    assert status == 2
    assert re.search(r"the network gives other integers than ONNX Runtime here: \d+ of \d+ differ, so its speed", err)
    assert json.loads((scratch / "bench.llvm.json").read_text()) == found, "what was there stays"


class _Zeros:
    """An executor that gives zeros."""

    def __init__(self, model: Any, *, threads: int) -> None:
        self._output = model.graph.output[0].name

    def run(self, x: Any) -> dict[str, Any]:
        return {self._output: np.zeros((len(x), 5), np.int32)}


# ---- an emulated GPU -------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_compiler(monkeypatch)
    monkeypatch.setattr(kernel_times, "find_cuda_compiler", fake_compiler)


@pytest.fixture
def emulated(fake: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, str]]:
    """The environment of an emulated T4 that knows every kernel which is compiled from now on."""
    with emulated_environment(T4, ()) as environment:
        compile = kernel_times.compile_library

        def compile_and_tell(*arguments: Any, **named: Any) -> Any:
            made = compile(*arguments, **named)
            with open(environment["HAWQ_TVM_EMULATOR"], "a") as description:
                for text in report.kernel_texts(made):
                    kernels = list(split_kernels(text.text).values())
                    for kernel, code in zip(kernels, compile_kernels(kernels, checked=True), strict=True):
                        description.write(f"kernel {text.image} {kernel.name} {code}\n")
            return made

        monkeypatch.setattr(kernel_times, "compile_library", compile_and_tell)
        yield environment


@pytest.mark.parametrize("where", ["rpc", "cuda:0"])
def test_kernels_of_a_gpu_run_there_and_emulated_times_are_not_entered(
    where: str,
    known: Served,
    emulated: Mapping[str, str],
    cli: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed: list[Timed] = []
    perform = kernel_times.perform

    def watched(*arguments: Any) -> Iterator[Any]:
        for answer in perform(*arguments):
            timed.extend([answer] if isinstance(answer, Timed) else [])
            yield answer

    monkeypatch.setattr(kernel_times, "perform", watched)
    run = tmp_path / "run"
    command = (*PROFILE, "--bits", "8", "--target", "nvidia/t4", "-o", run, "--device")
    before = kept()
    if where == "rpc":
        device = f"rpc:{known.address}/t4"
        with server(known, "t4", emulated):
            status, _, err = cli(*command, device)
    else:
        device = where
        for name in ("LD_LIBRARY_PATH", "HAWQ_TVM_EMULATOR"):
            monkeypatch.setenv(name, emulated[name])
        status, _, err = cli(*command, device)
    assert status == 0, err
    assert len(timed) >= 4 and all(item.seconds[0] > 0 for item in timed)
    told = (
        f"not measured: {len(timed)} kernels ran on Tesla T4 (emulated) (sm_75, 40 multiprocessors, at most 1,590 MHz) "
        f"at {device}, whose times say nothing of a GPU's"
    )
    assert told in " ".join(err.split())
    assert source(run) == told
    assert {cost["latency_us"] for cost in choices(run)} == {None}
    assert kept() == before
    status, _, err = cli("allocate", run, "--budget-latency", "90%")
    assert status == 2 and "hawq-tvm profile" in err


def test_a_gpus_network_runs_there(known: Served, fake: None, cli: Run, scratch: Path) -> None:
    assert cli("compile", scratch, "--target", "nvidia/t4")[0] == 0
    with emulated_program(scratch / "model.nvidia-t4.so") as environment, server(known, "whole-t4", environment):
        device = f"rpc:{known.address}/whole-t4"
        status, out, err = cli("bench", scratch, "--target", "nvidia/t4", "--device", device)
        assert (status, out) == (2, "")
        assert re.search(
            rf"error: {device} is Tesla T4 \(emulated\): the network ran there and gave the right integers, emulated "
            r"in [\d,]+ ms a call, which says nothing of a GPU and is not kept$",
            err,
            re.MULTILINE,
        )
        assert not (scratch / "bench.nvidia-t4.json").exists()
        status, _, err = cli("bench", scratch, "--target", "llvm", "--device", "cuda:0")
        assert status == 2 and "give --target and --device of one kind" in err


def test_a_library_that_the_gpu_cannot_run(monkeypatch: pytest.MonkeyPatch, fake: None, tmp_path: Path) -> None:
    library = tmp_path / "model.nvidia-t4.so"
    info = build.build_library(lower(integers_of("Residual", ("w8a8", "w4a4")), TARGETS["nvidia/t4"]), library)
    device = Device("host", 1, "key")
    device_bench.check_runs(device, DeviceFacts("NVIDIA H100", "9.0"), info)  # its driver compiles the PTX
    with pytest.raises(DeviceError, match=r"is an old one \(sm_61\), and the library holds machine code for sm_75 and"):
        device_bench.check_runs(device, DeviceFacts("an old one", "6.1"), info)
    with pytest.raises(
        DeviceError, match=r"has 0.00 GB of memory, and the library needs 0.00 GB; compile for a smaller"
    ):
        device_bench.check_runs(device, DeviceFacts("a small one", "7.5", memory_bytes=1000), info)
