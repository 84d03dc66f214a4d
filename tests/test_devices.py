"""Devices by their addresses, and what a session with one may come to, on loopback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import rpc

from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.cache import write_entry
from hawq_tvm.backends.tvm.devices import session
from hawq_tvm.backends.tvm.devices.kernel_times import Conditions, read_time, write_time
from hawq_tvm.backends.tvm.devices.messages import Computed, DeviceFacts, Job, Kernel, Kernels, Network, Timed
from hawq_tvm.backends.tvm.devices.session import check_fit, check_kind, look, perform
from hawq_tvm.backends.tvm.devices.worker import plan_repeats
from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.backends.tvm.lower import Machine, lower
from hawq_tvm.backends.tvm.timing import KernelTime
from hawq_tvm.core import interpreter
from hawq_tvm.core.devices import Device
from hawq_tvm.core.errors import DeviceError, SettingsError
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.settings import Settings

from .builders import integers_of
from .rpc_servers import Served, free_port, needs_tracker, server, server_of_another_version, silent_listener, tracker

needs_linker = pytest.mark.skipif(find_c_compiler() is None, reason="libraries need a C compiler")


@pytest.mark.parametrize(
    "text", ["cpu", "cuda:0", "rpc:tracker.local:9190/t4", "rpc:10.0.0.3:9090", "rpc:[::1]:9190/a-key_2"]
)
def test_addresses_are_read_as_they_are_written(text: str) -> None:
    assert str(Device.parse(text)) == text
    assert Settings.from_json(Settings(device=Device.parse(text)).to_json()).device == Device.parse(text)


@pytest.mark.parametrize(
    "text", ["", "gpu", "rpc:", "rpc:host", "rpc:host:0", "rpc:host:x/k", "rpc:h:1/", "rpc:h:1/a b"]
)
def test_what_is_no_address_is_told_what_one_is(text: str) -> None:
    with pytest.raises(SettingsError, match="a device is cpu, cuda:0, rpc:HOST:PORT/KEY of a tracker, or rpc:HOST:"):
        Device.parse(text)


def test_another_gpu_of_this_machine_is_chosen_by_the_driver() -> None:
    with pytest.raises(SettingsError, match="this machine's GPU is cuda:0, got 'cuda:1'; CUDA_VISIBLE_DEVICES says"):
        Device.parse("cuda:1")


def test_one_source_of_latencies() -> None:
    for other in ({"latency_from": "model"}, {"latency_table": Path("table.json")}):
        with pytest.raises(SettingsError, match="--device measures them; say one of them"):
            Settings(device=Device(), **other)  # type: ignore[arg-type]
    assert Settings(device=Device()).wants_latency
    assert not Settings().wants_latency


def test_a_target_and_a_device_are_of_one_kind() -> None:
    check_kind(Device(), TARGETS["llvm"])
    check_kind(Device(cuda=True), TARGETS["nvidia/t4"])
    check_kind(Device("host", 1), TARGETS["nvidia/t4"])
    with pytest.raises(DeviceError, match="target 'nvidia/t4' is a GPU, and the device cpu is a CPU; give --target"):
        check_kind(Device(), TARGETS["nvidia/t4"])
    with pytest.raises(DeviceError, match="target 'llvm' is a CPU, and the device cuda:0 is a GPU"):
        check_kind(Device(cuda=True), TARGETS["llvm"])


T4 = DeviceFacts("Tesla T4", "7.5", 40, 1590.0, 15 << 30)
REMOTE = Device("host", 1, "key")


def test_kernels_are_timed_on_the_gpu_that_they_were_chosen_for() -> None:
    check_fit(REMOTE, T4, TARGETS["nvidia/t4"], "")
    a10 = DeviceFacts("NVIDIA A10", "8.6", 72, 1695.0)
    message = r"rpc:host:1/key is NVIDIA A10 \(sm_86\), and target 'nvidia/t4' is for sm_75; give --target nvidia/a10"
    with pytest.raises(DeviceError, match=message):
        check_fit(REMOTE, a10, TARGETS["nvidia/t4"], "")
    with pytest.raises(DeviceError, match="is for sm_75; no target is of its architecture"):
        check_fit(REMOTE, DeviceFacts("an old one", "6.1"), TARGETS["nvidia/t4"], "")


def test_cpus_run_what_was_compiled_for_them() -> None:
    here = Machine.resolve(TARGETS["llvm"])
    known = DeviceFacts("znver1", triple="x86_64-linux-gnu", threads=2)
    with pytest.raises(DeviceError, match=rf"is znver1, and target 'llvm' compiles for this machine's {here.cpu}; "):
        check_fit(REMOTE, known, TARGETS["llvm"], here.cpu)
    with pytest.raises(DeviceError, match="is a CPU that does not tell its name .*; give --target llvm/portable"):
        check_fit(REMOTE, DeviceFacts("", threads=2), TARGETS["llvm"], here.cpu)
    check_fit(REMOTE, DeviceFacts("", threads=2), TARGETS["llvm/portable"], "")
    with pytest.raises(DeviceError, match="is a CPU of riscv64, and target 'llvm/portable' compiles for "):
        check_fit(REMOTE, DeviceFacts("x", triple="riscv64-linux"), TARGETS["llvm/portable"], "")


def test_an_emulated_gpu_is_known_by_its_name() -> None:
    assert DeviceFacts("Tesla T4 (emulated)", "7.5").is_emulated
    assert not T4.is_emulated
    assert str(T4) == "Tesla T4 (sm_75, 40 multiprocessors, at most 1,590 MHz)"


def test_repeats_fill_their_time_and_slow_kernels_get_few() -> None:
    assert plan_repeats(10e-6) == (1000, 15)
    assert plan_repeats(0.5) == (1, 6)
    assert plan_repeats(60.0) == (1, 3)
    assert plan_repeats(0.0) == (10_000, 15)


# ---- sessions --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone() -> Iterator[Served]:
    """A server without a tracker."""
    with server() as found:
        yield found


def device_of(served: Served | str, key: str = "") -> Device:
    address = served if isinstance(served, str) else served.address
    return Device.parse(f"rpc:{address}/{key}" if key else f"rpc:{address}")


def test_a_server_says_what_it_is(alone: Served) -> None:
    facts = look(device_of(alone), gpu=False)
    assert facts.name == Machine.resolve(TARGETS["llvm"]).cpu
    assert facts.threads >= 1
    check_fit(device_of(alone), facts, TARGETS["llvm"], facts.name)
    assert look(device_of(alone), gpu=False, threads=1).threads == 1
    with pytest.raises(DeviceError, match=r"grants \d+ threads instead of 999; set TVM_NUM_THREADS=999 there"):
        look(device_of(alone), gpu=False, threads=999)


def test_a_server_without_a_gpu_says_so(alone: Served) -> None:
    with pytest.raises(DeviceError, match=rf"^rpc:{alone.address} sees no NVIDIA GPU: .*; see docs/t4.md$"):
        look(device_of(alone), gpu=True)


def test_nobody_there() -> None:
    port = free_port()
    with pytest.raises(DeviceError, match=rf"no RPC tracker answers at 127.0.0.1:{port} \(Connection refused\); start"):
        look(Device("127.0.0.1", port, "t4"), gpu=True)
    with pytest.raises(DeviceError, match="no RPC server answers at .* python -m tvm.exec.rpc_server, or check the"):
        look(Device("127.0.0.1", port), gpu=True)


def test_a_server_is_no_tracker(alone: Served) -> None:
    with pytest.raises(DeviceError, match=r"/cpu is no RPC tracker; of a server alone, say rpc:HOST:PORT \("):
        look(device_of(alone, "cpu"), gpu=False)


def test_another_version_of_tvm_is_refused() -> None:
    with server_of_another_version() as other:
        message = (
            r"runs another version of TVM than \S+: its runtime has no vm.builtin.shape_of; pip install apache-tvm=="
        )
        with pytest.raises(DeviceError, match=message):
            look(device_of(other), gpu=False)


def test_silence_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ANSWER_SECONDS", 0.5)
    with silent_listener() as address, pytest.raises(DeviceError, match=r"did not answer for 0 s while connecting; is"):
        look(device_of(address), gpu=False)


class _Ends:
    """Ends the process that unpickles it: TVM's client does so where a connection breaks in some ways."""

    def __reduce__(self) -> Any:
        import os

        return os._exit, (7,)


