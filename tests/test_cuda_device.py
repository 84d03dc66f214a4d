"""Loading a GPU's library: each thing that may be missing is a sentence, and none of it is asked of TVM first."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.cuda import device
from hawq_tvm.backends.tvm.cuda.device import check_device, runs_on
from hawq_tvm.backends.tvm.host import find_c_compiler
from hawq_tvm.backends.tvm.info import GpuInfo, PredictedTimes
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.backends.tvm.runtime import CompiledModule
from hawq_tvm.core.errors import RuntimeModuleError
from hawq_tvm.core.targets import TARGETS

from .builders import integers_of
from .fake_cuda import use_fake_compiler

LIBRARY = Path("model.nvidia-t4.so")
T4_CODE = GpuInfo(("sm_75",), "compute_75", "", {}, {}, 10**9, "", PredictedTimes(1590.0, {}))
A100_CODE = replace(T4_CODE, architectures=("sm_80", "sm_86"), ptx="compute_80")

RUNTIME = """
int cudaGetDeviceCount(int* count) { *count = COUNT; return STATUS; }
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? MAJOR : attribute == 76 ? MINOR : -1;
  return 0;
}
int cudaMemGetInfo(unsigned long* free, unsigned long* total) { *free = 0; *total = MEMORY; return MEMORY == 0; }
const char* cudaGetErrorString(int status) { return "unspecified launch failure"; }
"""

Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a driver and a runtime that say what they are told to."""

    def make(
        *, status: int = 0, count: int = 1, capability: tuple[int, int] = (7, 5), memory: int = 16 * 10**9
    ) -> None:
        said = {
            "STATUS": status,
            "COUNT": count,
            "MAJOR": capability[0],
            "MINOR": capability[1],
            "MEMORY": f"{memory}ul",
        }
        for name, text in (("DRIVER", ""), ("RUNTIME", RUNTIME)):
            source, library = tmp_path / f"{name}.c", tmp_path / f"{name}.so"
            source.write_text(text)
            options = [f"-D{key}={value}" for key, value in said.items()]
            command = [find_c_compiler() or "", "-x", "c", "-shared", "-fPIC", *options, source, "-o", library]
            subprocess.run(command, check=True)
            monkeypatch.setattr(device, name, str(library))

    return make


def fails(gpu: GpuInfo = T4_CODE) -> str:
    with pytest.raises(RuntimeModuleError) as caught:
        check_device(LIBRARY, gpu)
    return str(caught.value)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0), (12, 1)])
def test_a_gpu_that_will_do(capability: tuple[int, int], machine: Machine) -> None:
    machine(capability=capability)
    check_device(LIBRARY, T4_CODE)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DRIVER", "libcuda-of-nowhere.so.1")
    assert fails() == (
        "model.nvidia-t4.so runs on an NVIDIA GPU, and there is no driver here (libcuda-of-nowhere.so.1: cannot open "
        "shared object file: No such file or directory); take it to a machine that has one"
    )


