"""Whole libraries under emulated CUDA libraries, in a process of their own."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hawq_tvm.core.errors import EmulatorError, RunError
from hawq_tvm.core.gpu import A100, L4, T4, GpuFacts
from hawq_tvm.emulator import DRIVER_TOO_OLD, NO_DEVICE, Conditions, Image, emulated_environment, emulated_session

from .cuda_library import Builder, Library, repeated_product
from .emulated import cuda, needs_compiler

pytestmark = needs_compiler


@dataclasses.dataclass(frozen=True)
class Built:
    """A library, its texts by the hashes of their images, and what the virtual machine does."""

    path: Path
    texts: dict[str, str]
    code: str

    @property
    def images(self) -> list[Image]:
        return [Image(*item) for item in self.texts.items()]


def build(path: Path, *, graph: bool = False, architecture: int = 75) -> Built:
    with emulated_session(T4, []) as session:
        return Built(path, *session.create(Builder, architecture).call("build", path, graph))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("built") / "library.so")


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("captured") / "library.so", graph=True)


def operand(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-(2**31), 2**31, (32, 32)).astype(np.int32)


def first_run(built: Built, gpu: GpuFacts = T4, conditions: Conditions | None = None, **changes: Any) -> Any:
    with emulated_session(gpu, changes.get("images", built.images), conditions) as session:
        return session.create(Library, built.path).call("run", operand(0))


@pytest.mark.parametrize("checked", [True, False])
def test_a_library_runs_whole(built: Built, checked: bool) -> None:
    with emulated_session(T4, built.images, Conditions(checked=checked)) as session:
        library = session.create(Library, built.path)
        for seed in range(3):
            assert np.array_equal(library.call("run", operand(seed)), repeated_product(operand(seed)))


def test_a_library_runs_as_a_graph(captured: Built) -> None:
    """The first run captures, the next ones launch the graph on what then lies in the buffers."""
    assert "vm.builtin.cuda_graph.run_or_capture" in captured.code
    with emulated_session(T4, captured.images) as session:
        library = session.create(Library, captured.path)
        for seed in range(3):
            assert np.array_equal(library.call("run", operand(seed)), repeated_product(operand(seed)))


def test_newer_gpus_run_the_ptx(built: Built) -> None:
    assert np.array_equal(first_run(built, L4), repeated_product(operand(0)))


def test_a_kernel_that_breaks_a_rule_is_told(built: Built) -> None:
    images = [Image(name, text.replace("tvm_builtin_cuda_cta_sync();", ";", 2)) for name, text in built.texts.items()]
    with pytest.raises(Exception, match=r"kernel 'product_kernel', .* race: it reads dynamic shared memory"):
        first_run(built, images=images)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [(NO_DEVICE, "no CUDA-capable device is detected"), (DRIVER_TOO_OLD, "driver version is insufficient")],
)
def test_a_gpu_in_trouble(built: Built, trouble: int, message: str) -> None:
    with pytest.raises(Exception, match=message):
        first_run(built, conditions=Conditions(trouble=trouble))


def test_a_gpu_that_is_too_small(built: Built) -> None:
    with pytest.raises(Exception, match="out of memory: 4096 bytes, of 3000 that are free"):
        first_run(built, dataclasses.replace(T4, memory_bytes=3000))


def test_a_library_for_another_architecture(tmp_path: Path) -> None:
    built = build(tmp_path / "library.so", architecture=80)
    assert np.array_equal(first_run(built, A100), repeated_product(operand(0)))
    with pytest.raises(Exception, match=r"the image is for compute_80, and the emulated Tesla T4 .* capability 7\.5"):
        first_run(built)


def test_a_library_without_its_text(built: Built) -> None:
    with pytest.raises(Exception, match=f"no CUDA text of the image with SHA-256 {next(iter(built.texts))}"):
        first_run(built, images=[])


def test_a_text_that_is_not_understood(built: Built) -> None:
    text = cuda("int* x_ptr", 'asm volatile("wgmma.fence.sync.aligned;");')
    with pytest.raises(EmulatorError, match="wgmma"), emulated_session(T4, [Image("0" * 64, text)]):
        pass


# ---- the process -----------------------------------------------------------------------------------------------------


class Witness:
    """What a process sees, and ways for it to go wrong."""

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def raise_ours(self) -> None:
        raise RunError("no run")

    def raise_unsendable(self) -> None:
        class Odd(Exception):
            pass

        raise Odd("odd")

    def end(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def exit(self, status: int) -> None:
        os._exit(status)

    def chatter(self) -> int:
        print("this is printed")
        subprocess.run(["echo", "so is this"], check=True)
        return 5

    def has_torch(self) -> bool:
        try:
            import torch
        except ImportError:
            return False
        return bool(torch)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with emulated_environment(T4, []) as environment:
        yield environment


def test_answers_and_errors_come_back() -> None:
    with emulated_session(T4, []) as session:
        witness = session.create(Witness)
        assert witness.call("chatter") == 5
        assert not witness.call("has_torch")
        with pytest.raises(RunError, match="no run"):
            witness.call("raise_ours")
        with pytest.raises(EmulatorError, match="Odd: odd"):
            witness.call("raise_unsendable")
        assert session.create(Witness).call("chatter") == 5, "it goes on"


@pytest.mark.parametrize(
    ("number", "message"), [(signal.SIGKILL, "Killed), as where memory"), (signal.SIGSEGV, "signal 11")]
)
def test_a_process_that_is_ended(number: int, message: str) -> None:
    with emulated_session(T4, []) as session:
        witness = session.create(Witness)
        with pytest.raises(EmulatorError, match=re.escape(message)):
            witness.call("end", int(number))
        with pytest.raises(EmulatorError, match="the process with the emulated GPU was ended"):
            witness.call("chatter")


def test_a_process_that_ends_itself() -> None:
    with emulated_session(T4, []) as session:
        witness = session.create(Witness)
        with pytest.raises(EmulatorError, match="ended with status 7"):
            witness.call("exit", 7)


def test_the_environment(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(environment["LD_LIBRARY_PATH"].split(os.pathsep)[0])
    assert {path.name for path in folder.iterdir()} == {"libcuda.so.1", "libcudart.so.13"}
    facts = Path(environment["HAWQ_TVM_EMULATOR"]).read_text()
    assert "name Tesla T4 (emulated)\ncompute_capability 7 5\nmultiprocessors 40\n" in facts
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    with emulated_environment(T4, []) as other:
        assert other["LD_LIBRARY_PATH"] == f"{folder}{os.pathsep}/elsewhere"
        description = Path(other["HAWQ_TVM_EMULATOR"])
    assert not description.exists()
    assert "HAWQ_TVM_EMULATOR" not in os.environ