def test_a_client_that_ends_is_told(alone: Served) -> None:
    message = rf"^rpc:{alone.address} was lost while connecting \(TVM's client ended with status 7\)$"
    with pytest.raises(DeviceError, match=message):
        list(perform(Job(device_of(alone), _Ends(), None, 60.0)))  # type: ignore[arg-type]


@needs_tracker
def test_trackers_know_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    with tracker() as known:
        with pytest.raises(DeviceError, match=r"/t4 has no server of that key, nor of any other key; on the device,"):
            look(device_of(known, "t4"), gpu=True)
        with pytest.raises(DeviceError, match=r"is no RPC server that takes a session; of a tracker, say the key too"):
            look(device_of(known), gpu=True)
        with server(known, "cpu"):
            with pytest.raises(
                DeviceError, match=r"/t4 has no server of that key; the tracker has cpu; on the device, "
            ):
                look(device_of(known, "t4"), gpu=True)
            device = device_of(known, "cpu")
            assert look(device, gpu=False).threads >= 1
            held = rpc.connect_tracker(device.host, device.port).request("cpu")
            with monkeypatch.context() as patch:
                patch.setattr(session, "WAIT_SECONDS", 1.0)
                notes: list[str] = []
                with pytest.raises(DeviceError, match=r"^no server of rpc:\S+/cpu was free for 1 s; try later$"):
                    look(device, gpu=False, note=notes.append)
                assert notes == [f"{device} is busy; waiting until it is free"]
            del held
            assert look(device, gpu=False).threads >= 1, "a session that is closed is free again"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "model.llvm.so"
    build_library(lower(integers_of("Residual", ("w8a8", "w4a4")), TARGETS["llvm"], batch=2), path)
    return path