def test_no_runtime(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setattr(device, "RUNTIME", "libcudart-of-nowhere.so.13")
    assert fails().endswith("No such file or directory); pip install nvidia-cuda-runtime")
    assert fails().startswith(
        "model.nvidia-t4.so runs on an NVIDIA GPU, and the CUDA 13 runtime is missing (libcudart-"
    )


def test_a_runtime_among_pythons_packages(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine()
    (tmp_path / "cu13" / "lib").mkdir(parents=True)
    Path(device.RUNTIME).rename(tmp_path / "cu13" / "lib" / "libcudart-test.so.13")
    monkeypatch.setattr(device, "RUNTIME", "libcudart-test.so.13")
    monkeypatch.setattr(device, "package_roots", lambda: (tmp_path / "cu12", tmp_path / "cu13"))
    check_device(LIBRARY, T4_CODE)


def test_a_driver_that_is_too_old(machine: Machine) -> None:
    machine(status=35)
    assert fails() == (
        "model.nvidia-t4.so needs an NVIDIA driver for CUDA 13, release 580 or newer, and this one is older; update it"
    )


@pytest.mark.parametrize("said", [{"status": 100}, {"count": 0}])
def test_a_driver_without_a_gpu(said: dict[str, int], machine: Machine) -> None:
    machine(**said)
    assert fails() == "model.nvidia-t4.so needs an NVIDIA GPU, and the driver finds none"


def test_a_gpu_that_has_failed(machine: Machine) -> None:
    machine(status=719)
    assert fails() == (
        "model.nvidia-t4.so needs an NVIDIA GPU, and CUDA fails with error 719 (unspecified launch failure)"
    )


def test_machine_code_of_a_newer_gpu(machine: Machine) -> None:
    machine(capability=(7, 5))
    assert fails(A100_CODE) == (
        "model.nvidia-t4.so holds machine code for sm_80, sm_86 and PTX for compute_80, which this GPU (sm_75) cannot "
        "run; compile for a target of its architecture"
    )


def test_a_gpu_with_too_little_memory(machine: Machine) -> None:
    machine(memory=10**9)
    check_device(LIBRARY, T4_CODE)
    machine(memory=10**9 - 1)
    assert fails(replace(T4_CODE, device_bytes=3 * 10**9)) == (
        "model.nvidia-t4.so needs 3.00 GB of device memory, and this GPU has 1.00 GB; compile for a smaller --batch"
    )
    machine(memory=0)
    check_device(LIBRARY, T4_CODE)  # where CUDA does not tell, the allocation will


@pytest.mark.parametrize(
    ("code", "capability", "expected"),
    [
        (T4_CODE, (7, 5), True),
        (T4_CODE, (7, 0), False),
        (T4_CODE, (8, 6), True),  # PTX
        (A100_CODE, (8, 0), True),
        (A100_CODE, (8, 9), True),  # sm_86 runs on 8.9
        (A100_CODE, (9, 0), True),  # PTX
        (replace(A100_CODE, ptx="compute_90"), (8, 9), True),
        (replace(A100_CODE, ptx="compute_90"), (9, 0), True),
        (replace(A100_CODE, architectures=("sm_86",), ptx="compute_86"), (8, 0), False),
        (replace(A100_CODE, architectures=("sm_120",), ptx="compute_120"), (12, 0), True),
        (replace(A100_CODE, architectures=("sm_120",), ptx="compute_120"), (10, 0), False),
    ],
)
def test_what_runs_where(code: GpuInfo, capability: tuple[int, int], expected: bool) -> None:
    assert runs_on(code, *capability) is expected


def test_a_library_is_not_loaded_where_its_gpu_is_not(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_compiler(monkeypatch)
    library = tmp_path / "model.nvidia-a100.so"
    build_library(lower(integers_of("Residual"), TARGETS["nvidia/a100"]), library)
    machine(capability=(7, 5))
    with pytest.raises(
        RuntimeModuleError, match=r"holds machine code for sm_80 and PTX for compute_80, which this GPU"
    ):
        CompiledModule(library)
    library.write_bytes(library.read_bytes()[:-100])
    with pytest.raises(RuntimeModuleError, match="is corrupted or truncated"):
        CompiledModule(library)


def test_what_fails_on_a_gpu_is_one_sentence(tmp_path: Path) -> None:
    """Of a CPU's library what fails is a bug of ours, and stays what it was."""
    library = tmp_path / "model.so"
    graph = integers_of("Residual")
    build_library(lower(graph, TARGETS["llvm"]), library)
    module = CompiledModule(library)

    def fail(*_: Any) -> None:
        raise ValueError("\nCUDA: out of memory\nframe 0\n")

    with module._turn():
        pass
    with pytest.raises(ValueError, match="out of memory"), module._turn():
        fail()
    module.info = replace(module.info, gpu=T4_CODE)
    with pytest.raises(RuntimeModuleError) as caught, module._turn():
        fail()
    assert str(caught.value) == f"{library} fails on the GPU: CUDA: out of memory"
    with pytest.raises(RuntimeModuleError, match="^as it is$"), module._turn():
        raise RuntimeModuleError("as it is")