def noise() -> Any:
    graph = integers_of("Residual", ("w8a8", "w4a4"))
    x = np.random.default_rng(0).standard_normal((2, *graph.input_type.shape), np.float32)
    return interpreter.quantize_input(x, graph.input_type)


@needs_linker
def test_a_network_gives_its_integers_there_and_is_timed(alone: Served, library: Path) -> None:
    graph = integers_of("Residual", ("w8a8", "w4a4"))
    x = noise()
    facts, computed, *timed = perform(Job(device_of(alone), False, 1, 60.0, Network(library, x, 0.3)))
    assert isinstance(facts, DeviceFacts) and isinstance(computed, Computed)
    np.testing.assert_array_equal(computed.output, interpreter.run(graph, x)[graph.output])
    assert len(timed) > 1 and all(isinstance(item, Timed) and min(item.seconds) > 0 for item in timed)


@needs_linker
def test_a_session_ends_when_its_time_is_over(alone: Served, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end comes as TVM's word for it, or in the middle of an answer, on which TVM's client aborts."""
    monkeypatch.setattr(session, "_NEARLY_ALL", 0.5)  # this machine may be slow to see that it began
    message = r"ended the session after 4 s while [\w ]+: it is slower than that$"
    with pytest.raises(DeviceError, match=message):
        list(perform(Job(device_of(alone), False, 1, 4.0, Network(library, noise(), 600.0))))


@needs_linker
def test_what_fails_there_is_told(alone: Served, library: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz")
    work = Kernels(library, (Kernel("absent", "layer 'x' at w8a8", tmp_path / "none.npz"),))
    with pytest.raises(
        DeviceError, match=r"while timing layer 'x' at w8a8.*; what was timed is kept, and the same com"
    ):
        list(perform(Job(device_of(alone), False, 1, 60.0, work)))


@needs_linker
def test_a_server_that_dies_is_told(library: Path) -> None:
    with server() as mortal:
        answers = perform(Job(device_of(mortal), False, 1, 60.0, Network(library, noise(), 60.0)))
        next(answer for answer in answers if isinstance(answer, Timed))
        mortal.kill()
        with pytest.raises(DeviceError, match=r"was lost while timing the network \(.+\)$") as raised:
            list(answers)
        assert not re.search(r"\n", str(raised.value))


# ---- times that are kept ---------------------------------------------------------------------------------------------


def test_a_time_is_kept_under_all_that_decides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine, portable = (Machine.resolve(TARGETS[name]) for name in ("llvm", "llvm/portable"))
    facts = DeviceFacts("znver5", triple="x86_64-linux-gnu", threads=2)
    conditions = Conditions(machine, REMOTE, facts)
    keys = {
        conditions.key("kernel_1"),
        conditions.key("kernel_2"),
        Conditions(portable, REMOTE, facts).key("kernel_1"),
        Conditions(machine, Device("other", 1, "key"), facts).key("kernel_1"),
        Conditions(machine, REMOTE, replace(facts, threads=1)).key("kernel_1"),
    }
    assert len(keys) == 5
    assert Conditions(machine, REMOTE, facts).key("kernel_1") == conditions.key("kernel_1")
    taken = KernelTime((3e-6, 1e-6, 2e-6), 10)
    assert read_time(conditions.key("kernel_1")) is None
    write_time(conditions.key("kernel_1"), taken)
    assert read_time(conditions.key("kernel_1")) == taken
    assert read_time(conditions.key("kernel_2")) is None
    assert taken.median_us == pytest.approx(2.0)
    assert taken.spread_us == pytest.approx((1.2, 2.8))
    for damage in (b"{", b'{"seconds": [-1.0], "calls": 1}', b'{"seconds": []}'):
        write_entry("times", conditions.key("kernel_1"), damage)
        assert read_time(conditions.key("kernel_1")) is None
